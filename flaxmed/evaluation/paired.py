"""Two networks on the same images: differences, intervals and tests.

The area under the ROC curve: DeLong et al. (1988), paired. Accuracy: McNemar's test, exact, with
its mid-p beside it (Fagerland et al., BMC Medical Research Methodology 13, 91, 2013); where images
have groups, or networks several seeds, a permutation of whose answers are whose, group by group.
Any other metric: paired bootstrap, the same draws for both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from flaxmed.evaluation.bootstrap import (
    ratio_interval,
    unit_index,
)
from flaxmed.evaluation.checks import absent
from flaxmed.evaluation.delong import PairedAuc, auc_estimate, covariance, paired_test
from flaxmed.evaluation.estimates import (
    SAMPLING,
    Metric,
    Sampling,
    difference_interval,
    redrawn_covariance,
    redrawn_values,
    right_shares,
)
from flaxmed.evaluation.intervals import Interval, normal_quantile
from flaxmed.evaluation.seeds import FEWEST, error_parts, freedom
from flaxmed.evaluation.tables import json_number
from flaxmed.evaluation.weighted import statistic
from flaxmed.types import Predictions, Task

Seeds = Sequence[Predictions]
"""Predictions of one network, one per seed, with the same images in the same order."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A metric of one network less the same metric of another, on the same images.

    Attributes:
        value: the difference of the means over seeds; NaN where either is undefined.
        interval: of it.
        p_value: of no difference, two-sided.
        test: which test gave the p-value.
        variance: of the difference from drawing other images, the trained networks held fixed.
        seed_variance: what training with new seeds adds to it, where seeds are joined.
        joint: whether interval and p-value are of new seeds too, or of these trained networks.
        reason: why value or p-value are undefined, else None.
        beside: other tests' p-values by name, such as the mid-p.
    """

    value: float
    interval: Interval
    p_value: float
    test: str
    variance: float
    seed_variance: float = 0.0
    joint: bool = False
    reason: str | None = None
    beside: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None."""
        values: dict[str, Any] = {"value": json_number(self.value), **self.interval.to_dict()}
        values |= {"p_value": json_number(self.p_value), "test": self.test, "joint": self.joint}
        values |= {name: json_number(value) for name, value in self.beside.items()}
        return values | ({"reason": self.reason} if self.reason else {})


def auc_difference(first: Seeds, second: Seeds, sampling: Sampling = SAMPLING) -> Difference:
    """DeLong's paired comparison of areas under ROC curves (means over classes, and over seeds).

    With three seeds or more of both networks, the variance between seeds is joined to that of the
    images and the test is Student's t.

    Args:
        first, second: one or several predictions each, of the same images in the same order.
        sampling: its level is the interval's.

    Example:
        >>> labels = np.arange(40) % 2
        >>> def noisy(seed):
        ...     logits = np.random.default_rng(seed).normal(size=(40, 2)) + np.eye(2)[labels]
        ...     return Predictions(labels=labels, logits=logits, task="binary")
        >>> found = auc_difference([noisy(0)], [noisy(1)])
        >>> found.test, found.joint, 0 < found.p_value < 1
        ('paired DeLong', False, True)
    """
    p = first[0]
    reason = absent(p.labels, p.logits, p.task, p.classes)
    if reason:
        return undefined_difference(reason, sampling.level, "paired DeLong")
    estimates = [auc_estimate(q.labels, q.probabilities, task=p.task) for q in (*first, *second)]
    if len(estimates) == 2:
        return _single_difference(paired_test(estimates[0], estimates[1], p.groups), sampling.level)
    values = np.array([estimate.value for estimate in estimates])
    return _normal_difference(
        values, covariance(estimates, p.groups), len(first), sampling.level, "paired DeLong"
    )


def accuracy_difference(first: Seeds, second: Seeds, sampling: Sampling = SAMPLING) -> Difference:
    """Difference of accuracies, with McNemar's test or a permutation test.

    McNemar's is for one network each and images without groups; the permutation test, by group and
    for several seeds, exchanges the two networks' answers (means over seeds) on each group. The
    interval of single networks is made from their own intervals and their correlation (Newcombe,
    Statistics in Medicine 17, 2635, 1998, method 10), inside [-1, 1]; it and an exact test may
    disagree by a little.

    Args:
        first, second: one or several predictions each, of the same images in the same order.
        sampling: level, draws (also of the permutation) and seed.
    """
    p = first[0]
    if not len(p):
        return undefined_difference("no images", sampling.level, "McNemar, exact")
    found = bootstrap_differences(first, second, ("accuracy",), sampling)["accuracy"]
    if found.joint:
        return found
    right = [np.mean([right_shares(q) for q in seeds], axis=0) for seeds in (first, second)]
    found = dataclasses.replace(found, reason=None)  # a test of counts needs no variance
    single = len(first) == len(second) == 1 and p.task is not Task.MULTILABEL
    if single:
        interval = _share_interval(p, right[0], right[1], sampling)
        found = dataclasses.replace(found, interval=interval)
    if single and p.groups is None:
        only = int((right[0] > right[1]).sum()), int((right[1] > right[0]).sum())
        exact, mid = mcnemar(*only)
        return dataclasses.replace(
            found, p_value=exact, test="McNemar, exact", beside={"mid_p": mid}
        )
    index, units = unit_index(len(p), p.groups)
    sums = np.bincount(index, right[0] - right[1], minlength=units)
    p_value = _sign_flips(sums, sampling.draws, sampling.seed)
    by = "image" if p.groups is None else "group"
    return dataclasses.replace(found, p_value=p_value, test=f"permutation by {by}")


