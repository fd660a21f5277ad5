"""Every metric as a function of image weights: what resampling computes many times at once.

A draw of a test set is a weight per image: how often it was drawn. All metrics but the average
precision are functions of sums over images (a confusion matrix, the loss, the squared error), so a
draw costs a product of matrices. With all weights 1 the values are those of ``metrics.py``, and a
whole weight is that many copies of the image: tests hold both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, Shaped

from flaxmed.evaluation.bootstrap import Statistic, unit_index
from flaxmed.evaluation.checks import decisions, one_vs_rest
from flaxmed.types import Predictions, Task


@dataclasses.dataclass(frozen=True, eq=False)
class Totals:
    """Sums over images, one row per draw.

    Attributes:
        cells: ``[b, c, k, k]``: images by truth and decision; one table (c = 1), multi-label one of
            2 x 2 per label.
        loss, brier: ``[b]``: sums of the images' losses and squared errors.
        task: what the labels mean.
        positive: the positive class, or None.
    """

    cells: Float[np.ndarray, "b c k k"]
    loss: Float[np.ndarray, " b"]
    brier: Float[np.ndarray, " b"]
    task: Task
    positive: int | None

    @property
    def count(self) -> Float[np.ndarray, " b"]:
        """Images in the draw."""
        return self.cells[:, 0].sum(axis=(1, 2))

    def one_vs_rest(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """TP, FP, FN and TN, ``[b, classes]``; of a binary task the positive class's alone."""
        if self.task is Task.MULTILABEL:
            tn, fp, fn, tp = self.cells.reshape(*self.cells.shape[:2], 4).transpose(2, 0, 1)
            return tp, fp, fn, tn
        table = self.cells[:, 0]
        tp = np.diagonal(table, axis1=1, axis2=2)
        fp, fn = table.sum(axis=1) - tp, table.sum(axis=2) - tp
        tn = self.count[:, None] - tp - fp - fn
        if self.positive is None:
            return tp, fp, fn, tn
        chosen = slice(self.positive, self.positive + 1)
        return tp[:, chosen], fp[:, chosen], fn[:, chosen], tn[:, chosen]


def _accuracy(t: Totals) -> np.ndarray:
    right = np.diagonal(t.cells, axis1=2, axis2=3).sum(axis=2)
    return (right / t.cells.sum(axis=(2, 3))).mean(axis=1)


def _balanced_accuracy(t: Totals) -> np.ndarray:
    table = t.cells[:, 0]
    return (np.diagonal(table, axis1=1, axis2=2) / table.sum(axis=2)).mean(axis=1)


def _sensitivity(t: Totals) -> np.ndarray:
    tp, _, fn, _ = t.one_vs_rest()
    return (tp / (tp + fn)).mean(axis=1)


def _specificity(t: Totals) -> np.ndarray:
    _, fp, _, tn = t.one_vs_rest()
    return (tn / (tn + fp)).mean(axis=1)


def _ppv(t: Totals) -> np.ndarray:
    tp, fp, _, _ = t.one_vs_rest()
    return (tp / (tp + fp)).mean(axis=1)


def _npv(t: Totals) -> np.ndarray:
    _, _, fn, tn = t.one_vs_rest()
    return (tn / (tn + fn)).mean(axis=1)


def _f1(t: Totals) -> np.ndarray:
    tp, fp, fn, _ = t.one_vs_rest()
    return (2 * tp / (2 * tp + fp + fn)).mean(axis=1)


def _kappa(t: Totals) -> np.ndarray:
    k = t.cells.shape[-1]
    grades = np.arange(k)
    far = (grades[:, None] - grades) ** 2 if t.task is Task.ORDINAL else 1 - np.eye(k)
    rows, columns = t.cells.sum(axis=3), t.cells.sum(axis=2)
    by_chance = np.einsum("bci,bcj,ij->bc", rows, columns, far) / rows.sum(axis=2)
    return (1 - np.einsum("bcij,ij->bc", t.cells, far) / by_chance).mean(axis=1)


def _mcc(t: Totals) -> np.ndarray:
    rows, columns = t.cells.sum(axis=3), t.cells.sum(axis=2)
    n = rows.sum(axis=2)
    right = np.diagonal(t.cells, axis1=2, axis2=3).sum(axis=2)
    spread = (n**2 - (rows**2).sum(axis=2)) * (n**2 - (columns**2).sum(axis=2))
    return ((right * n - (rows * columns).sum(axis=2)) / np.sqrt(spread)).mean(axis=1)


OF_TOTALS: dict[str, Callable[[Totals], np.ndarray]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "loss": lambda t: t.loss / t.count,
    "brier": lambda t: t.brier / t.count,
    "sensitivity": _sensitivity,
    "specificity": _specificity,
    "ppv": _ppv,
    "npv": _npv,
    "f1": _f1,
    "kappa": _kappa,
    "mcc": _mcc,
}
"""The metrics that are functions of sums, by name."""


