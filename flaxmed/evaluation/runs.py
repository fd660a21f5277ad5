"""Evaluation and comparison of run directories: reads what training wrote, writes reports."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxmed.evaluation import plots, schema
from flaxmed.evaluation.card import model_card
from flaxmed.evaluation.comparison import Comparison, compare
from flaxmed.evaluation.comparison_page import comparison_page
from flaxmed.evaluation.figures import comparison_figures, report_figures
from flaxmed.evaluation.flags import leak_flags
from flaxmed.evaluation.pairing import paired
from flaxmed.evaluation.plots import History
from flaxmed.evaluation.record import RunRecord
from flaxmed.evaluation.report import Report, Source, evaluate
from flaxmed.evaluation.run_page import report_page
from flaxmed.evaluation.tables import json_text, write_file
from flaxmed.evaluation.worst import read_thumbnails
from flaxmed.types import InputError, Predictions, check_shape, read_json, read_json_lines


def evaluate_run(
    run_dir: str | os.PathLike[str],
    *,
    subgroups: str | os.PathLike[str] | None = None,
    level: float = 0.95,
    sensitivity: float = 0.9,
    specificity: float = 0.9,
) -> Report:
    """Evaluate a finished run on its test images, and write its report into its directory.

    Files: ``report.html``, ``report.json``, ``MODEL_CARD.md`` and ``figures/``, each figure as PNG
    and SVG: ``roc``, ``precision_recall``, ``confusion``, ``reliability``, for binary tasks
    ``decision`` and, where the run logged its epochs, ``curves`` (accuracy and loss). All are made
    before the first is written, and each is written whole or not at all.

    Args:
        run_dir: run directory. Its validation predictions choose the temperature and thresholds;
            without them the report has neither.
        subgroups: a CSV file, see :func:`flaxmed.evaluation.subgroups.read_subgroups`.
        level: the wanted coverage of the intervals, in (0, 1).
        sensitivity, specificity: wanted of the thresholds that validation chooses.

    Raises:
        InputError: no such run, one that is not finished, a file in it that cannot be read, or
            what :func:`flaxmed.evaluate` refuses.
    """
    run = _read_run(run_dir)
    record = _read_record(run)
    report = evaluate(
        run.predictions,
        val=run.val,
        subgroups=subgroups,
        dataset=run.dataset,
        sensitivity=sensitivity,
        specificity=specificity,
        level=level,
    )
    source = dataclasses.replace(run.source, model=run.model)
    report = dataclasses.replace(report, source=source)
    if run.ideal is not None:
        best = paired(run.ideal, "ideal_test.npz", run.predictions, "test.npz")
        best = dataclasses.replace(best, groups=run.predictions.groups)
        ideal = dataclasses.replace(evaluate(best, level=level), source=run.source)
        report = dataclasses.replace(report, ideal=ideal)
    figures = report_figures(report, run.predictions, ideal=run.ideal)
    if run.history is not None:
        title = dataclasses.replace(report.source, split="").title()
        figures["curves"] = plots.history_figure(run.history, title=title)
    files = _figure_files(figures)
    files["report.json"] = json_text(report.to_dict())
    files["report.html"] = report_page(report, run.predictions, figures=figures, record=record)
    files["MODEL_CARD.md"] = model_card(report, record=record)
    _write_files(run.dir, files)
    return report


def compare_runs(run_dirs: Sequence[str | os.PathLike[str]], **plan: Any) -> Comparison:
    """Compare finished runs on one data set; runs of one network that differ in nothing but
    their seed are its seeds.

    Runs of one network whose settings differ are columns of their own, named by what differs.

    Args:
        run_dirs: run directories.
        plan: ``metric``, ``difference``, ``power`` and ``level``, as :func:`flaxmed.compare` takes
            them.

    Raises:
        InputError: no runs, a run given twice, runs on different data, what :func:`flaxmed.compare`
            refuses, or what :func:`evaluate_run` refuses.
    """
    return _compare(_read_runs(run_dirs), plan)


def write_comparison(
    run_dirs: Sequence[str | os.PathLike[str]], out_dir: str | os.PathLike[str], **plan: Any
) -> Comparison:
    """Compare runs as :func:`compare_runs` does, and write the result to ``out_dir``.

    Files: ``report.html``; ``comparison.txt``, ``.md``, ``.csv`` and ``.json``; ``figures/roc``
    and, where the runs logged their epochs, ``figures/curves``, each as PNG and SVG. All are made
    before the first is written; a file that is there is replaced.

    Raises:
        InputError: what :func:`compare_runs` refuses; a folder that cannot be written, or is a
            run's own.
    """
    out, runs = Path(out_dir), _read_runs(run_dirs)
    _refuse_run(out)
    comparison = _compare(runs, plan)
    records = {name: _read_record(run) for name, run in zip(_names(runs), runs, strict=True)}
    _write(comparison, out, records)
    return comparison


def save_comparison(comparison: Comparison, out_dir: str | os.PathLike[str]) -> None:
    """Write a comparison of predictions from anywhere to ``out_dir``, as :func:`write_comparison`
    does that of runs.

    Raises:
        InputError: a folder that cannot be written, or is a run's own.
    """
    _refuse_run(Path(out_dir))
    _write(comparison, Path(out_dir), {})


def _refuse_run(out: Path) -> None:
    if (out / "config.json").exists():
        raise InputError(f"{out}: holds a run; expected a folder for the comparison alone")


def _write(comparison: Comparison, out: Path, records: Mapping[str, RunRecord]) -> None:
    """Make every file before the first is written."""
    figures = comparison_figures(comparison)
    files = _figure_files(figures)
    files["report.html"] = comparison_page(comparison, figures=figures, records=records)
    files["comparison.txt"] = f"{comparison}\n"
    files["comparison.md"] = comparison.to_markdown()
    files["comparison.csv"] = comparison.to_csv()
    files["comparison.json"] = json_text(comparison.to_dict())
    _write_files(out, files)


def _figure_files(figures: Mapping[str, Any]) -> dict[str, str | bytes]:
    """Each figure in each kind, by its path."""
    return {
        f"figures/{name}.{kind}": plots.render_figure(figure, kind)
        for name, figure in figures.items()
        for kind in plots.KINDS
    }


def _write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        write_file(folder / name, content)


def _read_runs(run_dirs: Sequence[str | os.PathLike[str]]) -> list[_Run]:
    """Finished runs on one data set, each once."""
    runs = [_read_run(path) for path in run_dirs]
    if not runs:
        raise InputError("nothing to compare: expected at least one run directory")
    for i, run in enumerate(runs):
        if run.dir.resolve() in [other.dir.resolve() for other in runs[:i]]:
            raise InputError(f"{run.dir}: given twice")
        if run.source.dataset != runs[0].source.dataset:
            raise InputError(
                f"{run.dir} is a run on {run.source.dataset}, {runs[0].dir} on "
                f"{runs[0].source.dataset}; only runs on one data set can be compared"
            )
    return runs


def _compare(runs: Sequence[_Run], plan: Mapping[str, Any]) -> Comparison:
    groups = _group(runs)
    costs = {name: _run_costs(group) for name, group in groups.items()}
    made = compare(
        {name: [run.predictions for run in group] for name, group in groups.items()},
        costs=costs,
        ideal=next((run.ideal for run in runs if run.ideal is not None), None),
        **plan,
    )
    columns = tuple(
        dataclasses.replace(
            column,
            reports=tuple(map(_with_leaks, column.reports, groups[column.name])),
            histories=tuple(run.history for run in groups[column.name] if run.history is not None),
        )
        for column in made.columns
    )
    named = dict(zip([run.dir for run in runs], _names(runs), strict=True))
    names = {name: tuple(named[run.dir] for run in group) for name, group in groups.items()}
    return dataclasses.replace(made, columns=columns, source=runs[0].source, runs=names)


def _with_leaks(report: Report, run: _Run) -> Report:
    """The report with what its own run's files tell of images in two splits."""
    found = leak_flags(run.predictions, run.val, run.dataset)
    return dataclasses.replace(report, flags=(*report.flags, *found))


