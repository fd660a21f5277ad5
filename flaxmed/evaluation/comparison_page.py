"""A comparison as one self-contained page: verdict first, then tables, figures, data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flaxmed.evaluation.comparison import Comparison
from flaxmed.evaluation.comparison_tables import (
    main_table,
    pair_table,
    rank_table,
    reading_notes,
    titled,
)
from flaxmed.evaluation.page import Drawing, Page, Section, Table, render_page
from flaxmed.evaluation.record import RunRecord
from flaxmed.evaluation.report import describe_images, group_note, undefined_notes
from flaxmed.evaluation.tables import ends, number, percent
from flaxmed.types import Task

_CAPTIONS = {
    "roc": "Sensitivity against the false positive rate as the threshold moves; the diagonal is "
    "guessing. {positive}",
    "curves": "Accuracy and loss by epoch; the diamond marks the epoch kept.",
}
_HEADINGS = {"roc": "ROC curves", "curves": "Training"}


def comparison_page(
    comparison: Comparison, *, figures: Mapping[str, Any], records: Mapping[str, RunRecord]
) -> str:
    """The comparison as HTML, whole.

    Args:
        comparison: of networks on the same images.
        figures: by name, as :func:`flaxmed.evaluation.figures.comparison_figures` makes them.
        records: by run, what its directory tells; empty: the chapters on it are left out.

    Example:
        >>> import numpy as np
        >>> from flaxmed.evaluation.comparison import compare
        >>> from flaxmed.types import Predictions
        >>> labels = np.arange(30) % 2
        >>> logits = np.random.default_rng(0).normal(size=(30, 2)) + np.eye(2)[labels]
        >>> p = Predictions(labels=labels, logits=logits, task="binary")
        >>> text = comparison_page(compare({"a": p, "b": p}), figures={}, records={})
        >>> "Positive class: 1." in text, text.count("<h1>")
        (True, 1)
    """
    first = comparison.first
    about = describe_images(first.n, first.task, first.classes, first.counts, width=0)
    positive = [] if first.positive is None else [f"Positive class: {first.positive}."]
    kind = "Synthetic images: the numbers say nothing about any disease or patient."
    if not comparison.source.synthetic:
        kind = group_note(first.n, first.groups)
    page = Page(
        title=f"Comparison: {comparison.source.title(comparison.n)}",
        lead=comparison.verdict,
        facts=(*positive, *(f"{line}." for line in about)),
        flags=(*comparison.flags(), kind),
        sections=tuple(_sections(comparison, figures, records)),
    )
    return render_page(page)


def _sections(
    comparison: Comparison, figures: Mapping[str, Any], records: Mapping[str, RunRecord]
) -> list[Section]:
    plan, level = comparison.plan, percent(comparison.plan.level)
    sections = [
        Section(
            "The networks",
            tables=(
                Table(f"With {level} intervals", main_table(comparison, stacked=True)),
                *_ranks(comparison),
            ),
            after=tuple(reading_notes(comparison)),
        )
    ]
    if comparison.pairs:
        about = (
            f"The primary metric is {plan.title}. Its p-values are corrected for the "
            f"{len(comparison.pairs)} pairs (Holm); all others are not, and serve to look further."
        )
        metrics = dict.fromkeys([plan.metric, "auc", "accuracy"])
        tables = [Table(titled(comparison, m), pair_table(comparison, m)) for m in metrics]
        sections.append(Section("Differences", notes=(about,), tables=tuple(tables)))
    sections += [_figure(comparison, name, figure) for name, figure in figures.items()]
    sections.append(_every_metric(comparison))
    return sections + _runs(records)


def _ranks(comparison: Comparison) -> tuple[Table, ...]:
    if not comparison.pairs:
        return ()
    by = titled(comparison, comparison.plan.metric)
    caption = f"By {by}; networks that share a letter were not told apart"
    return (Table(caption, rank_table(comparison)),)


def _figure(comparison: Comparison, name: str, figure: Any) -> Section:
    first = comparison.first
    positive = f"Positive class: {first.positive}."
    if first.positive is None:
        kinds = "labels" if first.task is Task.MULTILABEL else "classes, each against the rest"
        positive = f"Means over the {kinds}."
    heading = _HEADINGS.get(name, name.replace("_", " ").capitalize())
    caption = _CAPTIONS.get(name, heading).format(positive=positive)
    return Section(heading, drawings=(Drawing(figure, f"{heading} of each network", caption),))


def _every_metric(comparison: Comparison) -> Section:
    """All metrics of all networks, and every difference: to look further, folded away."""
    columns, level = comparison.all_columns, percent(comparison.plan.level)
    table = [["", *(column.name for column in columns)]]
    for name in comparison.first:
        means = [column.means[name] for column in columns]
        cells = [f"{number(m.spread.mean)} ({ends(m.interval)})" for m in means]
        table.append([titled(comparison, name), *cells])
    tables = [Table(f"Every metric, with {level} intervals", table)]
    if comparison.pairs:
        pairs = [["", *(f"{p.first} – {p.second}" for p in comparison.pairs)]]
        for name in comparison.first:
            found = [pair.differences[name] for pair in comparison.pairs]
            cells = [f"{number(d.value)} ({ends(d.interval)})" for d in found]
            pairs.append([titled(comparison, name), *cells])
        tables.append(Table(f"Every difference, with {level} intervals", pairs))
    reasons = undefined_notes([(c.name, report) for c in columns for report in c.reports])
    return Section("Every metric", tables=tuple(tables), after=tuple(reasons), folded=True)


def _runs(records: Mapping[str, RunRecord]) -> list[Section]:
    """The data, and the settings of each run: once what all share, by run what differs."""
    if not records:
        return []
    first = next(iter(records.values()))
    data = [Table("The data set", [["", "as recorded"], *first.data_rows()], words=True)]
    splits = first.split_table()
    data += [Table("Images of each split", splits)] if splits else []
    settings = {run: dict(r.setting_rows()) for run, r in records.items()}
    versions = {run: dict(r.version_rows()) for run, r in records.items()}
    tables = [*_shared("Settings", settings), *_shared("Versions", versions)]
    return [
        Section("Data and licence", tables=tuple(data), after=tuple(_overlaps(records))),
        Section("Settings, seeds and versions", tables=tuple(tables), folded=True),
    ]


def _overlaps(records: Mapping[str, RunRecord]) -> list[str]:
    """What each run recorded of images and patients in several splits; once what all did."""
    found: dict[str, list[str]] = {}
    for run, record in records.items():
        for sentence in record.overlaps():
            found.setdefault(sentence, []).append(run)
    return [
        sentence if len(names) == len(records) else f"{', '.join(names)}: {sentence}"
        for sentence, names in found.items()
    ]


def _shared(title: str, by_run: Mapping[str, Mapping[str, str]]) -> list[Table]:
    keys = list(dict.fromkeys(key for values in by_run.values() for key in values))
    differ = [key for key in keys if len({values.get(key) for values in by_run.values()}) > 1]
    same: Sequence[str] = [key for key in keys if key not in differ]
    first, tables = next(iter(by_run.values())), []
    if differ:
        rows = [[name, *(values.get(key, "") for key in differ)] for name, values in by_run.items()]
        tables.append(Table(f"{title} that differ between runs", [["run", *differ], *rows]))
    if same:
        rows = [[key, first[key]] for key in same]
        tables.append(Table(f"{title} of all runs", [["name", "value"], *rows], words=True))
    return tables
