"""Metrics of one class against the rest: sensitivity, specificity, predictive values, F1, average
precision.

With ``positive`` they are of that class. Without it, where a task has no positive class, they are
the mean over the classes, each against the rest (multi-label: over the labels): "macro", in
scikit-learn's word. Arguments, and what is undefined, as in ``metrics.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import sklearn.metrics as sk
from jaxtyping import Float, Shaped

from flaxmed.evaluation.checks import check, decisions, mean, one_vs_rest, undefined
from flaxmed.types import InputError, Task


def sensitivity_score(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    positive: int | None = None,
    classes: Sequence[str] | None = None,
) -> float:
    """Share of the class's images that are called so (recall), in [0, 1].

    Args:
        labels: whole numbers ``[n]``; multi-label ``[n, l]`` of 0 and 1.
        scores: probabilities ``[n, k]``.
        task: what the labels mean.
        positive: the class; None: the mean over all.
        classes: class names, for the warning.

    Returns:
        A number in [0, 1]; NaN with a warning where no image is of the class.

    Raises:
        InputError: arrays that do not fit, or a class that is not among them.

    Example:
        >>> labels = np.array([0, 0, 1, 1])
        >>> scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
        >>> sensitivity_score(labels, scores, task="binary", positive=0)
        0.5
    """

    def one(true: np.ndarray, called: np.ndarray, kind: str) -> tuple[float, str | None]:
        if not true.any():
            return math.nan, f"no image of {kind}"
        return float(sk.recall_score(true, called)), None

    return _over_classes(one, labels, scores, task, positive, classes)


def specificity_score(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    positive: int | None = None,
    classes: Sequence[str] | None = None,
) -> float:
    """Share of the other images that are not called so, in [0, 1].

    Arguments as for :func:`sensitivity_score`; NaN with a warning where every image is of the
    class.

    Example:
        >>> labels = np.array([0, 0, 1, 1])
        >>> scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
        >>> specificity_score(labels, scores, task="binary", positive=0)
        1.0
    """

    def one(true: np.ndarray, called: np.ndarray, kind: str) -> tuple[float, str | None]:
        if true.all():
            return math.nan, f"every image is of {kind}"
        return float(sk.recall_score(~true, ~called)), None

    return _over_classes(one, labels, scores, task, positive, classes)


def ppv_score(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    positive: int | None = None,
    classes: Sequence[str] | None = None,
) -> float:
    """Positive predictive value (precision): share of the images called so that are.

    At the prevalence of these images, not of the clinic. Arguments as for
    :func:`sensitivity_score`; NaN with a warning where no image is called so.

    Example:
        >>> labels = np.array([0, 0, 1, 1])
        >>> scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.2, 0.8]])
        >>> ppv_score(labels, scores, task="binary", positive=0)
        0.5
    """

    def one(true: np.ndarray, called: np.ndarray, kind: str) -> tuple[float, str | None]:
        if not called.any():
            return math.nan, f"no image is called {kind}"
        return float(sk.precision_score(true, called)), None

    return _over_classes(one, labels, scores, task, positive, classes)


def npv_score(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    positive: int | None = None,
    classes: Sequence[str] | None = None,
) -> float:
    """Negative predictive value: share of the images not called so that are not.

    Arguments as for :func:`sensitivity_score`; NaN with a warning where every image is called so.

    Example:
        >>> labels = np.array([0, 0, 1, 1])
        >>> scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.2, 0.8]])
        >>> npv_score(labels, scores, task="binary", positive=0)
        0.5
    """

    def one(true: np.ndarray, called: np.ndarray, kind: str) -> tuple[float, str | None]:
        if called.all():
            return math.nan, f"every image is called {kind}"
        return float(sk.precision_score(~true, ~called)), None

    return _over_classes(one, labels, scores, task, positive, classes)


def f1_score(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    positive: int | None = None,
    classes: Sequence[str] | None = None,
) -> float:
    """Harmonic mean of sensitivity and PPV, 2TP / (2TP + FP + FN), in [0, 1].

    Arguments as for :func:`sensitivity_score`; NaN with a warning where no image is of the class
    and none is called so.

    Example:
        >>> labels = np.array([0, 0, 1, 1])
        >>> scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.2, 0.8]])
        >>> f1_score(labels, scores, task="binary", positive=0)
        0.5
    """

    def one(true: np.ndarray, called: np.ndarray, kind: str) -> tuple[float, str | None]:
        if not (true.any() or called.any()):
            return math.nan, f"no image of {kind}, and none called so"
        return float(sk.f1_score(true, called)), None

    return _over_classes(one, labels, scores, task, positive, classes)


def average_precision_score(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    positive: int | None = None,
    classes: Sequence[str] | None = None,
) -> float:
    """Area under the precision-recall curve, as a sum of steps without interpolation, in [0, 1].

    scikit-learn's ``average_precision_score``. Chance is the class's share of the images, so it
    can only be compared at one prevalence. Arguments as for :func:`sensitivity_score`; NaN with a
    warning where no image is of the class.

    Example:
        >>> labels = np.array([0, 1, 0, 1])
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7]])
        >>> round(average_precision_score(labels, scores, task="binary", positive=1), 4)
        0.5833
    """
    labels, scores, task = check(labels, scores, task)
    if not len(labels):
        return undefined("no images")
    values, reasons = [], []
    for c in _which(scores, positive):
        true, rank = one_vs_rest(labels, scores, task, c)
        if np.any(true):
            values.append(float(sk.average_precision_score(true, rank)))
        else:
            reasons.append(f"no image of {_kind(task, c, classes)}")
    return undefined("; ".join(reasons)) if reasons else mean(values)


def _over_classes(
    one: Callable[[np.ndarray, np.ndarray, str], tuple[float, str | None]],
    labels: np.ndarray,
    scores: np.ndarray,
    task: Task | str,
    positive: int | None,
    classes: Sequence[str] | None,
) -> float:
    """``one`` of truth and decision on the class, or its mean over the classes."""
    labels, scores, task = check(labels, scores, task)
    if not len(labels):
        return undefined("no images")
    decided = decisions(scores, task=task)
    values, reasons = [], []
    for c in _which(scores, positive):
        if task is Task.MULTILABEL:
            true, called = labels[:, c] == 1, decided[:, c] == 1
        else:
            true, called = labels == c, decided == c
        value, reason = one(true, called, _kind(task, c, classes))
        values.append(value)
        reasons += [reason] if reason else []
    return undefined("; ".join(reasons)) if reasons else mean(values)


def _which(scores: np.ndarray, positive: int | None) -> Sequence[int]:
    if positive is None:
        return range(scores.shape[1])
    if not 0 <= positive < scores.shape[1]:
        raise InputError(
            f"the positive class must lie in 0 to {scores.shape[1] - 1}, got {positive}"
        )
    return [positive]


def _kind(task: Task, c: int, classes: Sequence[str] | None) -> str:
    """Such as ``class 'malignant'`` or ``label 3``."""
    name = repr(str(classes[c])) if classes is not None else str(c)
    return f"{'class' if task.exclusive else 'label'} {name}"
