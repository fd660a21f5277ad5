"""Metrics with their intervals: which method belongs to which metric.

=====================================  ============================================================
area under the ROC curve               DeLong's variance, on the logit scale; groups: Obuchowski's
shares of images (accuracy,            Wilson; groups: BCa bootstrap of groups
sensitivity, specificity, PPV, NPV)
all others, and means of shares        BCa bootstrap of images, or of groups; of more than
                                       5,000 the jackknife's normal interval
=====================================  ============================================================
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.exceptions import UndefinedMetricWarning

from flaxmed.evaluation.bootstrap import (
    DRAWS,
    MANY,
    bca_interval,
    jackknife,
    jackknife_covariance,
    jackknife_interval,
    ratio_interval,
    resample,
    unit_index,
)
from flaxmed.evaluation.checks import decisions, missing
from flaxmed.evaluation.delong import auc_estimate, covariance
from flaxmed.evaluation.intervals import NO_INTERVAL, Interval, auc_interval
from flaxmed.evaluation.metrics import METRICS, MetricSpec, class_auc_scores
from flaxmed.evaluation.tables import json_number
from flaxmed.evaluation.weighted import statistic
from flaxmed.types import InputError, Predictions, Task

FEWEST_DRAWS = 20

SHARES = ("accuracy", "sensitivity", "specificity", "ppv", "npv")


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number, with its interval.

    Attributes:
        name: the key, e.g. ``"auc"``.
        title: how tables call it, e.g. ``"AUC"``.
        value: the number; NaN where it is undefined.
        reason: why it is undefined, else None.
        positive: the positive class, by name, where the value depends on it, else None.
        interval: its confidence interval, with its method.
    """

    name: str
    title: str
    value: float
    reason: str | None = None
    positive: str | None = None
    interval: Interval = NO_INTERVAL

    @property
    def low(self) -> float:
        """The lower end of the interval; NaN where there is none."""
        return self.interval.low

    @property
    def high(self) -> float:
        """The upper end of the interval; NaN where there is none."""
        return self.interval.high

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None, with its reason."""
        values: dict[str, Any] = {"value": json_number(self.value)}
        if self.reason:
            values["reason"] = self.reason
        values |= self.interval.to_dict()
        if self.positive is not None:
            values["positive"] = self.positive
        return values


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How intervals are made.

    Attributes:
        level: the wanted coverage, in (0, 1).
        draws: bootstrap draws.
        seed: which draws.

    Raises:
        InputError: too few draws for any interval.
    """

    level: float = 0.95
    draws: int = DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < FEWEST_DRAWS:
            raise InputError(f"draws must be {FEWEST_DRAWS} or more, got {self.draws}")


SAMPLING = Sampling()


def estimate_metrics(predictions: Predictions, sampling: Sampling = SAMPLING) -> dict[str, Metric]:
    """Every metric that applies to ``predictions``, with its interval.

    Args:
        predictions: of one model on one split; intervals respect their groups.
        sampling: coverage, draws and seed.

    Raises:
        InputError: a level outside (0, 1).

    Example:
        >>> labels = np.arange(60) % 2
        >>> logits = np.stack([np.zeros(60), np.random.default_rng(0).normal(2 * labels - 1)], 1)
        >>> found = estimate_metrics(Predictions(labels=labels, logits=logits, task="binary"))
        >>> found["auc"].interval.method, found["mcc"].interval.method
        ('DeLong, logit', 'BCa bootstrap')
    """
    p, scores = predictions, predictions.probabilities
    specs = [spec for spec in METRICS if p.task in spec.tasks]
    values = {spec.name: with_reason(spec, p, scores) for spec in specs}
    shares = share_counts(p, scores)
    intervals: dict[str, Interval] = {}
    redrawn = []
    for name, (value, reason) in values.items():
        if math.isnan(value):
            intervals[name] = Interval(math.nan, math.nan, "none", sampling.level, reason)
        elif name == "auc":
            intervals[name] = area_interval(p, scores, value, sampling)
        elif name in shares:
            intervals[name] = ratio_interval(
                *shares[name],
                groups=p.groups,
                level=sampling.level,
                draws=sampling.draws,
                seed=sampling.seed,
            )
        else:
            redrawn.append(name)
    point = [values[name][0] for name in redrawn]
    intervals |= dict(zip(redrawn, bootstrap_intervals([p], redrawn, point, sampling), strict=True))
    named = None if p.positive is None else p.classes[p.positive]
    return {
        spec.name: Metric(
            spec.name,
            spec.title,
            *values[spec.name],
            named if spec.needs_positive else None,
            intervals[spec.name],
        )
        for spec in specs
    }


