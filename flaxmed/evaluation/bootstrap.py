"""Bias-corrected and accelerated bootstrap intervals, by image or by patient.

B. Efron: Better bootstrap confidence intervals, JASA 82, 171 (1987). Test sets are redrawn with
replacement, each as large as the one there is; where images have groups (patients), whole groups
are redrawn. A draw is a row of weights: how often each image (group) is in it. Every statistic of
a draw is computed from those, so that all metrics, and all models, see the same draws.

Of more than ``MANY`` images (groups) statistics are as good as normal, and the delete-block
jackknife gives their variance from 500 values: B. Efron, The Jackknife, the Bootstrap and Other
Resampling Plans (SIAM, 1982), chapter 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats

from flaxmed.evaluation.intervals import Interval, normal_quantile, proportion_interval

DRAWS = 2000
MANY = 5_000  # more units than this: the jackknife's normal interval, which needs fewer draws
_CHUNK = 500_000  # weights held at once: 4 MB, which stay in cache
_BLOCKS = 500  # a jackknife over more units than twice this leaves out blocks of them

Statistic = Callable[[Float[np.ndarray, "b u"]], Float[np.ndarray, "b *m"]]
"""A statistic as a function of weights: ``[draws, units]`` to ``[draws]`` or ``[draws, m]``."""


def unit_index(
    n: int, groups: Shaped[np.ndarray, " n"] | None
) -> tuple[Int[np.ndarray, " n"], int]:
    """The number of each image's unit of resampling, and how many units there are.

    Args:
        n: number of images.
        groups: a name per image, or None: each image is a unit of its own.

    Example:
        >>> index, units = unit_index(3, np.array(["b", "a", "b"]))
        >>> index.tolist(), units
        ([1, 0, 1], 2)
    """
    if groups is None:
        return np.arange(n), n
    names, index = np.unique(groups, return_inverse=True)
    return index, len(names)


def weights(units: int, draws: int = DRAWS, seed: int = 0) -> Iterator[Float[np.ndarray, "b u"]]:
    """Draws of ``units`` with replacement, as rows of counts, some at a time.

    The same seed gives the same draws, whatever is computed of them.

    Example:
        >>> [chunk.sum(axis=1).tolist() for chunk in weights(4, draws=2)]
        [[4.0, 4.0]]
    """
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(units, 1))
    for start in range(0, draws, step):
        b = min(step, draws - start)
        drawn = rng.integers(0, max(units, 1), (b, units)) + units * np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=b * units).reshape(b, units).astype(np.float64)


def resample(
    statistic: Statistic, units: int, *, draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, "b *m"]:
    """The statistic of every draw; NaN where it is undefined.

    Example:
        >>> share = lambda w: w @ np.array([1.0, 0.0]) / w.sum(axis=1)
        >>> bool(abs(resample(share, 2, draws=500).mean() - 0.5) < 0.05)
        True
    """
    return np.concatenate([statistic(w) for w in weights(units, draws, seed)])


def jackknife(statistic: Statistic, units: int, *, seed: int = 0) -> Float[np.ndarray, "j *m"]:
    """The statistic without each unit in turn; without each of 500 random blocks, of many units.

    Example:
        >>> total = lambda w: w @ np.array([1.0, 2.0, 4.0])
        >>> jackknife(total, 3).tolist()
        [6.0, 5.0, 3.0]
    """
    many = units > 2 * _BLOCKS
    block = np.random.default_rng(seed).permutation(units) % _BLOCKS if many else np.arange(units)
    count = _BLOCKS if many else units
    step = max(1, _CHUNK // max(units, 1))
    parts = [
        statistic((block != np.arange(at, min(at + step, count))[:, None]).astype(np.float64))
        for at in range(0, count, step)
    ]
    return np.concatenate(parts) if parts else statistic(np.zeros((0, units)))


def bca_interval(
    value: float,
    draws: Float[np.ndarray, " b"],
    left_out: Float[np.ndarray, " j"],
    *,
    level: float = 0.95,
    of: str = "image",
) -> Interval:
    """The BCa interval of a statistic from its draws and its jackknife.

    Undefined draws are left out and counted in the reason. Where the correction is undefined (all
    draws on one side of the value, a jackknife that is constant or undefined) the percentiles take
    its place, and where every draw is the same there is no interval; the reason says so.

    Args:
        value: the statistic of the images themselves.
        draws: its value in each draw.
        left_out: its jackknife values.
        level: the wanted coverage.
        of: what was redrawn, ``"image"`` or ``"group"``, for the method's name.

    Example:
        >>> x = np.random.default_rng(0).normal(size=50)
        >>> mean = lambda w: w @ x / w.sum(axis=1)
        >>> found = bca_interval(x.mean(), resample(mean, 50), jackknife(mean, 50))
        >>> bool(found.low < x.mean() < found.high)
        True
    """
    normal_quantile(level)
    method = "BCa bootstrap" + (" of groups" if of == "group" else "")
    if math.isnan(value):
        return Interval(math.nan, math.nan, method, level, "the metric is undefined")
    known = draws[np.isfinite(draws)]
    lost = len(draws) - len(known)
    note = f"undefined in {lost} of {len(draws)} draws, which are left out" if lost else None
    # Sums in another order differ in the last digits: that is no difference between draws.
    tiny = 1e-12 * max(1.0, abs(value))
    if len(known) < max(20, len(draws) // 10):
        return Interval(math.nan, math.nan, method, level, note or "too few draws")
    if np.ptp(known) <= tiny:
        reason = f"all {len(known)} draws gave {known[0]:.4g}: they tell nothing about its error"
        return Interval(math.nan, math.nan, method, level, reason)
    below = np.mean(known < value - tiny) + np.mean(np.abs(known - value) <= tiny) / 2
    deviations = left_out[np.isfinite(left_out)].mean() - left_out if len(left_out) else left_out
    power = float(np.sum(deviations**2))
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if not 0 < below < 1 or not np.isfinite(power) or power <= tiny**2:
        low, high = np.quantile(known, tails)
        reason = "BCa's correction is undefined here; " + (note or "percentiles of the draws")
        method = method.replace("BCa", "percentile")
        return Interval(float(low), float(high), method, level, reason)
    bias = stats.norm.ppf(below)
    acceleration = float(np.sum(deviations**3)) / (6 * power**1.5)
    shifted = bias + stats.norm.ppf(tails)
    adjusted = stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(known, adjusted)
    return Interval(float(low), float(high), method, level, note)


def jackknife_covariance(left_out: Float[np.ndarray, "j m"]) -> Float[np.ndarray, "m m"]:
    """Sampling covariance of ``m`` statistics from their jackknife values.

    Example:
        >>> x = np.arange(10.0)
        >>> means = jackknife(lambda w: (w @ x / w.sum(axis=1))[:, None], 10)
        >>> bool(np.isclose(jackknife_covariance(means)[0, 0], x.var(ddof=1) / 10))
        True
    """
    count = len(left_out)
    deviations = left_out - left_out.mean(axis=0)
    return (count - 1) / count * deviations.T @ deviations


def jackknife_interval(
    value: float, left_out: Float[np.ndarray, " j"], *, level: float = 0.95, of: str = "image"
) -> Interval:
    """A normal interval with the jackknife's standard error, for many units.

    Args:
        value: the statistic of the images themselves.
        left_out: its jackknife values.
        level: the wanted coverage.
        of: what was left out, ``"image"`` or ``"group"``.
    """
    method = "jackknife, normal" + (" (groups)" if of == "group" else "")
    error = math.sqrt(float(jackknife_covariance(left_out[:, None])[0, 0]))
    if not error > 1e-12 * max(1.0, abs(value)):
        reason = "the metric does not change when images are left out, or is undefined then"
        return Interval(math.nan, math.nan, method, level, reason)
    half = normal_quantile(level) * error
    return Interval(value - half, value + half, method, level)


def ratio_interval(
    hits: Float[np.ndarray, " n"],
    of: Float[np.ndarray, " n"],
    *,
    groups: Shaped[np.ndarray, " n"] | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Interval of a share: Wilson's, or of redrawn groups where images have them.

    Of groups that all agree (a share of 0 or 1) Wilson's with the number of groups is taken.

    Args:
        hits: 1 for an image that counts in the numerator, else 0.
        of: 1 for one that counts in the denominator, else 0.
        groups: a name per image, or None.
        level, draws, seed: the wanted coverage, how many draws and which.

    Example:
        >>> found = ratio_interval(np.array([1.0, 0.0, 1.0]), np.ones(3))
        >>> found.method, round(found.low, 3)
        ('Wilson', 0.208)
    """
    total, found = round(float(of.sum())), round(float((hits * of).sum()))
    if groups is None or total == 0:
        return proportion_interval(found, total, level=level)
    index, units = unit_index(len(of), groups)
    top, bottom = (np.bincount(index, row, minlength=units) for row in (hits * of, of))
    if found in (0, total):
        count = int((bottom > 0).sum())
        interval = proportion_interval(count if found else 0, count, level=level)
        reason = "all groups agree; Wilson's interval of as many groups"
        return Interval(interval.low, interval.high, "Wilson, groups", level, reason)

    def share(w: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (w @ top) / (w @ bottom)

    left_out = jackknife(share, units)
    if units > MANY:
        return jackknife_interval(found / total, left_out, level=level, of="group")
    drawn = resample(share, units, draws=draws, seed=seed)
    return bca_interval(found / total, drawn, left_out, level=level, of="group")
