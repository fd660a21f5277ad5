"""Metrics on arrays: labels first, then scores, options by keyword, as in scikit-learn.

``labels`` are whole numbers ``[n]`` (multi-label: ``[n, l]`` of 0 and 1) and ``scores`` are
probabilities ``[n, k]`` in [0, 1]: softmax, or one sigmoid per label. scikit-learn computes; this
module fixes what is asked of it. Accuracy and AUC are those of the medmnist package's Evaluator
(Yang et al. 2023, https://doi.org/10.1038/s41597-022-01721-8), to the last digit:

* binary: the score of the last class; decided "class 1" where it is above 0.5, strictly;
* multi-class and ordinal: the class of the largest score; the mean of the one-vs-rest AUCs;
* multi-label: the mean over labels of each label's accuracy (above 0.5, strictly) and AUC.

Where a metric is undefined (no image, a class without images, nothing predicted positive) it is
NaN with scikit-learn's ``UndefinedMetricWarning``, never a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import sklearn.metrics as sk
from jaxtyping import Float, Int, Shaped

from flaxmed.evaluation.checks import (
    absent,
    check,
    decisions,
    mean,
    missing,
    one_vs_rest,
    undefined,
)
from flaxmed.evaluation.class_metrics import (
    average_precision_score,
    f1_score,
    npv_score,
    ppv_score,
    sensitivity_score,
    specificity_score,
)
from flaxmed.types import InputError, Predictions, Task


@dataclasses.dataclass(frozen=True)
class MetricSpec:
    """One metric of the complete list.

    Attributes:
        name: short name, the key in a report: ``"auc"``.
        title: how tables call it: ``"AUC"``.
        function: ``function(labels, scores, **options) -> float``.
        options: the keywords it takes; each is an attribute of :class:`flaxmed.Predictions`.
        tasks: where it applies.
        lower_is_better: True for losses.
    """

    name: str
    title: str
    function: Callable[..., float]
    options: tuple[str, ...] = ("task",)
    tasks: tuple[Task, ...] = tuple(Task)
    lower_is_better: bool = False

    @property
    def needs_positive(self) -> bool:
        """Whether the value depends on which class is called positive, in a task that names one."""
        return "positive" in self.options

    def __call__(self, predictions: Predictions, scores: np.ndarray | None = None) -> float:
        """The metric of ``predictions``; ``scores``: its probabilities, if already at hand."""
        scores = predictions.probabilities if scores is None else scores
        options = {name: getattr(predictions, name) for name in self.options}
        return self.function(predictions.labels, scores, **options)


def accuracy_score(
    labels: Shaped[np.ndarray, " n *l"], scores: Float[np.ndarray, "n k"], *, task: Task | str
) -> float:
    """Share of images decided rightly, in [0, 1]; multi-label: the mean over labels.

    Equal to medmnist's ``getACC`` to the last digit.

    Args:
        labels: whole numbers ``[n]``; multi-label ``[n, l]`` of 0 and 1.
        scores: probabilities ``[n, k]``.
        task: what the labels mean.

    Returns:
        A number in [0, 1]; NaN with a warning where there is no image.

    Raises:
        InputError: shapes that do not fit, labels outside the classes, scores outside [0, 1].

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
        >>> round(accuracy_score(np.array([0, 1, 0]), scores, task="binary"), 4)
        0.6667
    """
    labels, scores, task = check(labels, scores, task)
    if not len(labels):
        return undefined("no images")
    decided = decisions(scores, task=task)
    if task is Task.MULTILABEL:
        return mean(
            [sk.accuracy_score(labels[:, c], decided[:, c]) for c in range(scores.shape[1])]
        )
    return float(sk.accuracy_score(labels, decided))


def balanced_accuracy_score(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    classes: Sequence[str] | None = None,
) -> float:
    """Mean over classes of the share of the class's images decided rightly, in [0, 1].

    scikit-learn leaves a class without images out of the mean; here the result is then NaN.

    Args:
        labels, scores, task: as for :func:`accuracy_score`; not for multi-label tasks.
        classes: class names, for the warning.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
        >>> balanced_accuracy_score(np.array([0, 1, 0]), scores, task="binary")
        0.75
    """
    labels, scores, task = check(labels, scores, task)
    if task is Task.MULTILABEL:
        raise InputError("balanced accuracy belongs to tasks with one class per image")
    reason = absent(labels, scores, task, classes)
    if reason:
        return undefined(reason)
    return float(sk.balanced_accuracy_score(labels, decisions(scores, task=task)))


def cross_entropy_loss(
    labels: Shaped[np.ndarray, " n *l"], scores: Float[np.ndarray, "n k"], *, task: Task | str
) -> float:
    """Mean over images of -log(probability given to the truth), natural logarithm, 0 or more.

    What training minimises: softmax cross-entropy; multi-label: binary cross-entropy, the mean
    over images and labels. Equal to scikit-learn's ``log_loss`` (of each label, averaged), which
    cuts probabilities off at the machine epsilon of their dtype: an image whose true class got
    probability 0 counts as 36.04 in float64, not infinity.

    Args:
        labels, scores, task: as for :func:`accuracy_score`.

    Returns:
        The mean; NaN with a warning where there is no image.

    Example:
        >>> scores = np.array([[0.5, 0.5], [0.5, 0.5]])
        >>> round(cross_entropy_loss(np.array([0, 1]), scores, task="binary"), 4)
        0.6931
    """
    labels, scores, task = check(labels, scores, task)
    if not len(labels):
        return undefined("no images")
    if task is Task.MULTILABEL:
        columns = range(scores.shape[1])
        return mean([sk.log_loss(labels[:, c], scores[:, c], labels=[0, 1]) for c in columns])
    return float(sk.log_loss(labels, scores, labels=list(range(scores.shape[1]))))


def class_auc_scores(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    classes: Sequence[str] | None = None,
) -> Float[np.ndarray, " k"]:
    """Area under the ROC curve of each class against the rest (multi-label: of each label).

    A class without images, or with nothing but its images, is NaN with a warning.

    Binary: both entries are the area of the last class's score. Read from the other direction
    (the score of class 0 for class 0) the area is the same in exact arithmetic, and may differ in
    floating point where the two columns do not tie in the same places: 1e-20 and 1e-30 are two
    scores, 1 - 1e-20 and 1 - 1e-30 are one. So class 0 is ranked by minus the last score.

    Args:
        labels, scores, task: as for :func:`accuracy_score`.
        classes: class names, for the warning.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
        >>> class_auc_scores(np.array([0, 1, 0, 0]), scores, task="binary").tolist()
        [1.0, 1.0]
    """
    labels, scores, task = check(labels, scores, task)
    return np.array([_class_auc(labels, scores, task, c, classes) for c in range(scores.shape[1])])


def auc_score(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    classes: Sequence[str] | None = None,
) -> float:
    """Area under the ROC curve: macro one-vs-rest, in [0, 1]; chance is 0.5.

    Binary: the area of the last class's score (the same for either class). Otherwise the
    unweighted mean of :func:`class_auc_scores`. Equal to medmnist's ``getAUC`` to the last digit
    where that is defined; NaN with a warning where any class has no images (medmnist fails there).

    Args:
        labels, scores, task: as for :func:`accuracy_score`.
        classes: class names, for the warning.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7]])
        >>> round(auc_score(np.array([0, 1, 0, 0]), scores, task="binary"), 4)
        0.6667
    """
    labels, scores, task = check(labels, scores, task)
    reason = absent(labels, scores, task, classes)
    if reason:
        return undefined(reason)
    if task is Task.BINARY:
        return _class_auc(labels, scores, task, 1, classes)
    return mean([_class_auc(labels, scores, task, c, classes) for c in range(scores.shape[1])])


def brier_loss(
    labels: Shaped[np.ndarray, " n *l"], scores: Float[np.ndarray, "n k"], *, task: Task | str
) -> float:
    """Mean squared error of the probabilities, 0 or more (Brier, Monthly Weather Review 78, 1950).

    Binary: of the probability of one class, in [0, 1]; the same for either. Multi-class and
    ordinal: summed over the classes, in [0, 2]. Multi-label: the mean over labels, in [0, 1].

    Args:
        labels, scores, task: as for :func:`accuracy_score`.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8]])
        >>> round(brier_loss(np.array([0, 1]), scores, task="binary"), 4)
        0.025
    """
    labels, scores, task = check(labels, scores, task)
    if not len(labels):
        return undefined("no images")
    if task is Task.MULTILABEL:
        return float(np.mean((scores - labels) ** 2))
    if task is Task.BINARY:
        return float(sk.brier_score_loss(labels, scores[:, 1]))
    return float(np.mean(np.sum((scores - np.eye(scores.shape[1])[labels]) ** 2, axis=1)))


def kappa_score(
    labels: Shaped[np.ndarray, " n *l"], scores: Float[np.ndarray, "n k"], *, task: Task | str
) -> float:
    """Cohen's kappa of truth and decision: agreement beyond chance, in [-1, 1]; chance is 0.

    Ordinal tasks: with quadratic weights, so that a miss by two grades counts four times. Multi-
    label: the mean over labels.

    Args:
        labels, scores, task: as for :func:`accuracy_score`.

    Returns:
        A number; NaN with a warning where truth and decision are one and the same class
        throughout.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.8, 0.2]])
        >>> kappa_score(np.array([0, 1, 0, 0]), scores, task="binary")
        0.5
    """

    def one(true: np.ndarray, called: np.ndarray, k: int) -> float | None:
        if len(np.unique(np.concatenate([true, called]))) < 2:
            return None
        weights = "quadratic" if Task(task) is Task.ORDINAL else None
        return float(sk.cohen_kappa_score(true, called, labels=np.arange(k), weights=weights))

    return _agreement(one, labels, scores, task, "truth and decision are one class throughout")


def mcc_score(
    labels: Shaped[np.ndarray, " n *l"], scores: Float[np.ndarray, "n k"], *, task: Task | str
) -> float:
    """Matthews' correlation of truth and decision, in [-1, 1]; chance is 0.

    For more than two classes Gorodkin's R_K (Computational Biology and Chemistry 28, 367, 2004).
    Multi-label: the mean over labels.

    Args:
        labels, scores, task: as for :func:`accuracy_score`.

    Returns:
        A number; NaN with a warning where all images are of one class or are called one class
        (scikit-learn says 0).

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.8, 0.2]])
        >>> round(mcc_score(np.array([0, 1, 0, 0]), scores, task="binary"), 4)
        0.5774
    """

    def one(true: np.ndarray, called: np.ndarray, k: int) -> float | None:
        if len(np.unique(true)) < 2 or len(np.unique(called)) < 2:
            return None
        return float(sk.matthews_corrcoef(true, called))

    return _agreement(one, labels, scores, task, "every image is of one class, or called one class")


def confusion_matrix(
    labels: Shaped[np.ndarray, " n *l"], scores: Float[np.ndarray, "n k"], *, task: Task | str
) -> Int[np.ndarray, " k ..."]:
    """Counts of images by true class (rows) and decided class (columns), ``[k, k]``.

    Multi-label: ``[l, 2, 2]``, for each label ``[[TN, FP], [FN, TP]]``.

    Args:
        labels, scores, task: as for :func:`accuracy_score`.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
        >>> confusion_matrix(np.array([0, 1, 0]), scores, task="binary").tolist()
        [[1, 1], [0, 1]]
    """
    labels, scores, task = check(labels, scores, task)
    k = scores.shape[1]
    decided = decisions(scores, task=task)
    if task is Task.MULTILABEL:
        pairs = [(labels[:, c], decided[:, c]) for c in range(k)]
        return np.stack([_counts(true, called, 2) for true, called in pairs])
    return _counts(labels, decided, k)


_ONE_CLASS = (Task.BINARY, Task.MULTICLASS, Task.ORDINAL)

_PER_CLASS = ("task", "positive", "classes")


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("accuracy", "accuracy", accuracy_score),
    MetricSpec(
        "balanced_accuracy",
        "balanced accuracy",
        balanced_accuracy_score,
        options=("task", "classes"),
        tasks=_ONE_CLASS,
    ),
    MetricSpec("loss", "loss", cross_entropy_loss, lower_is_better=True),
    MetricSpec("auc", "AUC", auc_score, options=("task", "classes")),
    MetricSpec("average_precision", "average precision", average_precision_score, _PER_CLASS),
    MetricSpec("f1", "F1", f1_score, _PER_CLASS),
    MetricSpec("sensitivity", "sensitivity", sensitivity_score, _PER_CLASS),
    MetricSpec("specificity", "specificity", specificity_score, _PER_CLASS),
    MetricSpec("ppv", "PPV", ppv_score, _PER_CLASS),
    MetricSpec("npv", "NPV", npv_score, _PER_CLASS),
    MetricSpec("kappa", "Cohen's kappa", kappa_score),
    MetricSpec("mcc", "MCC", mcc_score),
    MetricSpec("brier", "Brier score", brier_loss, lower_is_better=True),
)

"""Every metric that a report holds, in its order; ``tests/test_metrics.py`` holds their laws."""


def score(predictions: Predictions) -> dict[str, float]:
    """Accuracy, loss and AUC: what a training run logs after each epoch.

    Undefined values are NaN with scikit-learn's ``UndefinedMetricWarning``.

    Example:
        >>> scores, labels = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])
        >>> p = Predictions.from_probabilities(scores, labels=labels, task="binary")
        >>> {name: round(value, 4) for name, value in score(p).items()}
        {'accuracy': 1.0, 'loss': 0.1643, 'auc': 1.0}
    """
    scores = predictions.probabilities
    chosen = {spec.name: spec for spec in METRICS}
    return {name: chosen[name](predictions, scores) for name in ("accuracy", "loss", "auc")}


def _agreement(
    one: Callable[[np.ndarray, np.ndarray, int], float | None],
    labels: np.ndarray,
    scores: np.ndarray,
    task: Task | str,
    reason: str,
) -> float:
    """``one`` of truth and decision; multi-label: its mean over the labels."""
    labels, scores, task = check(labels, scores, task)
    if not len(labels):
        return undefined("no images")
    decided, k = decisions(scores, task=task), scores.shape[1]
    if task is Task.MULTILABEL:
        values = [one(labels[:, c], decided[:, c], 2) for c in range(k)]
    else:
        values = [one(labels, decided, k)]
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else undefined(reason)


def _counts(true: np.ndarray, decided: np.ndarray, k: int) -> np.ndarray:
    if not len(true):
        return np.zeros((k, k), np.int64)
    return sk.confusion_matrix(true, decided, labels=np.arange(k)).astype(np.int64)


def _class_auc(
    labels: np.ndarray, scores: np.ndarray, task: Task, c: int, classes: Sequence[str] | None
) -> float:
    reason = missing(labels, task, c, classes)
    if reason:
        return undefined(reason)
    true, rank = one_vs_rest(labels, scores, task, c)
    return float(sk.roc_auc_score(true, rank))
