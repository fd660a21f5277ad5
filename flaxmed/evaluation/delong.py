"""The area under the ROC curve with its sampling variance, after DeLong et al. (1988).

E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson: Comparing the areas under two or more correlated
receiver operating characteristic curves, Biometrics 44, 837 (1988). The structural components come
from midranks, in O(n log n): X. Sun, W. Xu, IEEE Signal Processing Letters 21, 1389 (2014). Images
of one patient: N. A. Obuchowski, Biometrics 53, 567 (1997). All in float64.

A mean over classes or labels is treated as one statistic: each image has one component for it, the
sum of its components for the curves, so the covariance of the curves is in its variance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import stats

from flaxmed.evaluation.checks import check, missing, one_vs_rest
from flaxmed.types import InputError, Task


@dataclasses.dataclass(frozen=True, eq=False)
class AucEstimate:
    """An area under the ROC curve, or a mean of several, and what each image adds to its error.

    Attributes:
        value: the area, in [0, 1].
        components: ``[strata, n]``, zero outside an image's strata: by how much the images' places
            move the area, centred in each stratum. The strata are the classes, of which each image
            has one (multi-label: for each label the images with and without it).
        members: ``[strata, n]``, whether the image belongs to the stratum.
    """

    value: float
    components: Float[np.ndarray, "s n"]
    members: Bool[np.ndarray, "s n"]


def structural_components(
    scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """For every image the share of the other kind that it is ranked rightly against; ties half.

    Of a positive image this is DeLong's V10, of another V01. The mean over either kind is the area
    under the curve.

    Args:
        scores: larger means more positive.
        positive: the truth; both kinds occur.

    Example:
        >>> scores = np.array([0.1, 0.4, 0.4, 0.9])
        >>> structural_components(scores, np.array([False, True, False, True])).tolist()
        [1.0, 0.75, 0.75, 1.0]
    """
    m, n = int(positive.sum()), int((~positive).sum())
    rank = stats.rankdata(scores)
    placed = np.empty(len(scores))
    placed[positive] = (rank[positive] - stats.rankdata(scores[positive])) / n
    placed[~positive] = 1 - (rank[~positive] - stats.rankdata(scores[~positive])) / m
    return placed


def auc_estimate(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    of_class: int | None = None,
) -> AucEstimate:
    """The area under the ROC curve, ready for :func:`covariance`.

    Args:
        labels, scores, task: as for :func:`flaxmed.evaluation.metrics.auc_score`.
        of_class: the area of this class against the rest (multi-label: of this label); None: the
            mean over classes or labels, which for a binary task is its one area.

    Raises:
        InputError: what the metrics refuse, or a class without images or without others.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
        >>> auc_estimate(np.array([0, 1, 0, 1]), scores, task="binary").value
        1.0
    """
    labels, scores, task = check(labels, scores, task)
    if of_class is not None:
        which: Sequence[int] = [of_class]
    else:
        which = [scores.shape[1] - 1] if task is Task.BINARY else range(scores.shape[1])
    truths, placed = [], []
    for c in which:
        reason = missing(labels, task, c, None)
        if reason:
            raise InputError(f"the area under the ROC curve is undefined: {reason}")
        true, rank = one_vs_rest(labels, scores, task, c)
        positive = np.asarray(true, bool)
        truths.append(positive)
        placed.append(structural_components(rank, positive))
    areas = [float(v[t].mean()) for v, t in zip(placed, truths, strict=True)]
    # An image's weight in a curve's area: one over the number of images of its kind.
    parts = np.array(
        [
            v / np.where(t, t.sum(), (~t).sum()) / len(which)
            for v, t in zip(placed, truths, strict=True)
        ]
    )
    if task is Task.MULTILABEL and len(which) > 1:
        members = np.concatenate([truths, ~np.array(truths)])
        raw = np.where(members, np.concatenate([parts, parts]), 0.0)
    else:
        kinds = labels if task is not Task.MULTILABEL and len(which) > 1 else truths[0]
        members = np.array([kinds == kind for kind in np.unique(kinds)])
        raw = np.where(members, parts.sum(axis=0), 0.0)
    means = raw.sum(axis=1, keepdims=True) / members.sum(axis=1, keepdims=True)
    return AucEstimate(float(np.mean(areas)), np.where(members, raw - means, 0.0), members)


def covariance(
    estimates: Sequence[AucEstimate], groups: Shaped[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, "e e"]:
    """Sampling covariance of areas on the same images.

    Args:
        estimates: of several models or of one, for the same labels in the same order.
        groups: a name per image: images of one group (patient) may resemble each other, images of
            different groups are independent. None: all images are independent.

    Returns:
        ``[e, e]``; NaN where a stratum has a single image (group), which tells nothing about its
        variance.

    Example:
        >>> labels = np.array([0, 1, 0, 1])
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.6, 0.4]])
        >>> covariance([auc_estimate(labels, scores, task="binary")]).tolist()
        [[0.125]]
    """
    first = estimates[0].members
    for estimate in estimates:
        if not np.array_equal(estimate.members, first):
            raise InputError("areas to compare must be of the same images, labels and kind")
    index = (
        np.arange(first.shape[1]) if groups is None else np.unique(groups, return_inverse=True)[1]
    )
    size = int(index.max()) + 1
    totals = np.stack([_sums(estimate.components, index, size) for estimate in estimates])
    present = _sums(first.astype(np.float64), index, size) > 0
    factors = _factors(present)
    products = np.einsum("asg,btg->abst", totals, totals)
    return np.einsum("abst,st->ab", products, factors)


def _sums(values: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """Sums over the groups, ``[strata, groups]``."""
    return np.stack([np.bincount(index, row, minlength=size) for row in values])


def _factors(present: np.ndarray) -> np.ndarray:
    """I / (I - 1), I groups: those of the stratum, for two strata those of the whole sample."""
    own, whole = present.sum(axis=1), present.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.full((len(own), len(own)), np.float64(whole) / (whole - 1))
        np.fill_diagonal(factors, own / (own - 1))
    return factors
