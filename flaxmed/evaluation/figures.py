"""The figures of reports and comparisons: their curves are computed here and drawn in plots."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning

from flaxmed.evaluation import plots
from flaxmed.evaluation.comparison import Comparison
from flaxmed.evaluation.curves import (
    PrecisionRecallCurve,
    RocCurve,
    macro_roc_curve,
    precision_recall_curve,
    roc_band,
    roc_curve,
)
from flaxmed.evaluation.plots_calibration import decision_figure, reliability_figure
from flaxmed.evaluation.plots_curves import precision_recall_figure
from flaxmed.evaluation.report import Report
from flaxmed.types import Predictions, Task


def report_figures(
    report: Report, predictions: Predictions, *, ideal: Predictions | None = None
) -> dict[str, Any]:
    """The figures of a report, by name.

    ``roc`` (each class, with a band), ``precision_recall``, ``confusion``; ``reliability`` and,
    for binary tasks, ``decision`` where the report has what they show.

    Args:
        report: of ``predictions``.
        predictions: what the report was made of.
        ideal: the ideal observer's predictions, drawn beside them.
    """
    title = report.source.title(report.n)
    with warnings.catch_warnings():  # the report has said what is undefined
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        figures = {
            "roc": _roc(report, predictions, ideal),
            "precision_recall": _precision_recall(report, predictions),
        }
    multilabel = report.task is Task.MULTILABEL
    draw = plots.label_confusion_figure if multilabel else plots.confusion_figure
    figures["confusion"] = draw(report.confusion, report.classes, title=title)
    found = report.calibration
    if found is not None and not found.test.reason:
        figures["reliability"] = reliability_figure(found.test, title=title, scaled=found.scaled)
    if report.decision_curve is not None and not report.decision_curve.reason:
        figures["decision"] = decision_figure(report.decision_curve, title=title)
    return figures


def _roc(report: Report, p: Predictions, ideal: Predictions | None) -> Any:
    scores = p.probabilities
    order = list(range(len(report.classes)))
    if report.task is Task.BINARY:  # the positive class first
        order = [int(p.positive or 0), 1 - int(p.positive or 0)]
    return plots.roc_figure(
        [(report.classes[c], _curve(p, scores, c)) for c in order],
        title=report.source.title(report.n),
        macro=None if report.task is Task.BINARY else _summary_curve(p),
        positive=report.positive,
        ideal=None if ideal is None else _summary_curve(ideal),
        band=roc_band(p, level=report.level),
    )


def _precision_recall(report: Report, p: Predictions) -> Any:
    """Of a binary task the positive class alone."""
    scores = p.probabilities

    def curve(c: int) -> PrecisionRecallCurve:
        return precision_recall_curve(p.labels, scores, task=p.task, of_class=c, classes=p.classes)

    order = range(len(report.classes)) if p.positive is None else [int(p.positive)]
    return precision_recall_figure(
        [(report.classes[c], curve(c)) for c in order],
        title=report.source.title(report.n),
        positive=report.positive,
    )


def comparison_figures(comparison: Comparison) -> dict[str, Any]:
    """The figures of a comparison, by name: ``roc``, and ``curves`` where histories are known."""
    first = comparison.columns[0].reports[0]
    kinds = {
        Task.BINARY: f"positive class: {first.positive}",
        Task.MULTILABEL: "mean over the labels of their ROC curves",
    }
    with warnings.catch_warnings():  # the reports have said what is undefined
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        curves = {
            column.name: [_summary_curve(p) for p in column.predictions]
            for column in comparison.columns
        }
        ideal = comparison.ideal
        figures = {
            "roc": plots.comparison_roc_figure(
                curves,
                title=comparison.source.title(comparison.n),
                kind=kinds.get(first.task, "mean over the classes of their one-vs-rest ROC curves"),
                ideal=None if ideal is None else _summary_curve(ideal.predictions[0]),
            )
        }
    histories = {column.name: column.histories for column in comparison.columns if column.histories}
    if histories:
        title = dataclasses.replace(comparison.source, split="").title()
        figures["curves"] = plots.comparison_history_figure(histories, title=title)
    return figures


def _curve(p: Predictions, scores: np.ndarray, c: int) -> RocCurve:
    return roc_curve(p.labels, scores, task=p.task, of_class=c, classes=p.classes)


def _summary_curve(p: Predictions) -> RocCurve:
    """Of a binary task the positive class's curve, else the mean over classes."""
    if p.positive is not None:
        return _curve(p, p.probabilities, p.positive)
    return macro_roc_curve(p.labels, p.probabilities, task=p.task, classes=p.classes)
