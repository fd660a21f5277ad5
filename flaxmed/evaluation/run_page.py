"""The report of one run as a page: verdict first, then numbers, figures, pictures, data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flaxmed.evaluation.checks import decisions
from flaxmed.evaluation.page import Drawing, Folded, Page, Picture, Section, Table, render_page
from flaxmed.evaluation.record import RunRecord
from flaxmed.evaluation.report import Report, describe_images, group_note, undefined_notes
from flaxmed.evaluation.report_tables import (
    calibration_table,
    class_table,
    confusion_table,
    gap_notes,
    gap_table,
    metric_table,
    operating_caption,
    operating_table,
    subgroup_metrics,
    subgroup_table,
)
from flaxmed.evaluation.sentences import (
    MEANINGS,
    lead_sentences,
    positive_note,
    warnings_of,
)
from flaxmed.evaluation.tables import listed, number, percent
from flaxmed.evaluation.worst import worst_images
from flaxmed.types import Predictions, Task

_REFERENCES = (
    "What the reporting guidelines CLAIM (https://doi.org/10.1148/ryai.240300) and TRIPOD+AI "
    "(https://doi.org/10.1136/bmj-2023-078378) ask for is in MODEL_CARD.md beside this file.",
)


def report_page(
    report: Report,
    predictions: Predictions,
    *,
    figures: Mapping[str, Any],
    record: RunRecord | None = None,
) -> str:
    """The report of one run as one self-contained HTML page.

    Args:
        report: of ``predictions``.
        predictions: on the images of the report.
        figures: by name, as :func:`flaxmed.evaluation.figures.report_figures` makes them, each a
            matplotlib figure; a name that is not known is shown last, under its name.
        record: what the run directory tells; None: the chapters on it are left out.

    Example:
        >>> import numpy as np
        >>> from flaxmed.evaluation.report import evaluate
        >>> labels = np.arange(60) % 2
        >>> logits = np.stack([np.zeros(60), np.random.default_rng(0).normal(2 * labels - 1)], 1)
        >>> p = Predictions(labels=labels, logits=logits, task="binary")
        >>> text = report_page(evaluate(p), p, figures={})
        >>> text.count("<h1>"), "Positive class: 1." in text
        (1, True)
    """
    record = RunRecord() if record is None else record
    about = describe_images(report.n, report.task, report.classes, report.counts, width=0)
    positive = [] if report.positive is None else [positive_note(report)]
    page = Page(
        title=f"Report: {report.source.title(report.n)}",
        lead=lead_sentences(report),
        facts=(*positive, *(f"{line}." for line in about)),
        flags=warnings_of(report),
        sections=tuple(_sections(report, predictions, figures, record)),
        footer=_REFERENCES,
    )
    return render_page(page)


def _sections(
    report: Report, p: Predictions, figures: Mapping[str, Any], record: RunRecord
) -> list[Section]:
    drawn = _drawings(report, figures)
    known = {name for chapter in _FIGURES.values() for name in chapter}
    sections = [
        _metrics(report),
        _classes(report),
        Section("ROC curve", drawings=drawn("ROC curve")),
        Section("Precision and recall", drawings=drawn("Precision and recall")),
        _calibration(report, drawn("Calibration")),
        _operating_points(report, drawn("Thresholds")),
        _confusion(report, drawn("Decisions")),
        Section("Training", drawings=drawn("Training"), tables=_facts(record)),
        _errors(p, record),
        *_subgroups(report),
        _data(record),
        _settings(record),
        Section("More figures", drawings=_others(figures, known)),
        _meanings(report),
    ]
    return [s for s in sections if s.drawings or s.pictures or s.tables or s.notes]


def _metrics(report: Report) -> Section:
    title = f"Every metric, with its {percent(report.level)} interval"
    title += "" if report.positive is None else "; in brackets the positive class"
    return Section("Metrics", tables=(Table(title, metric_table(report)),), after=_notes(report))


def _notes(report: Report) -> tuple[str, ...]:
    """The report's notes, but for what stands above, or is not so for synthetic images."""
    said = {positive_note(report), group_note(report.n, report.groups), *warnings_of(report)}
    return tuple(note for note in report.notes() if note not in said)


def _classes(report: Report) -> Section:
    """Of a binary task the two classes mirror each other: nothing that is not said already."""
    if report.task is Task.BINARY:
        return Section("Classes")
    kind = "class" if report.task.exclusive else "label"
    caption = f"Each {kind} against the rest, with {percent(report.level)} intervals"
    notes = [f"{metric.title}: {metric.reason}." for metric in report.class_auc if metric.reason]
    return Section(
        f"Each {kind}", tables=(Table(caption, class_table(report)),), after=tuple(notes)
    )