def statistic(predictions: Predictions, names: tuple[str, ...]) -> Statistic:
    """The named metrics as one function of weights, ``[draws, units]`` to ``[draws, names]``.

    The units are the images, or the groups where the predictions have them.

    Example:
        >>> p = Predictions(labels=[0, 1], logits=[[2.0, 0.0], [1.0, 0.0]], task="binary")
        >>> statistic(p, ("accuracy",))(np.array([[1.0, 1.0], [2.0, 0.0]])).ravel().tolist()
        [0.5, 1.0]
    """
    p, scores = predictions, predictions.probabilities
    index, units = unit_index(len(p), p.groups)
    features, shape = _features(p, scores)
    if p.groups is not None:
        features = np.stack([np.bincount(index, f, minlength=units) for f in features.T], axis=1)
    ranked = [_average_precision(*pair) for pair in _curves(p, scores)]

    def of_weights(w: np.ndarray) -> np.ndarray:
        totals = w @ features
        cells = totals[:, :-2].reshape(len(w), *shape)
        t = Totals(cells, totals[:, -2], totals[:, -1], p.task, p.positive)
        found = np.empty((len(w), len(names)))
        with np.errstate(divide="ignore", invalid="ignore"):
            for j, name in enumerate(names):
                if name == "average_precision":
                    each = w if p.groups is None else w[:, index]
                    found[:, j] = np.mean([curve(each) for curve in ranked], axis=0)
                else:
                    found[:, j] = OF_TOTALS[name](t)
        return found

    return of_weights


def image_losses(labels: np.ndarray, scores: np.ndarray, task: Task) -> Float[np.ndarray, " n"]:
    """Each image's loss, natural logarithm; its mean is the metric ``loss``."""
    tiny = np.finfo(scores.dtype).eps
    p = np.clip(scores, tiny, 1 - tiny)
    if task is Task.MULTILABEL:
        return -np.where(labels == 1, np.log(p), np.log1p(-p)).mean(axis=1)
    return -np.log(p[np.arange(len(labels)), labels])


def image_squares(labels: np.ndarray, scores: np.ndarray, task: Task) -> Float[np.ndarray, " n"]:
    """Each image's squared error; its mean is the metric ``brier``."""
    if task is Task.MULTILABEL:
        return ((scores - labels) ** 2).mean(axis=1)
    if task is Task.BINARY:
        return (scores[:, 1] - labels) ** 2
    return ((scores - np.eye(scores.shape[1])[labels]) ** 2).sum(axis=1)


def _features(p: Predictions, scores: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
    """What is summed, ``[n, cells + 2]``, and the shape of the cells."""
    k, n = scores.shape[1], len(p)
    decided = decisions(scores, task=p.task)
    if p.task is Task.MULTILABEL:
        shape = (k, 2, 2)
        cell = 4 * np.arange(k) + 2 * p.labels + decided
    else:
        shape = (1, k, k)
        cell = (k * p.labels + decided)[:, None]
    cells = np.zeros((n, int(np.prod(shape))))
    np.put_along_axis(cells, cell, 1.0, axis=1)
    rest = [image(p.labels, scores, p.task) for image in (image_losses, image_squares)]
    return np.column_stack([cells, *rest]), shape


def _curves(p: Predictions, scores: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Membership and score of each class whose average precision counts."""
    which = range(scores.shape[1]) if p.positive is None else [p.positive]
    return [one_vs_rest(p.labels, scores, p.task, c) for c in which]


def _average_precision(
    members: Shaped[np.ndarray, " n"], score: Float[np.ndarray, " n"]
) -> Callable[[np.ndarray], np.ndarray]:
    """Sum of the precisions at each threshold, weighted by the recall it adds."""
    order = np.argsort(-score, kind="stable")
    is_member = np.asarray(members, bool)[order]
    # Thresholds are where the score changes; only those that add a member count.
    level = np.cumsum(np.append(False, np.diff(score[order]) != 0)) if len(score) else order
    own, first = np.unique(level[is_member], return_index=True)
    ends: Int[np.ndarray, " t"] = np.searchsorted(level, own, side="right") - 1
    ours = order[is_member]

    def of_weights(w: np.ndarray) -> np.ndarray:
        if not len(ours):
            return np.full(len(w), np.nan)
        called = np.cumsum(w[:, order], axis=1)[:, ends]
        gained = np.add.reduceat(w[:, ours], first, axis=1)
        found = np.cumsum(gained, axis=1)
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        return (gained * precision).sum(axis=1) / found[:, -1]

    return of_weights