def _names(runs: Sequence[_Run]) -> list[str]:
    """The runs' folders, with their paths where two folders share a name."""
    names = [run.dir.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.dir) for run in runs]


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    """What a run directory holds."""

    dir: Path
    model: str
    settings: Mapping[str, Any]
    source: Source
    predictions: Predictions
    val: Predictions | None
    ideal: Predictions | None
    history: History | None
    facts: Mapping[str, Any]
    dataset: Mapping[str, Any]


# What makes no other network of a run: the seed, how and where its images were fetched, versions.
_NOT_SETTINGS = ("seed", "model", "dataset", "fetch", "eval_batch_size", "versions", "changed")


def _read_run(run_dir: str | os.PathLike[str]) -> _Run:
    """Read a finished run's directory.

    Raises:
        InputError: no such run, one that is not finished, or a file in it that cannot be read.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise InputError(f"{path}: no such run directory")
    config = read_json(path / "config.json", wanted="the settings of a run")
    if not isinstance(config.get("model"), str):
        raise InputError(f"{path / 'config.json'}: lacks the key 'model'")
    if not (path / "predictions" / "test.npz").is_file():
        raise InputError(
            f"{path}: no predictions/test.npz; expected a finished run (one that was interrupted "
            "can be resumed)"
        )
    about = read_json(path / "dataset.json", wanted="what a run was trained on")
    facts = read_json(path / "run.json", wanted="a finished run")
    check_shape(config, schema.CONFIG, str(path / "config.json"))
    check_shape(about, schema.DATASET, str(path / "dataset.json"))
    check_shape(facts, schema.RUN, str(path / "run.json"))
    val, ideal = (path / "predictions" / f"{name}.npz" for name in ("val", "ideal_test"))
    return _Run(
        dir=path,
        model=config["model"],
        settings=config,
        source=Source(
            dataset=str(about.get("name") or config.get("dataset", "")),
            split="test",
            synthetic=bool(about.get("synthetic", False)),
        ),
        predictions=Predictions.load(path / "predictions" / "test.npz"),
        val=Predictions.load(val) if val.is_file() else None,
        ideal=Predictions.load(ideal) if ideal.is_file() else None,
        # a linear probe has no epochs
        history=None
        if facts.get("linear_probe")
        else _read_history(path / "metrics.jsonl", facts.get("best_epoch")),
        facts=facts,
        dataset=about,
    )


def _read_record(run: _Run) -> RunRecord:
    """What the run's files tell beside its predictions."""
    path = run.dir / "thumbnails.npz"
    kept = read_thumbnails(path) if path.is_file() else None
    return RunRecord(run.settings, run.dataset, run.facts, kept)


