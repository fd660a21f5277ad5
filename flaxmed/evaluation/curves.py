"""ROC and precision-recall curves; arguments, and what is undefined, as in the metrics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import sklearn.metrics as sk
from jaxtyping import Float, Shaped

from flaxmed.evaluation.bootstrap import unit_index, weights
from flaxmed.evaluation.checks import absent, check, missing, one_vs_rest, undefined
from flaxmed.evaluation.intervals import normal_quantile
from flaxmed.evaluation.metrics import auc_score
from flaxmed.evaluation.tables import percent
from flaxmed.types import InputError, Predictions, Task

BAND_DRAWS = 1000
_GRID = np.linspace(0, 1, 201)  # the false positive rates of a band
_CHUNK = 4_000_000  # weights held at once: 32 MB


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


@dataclasses.dataclass(frozen=True, eq=False)
class RocBand:
    """Where the ROC curves of redrawn test sets lie at each false positive rate, taken alone.

    Pointwise: at any one rate a share ``level`` of the redrawn curves is inside. A whole curve is
    inside less often.

    Attributes:
        fpr: false positive rates, ascending from 0 to 1, ``[g]``.
        low, high: the band's edges there, ``[g]``; NaN if undefined.
        level: share of the draws inside at each rate.
        draws: how many test sets were drawn.
        lost: how many of them have no curve, for want of images of a class; they are left out.
        of: what was redrawn, ``"images"`` or ``"groups"``.
        reason: why there is no band, else None.
    """

    fpr: Float[np.ndarray, " g"]
    low: Float[np.ndarray, " g"]
    high: Float[np.ndarray, " g"]
    level: float
    draws: int
    lost: int
    of: str
    reason: str | None = None

    @property
    def title(self) -> str:
        """Two lines for a legend: ``"95% band, pointwise"`` and ``"1000 draws of images"``."""
        return f"{percent(self.level)} band, pointwise\n{self.draws} draws of {self.of}"


def roc_band(
    predictions: Predictions,
    *,
    of_class: int | None = None,
    level: float = 0.95,
    draws: int = BAND_DRAWS,
    seed: int = 0,
) -> RocBand:
    """The bootstrap band of an ROC curve, by percentiles at each false positive rate.

    Images are redrawn with replacement, or whole groups (patients) where the predictions have
    them. The method is "vertical averaging": T. Fawcett, Pattern Recognition Letters 27, 861
    (2006), with percentiles in the place of the mean.

    Args:
        predictions: of one model on one split.
        of_class: the class or label whose curve it is; None: the positive class, and where there is
            none the mean of the curves of all classes.
        level: share of the draws inside at each rate, in (0, 1).
        draws, seed: how many draws and which.

    Raises:
        InputError: a level outside (0, 1), or a class that there is not.

    Example:
        >>> labels = np.arange(40) % 2
        >>> logits = np.stack([np.zeros(40), np.random.default_rng(0).normal(labels)], axis=1)
        >>> band = roc_band(Predictions(labels=labels, logits=logits, task="binary"), draws=200)
        >>> bool(band.low[100] < band.high[100]), band.title
        (True, '95% band, pointwise\\n200 draws of images')
    """
    p, scores = predictions, predictions.probabilities
    normal_quantile(level)  # refuses a level outside (0, 1)
    chosen = p.positive if of_class is None else of_class
    if chosen is None:
        which, reason = range(scores.shape[1]), absent(p.labels, scores, p.task, p.classes)
    elif not 0 <= chosen < scores.shape[1]:
        raise InputError(f"class {chosen} is not among the {scores.shape[1]} classes")
    else:
        which, reason = range(chosen, chosen + 1), missing(p.labels, p.task, chosen, p.classes)
    of = "images" if p.groups is None else "groups"
    heights = np.full((0, len(_GRID)), math.nan)
    if not reason:
        heights = _drawn_heights(
            p, [one_vs_rest(p.labels, scores, p.task, c) for c in which], draws, seed
        )
        heights = heights[np.isfinite(heights).all(axis=1)]
        reason = None if len(heights) else "no draw has images of every class"
    if reason:
        nothing = np.full(len(_GRID), math.nan)
        return RocBand(_GRID, nothing, nothing, level, draws, draws, of, reason)
    low, high = np.quantile(heights, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return RocBand(_GRID, low, high, level, draws, draws - len(heights), of)


def _drawn_heights(
    p: Predictions, curves: Sequence[tuple[np.ndarray, np.ndarray]], draws: int, seed: int
) -> np.ndarray:
    """The mean height of the curves in each draw, ``[draws, g]``; NaN where one is undefined."""
    index, units = unit_index(len(p), p.groups)
    ranked = [_ranked(true, rank) for true, rank in curves]
    step = max(1, _CHUNK // len(p))
    found = []
    for chunk in weights(units, draws, seed):
        for at in range(0, len(chunk), step):  # a draw of groups is longer in images
            drawn = chunk[at : at + step, index]
            found.append(np.mean([_heights(drawn, *one) for one in ranked], axis=0))
    return np.concatenate(found)


def _ranked(true: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order of falling scores, membership in it, and the last place of each run of ties."""
    order = np.argsort(-rank, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(rank[order]) != 0, True))
    return order, np.asarray(true, bool)[order], ends