def _calibration(report: Report, drawings: tuple[Drawing, ...]) -> Section:
    calibration = report.calibration
    if calibration is None:
        return Section("Calibration", drawings=drawings)
    notes = []
    temperature = calibration.temperature
    if temperature is not None and not temperature.reason:
        notes.append(
            f"A temperature of {temperature.value:.3f}, fitted on the validation images, divides "
            "the logits of the scaled predictions; no decision changes by it."
        )
    if calibration.test.reason:
        notes.append(f"Calibration is undefined: {calibration.test.reason}.")
        return Section("Calibration", notes=tuple(notes))
    return Section(
        "Calibration",
        notes=("Whether the probabilities can be taken at their word.",),
        drawings=drawings,
        tables=(Table("Calibration error and loss", calibration_table(calibration)),),
        after=(*notes, *calibration.notes()),
    )


def _operating_points(report: Report, drawings: tuple[Drawing, ...]) -> Section:
    points = report.operating_points
    if not points:
        return Section("Thresholds", drawings=drawings)
    table = Table(operating_caption(points, report.level), operating_table(points))
    reasons = dict.fromkeys(f"{p.of_class}, {p.rule}: {p.reason}." for p in points if p.reason)
    after = (
        "An image is called positive where the probability of the class is at or above the "
        "threshold. The intervals take the thresholds as given. Predictive values hold at the "
        "prevalence of these images.",
        *reasons,
    )
    return Section("Thresholds", drawings=drawings, tables=(table,), after=after)


def _confusion(report: Report, drawings: tuple[Drawing, ...]) -> Section:
    caption = "Images by truth (rows) and decision (columns)"
    if report.task is Task.MULTILABEL:
        caption = "How each label was decided: images with and without it"
    return Section(
        "Decisions",
        drawings=drawings,
        tables=(Table(caption, confusion_table(report)),),
        after=(_decision_rule(report.task),),
    )


def _decision_rule(task: Task) -> str:
    if task is Task.MULTILABEL:
        return "A label is given where its probability is above 0.5."
    if task is Task.BINARY:
        return "The class with the larger probability is decided for: a threshold of 0.5."
    return "The class with the largest probability is decided for."


def _errors(p: Predictions, record: RunRecord) -> Section:
    """The worst images that the run keeps a picture of, in the order of their errors."""
    kept = record.thumbnails
    if kept is None or not len(kept.ids):
        return Section("The worst errors")
    where = {name: i for i, name in enumerate(kept.ids.tolist())}
    rows = [row for row in worst_images(p, len(kept.ids)).tolist() if str(p.ids[row]) in where]
    if not rows:  # pictures of other images
        return Section("The worst errors")
    pictures = tuple(Picture(kept.images[where[str(p.ids[row])]], *_story(p, row)) for row in rows)
    notes = [
        f"The {len(pictures)} test images with the largest errors: those decided wrongly first, "
        "each kind by the loss of the probabilities. They show where the model fails, not how "
        "often. In brackets: the probability that the model gave.",
        "The licence of the data set holds for these images too.",
    ]
    if kept.images.shape[3] not in (1, 3):
        notes.append(f"Of the {kept.images.shape[3]} channels the first is shown.")
    return Section("The worst errors", notes=tuple(notes), pictures=pictures)


def _story(p: Predictions, row: int) -> tuple[str, tuple[str, ...]]:
    """What a picture is, and truth, decision, probability and id of its image."""
    scores, names = p.probabilities[row], list(p.classes)
    if p.task is Task.MULTILABEL:
        true, found = p.labels[row] == 1, scores > 0.5
        missed = [f"{names[c]} ({scores[c]:.2f})" for c in np.flatnonzero(true & ~found)]
        wrong = [f"{names[c]} ({scores[c]:.2f})" for c in np.flatnonzero(~true & found)]
        truth = listed([names[c] for c in np.flatnonzero(true)]) or "no label"
        lines = [f"truth: {truth}"]
        lines += [f"missed: {listed(missed)}"] if missed else []
        lines += [f"wrongly found: {listed(wrong)}"] if wrong else []
        lines += [] if missed or wrong else ["every label right"]
    else:
        truth = names[int(p.labels[row])]
        decided = int(decisions(scores[None], task=p.task)[0])
        lines = [
            f"truth: {truth} ({scores[int(p.labels[row])]:.2f})",
            f"decided: {names[decided]} ({scores[decided]:.2f})",
        ]
        lines += [] if decided != p.labels[row] else ["decided rightly"]
    return f"image {p.ids[row]}, truth {truth}", (*lines, f"id: {p.ids[row]}")