_SERIES = ("train_accuracy", "val_accuracy", "train_loss", "val_loss", "val_auc")


def _read_history(path: Path, best: Any) -> History | None:
    """The epochs of ``metrics.jsonl``, counted from 1; of an epoch logged twice the later line."""
    if not path.is_file():
        return None
    rows = {}
    for place, row in read_json_lines(path, wanted="the epochs of a run"):
        if not isinstance(epoch := row.get("epoch"), int) or not 0 <= epoch < 2**31:
            raise InputError(f"{place}: expected an object with the number 'epoch'")
        check_shape(row, dict.fromkeys(_SERIES, (*schema.NUMBER, None)), place)
        rows[epoch] = row
    if not rows:
        return None
    epochs = sorted(rows)
    series = {
        name: np.array([_float(rows[epoch].get(name)) for epoch in epochs])
        for name in _SERIES
        if any(name in row for row in rows.values())
    }
    kept = int(best) + 1 if isinstance(best, int) else None
    return History(np.array(epochs) + 1, series, kept)


def _group(runs: Sequence[_Run]) -> dict[str, list[_Run]]:
    """Runs by the name of their column; those that differ in nothing but the seed share one."""
    flat = {run.dir: _flatten(run.settings) for run in runs}
    groups: dict[str, list[_Run]] = {}
    for run in runs:
        same_model = [flat[other.dir] for other in runs if other.model == run.model]
        telling = _telling(same_model)
        parts = [
            _shown(key, flat[run.dir].get(key), [settings.get(key) for settings in same_model])
            for key in telling[:3]
        ]
        name = ", ".join([run.model, *parts, *(["..."] if len(telling) > 3 else [])])
        groups.setdefault(name, []).append(run)
    for name, group in groups.items():
        if any(flat[run.dir] != flat[group[0].dir] for run in group):
            raise InputError(
                f"{name}: runs differ in more settings than a column can name: "
                f"{', '.join(str(run.dir) for run in group)}"
            )
        seeds = [run.settings.get("seed") for run in group]
        for i, run in enumerate(group):
            if run.settings.get("seed") in seeds[:i]:
                twin = group[seeds.index(run.settings.get("seed"))]
                raise InputError(
                    f"{run.dir} and {twin.dir} are the same run ({name}, seed {seeds[i]}); "
                    "expected different seeds or settings"
                )
    return groups


def _telling(each: Sequence[Mapping[str, str]]) -> list[str]:
    """The settings by which runs can be told apart: of those that differ the first, as few as do.

    What a run started from, and which layers were trained, come first: of fine-tuned runs stem and
    preprocessing differ as well, because the weights decide them.
    """
    keys = dict.fromkeys(key for settings in each for key in settings)
    differing = [key for key in keys if len({settings.get(key) for settings in each}) > 1]
    differing.sort(key=lambda key: not key.startswith(("weights", "finetune.")))

    def kinds(some: Sequence[str]) -> int:
        return len({tuple(settings.get(key) for key in some) for settings in each})

    counts = (n for n in range(len(differing) + 1) if kinds(differing[:n]) == kinds(differing))
    return differing[: next(counts)]


def _shown(key: str, value: str | None, values: Sequence[str | None]) -> str:
    """A setting in the name of a column; ``values`` are what it is in all runs of the network."""
    if key != "weights":
        return f"{key.split('.')[-1]}={value}"
    if value in (None, "None"):
        return "from scratch"
    name = Path(str(value)).name
    alone = all(other == value for other in values if Path(str(other)).name == name)
    return f"from {name if alone else value}"


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by dotted name, as text; those that make no other network left out."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if not prefix and key in _NOT_SETTINGS:
            continue
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:  # 0 and 0.0 are one setting
            whole = isinstance(value, float) and value.is_integer()
            flat[prefix + key] = str(int(value) if whole else value)
    return flat


def _run_costs(group: Sequence[_Run]) -> dict[str, Any]:
    facts = [run.facts for run in group]
    costs: dict[str, Any] = {}
    if "parameters" in facts[0]:
        costs["parameters"] = facts[0]["parameters"]
    if all("train_seconds" in fact for fact in facts):
        costs["train_seconds"] = [fact["train_seconds"] for fact in facts]
    return costs


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
