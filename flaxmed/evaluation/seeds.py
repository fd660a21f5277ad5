"""Several seeds on the same images: the spread over seeds and the sampling error, apart and joined.

Seeds are crossed with images: every trained network sees all of them, so an easy test set helps all
seeds at once, and averaging over seeds does not make that part of the error smaller. This is the
layout of a multi-reader study, with seeds for readers: N. A. Obuchowski, H. E. Rockette, Commun.
Statist. Simul. Comput. 24, 285 (1995); degrees of freedom after S. L. Hillis, Statistics in
Medicine 26, 596 (2007).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy import special, stats

from flaxmed.evaluation.intervals import Interval, normal_quantile

FEWEST = 3

ESTIMAND = (
    "the mean over networks trained in the same way with new seeds, on new images of the same kind"
)


@dataclasses.dataclass(frozen=True)
class ErrorParts:
    """The error of a metric's mean over seeds, in its parts.

    Attributes:
        seeds: how many seeds.
        seed_variance: of the metric between seeds, the images' share taken out; 0 or more. NaN for
            one seed.
        image_variance: of the seed mean, from drawing other images.
        observed: variance of the seeds' values as they are; NaN for one seed.
    """

    seeds: int
    seed_variance: float
    image_variance: float
    observed: float

    @property
    def total(self) -> float:
        """Variance of the seed mean from new seeds and new images; NaN below three seeds.

        Not below what the seeds' own scatter shows, also where a bootstrap's covariances are
        negative.
        """
        if self.seeds < FEWEST:
            return math.nan
        joined = self.seed_variance / self.seeds + self.image_variance
        return max(joined, self.observed / self.seeds)

    @property
    def freedom_part(self) -> float:
        """This mean's term in Satterthwaite's formula: (observed / S)^2 / (S - 1)."""
        return (self.observed / self.seeds) ** 2 / (self.seeds - 1)


def error_parts(
    values: Float[np.ndarray, " s"], covariance: Float[np.ndarray, "s s"]
) -> ErrorParts:
    """The parts of the error of ``values.mean()``.

    The values of seeds on the same images scatter by the variance between seeds plus what the
    images add to each seed alone, ``mean variance - mean covariance``; that part is taken out.

    Args:
        values: the metric of each seed, on the same images.
        covariance: from drawing other images, the seeds held fixed.

    Example:
        >>> parts = error_parts(np.array([0.8, 0.82, 0.84]), np.full((3, 3), 1e-4))
        >>> round(parts.seed_variance, 6), round(parts.total, 6)
        (0.0004, 0.000233)
    """
    s = len(values)
    image_variance = float(covariance.sum()) / s**2
    if s == 1:
        return ErrorParts(1, math.nan, image_variance, math.nan)
    own = float(np.trace(covariance)) / s
    shared = (float(covariance.sum()) - s * own) / (s * (s - 1))
    observed = float(np.var(values, ddof=1))
    return ErrorParts(s, max(observed - (own - shared), 0.0), image_variance, observed)


def freedom(total: float, parts: Sequence[ErrorParts]) -> float:
    """Satterthwaite's degrees of freedom of an error of ``total`` that rests on these parts."""
    uncertain = sum(part.freedom_part for part in parts)
    return total**2 / uncertain if uncertain > 0 else math.inf


Scale = Literal["plain", "logit", "log", "fisher"]

# By scale: the function, its derivative and its inverse. A metric's interval is symmetric there, so
# that its ends stay where the metric can be.
_SCALES: dict[str, tuple[Callable[..., Any], Callable[[float], float], Callable[..., Any]]] = {
    "plain": (lambda x: x, lambda x: 1.0, lambda y: y),
    "logit": (special.logit, lambda x: 1 / (x * (1 - x)), special.expit),
    "log": (np.log, lambda x: 1 / x, np.exp),
    "fisher": (np.arctanh, lambda x: 1 / (1 - x**2), np.tanh),
}
_INSIDE = {"logit": (0.0, 1.0), "log": (0.0, math.inf), "fisher": (-1.0, 1.0)}


def joint_interval(
    mean: float, parts: ErrorParts, *, level: float = 0.95, scale: Scale = "plain"
) -> Interval:
    """Interval of a metric for new seeds and new images, from Student's t.

    With three seeds that differ much more than test sets do it is somewhat too narrow: their
    variance is known too poorly.

    Args:
        mean: over the seeds.
        parts: of its error.
        level: the wanted coverage.
        scale: where the interval is symmetric: ``"logit"`` for metrics in [0, 1], ``"log"`` for
            losses, ``"fisher"`` (inverse hyperbolic tangent) for those in [-1, 1].

    Returns:
        The interval; NaN with its reason below three seeds, where the error is 0 or undefined, and
        for a mean at the end of the metric's range.

    Example:
        >>> parts = error_parts(np.array([0.8, 0.82]), np.full((2, 2), 1e-4))
        >>> joint_interval(0.81, parts).reason
        '2 seeds: too few to join seeds and images, which takes 3'
    """
    normal_quantile(level)
    low, high = _INSIDE.get(scale, (-math.inf, math.inf))
    method, reason = "seeds and images joined, t", None
    if parts.seeds < FEWEST:
        count = f"{parts.seeds} seed{'s' if parts.seeds > 1 else ''}"
        reason = f"{count}: too few to join seeds and images, which takes {FEWEST}"
    elif not math.isfinite(parts.total):
        reason = "its variance is undefined"
    elif not low < mean < high or parts.total < 1e-24:
        reason = "no seed and no image shows any error: nothing tells how large it is"
    if reason:
        return Interval(math.nan, math.nan, method, level, reason)
    there, slope, back = _SCALES[scale]
    half = float(stats.t.ppf((1 + level) / 2, freedom(parts.total, [parts])))
    half *= math.sqrt(parts.total) * slope(mean)
    ends = back(there(mean) + np.array([-half, half]))
    return Interval(float(ends[0]), float(ends[1]), method, level)
