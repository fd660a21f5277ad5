"""The figures of reports and comparisons: their curves are computed here and drawn in plots."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning

from flaxmed.evaluation import plots
from flaxmed.evaluation.comparison import Comparison
from flaxmed.evaluation.curves import RocCurve, macro_roc_curve, roc_curve
from flaxmed.evaluation.report import Report
from flaxmed.types import Predictions, Task


def report_figures(
    report: Report, predictions: Predictions, *, ideal: Predictions | None = None
) -> dict[str, Any]:
    """The figures ``roc`` and ``confusion`` of a report, by name.

    Args:
        report: of ``predictions``.
        predictions: what the report was made of.
        ideal: the ideal observer's predictions, drawn beside them.
    """
    title = report.source.title(report.n)
    binary = report.task is Task.BINARY
    with warnings.catch_warnings():  # the report has said what is undefined
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        scores = predictions.probabilities
        order = list(range(len(report.classes)))
        if binary:  # the positive class first
            order = [int(predictions.positive or 0), 1 - int(predictions.positive or 0)]
        roc = plots.roc_figure(
            [(report.classes[c], _curve(predictions, scores, c)) for c in order],
            title=title,
            macro=None if binary else _summary_curve(predictions),
            positive=report.positive,
            ideal=None if ideal is None else _summary_curve(ideal),
        )
    multilabel = report.task is Task.MULTILABEL
    draw = plots.label_confusion_figure if multilabel else plots.confusion_figure
    return {"roc": roc, "confusion": draw(report.confusion, report.classes, title=title)}


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