def mcnemar(only_first: int, only_second: int) -> tuple[float, float]:
    """McNemar's test from the images that one network alone has right: exact p and mid-p.

    Args:
        only_first, only_second: how many images the first (the second) network alone has right.

    Example:
        >>> [round(p, 4) for p in mcnemar(2, 9)]
        [0.0654, 0.0386]
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0, 1.0
    exact = float(stats.binomtest(fewer, n).pvalue)
    # Half of the observed outcome's probability; both tails hold it, unless it is the middle.
    mid = exact - float(stats.binom.pmf(fewer, n, 0.5)) if 2 * fewer < n else 1.0
    if 2 * fewer == n:
        mid = 1.0 - float(stats.binom.pmf(fewer, n, 0.5)) / 2
    return exact, mid


def bootstrap_differences(
    first: Seeds, second: Seeds, names: Sequence[str], sampling: Sampling = SAMPLING
) -> dict[str, Difference]:
    """Differences of any metrics by a paired bootstrap: the same draws for all predictions.

    Interval and p-value are normal, from the bootstrap's standard error of the difference (with
    three seeds or more of both networks joined with the variance between seeds, Student's t). BCa,
    which single metrics have, is no help here: differences are nearly symmetric, and the noise of
    its corrections cost coverage (measured: 0.90 for average precision on 156 images; so 0.95).

    Args:
        first, second: one or several predictions each, of the same images in the same order.
        names: metrics of :data:`flaxmed.evaluation.metrics.METRICS`, without ``"auc"``.
        sampling: level, draws and seed.
    """
    p, every = first[0], (*first, *second)
    _, units = unit_index(len(p), p.groups)
    if units < 2:
        kind = "image" if p.groups is None else "group"
        reason = f"one {kind} tells nothing about the error" if units else "no images"
        empty = undefined_difference(reason, sampling.level, "paired bootstrap")
        return dict.fromkeys(names, empty)
    point = np.stack([statistic(q, tuple(names))(np.ones((1, units)))[0] for q in every])
    drawn, many = redrawn_values(every, names, sampling)
    test = "paired jackknife" if many else "paired bootstrap"
    found = {}
    for j, name in enumerate(names):
        if np.isnan(point[:, j]).any():
            found[name] = undefined_difference("undefined for a network", sampling.level, test)
            continue
        kept = drawn[np.isfinite(drawn[:, :, j]).all(axis=1), :, j]
        if len(kept) < max(20, len(drawn) // 10):
            reason = f"undefined in {len(drawn) - len(kept)} of {len(drawn)} draws"
            found[name] = undefined_difference(reason, sampling.level, test)
            continue
        spread = redrawn_covariance(kept, left_out=many)
        made = _normal_difference(point[:, j], spread, len(first), sampling.level, test)
        if len(kept) < len(drawn):
            lost = f"undefined in {len(drawn) - len(kept)} of {len(drawn)} draws, left out"
            interval = dataclasses.replace(made.interval, reason=made.interval.reason or lost)
            made = dataclasses.replace(made, interval=interval)
        found[name] = made
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Scandinavian Journal of Statistics 6, 65, 1979).

    A p-value that is undefined is left out of the family and stays NaN.

    Example:
        >>> [round(p, 4) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    adjusted = [math.nan] * len(p_values)
    order = sorted(
        (i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i]
    )
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def images_needed(
    variance: float,
    n: int,
    difference: float,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    seed_variance: float = 0.0,
) -> float:
    """How many test images would show a difference of this size with this probability.

    Args:
        variance: of the difference, on ``n`` images of the same kind.
        n: how many images it was measured on.
        difference: the true difference that is to be found, not 0.
        power: the wanted probability of finding it.
        alpha: two-sided error of the test.
        seed_variance: what new seeds add, which no number of images takes away.

    Returns:
        A whole number; inf where the seeds alone vary too much, NaN where the variance is unknown
        or 0.

    Example:
        >>> images_needed(0.0004, 156, 0.02), images_needed(0.0004, 156, 0.02, seed_variance=1e-3)
        (1225.0, inf)
    """
    if not variance > 0:
        return math.nan
    z = normal_quantile(1 - alpha) + float(stats.norm.ppf(power))
    left = difference**2 / z**2 - seed_variance
    return float(math.ceil(variance * n / left)) if left > 0 else math.inf


def undefined_difference(reason: str, level: float, test: str) -> Difference:
    """A difference that does not exist, and why."""
    nothing = Interval(math.nan, math.nan, test, level, reason)
    return Difference(math.nan, nothing, math.nan, test, math.nan, reason=reason)


def _normal_difference(
    values: Float[np.ndarray, " s"],
    spread: Float[np.ndarray, "s s"],
    count: int,
    level: float,
    test: str,
) -> Difference:
    """Difference of two means over seeds, ``count`` of the first network, from their covariance."""
    seeds = (count, len(values) - count)
    sides = np.repeat([1 / seeds[0], -1 / seeds[1]], seeds)
    value, variance = float(sides @ values), float(sides @ spread @ sides)
    # Sums of equal numbers differ in the last digits: that is neither difference nor variance.
    tiny = 1e-12 * max(1.0, float(np.abs(values).max()))
    value, variance = (0.0 if abs(value) < tiny else value), max(variance, 0.0)
    variance = 0.0 if variance < tiny**2 else variance
    joint, extra, df = min(seeds) >= FEWEST, 0.0, math.inf
    if joint:
        parts = [
            error_parts(values[part], spread[part, part])
            for part in (slice(0, count), slice(count, None))
        ]
        extra = sum(part.seed_variance / part.seeds for part in parts)
        # Images on which both networks fare alike may not make the error smaller than the seeds'
        # own scatter shows it to be (Hillis 2007: the difference of covariances, not below 0).
        extra = max(extra, sum(part.observed / part.seeds for part in parts) - variance)
        extra = 0.0 if extra < tiny**2 else extra
        df = freedom(variance + extra, parts)
        test += ", seeds joined (t)"
    total = variance + extra
    if not total > 0:
        reason = "its variance is undefined" if math.isnan(total) else "its variance is 0"
        nothing = Interval(math.nan, math.nan, test, level, reason)
        p_value = 1.0 if value == total == 0 else math.nan
        return Difference(value, nothing, p_value, test, variance, extra, joint, reason)
    error = math.sqrt(total)
    half = float(stats.t.ppf((1 + level) / 2, df)) * error
    interval = Interval(value - half, value + half, test, level)
    p_value = 2 * float(stats.t.sf(abs(value) / error, df))
    return Difference(value, interval, p_value, test, variance, extra, joint)


def _single_difference(found: PairedAuc, level: float) -> Difference:
    """DeLong's test of single networks, with its symmetric interval."""
    test = "paired DeLong"
    interval = Interval(math.nan, math.nan, test, level, found.reason)
    if found.variance > 0 and not found.reason:
        half = normal_quantile(level) * math.sqrt(found.variance)
        interval = Interval(found.difference - half, found.difference + half, test, level)
    return Difference(
        found.difference, interval, found.p_value, test, found.variance, reason=found.reason
    )