def bootstrap_intervals(
    seeds: Sequence[Predictions],
    names: Sequence[str],
    values: Sequence[float],
    sampling: Sampling = SAMPLING,
) -> list[Interval]:
    """Intervals of metrics' means over ``seeds``: BCa, or of many images the jackknife's.

    Args:
        seeds: one or more predictions of the same images in the same order.
        names: the metrics.
        values: their means over the seeds.
        sampling: coverage, draws and seed.
    """
    if not names:
        return []
    first = seeds[0]
    _, units = unit_index(len(first), first.groups)
    each = [statistic(p, tuple(names)) for p in seeds]

    def mean(w: np.ndarray) -> np.ndarray:
        return np.mean([one(w) for one in each], axis=0)

    left_out = jackknife(mean, units, seed=sampling.seed)
    of = "image" if first.groups is None else "group"
    if units > MANY:
        return [
            jackknife_interval(value, left_out[:, j], level=sampling.level, of=of)
            for j, value in enumerate(values)
        ]
    drawn = resample(mean, units, draws=sampling.draws, seed=sampling.seed)
    return [
        bca_interval(value, drawn[:, j], left_out[:, j], level=sampling.level, of=of)
        for j, value in enumerate(values)
    ]


def redrawn_values(
    seeds: Sequence[Predictions], names: Sequence[str], sampling: Sampling = SAMPLING
) -> tuple[Float[np.ndarray, "d s m"], bool]:
    """Metrics of several predictions of the same images, each on the same redrawn images.

    Args:
        seeds: predictions of the same images in the same order.
        names: the metrics.
        sampling: draws and seed.

    Returns:
        ``[draws, predictions, metrics]``, NaN where undefined; and whether they are the jackknife's
        values, of many images, instead of the bootstrap's.
    """
    first = seeds[0]
    _, units = unit_index(len(first), first.groups)
    each = [statistic(p, tuple(names)) for p in seeds]

    def values(w: np.ndarray) -> np.ndarray:
        return np.stack([one(w) for one in each], axis=1)

    if units > MANY:
        return jackknife(values, units, seed=sampling.seed), True
    return resample(values, units, draws=sampling.draws, seed=sampling.seed), False


def redrawn_covariance(
    values: Float[np.ndarray, "d s"], *, left_out: bool
) -> Float[np.ndarray, "s s"]:
    """Covariance of values of redrawn images (or of the jackknife); NaN if there are too few."""
    if left_out:
        return jackknife_covariance(values)
    size = values.shape[1]
    return np.cov(values.T) if len(values) > 1 else np.full((size, size), np.nan)


def area_interval(
    p: Predictions,
    scores: np.ndarray,
    area: float,
    sampling: Sampling = SAMPLING,
    of_class: int | None = None,
) -> Interval:
    """DeLong's interval of an area that is defined; of one class, or of the mean over classes."""
    estimate = auc_estimate(p.labels, scores, task=p.task, of_class=of_class)
    variance = float(covariance([estimate], p.groups)[0, 0])
    positives, negatives = smallest_kinds(p, of_class)
    return auc_interval(
        area, variance, positives=positives, negatives=negatives, level=sampling.level
    )


def class_areas(predictions: Predictions, sampling: Sampling = SAMPLING) -> tuple[Metric, ...]:
    """The area under each class's ROC curve, one against the rest, with its interval."""
    p, scores = predictions, predictions.probabilities
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)  # the reasons are kept instead
        areas = class_auc_scores(p.labels, scores, task=p.task)
    found = []
    for c, area in enumerate(areas.tolist()):
        reason = missing(p.labels, p.task, c, p.classes)
        if reason:
            interval = Interval(math.nan, math.nan, "none", sampling.level, reason)
        else:
            interval = area_interval(p, scores, area, sampling, of_class=c)
        found.append(Metric("auc", p.classes[c], area, reason, interval=interval))
    return tuple(found)


def class_shares(
    predictions: Predictions, sampling: Sampling = SAMPLING
) -> dict[str, tuple[Metric, ...]]:
    """Sensitivity, specificity, PPV and NPV of each class against the rest, with intervals."""
    p, scores = predictions, predictions.probabilities
    found: dict[str, list[Metric]] = {name: [] for name in SHARES[1:]}
    for c in range(scores.shape[1]):
        true, called = _membership(p, scores, c)
        for name, (hits, of) in _shares(true, called).items():
            total = float(of.sum())
            value = float((hits * of).sum()) / total if total else math.nan
            interval = ratio_interval(
                hits,
                of,
                groups=p.groups,
                level=sampling.level,
                draws=sampling.draws,
                seed=sampling.seed,
            )
            reason = None if total else _EMPTY[name]
            found[name].append(Metric(name, p.classes[c], value, reason, interval=interval))
    return {name: tuple(values) for name, values in found.items()}


