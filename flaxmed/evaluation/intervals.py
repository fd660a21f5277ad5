"""Confidence intervals of a proportion and of an area under the ROC curve."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from scipy import optimize, special, stats

from flaxmed.types import InputError

Scale = Literal["logit", "plain"]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low, high: its ends; NaN where there is none.
        method: how it was made, e.g. ``"Wilson"``.
        level: the wanted coverage, in (0, 1).
        reason: why there is none, or why another method than the usual one was taken, else None.
    """

    low: float
    high: float
    method: str
    level: float = 0.95
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: an end that is NaN is None."""
        ends = {"low": self.low, "high": self.high}
        values: dict[str, Any] = {k: v if math.isfinite(v) else None for k, v in ends.items()}
        values |= {"method": self.method, "level": self.level}
        return values | ({"interval_note": self.reason} if self.reason else {})


NO_INTERVAL = Interval(math.nan, math.nan, "none")


def normal_quantile(level: float) -> float:
    """The z of a two-sided interval: 1.96 for 0.95.

    Raises:
        InputError: a level outside (0, 1).

    Example:
        >>> round(normal_quantile(0.95), 2)
        1.96
    """
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, got {level!r}")
    return float(stats.norm.ppf((1 + level) / 2))


def proportion_interval(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (JASA 22, 209, 1927).

    Args:
        successes: how many of ``n``.
        n: how many in all; 0 gives NaN with its reason.
        level: the wanted coverage.

    Example:
        >>> found = proportion_interval(136, 156)
        >>> round(found.low, 3), round(found.high, 3)
        (0.81, 0.915)
    """
    normal_quantile(level)
    if n == 0:
        return Interval(math.nan, math.nan, "Wilson", level, "no images")
    ends = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(float(ends.low), float(ends.high), "Wilson", level)


def auc_interval(
    area: float,
    variance: float,
    *,
    positives: int,
    negatives: int,
    level: float = 0.95,
    scale: Scale = "logit",
) -> Interval:
    """Interval of an area under the ROC curve from its DeLong variance.

    On the logit scale it stays inside (0, 1) and is as wide as it has to be near 1. Where the
    variance is 0 (every pair is ranked alike: an area of 1, say) that scale has no answer; the
    score interval with the variance of Hanley and McNeil, as modified by R. G. Newcombe
    (Statistics in Medicine 25, 559, 2006), takes its place, and the reason says so.

    Args:
        area: in [0, 1].
        variance: of the area, see :func:`flaxmed.evaluation.delong.covariance`.
        positives, negatives: how many images (groups, where there are any) of either kind.
        level: the wanted coverage.
        scale: ``"logit"``, or ``"plain"`` for the symmetric interval of R's pROC.

    Example:
        >>> found = auc_interval(1.0, 0.0, positives=42, negatives=114)
        >>> 0.9 < found.low < 1, found.high
        (True, 1.0)
    """
    z = normal_quantile(level)
    if math.isnan(area) or math.isnan(variance):
        reason = "its variance is undefined: one image of a kind tells nothing about it"
        return Interval(math.nan, math.nan, "DeLong", level, reason)
    error = math.sqrt(max(variance, 0.0))
    if scale == "plain":
        low, high = max(area - z * error, 0.0), min(area + z * error, 1.0)
        return Interval(low, high, "DeLong, plain", level)
    if scale != "logit":
        raise InputError(f"scale must be logit or plain, got {scale!r}")
    if error == 0 or area in (0, 1):
        low, high = _score_interval(area, positives, negatives, z)
        reason = "DeLong's variance is 0"
        return Interval(low, high, "score (Newcombe)", level, reason)
    half = z * error / (area * (1 - area))
    low, high = special.expit(special.logit(area) + np.array([-half, half]))
    return Interval(float(low), float(high), "DeLong, logit", level)


def _score_interval(area: float, m: int, n: int, z: float) -> tuple[float, float]:
    """The areas whose distance from this one is within z of their own standard errors."""
    more = (m + n) / 2 - 1

    def excess(theta: float) -> float:
        variance = (
            theta * (1 - theta) * (1 + more * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
        )
        return (theta - area) ** 2 - z**2 * variance / (m * n)

    # An area of 1 (0) is itself a root: the wanted one is on the near side of it.
    near = min(max(area, 1e-12), 1 - 1e-12)
    low = 0.0 if area == 0 else float(optimize.brentq(excess, 0.0, near, xtol=1e-12))
    high = 1.0 if area == 1 else float(optimize.brentq(excess, near, 1.0, xtol=1e-12))
    return low, high