def _subgroups(report: Report) -> list[Section]:
    """Of each column what is asked for most, every metric folded away, and the largest gaps."""
    level = percent(report.level)
    sections = []
    for found in report.subgroups:
        by = f"by {found.column}, with {level} intervals"
        every = subgroup_metrics(found, report)
        which = [f" ({i} of {len(every)})" for i in range(1, 1 + len(every))]
        tables = (
            Table(f"B{by[1:]}", subgroup_table(found, report)),
            Folded(
                f"All {len(report)} metrics by {found.column}",
                tuple(
                    Table(f"Every metric {by}{part if len(every) > 1 else ''}", rows)
                    for part, rows in zip(which, every, strict=True)
                ),
            ),
            Table("Largest gap between two subgroups in every metric", gap_table(found)),
        )
        after = [
            "A gap says that the numbers differ, not why.",
            *gap_notes(found),
            *undefined_notes([(part.value, part) for part in found.parts]),
            *found.notes,
        ]
        title = f"Subgroups by {found.column}"
        sections.append(Section(title, tables=tables, after=tuple(after)))
    return sections


def _data(record: RunRecord) -> Section:
    if not record.dataset:
        return Section("Data and licence")
    tables = [Table("The data set", [["", "as recorded"], *record.data_rows()], words=True)]
    splits = record.split_table()
    tables += [Table("Images of each split", splits)] if splits else []
    return Section("Data and licence", tables=tuple(tables), after=tuple(record.overlaps()))


def _facts(record: RunRecord) -> tuple[Table, ...]:
    rows = record.fact_rows()
    return (Table("The run", [["", "as recorded"], *rows]),) if rows else ()


def _settings(record: RunRecord) -> Section:
    groups = {
        "Settings, the seed among them": record.setting_rows(),
        "Versions": record.version_rows(),
    }
    return Section(
        "Settings, seed and versions",
        tables=tuple(
            Table(caption, [["name", "value"], *rows], words=True)
            for caption, rows in groups.items()
            if rows
        ),
        folded=True,
    )


def _meanings(report: Report) -> Section:
    rows = [[metric.title, MEANINGS.get(metric.name, "")] for metric in report.values()]
    table = Table("What the metrics mean", [["metric", "meaning"], *rows], words=True)
    return Section("What the numbers mean", tables=(table,), folded=True)


# By chapter the figures that belong there, and what stands below each; {positive} names the class.
_FIGURES = {
    "ROC curve": {
        "roc": "Sensitivity against the false positive rate as the threshold moves; the diagonal "
        "is guessing. Shaded: where the curves of redrawn test sets lie, rate by rate (pointwise), "
        "not as whole curves. {positive}",
    },
    "Precision and recall": {
        "precision_recall": "PPV against sensitivity as the threshold moves. Guessing gives the "
        "share of the class: dotted, or in the legend. {positive}",
    },
    "Calibration": {
        "reliability": "Share that came true against the probability given. Bars: where a "
        "calibrated model's points would lie. {calibrated}",
    },
    "Thresholds": {
        "decision": "Net benefit of acting on the model, by the probability at which one would "
        "act, beside acting on every image and on none. {positive}",
    },
    "Decisions": {"confusion": "Counts, and shares of those of the same truth.{counted}"},
    "Training": {"curves": "Accuracy and loss by epoch; the diamond marks the epoch kept."},
}


def _drawings(report: Report, figures: Mapping[str, Any]) -> Callable[[str], tuple[Drawing, ...]]:
    """A function from a chapter's name to its figures."""
    auc, ap = number(report["auc"].value), number(report["average_precision"].value)
    alts = {
        "roc": f"ROC curve, AUC {auc}",
        "precision_recall": f"Precision-recall curve, average precision {ap}",
        "reliability": "Reliability diagram; the table below has its numbers",
        "decision": "Decision curve",
        "confusion": "Confusion matrix; the table below has its counts",
        "curves": "Training curves",
    }
    calibrated = (
        "All labels are pooled."
        if report.task is Task.MULTILABEL
        else "The probability is that of the decided class, whichever it is."
    )
    several = report.task in (Task.MULTICLASS, Task.ORDINAL)
    words = {
        "positive": positive_note(report),
        "counted": "" if several else f" {positive_note(report)}",
        "calibrated": calibrated,
    }

    def of(chapter: str) -> tuple[Drawing, ...]:
        return tuple(
            Drawing(figures[name], alts[name], text.format(**words))
            for name, text in _FIGURES[chapter].items()
            if name in figures
        )

    return of


def _others(figures: Mapping[str, Any], known: set[str]) -> tuple[Drawing, ...]:
    return tuple(
        Drawing(figure, name, name) for name, figure in figures.items() if name not in known
    )
