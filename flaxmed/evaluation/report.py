"""The report on one set of predictions: every metric that applies, and what each depends on."""

from __future__ import annotations

import dataclasses
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning

from flaxmed.evaluation.checks import missing
from flaxmed.evaluation.metrics import METRICS, MetricSpec, class_auc_scores, confusion_matrix
from flaxmed.evaluation.tables import aligned, escape, fill, json_number, markdown, number
from flaxmed.types import Predictions, Task

IDEAL = "ideal observer"


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number of a report.

    Attributes:
        name: the key, e.g. ``"auc"``.
        title: how tables call it, e.g. ``"AUC"``.
        value: the number; NaN where it is undefined.
        reason: why it is undefined, else None.
        positive: the positive class, by name, where the value depends on it, else None.
    """

    name: str
    title: str
    value: float
    reason: str | None = None
    positive: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None, with its reason."""
        values: dict[str, Any] = {"value": json_number(self.value)}
        if self.reason:
            values["reason"] = self.reason
        if self.positive is not None:
            values["positive"] = self.positive
        return values


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
        confusion: ``[k, k]``, rows are the truth; multi-label ``[l, 2, 2]``.
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
    confusion: np.ndarray
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
        lines = [
            self.source.title(),
            *describe_images(self.n, self.task, self.classes, self.counts),
            "",
            *aligned(self._table()),
            "",
            *map(fill, self._notes()),
            "",
            "images by truth (rows) and decision (columns)",
            *aligned(self._confusion_table()),
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        values = ", ".join(f"{m.name}={m.value:.4g}" for m in self.metrics.values())
        return f"<Report n={self.n} {values}>"

    def to_markdown(self) -> str:
        """The report as GitHub Markdown."""
        lines = [f"## {escape(self.source.title())}", ""]
        lines += map(escape, describe_images(self.n, self.task, self.classes, self.counts, width=0))
        lines += ["", *markdown(self._table())]
        lines += ["", *(f"- {escape(note)}" for note in self._notes())]
        lines += ["", "Images by truth (rows) and decision (columns):", ""]
        return "\n".join([*lines, *markdown(self._confusion_table()), ""])

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None, with its reason."""
        values = {
            **self.source.to_dict(),
            "n": self.n,
            "task": str(self.task),
            "classes": [
                {"name": name, "images": count, "auc": auc.to_dict()}
                for name, count, auc in zip(self.classes, self.counts, self.class_auc, strict=True)
            ],
            "positive": self.positive,
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
            "confusion": self.confusion.tolist(),
        }
        return values if self.ideal is None else {**values, "ideal_observer": self.ideal.to_dict()}

    def _table(self) -> list[list[str]]:
        """Header and rows: name, value, and the ideal observer's where there is one."""
        kind = "class" if self.task.exclusive else "label"
        rows = []
        for metric in self.metrics.values():
            given = "" if metric.positive is None else f" ({metric.positive})"
            rows.append([metric.title + given, number(metric.value)])
        if self.task is not Task.BINARY:
            rows += [[f"AUC of {kind} {m.title}", number(m.value)] for m in self.class_auc]
        header = ["", self.source.model or "value"]
        if self.ideal is not None:
            ideal = self.ideal._table()[1:]
            rows = [[*row, other[1]] for row, other in zip(rows, ideal, strict=True)]
            header.append(IDEAL)
        return [header, *rows]

    def _notes(self) -> list[str]:
        named = [] if self.positive is None else [f"Positive class: {self.positive}."]
        return [*named, *reading_notes(self.task, self.classes), *undefined_notes([("", self)])]

    def _confusion_table(self) -> list[list[str]]:
        names, header = list(self.classes), list(self.classes)
        rows = self.confusion
        if self.task is Task.MULTILABEL:
            header = ["found (TP)", "missed (FN)", "false alarm (FP)", "rightly not (TN)"]
            rows = rows[:, ::-1, ::-1].reshape(len(names), 4)
        elif sum(map(len, header)) > 60:  # too wide for a terminal: columns by number
            header = [str(c) for c in range(len(names))]
            names = [f"{c} {name}" for c, name in enumerate(names)]
        body = [[name, *map(str, row)] for name, row in zip(names, rows.tolist(), strict=True)]
        return [["", *header], *body]


def evaluate(predictions: Predictions) -> Report:
    """Every metric that applies to ``predictions``.

    Args:
        predictions: of one model on one split.

    Returns:
        The report; an undefined metric is NaN with its reason, and a warning.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
        >>> report = evaluate(
        ...     Predictions.from_probabilities(scores, labels=np.array([0, 1, 0]), task="binary")
        ... )
        >>> report["auc"].value, round(report["accuracy"].value, 4)
        (1.0, 0.6667)
    """
    p, scores = predictions, predictions.probabilities
    classes = tuple(p.classes or ())
    positive = None if p.positive is None else classes[p.positive]
    metrics = {}
    for spec in METRICS:
        if p.task in spec.tasks:
            value, reason = _with_reason(spec, p, scores)
            named = positive if spec.needs_positive else None
            metrics[spec.name] = Metric(spec.name, spec.title, value, reason, named)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)  # the reasons are kept instead
        aucs = class_auc_scores(p.labels, scores, task=p.task)
    class_auc = [
        Metric("auc", name, float(auc), missing(p.labels, p.task, c, classes))
        for c, (name, auc) in enumerate(zip(classes, aucs, strict=True))
    ]
    if p.task is Task.MULTILABEL:
        counts = p.labels.sum(axis=0)
    else:
        counts = np.bincount(p.labels, minlength=len(classes))
    report = Report(
        n=len(p),
        task=p.task,
        classes=classes,
        counts=tuple(counts.tolist()),
        positive=positive,
        metrics=metrics,
        class_auc=tuple(class_auc),
        confusion=confusion_matrix(p.labels, scores, task=p.task),
    )
    for note in undefined_notes([("", report)]):
        warnings.warn(note, UndefinedMetricWarning, stacklevel=2)
    return report


def _with_reason(spec: MetricSpec, p: Predictions, scores: np.ndarray) -> tuple[float, str | None]:
    """A metric's value, and why it is undefined if it is."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UndefinedMetricWarning)
        value = spec(p, scores)
    reasons = [str(w.message) for w in caught if issubclass(w.category, UndefinedMetricWarning)]
    return value, reasons[-1] if math.isnan(value) and reasons else None


def describe_images(
    n: int, task: Task, classes: Sequence[str], counts: Sequence[int], width: int = 96
) -> list[str]:
    """How many images, and how many of each class; in lines of ``width``, 0 for a single one."""
    each = "; ".join(f"{name} {count}" for name, count in zip(classes, counts, strict=True))
    text = f"{n} image{'s' if n != 1 else ''}{'' if task.exclusive else ', by label'} ({each})"
    return textwrap.wrap(text, width, subsequent_indent="  ") if width else [text]


def reading_notes(task: Task, classes: Sequence[str]) -> list[str]:
    """How the numbers of a task with more than one curve are to be read."""
    if task is Task.BINARY:
        return []
    if task is Task.MULTILABEL:
        return [f"Accuracy, loss and AUC are means over the {len(classes)} labels."]
    return [f"AUC is the mean over the {len(classes)} classes of each against the rest."]


def undefined_notes(
    reports: Sequence[tuple[str, Report]], only: Sequence[str] | None = None
) -> list[str]:
    """A line for each reason why something is undefined, naming what, and in which reports
    unless it is so in all of them."""
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
