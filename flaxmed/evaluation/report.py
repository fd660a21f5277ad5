"""The report on one set of predictions: every metric with its interval, and what to mind."""

from __future__ import annotations

import dataclasses
import math
import os
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning

from flaxmed.evaluation.bootstrap import DRAWS
from flaxmed.evaluation.calibration import Calibration, calibrate
from flaxmed.evaluation.estimates import (
    Metric,
    Sampling,
    class_areas,
    class_shares,
    estimate_metrics,
)
from flaxmed.evaluation.flags import collapse_flags, leak_flags
from flaxmed.evaluation.metrics import confusion_matrix
from flaxmed.evaluation.operating import (
    DecisionCurve,
    OperatingPoint,
    decision_curve,
    default_points,
)
from flaxmed.evaluation.subgroups import (
    Part,
    SubgroupColumns,
    Subgroups,
    read_subgroups,
    split_metrics,
)
from flaxmed.types import Predictions, Task

IDEAL = "ideal observer"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where predictions come from: what titles say.

    Attributes:
        dataset: name of the data set, or "".
        split: ``"test"``, or "".
        model: name of the network, or "".
        synthetic: whether the images are simulated.
    """

    dataset: str = ""
    split: str = ""
    model: str = ""
    synthetic: bool = False

    def title(self, n: int | None = None) -> str:
        """Such as ``"breastmnist test, n = 156"`` or ``"phantom test (synthetic), n = 512"``."""
        head = " ".join(filter(None, (self.dataset, self.split))) or "predictions"
        parts = [head + (" (synthetic)" if self.synthetic else "")]
        parts += [self.model] if self.model else []
        return ", ".join(parts + ([f"n = {n}"] if n is not None else []))

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        return dataclasses.asdict(self)


NO_SOURCE = Source()


@dataclasses.dataclass(frozen=True, eq=False)
class Report(Mapping[str, Metric]):
    """What :func:`evaluate` found: a mapping from metric name to :class:`Metric`.

    Attributes:
        n: number of images.
        task: what the labels mean.
        classes: class (or label) names.
        counts: images of each class (multi-label: with each label).
        positive: the positive class of a binary task, by name, else None.
        metrics: every metric of :data:`flaxmed.evaluation.metrics.METRICS` that applies.
        class_auc: the one-vs-rest AUC of each class, in the order of ``classes``.
        class_shares: sensitivity, specificity, PPV and NPV of each class against the rest.
        confusion: ``[k, k]``, rows are the truth; multi-label ``[l, 2, 2]``.
        level: the wanted coverage of the intervals.
        groups: how many groups (patients) the images are of, or None where that is not known.
        flags: signs of collapse and of images in two splits, a sentence each.
        calibration: reliability on these images, and after scaling by a temperature fitted on
            validation where that is given; None where not asked for.
        operating_points: thresholds chosen on validation, and what they give here.
        decision_curve: net benefit by threshold probability, for binary tasks, else None.
        subgroups: every metric in each part of the images, by column.
        source: data set, split and network, as far as known.
        ideal: the ideal observer's report on the same images, where there is one, else None.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
        >>> p = Predictions.from_probabilities(scores, labels=np.array([0, 1, 0]), task="binary")
        >>> report = evaluate(p)
        >>> list(report)[:4], report["specificity"].value, report["specificity"].positive
        (['accuracy', 'balanced_accuracy', 'loss', 'auc'], 0.5, '1')
    """

    n: int
    task: Task
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    positive: str | None
    metrics: Mapping[str, Metric]
    class_auc: tuple[Metric, ...]
    class_shares: Mapping[str, tuple[Metric, ...]]
    confusion: np.ndarray
    level: float = 0.95
    groups: int | None = None
    flags: tuple[str, ...] = ()
    calibration: Calibration | None = None
    operating_points: tuple[OperatingPoint, ...] = ()
    decision_curve: DecisionCurve | None = None
    subgroups: tuple[Subgroups, ...] = ()
    source: Source = NO_SOURCE
    ideal: Report | None = None

    def __getitem__(self, name: str) -> Metric:
        if name not in self.metrics:
            raise KeyError(f"{name!r}; this report has {', '.join(self.metrics)}")
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def __str__(self) -> str:
        from flaxmed.evaluation.report_text import report_text

        return report_text(self)

    def __repr__(self) -> str:
        values = ", ".join(f"{m.name}={m.value:.4g}" for m in self.metrics.values())
        return f"<Report n={self.n} {values}>"

    def to_markdown(self) -> str:
        """The report as GitHub Markdown."""
        from flaxmed.evaluation.report_text import report_markdown

        return report_markdown(self)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None, with its reason."""
        values = {
            **self.source.to_dict(),
            "n": self.n,
            "task": str(self.task),
            "classes": [
                {"name": name, "images": count, "auc": self.class_auc[c].to_dict()}
                | {share: found[c].to_dict() for share, found in self.class_shares.items()}
                for c, (name, count) in enumerate(zip(self.classes, self.counts, strict=True))
            ],
            "positive": self.positive,
            "level": self.level,
            "groups": self.groups,
            "flags": list(self.flags),
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
            "confusion": self.confusion.tolist(),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "decision_curve": self.decision_curve and self.decision_curve.to_dict(),
            "operating_points": [point.to_dict() for point in self.operating_points],
            "subgroups": [column.to_dict() for column in self.subgroups],
            "notes": self.notes(),
        }
        return values if self.ideal is None else {**values, "ideal_observer": self.ideal.to_dict()}

    def notes(self) -> list[str]:
        """How the numbers are to be read, a sentence or two each."""
        named = [] if self.positive is None else [f"Positive class: {self.positive}."]
        macro = macro_notes(self.task, self.classes)
        interval = interval_notes(self.metrics.values())
        return [
            *named,
            *macro,
            group_note(self.n, self.groups),
            *interval,
            *undefined_notes([("", self)]),
        ]


