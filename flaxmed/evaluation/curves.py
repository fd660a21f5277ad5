"""ROC curves on arrays; arguments, and what is undefined, as in the metrics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import sklearn.metrics as sk
from jaxtyping import Float, Shaped

from flaxmed.evaluation.checks import check, missing, one_vs_rest, undefined
from flaxmed.evaluation.metrics import auc_score
from flaxmed.types import InputError, Task


@dataclasses.dataclass(frozen=True)
class RocCurve:
    """A receiver operating characteristic.

    Attributes:
        fpr: false positive rate (1 - specificity), ascending from 0 to 1.
        tpr: true positive rate (sensitivity) at each ``fpr``.
        thresholds: called positive where the class's score is at least this; the first is inf.
            NaN for an average of several curves, which has no thresholds of its own.
        auc: area under the curve. NaN, as are the arrays, where the curve is undefined.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray
    auc: float


def roc_curve(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    of_class: int,
    classes: Sequence[str] | None = None,
) -> RocCurve:
    """ROC curve of one class against the rest (multi-label: of one label).

    Points on a straight piece of the curve are left out, as in scikit-learn.

    Args:
        labels, scores, task: as for :func:`accuracy_score`.
        of_class: the number of the class; binary: either, see :func:`class_auc_scores`.
        classes: class names, for the warning.

    Returns:
        The curve; of NaNs, with a warning, where the class has no images or all of them.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
        >>> roc_curve(np.array([0, 1, 0]), scores, task="binary", of_class=1).auc
        1.0
    """
    labels, scores, task = check(labels, scores, task)
    if not 0 <= of_class < scores.shape[1]:
        raise InputError(f"class {of_class} is not among the {scores.shape[1]} classes")
    reason = missing(labels, task, of_class, classes)
    if reason:
        nothing = np.array([np.nan])
        return RocCurve(nothing, nothing, nothing, undefined(reason))
    true, rank = one_vs_rest(labels, scores, task, of_class)
    fpr, tpr, thresholds = sk.roc_curve(true, rank)
    if task is Task.BINARY and of_class == 0:
        thresholds = 1 + thresholds  # ranked by minus the other class's score
    return RocCurve(fpr, tpr, thresholds, float(sk.auc(fpr, tpr)))


def macro_roc_curve(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    classes: Sequence[str] | None = None,
) -> RocCurve:
    """Mean over classes of the one-vs-rest ROC curves: at each false positive rate the mean
    true positive rate.

    Its area is the mean of the areas, :func:`auc_score`, to rounding: the vertical steps of every
    curve are kept. A binary task has one curve, that of the last class.

    Args:
        labels, scores, task, classes: as for :func:`class_auc_scores`.

    Returns:
        The curve; of NaNs, with a warning, where any class's curve is undefined.

    Example:
        >>> labels, scores = np.array([0, 1, 2]), np.eye(3)
        >>> macro_roc_curve(labels, scores, task="multiclass").auc
        1.0
    """
    labels, scores, task = check(labels, scores, task)
    if task is Task.BINARY:
        return roc_curve(labels, scores, task=task, of_class=1, classes=classes)
    auc = auc_score(labels, scores, task=task, classes=classes)
    if math.isnan(auc):
        nothing = np.array([np.nan])
        return RocCurve(nothing, nothing, nothing, auc)
    curves = [
        roc_curve(labels, scores, task=task, of_class=c, classes=classes)
        for c in range(scores.shape[1])
    ]
    grid = np.unique(np.concatenate([curve.fpr for curve in curves]))
    # Each rate twice: the curve just before its vertical step there, and just after.
    before, after = np.mean([_limits(curve, grid) for curve in curves], axis=0)
    tpr = np.stack([before, after], axis=1).ravel()
    return RocCurve(np.repeat(grid, 2), tpr, np.full(len(tpr), np.nan), auc)


def _limits(curve: RocCurve, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve's height just before and just after each rate of ``grid``."""
    x, first = np.unique(curve.fpr, return_index=True)
    low, high = curve.tpr[first], curve.tpr[np.append(first[1:], len(curve.fpr)) - 1]
    i = np.searchsorted(x, grid, side="right") - 1
    j = np.minimum(i + 1, len(x) - 1)
    width = np.where(j > i, x[j] - x[i], 1)
    between = high[i] + (grid - x[i]) / width * (low[j] - high[i])
    on = grid == x[i]
    return np.where(on, low[i], between), np.where(on, high[i], between)
