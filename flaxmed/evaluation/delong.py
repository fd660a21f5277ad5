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
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import stats

from flaxmed.evaluation.checks import check, missing, one_vs_rest
from flaxmed.types import InputError, Task

# A standard error below this is one of rounding: the places of m and n images move an area by
# 1 / (2 m n) or not at all.
_ROUNDING = 1e-14


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


@dataclasses.dataclass(frozen=True)
class PairedAuc:
    """The difference of two areas on the same images, tested against 0.

    Attributes:
        difference: the first area less the second.
        variance: of the difference.
        z: the difference as a multiple of its standard error.
        p_value: two-sided, by the normal distribution.
        reason: why z and p are NaN, or are 0 and 1 without a test, else None.
    """

    difference: float
    variance: float
    z: float
    p_value: float
    reason: str | None = None


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
    return AucEstimate(float(np.mean(areas)), _centred(raw, members), members)


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


def paired_test(
    first: AucEstimate, second: AucEstimate, groups: Shaped[np.ndarray, " n"] | None = None
) -> PairedAuc:
    """DeLong's test of two areas on the same images.

    Where the variance of the difference is 0, there is no test: z and p are 0 and 1 if the
    difference is 0 too (two identical models, or two without an error), as in R's pROC; else they
    are NaN, where pROC divides by 0 and has a p of 0.

    Args:
        first, second: of two models, for the same labels in the same order.
        groups: as for :func:`covariance`.

    Raises:
        InputError: areas of other images, labels or kind.

    Example:
        >>> labels = np.array([0, 0, 0, 1, 1, 1])
        >>> one, two = np.array([1, 2, 5, 4, 6, 7]) / 8, np.array([1, 5, 6, 4, 2, 7]) / 8
        >>> areas = [
        ...     auc_estimate(labels, np.stack([1 - s, s], axis=1), task="binary")
        ...     for s in (one, two)
        ... ]
        >>> found = paired_test(*areas)
        >>> round(found.difference, 3), round(found.z, 3), round(found.p_value, 3)
        (0.333, 1.225, 0.221)
    """
    difference = first.value - second.value
    # From the difference of the components: of two covariances subtracted rounding would be left.
    between = AucEstimate(difference, first.components - second.components, first.members)
    variance = float(covariance([between, second], groups)[0, 0])
    if math.isnan(variance):
        reason = "its variance is undefined: one image of a kind tells nothing about it"
        return PairedAuc(difference, variance, math.nan, math.nan, reason)
    if variance > _ROUNDING**2:
        z = difference / math.sqrt(variance)
        return PairedAuc(difference, variance, z, float(2 * stats.norm.sf(abs(z))))
    if abs(difference) <= _ROUNDING:
        return PairedAuc(0.0, 0.0, 0.0, 1.0, "the difference is 0 and so is its variance")
    reason = "the variance of the difference is not above 0"
    return PairedAuc(difference, min(variance, 0.0), math.nan, math.nan, reason)


def _centred(raw: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Deviations from the mean of the stratum, by way of its first image: those of images that
    are all alike are then 0, not rounding."""
    first = raw[np.arange(len(raw)), members.argmax(axis=1)][:, None]
    moved = np.where(members, raw - first, 0.0)
    means = moved.sum(axis=1, keepdims=True) / members.sum(axis=1, keepdims=True)
    return np.where(members, moved - means, 0.0)


def _sums(values: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """Sums over the groups, ``[strata, groups]``."""
    return np.stack([np.bincount(index, row, minlength=size) for row in values])


def _factors(present: np.ndarray) -> np.ndarray:
    """I / (I - 1), I groups: those of the stratum, for two strata those of the whole sample."""
    own, whole = present.sum(axis=1), present.shape[1]
    factors = np.full((len(own), len(own)), whole / max(whole - 1, 1))
    np.fill_diagonal(factors, np.where(own > 1, own / np.maximum(own - 1, 1), np.nan))
    return factors