def evaluate(
    predictions: Predictions,
    *,
    val: Predictions | None = None,
    subgroups: SubgroupColumns | str | os.PathLike[str] | None = None,
    dataset: Mapping[str, Any] | None = None,
    sensitivity: float = 0.9,
    specificity: float = 0.9,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Report:
    """Every metric that applies to ``predictions``, with its interval; calibration; flags.

    Args:
        predictions: of one model on one split; where they have groups (patients), every interval
            respects them.
        val: its predictions on the validation split, on which a temperature and the thresholds
            are chosen; without it the report has neither.
        subgroups: by column (``"sex"``), a value for each image id; or a CSV file, see
            :func:`flaxmed.evaluation.subgroups.read_subgroups`.
        dataset: what a run recorded about its data, for the flags on identical images.
        sensitivity, specificity: wanted of the thresholds that validation chooses (binary tasks).
        level: the wanted coverage of the intervals, in (0, 1).
        draws: bootstrap draws of the metrics' intervals.
        seed: of these and of the calibration's.

    Returns:
        The report; an undefined metric is NaN with its reason, and a warning.

    Raises:
        InputError: a level outside (0, 1); validation of another task; subgroups of other images.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
        >>> report = evaluate(
        ...     Predictions.from_probabilities(scores, labels=np.array([0, 1, 0, 1]), task="binary")
        ... )
        >>> auc = report["auc"]
        >>> auc.value, round(auc.low, 2), auc.high
        (1.0, 0.39, 1.0)
    """
    p, scores = predictions, predictions.probabilities
    sampling = Sampling(level, draws, seed)
    if isinstance(subgroups, str | os.PathLike):
        subgroups = read_subgroups(subgroups)
    if p.task is Task.MULTILABEL:
        counts = p.labels.sum(axis=0)
    else:
        counts = np.bincount(p.labels, minlength=len(p.classes))
    report = Report(
        n=len(p),
        task=p.task,
        classes=p.classes,
        counts=tuple(counts.tolist()),
        positive=None if p.positive is None else p.classes[p.positive],
        metrics=estimate_metrics(p, sampling),
        class_auc=class_areas(p, sampling),
        class_shares=class_shares(p, sampling),
        confusion=confusion_matrix(p.labels, scores, task=p.task),
        level=level,
        groups=None if p.groups is None else len(np.unique(p.groups)),
        flags=(*collapse_flags(p, level=level), *leak_flags(p, val, dataset)),
        calibration=calibrate(p, val, level=level, seed=seed),
        operating_points=_points(val, p, sensitivity, specificity, level),
        decision_curve=decision_curve(p) if p.task is Task.BINARY and len(p) else None,
        subgroups=() if subgroups is None else split_metrics(p, subgroups, sampling),
    )
    for note in undefined_notes([("", report)]):
        warnings.warn(note, UndefinedMetricWarning, stacklevel=2)
    return report


def _points(
    val: Predictions | None, p: Predictions, sensitivity: float, specificity: float, level: float
) -> tuple[OperatingPoint, ...]:
    wanted = {"sensitivity": sensitivity, "specificity": specificity}
    return () if val is None else default_points(val, p, **wanted, level=level)


def describe_images(
    n: int, task: Task, classes: Sequence[str], counts: Sequence[int], width: int = 96
) -> list[str]:
    """How many images, and how many of each class; in lines of ``width``, 0 for a single one."""
    each = "; ".join(f"{name} {count}" for name, count in zip(classes, counts, strict=True))
    text = f"{n} image{'s' if n != 1 else ''}{'' if task.exclusive else ', by label'} ({each})"
    return textwrap.wrap(text, width, subsequent_indent="  ") if width else [text]


def macro_notes(task: Task, classes: Sequence[str]) -> list[str]:
    """How the numbers of a task with more than one curve are to be read."""
    if task is Task.BINARY:
        return []
    if task is Task.MULTILABEL:
        return [f"Every number is a mean over the {len(classes)} labels."]
    return [
        "AUC, average precision, F1, sensitivity, specificity, PPV and NPV are means over the "
        f"{len(classes)} classes of each against the rest."
    ]


def group_note(n: int, groups: int | None) -> str:
    """What the intervals assume about images that belong together."""
    if groups is None:
        return (
            "Which images share a patient is not known: intervals take all as independent, and "
            "are too narrow if some are not."
        )
    return f"Intervals respect that the {n} images are of {groups} groups (patients)."


def interval_notes(metrics: Iterable[Metric]) -> list[str]:
    """By which method each interval was made, and what is unusual about one."""
    methods: dict[str, list[str]] = {}
    for metric in metrics:
        if not math.isnan(metric.value) and not math.isnan(metric.low):
            methods.setdefault(metric.interval.method, []).append(metric.title)
    lines = [f"Intervals by {m}: {', '.join(titles)}." for m, titles in methods.items()]
    reasons: dict[str, list[str]] = {}
    for metric in metrics:
        if metric.interval.reason and not metric.reason:
            reasons.setdefault(metric.interval.reason, []).append(metric.title)
    return lines + [f"Interval of {', '.join(t)}: {reason}." for reason, t in reasons.items()]


def undefined_notes(
    reports: Sequence[tuple[str, Report | Part]], only: Sequence[str] | None = None
) -> list[str]:
    """A line for each reason why something is undefined, naming what, and in which reports or
    subgroups unless it is so in all of them."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for name, report in reports:
        for metric in report.metrics.values():
            if metric.reason and (only is None or metric.name in only):
                titles, names = found.setdefault(metric.reason, ({}, {}))
                titles[metric.title] = names[name] = None
    every = dict.fromkeys(name for name, _ in reports)
    lines = []
    for reason, (titles, names) in found.items():
        where = "" if len(names) == len(every) else f" for {', '.join(names)}"
        lines.append(f"Undefined{where}: {', '.join(titles)} ({reason}).")
    return lines