def _heights(
    drawn: np.ndarray, order: np.ndarray, members: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """The true positive rate of each draw at the band's rates, ``[b, g]``; NaN without a curve."""
    sorted_weights = drawn[:, order]
    rates = []
    for kind in (~members, members):
        counts = np.cumsum(sorted_weights * kind, axis=1)[:, ends]
        with np.errstate(invalid="ignore"):
            rates.append(np.pad(counts / counts[:, -1:], ((0, 0), (1, 0))))
    heights = np.full((len(drawn), len(_GRID)), math.nan)
    for i, (fpr, tpr) in enumerate(zip(*rates, strict=True)):
        if np.isfinite(fpr[-1]) and np.isfinite(tpr[-1]):
            heights[i] = np.interp(_GRID, fpr, tpr)  # at a vertical step: its upper end
    return heights


@dataclasses.dataclass(frozen=True)
class PrecisionRecallCurve:
    """Precision (PPV) against recall (sensitivity) of one class.

    Attributes:
        recall: ascending from 0 to 1.
        precision: at each ``recall``; between two of them that of the higher one is meant, as in
            the average precision.
        thresholds: called positive where the class's score is at least this; the first is inf.
        average_precision: the area under those steps. NaN, as are the arrays, if undefined.
        prevalence: share of images of the class: the precision of calling at random.
    """

    recall: np.ndarray
    precision: np.ndarray
    thresholds: np.ndarray
    average_precision: float
    prevalence: float


def precision_recall_curve(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    of_class: int,
    classes: Sequence[str] | None = None,
) -> PrecisionRecallCurve:
    """Precision-recall curve of one class against the rest (multi-label: of one label).

    Args:
        labels, scores, task: as for :func:`flaxmed.evaluation.metrics.accuracy_score`.
        of_class: the number of the class.
        classes: class names, for the warning.

    Returns:
        The curve; of NaNs, with a warning, where the class has no images.

    Raises:
        InputError: arrays that do not fit, or a class that there is not.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
        >>> labels = np.array([0, 1, 0, 0])
        >>> curve = precision_recall_curve(labels, scores, task="binary", of_class=1)
        >>> curve.average_precision, curve.prevalence
        (1.0, 0.25)
    """
    labels, scores, task = check(labels, scores, task)
    if not 0 <= of_class < scores.shape[1]:
        raise InputError(f"class {of_class} is not among the {scores.shape[1]} classes")
    true, rank = one_vs_rest(labels, scores, task, of_class)
    if not np.any(true):
        reason = missing(labels, task, of_class, classes) or "no image of the class"
        nothing = np.array([np.nan])
        share = 0.0 if len(true) else math.nan
        return PrecisionRecallCurve(nothing, nothing, nothing, undefined(reason), share)
    precision, recall, thresholds = sk.precision_recall_curve(true, rank)
    if task is Task.BINARY and of_class == 0:
        thresholds = 1 + thresholds  # ranked by minus the other class's score
    # scikit-learn begins with the highest recall, and ends with a point of precision 1 that no
    # image gives
    precision, recall, thresholds = precision[-2::-1], recall[-2::-1], thresholds[::-1]
    return PrecisionRecallCurve(
        recall=np.append(0.0, recall),
        precision=np.append(precision[0], precision),
        thresholds=np.append(np.inf, thresholds),
        average_precision=float(sk.average_precision_score(true, rank)),
        prevalence=float(np.mean(true)),
    )


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