def difference_interval(one: Metric, other: Metric, correlation: float = 0.0) -> Interval:
    """Interval of ``one.value - other.value`` from the intervals of the two.

    Their distances to the values are squared and added. With Wilson's intervals of two independent
    shares this is method 10 of R. G. Newcombe, Statistics in Medicine 17, 873 (1998); for any
    others see G. Y. Zou, A. Donner, Statistics in Medicine 27, 1693 (2008), and with correlation
    G. Y. Zou, Psychological Methods 12, 399 (2007).

    Args:
        one, other: the metric in two subgroups, at one level.
        correlation: of the two values, in [-1, 1].

    Returns:
        The interval; NaN with its reason where one of the two has none.

    Example:
        >>> from flaxmed.evaluation.intervals import proportion_interval
        >>> shares = [Metric("", "", k / n, interval=proportion_interval(k, n))
        ...           for k, n in ((56, 70), (48, 80))]
        >>> found = difference_interval(*shares)  # Newcombe's first example
        >>> round(found.low, 4), round(found.high, 4)
        (0.0524, 0.3339)
    """
    level = one.interval.level
    methods = dict.fromkeys((one.interval.method, other.interval.method))
    method = f"squared and added: {' and '.join(methods)}"
    if any(math.isnan(metric.low) or math.isnan(metric.high) for metric in (one, other)):
        reason = "one of the two has no interval"
        return Interval(math.nan, math.nan, method, level, reason)

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(a**2 + b**2 - 2 * correlation * a * b, 0.0))

    difference = one.value - other.value
    below = distance(one.value - one.low, other.high - other.value)
    above = distance(one.high - one.value, other.value - other.low)
    return Interval(difference - below, difference + above, method, level)


def right_shares(p: Predictions) -> Float[np.ndarray, " n"]:
    """1 for an image decided rightly, else 0; multi-label: the share of its labels."""
    right = decisions(p.probabilities, task=p.task) == p.labels
    return right.mean(axis=1) if p.task is Task.MULTILABEL else right.astype(np.float64)


def with_reason(spec: MetricSpec, p: Predictions, scores: np.ndarray) -> tuple[float, str | None]:
    """A metric's value, and why it is undefined if it is."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UndefinedMetricWarning)
        value = spec(p, scores)
    reasons = [str(w.message) for w in caught if issubclass(w.category, UndefinedMetricWarning)]
    return value, reasons[-1] if math.isnan(value) and reasons else None


def share_counts(p: Predictions, scores: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numerator and denominator, image by image, of the metrics that are shares of images."""
    if p.task is Task.MULTILABEL:
        return {}
    right = (decisions(scores, task=p.task) == p.labels).astype(np.float64)
    found = {"accuracy": (right, np.ones(len(p)))}
    if p.positive is not None:
        found |= _shares(*_membership(p, scores, p.positive))
    return found


_EMPTY = {
    "sensitivity": "no image of the class",
    "specificity": "every image is of the class",
    "ppv": "no image is called so",
    "npv": "every image is called so",
}


def _shares(true: np.ndarray, called: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    right = (true == called).astype(np.float64)
    kinds = {"sensitivity": true, "specificity": ~true, "ppv": called, "npv": ~called}
    return {name: (right, of.astype(np.float64)) for name, of in kinds.items()}


def _membership(p: Predictions, scores: np.ndarray, c: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images are of class ``c``, and which are called so."""
    decided = decisions(scores, task=p.task)
    if p.task is Task.MULTILABEL:
        return p.labels[:, c] == 1, decided[:, c] == 1
    return p.labels == c, decided == c


def smallest_kinds(p: Predictions, of_class: int | None = None) -> tuple[int, int]:
    """Images (groups) of the rarest class, and of the others: what an area of 1 rests on."""
    index, _ = unit_index(len(p), p.groups)
    which = range(p.logits.shape[1]) if of_class is None else [of_class]
    pairs = []
    for c in which:
        members = p.labels[:, c] == 1 if p.task is Task.MULTILABEL else p.labels == c
        pairs.append((len(np.unique(index[members])), len(np.unique(index[~members]))))
    return min(pairs, key=min)