def _share_interval(
    p: Predictions, first: np.ndarray, second: np.ndarray, sampling: Sampling
) -> Interval:
    """Interval of a difference of two accuracies from theirs and their correlation."""
    index, units = unit_index(len(p), p.groups)
    metrics = []
    for right in (first, second):
        share = ratio_interval(
            right,
            np.ones(len(p)),
            groups=p.groups,
            level=sampling.level,
            draws=sampling.draws,
            seed=sampling.seed,
        )
        metrics.append(Metric("accuracy", "accuracy", float(right.mean()), interval=share))
    sums = [np.bincount(index, right - right.mean(), minlength=units) for right in (first, second)]
    scale = math.sqrt(float(sums[0] @ sums[0]) * float(sums[1] @ sums[1]))
    correlation = float(sums[0] @ sums[1]) / scale if scale > 0 else 0.0
    return difference_interval(metrics[0], metrics[1], correlation)


def _sign_flips(sums: Float[np.ndarray, " u"], draws: int, seed: int) -> float:
    """Two-sided p-value of a mean of 0, each unit's sign being as likely either."""
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    rng = np.random.default_rng(seed)
    observed, as_far = abs(sums.sum()) - 1e-9, 0
    step = max(1, 4_000_000 // len(sums))
    for start in range(0, draws, step):
        signs = rng.choice((-1.0, 1.0), (min(step, draws - start), len(sums)))
        as_far += int((np.abs(signs @ sums) >= observed).sum())
    return (1 + as_far) / (1 + draws)
