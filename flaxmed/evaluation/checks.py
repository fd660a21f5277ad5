"""What every metric does first: check its arrays, decide, and say when it is undefined."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import UndefinedMetricWarning

from flaxmed.types import InputError, Task


def decisions(scores: Float[np.ndarray, "n k"], *, task: Task | str) -> Int[np.ndarray, " n *k"]:
    """The decided class of each image (multi-label: 0 or 1 for each label).

    Binary: class 1 where its score is above 0.5, strictly, as the medmnist Evaluator has it; this
    is the larger score, ties going to class 0. Multi-label likewise for every label.

    Example:
        >>> decisions(np.array([[0.5, 0.5], [0.2, 0.8]]), task="binary").tolist()
        [0, 1]
    """
    if Task(task) is Task.BINARY:
        return (scores[:, -1] > 0.5).astype(np.int64)
    if Task(task) is Task.MULTILABEL:
        return (scores > 0.5).astype(np.int64)
    return np.argmax(scores, axis=-1) if len(scores) else np.zeros(0, np.int64)


def check(
    labels: np.ndarray, scores: np.ndarray, task: Task | str
) -> tuple[np.ndarray, np.ndarray, Task]:
    """Labels as int64 and scores unchanged, or an InputError that names the row."""
    task = Task(task)
    labels, scores = np.asarray(labels), np.asarray(scores)
    if scores.ndim != 2 or scores.shape[1] < (2 if task.exclusive else 1):
        raise InputError(f"scores must be [images, classes], got shape {scores.shape}")
    n, k = scores.shape
    if task is Task.BINARY and k != 2:
        raise InputError(f"a binary task has 2 scores per image, got {k}")
    if task.exclusive and labels.shape == (n, 1):  # MedMNIST's own layout
        labels = labels[:, 0]
    expected = (n,) if task.exclusive else (n, k)
    if labels.shape != expected:
        raise InputError(
            f"labels must have shape {expected} to go with the scores, got {labels.shape}"
        )
    top = k - 1 if task.exclusive else 1
    wrong = ~np.isin(labels, np.arange(top + 1))
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        raise InputError(
            f"labels must be whole numbers from 0 to {top}; row {row} has {labels[row]}"
        )
    outside = ~((scores >= 0) & (scores <= 1)).all(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise InputError(f"scores must lie in [0, 1]; row {row} is {scores[row].tolist()}")
    return labels.astype(np.int64), scores, task


def undefined(reason: str) -> float:
    """NaN, saying why."""
    warnings.warn(reason, UndefinedMetricWarning, stacklevel=3)
    return math.nan


def mean(values: Sequence[float]) -> float:
    """Mean by adding in order, as the medmnist Evaluator does: numpy's pairwise sum may differ in
    the last digit."""
    return float(sum(values) / len(values))


def one_vs_rest(
    labels: np.ndarray, scores: np.ndarray, task: Task, c: int
) -> tuple[np.ndarray, np.ndarray]:
    """Membership of class ``c`` and the score that ranks it."""
    if task is Task.MULTILABEL:
        return labels[:, c], scores[:, c]
    if task is Task.BINARY and c == 0:
        return labels == 0, -scores[:, -1]
    return labels == c, scores[:, c]


def missing(labels: np.ndarray, task: Task, c: int, classes: Sequence[str] | None) -> str | None:
    """Why the curve of class ``c`` is undefined, or None."""
    if not len(labels):
        return "no images"
    name = repr(str(classes[c])) if classes is not None else str(c)
    members = labels[:, c] if task is Task.MULTILABEL else labels == c
    kind = "class" if task.exclusive else "label"
    if not members.any():
        return f"no image of {kind} {name}"
    return f"every image is of {kind} {name}" if members.all() else None


def absent(
    labels: np.ndarray, scores: np.ndarray, task: Task, classes: Sequence[str] | None
) -> str | None:
    """Why a mean over classes is undefined, or None; names every class that is missing."""
    if not len(labels):
        return "no images"
    reasons = [missing(labels, task, c, classes) for c in range(scores.shape[1])]
    return "; ".join(reason for reason in reasons if reason) or None
