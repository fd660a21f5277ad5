"""One network of a comparison: its seeds, their spread, and the sampling error of their mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxmed.evaluation.bootstrap import unit_index
from flaxmed.evaluation.delong import auc_estimate, covariance
from flaxmed.evaluation.estimates import (
    Metric,
    Sampling,
    bootstrap_intervals,
    redrawn_covariance,
    redrawn_values,
    share_counts,
    smallest_kinds,
)
from flaxmed.evaluation.intervals import (
    NO_INTERVAL,
    Interval,
    auc_interval,
    proportion_interval,
)
from flaxmed.evaluation.plots import History
from flaxmed.evaluation.report import Report
from flaxmed.evaluation.seeds import (
    ESTIMAND,
    ErrorParts,
    Scale,
    error_parts,
    joint_interval,
)
from flaxmed.evaluation.tables import json_number
from flaxmed.types import Predictions


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number measured once per seed.

    Attributes:
        values: one per seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean; NaN if any is NaN, or there is none."""
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def min(self) -> float:
        """The smallest, likewise."""
        return float(np.min(self.values)) if self.values else math.nan

    @property
    def max(self) -> float:
        """The largest, likewise."""
        return float(np.max(self.values)) if self.values else math.nan

    def range(self, text: Callable[[float], str]) -> str:
        """From the smallest to the largest, each printed by ``text``; "" for a single seed."""
        if len(self.values) < 2 or math.isnan(self.mean):
            return ""
        return f"{text(self.min)} to {text(self.max)}"

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        values = {"mean": self.mean, "min": self.min, "max": self.max}
        plain = {name: json_number(value) for name, value in values.items()}
        return {**plain, "values": [json_number(value) for value in self.values]}


@dataclasses.dataclass(frozen=True)
class SeedMean:
    """A metric's mean over seeds with its error, in its parts.

    Attributes:
        spread: the seeds' values.
        interval: of the mean, for other images, these trained networks held fixed.
        joint: of the mean, for new seeds and other images; NaN below three seeds.
        parts: of the error, where there are several seeds, else None.
    """

    spread: Spread
    interval: Interval
    joint: Interval = NO_INTERVAL
    parts: ErrorParts | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        values = {**self.spread.to_dict(), **self.interval.to_dict()}
        if self.parts is None:
            return values
        joint: dict[str, Any] = {
            "low": json_number(self.joint.low),
            "high": json_number(self.joint.high),
        }
        joint |= {"method": self.joint.method, "of": ESTIMAND}
        joint |= {"reason": self.joint.reason} if self.joint.reason else {}
        return {
            **values,
            "seed_sd": json_number(math.sqrt(self.parts.observed)),
            "image_se": json_number(_root(self.parts.image_variance)),
            "joint": joint,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """One network of a comparison.

    Attributes:
        name: the network.
        predictions: one per seed, with the images in the same order in all columns.
        reports: one per seed.
        means: by metric, the mean over seeds with its intervals.
        parameters: number of trainable parameters, or None.
        train_seconds: training time of each seed, in seconds; empty where it is not known.
        histories: training curves of each seed; empty where they are not known.
    """

    name: str
    predictions: tuple[Predictions, ...]
    reports: tuple[Report, ...]
    means: Mapping[str, SeedMean]
    parameters: int | None = None
    train_seconds: tuple[float, ...] = ()
    histories: tuple[History, ...] = ()

    def __getitem__(self, metric: str) -> Spread:
        """A metric over the seeds, e.g. ``column["auc"].mean``."""
        return Spread(tuple(report[metric].value for report in self.reports))

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        return {
            "name": self.name,
            "seeds": len(self.reports),
            "metrics": {name: mean.to_dict() for name, mean in self.means.items()},
            "parameters": self.parameters,
            "train_seconds": Spread(self.train_seconds).to_dict() if self.train_seconds else None,
        }


def seed_means(
    seeds: Sequence[Predictions], reports: Sequence[Mapping[str, Metric]], sampling: Sampling
) -> dict[str, SeedMean]:
    """Every metric's mean over seeds, with its intervals.

    Args:
        seeds: predictions of one network, with the same images in the same order.
        reports: the metrics of each.
        sampling: level, draws and seed.
    """
    first = reports[0]
    spreads = {name: Spread(tuple(report[name].value for report in reports)) for name in first}
    if len(seeds) == 1:
        alone = ErrorParts(1, math.nan, math.nan, math.nan)
        joint = joint_interval(math.nan, alone, level=sampling.level)
        return {name: SeedMean(spreads[name], first[name].interval, joint) for name in first}
    defined = [name for name in first if not math.isnan(spreads[name].mean)]
    found = {name: SeedMean(spreads[name], NO_INTERVAL) for name in first if name not in defined}
    if "auc" in defined:
        found["auc"] = _area_mean(seeds, spreads["auc"], sampling)
    rest = [name for name in defined if name != "auc"]
    intervals = bootstrap_intervals(seeds, rest, [spreads[n].mean for n in rest], sampling)
    for name, interval, spread in zip(
        rest, intervals, _spreads(seeds, rest, sampling), strict=True
    ):
        parts = error_parts(np.array(spreads[name].values), spread)
        scale = _SCALE.get(name, "logit")
        joint = joint_interval(spreads[name].mean, parts, level=sampling.level, scale=scale)
        if math.isnan(interval.low) and name in _OF_TRUTH:
            interval = _certain(seeds[0], name, spreads[name].mean, interval)
        found[name] = SeedMean(spreads[name], interval, joint, parts)
    return {name: found[name] for name in first}


# Metrics that are not in [0, 1], by the scale on which their joint interval is symmetric.
_SCALE: dict[str, Scale] = {"loss": "log", "brier": "log", "kappa": "fisher", "mcc": "fisher"}
_OF_TRUTH = ("accuracy", "sensitivity", "specificity")


def _certain(p: Predictions, name: str, mean: float, otherwise: Interval) -> Interval:
    """Wilson's interval of a share on which all images and seeds agree."""
    counts = share_counts(p, p.probabilities).get(name)
    if counts is None or mean not in (0.0, 1.0):
        return otherwise
    index, _ = unit_index(len(p), p.groups)
    n = len(np.unique(index[counts[1] > 0]))
    interval = proportion_interval(round(mean * n), n, level=otherwise.level)
    reason = "all seeds and images agree; Wilson's interval of as many images (groups)"
    return dataclasses.replace(interval, reason=reason)


def _area_mean(seeds: Sequence[Predictions], spread: Spread, sampling: Sampling) -> SeedMean:
    p = seeds[0]
    estimates = [auc_estimate(q.labels, q.probabilities, task=p.task) for q in seeds]
    parts = error_parts(np.array(spread.values), covariance(estimates, p.groups))
    positives, negatives = smallest_kinds(p)
    interval = auc_interval(
        spread.mean,
        parts.image_variance,
        positives=positives,
        negatives=negatives,
        level=sampling.level,
    )
    joint = joint_interval(spread.mean, parts, level=sampling.level, scale="logit")
    return SeedMean(spread, interval, joint, parts)


def _spreads(
    seeds: Sequence[Predictions], names: Sequence[str], sampling: Sampling
) -> list[np.ndarray]:
    """For each metric the covariance of the seeds' values from redrawn images, ``[s, s]``."""
    if not names:
        return []
    drawn, left_out = redrawn_values(seeds, names, sampling)
    kept = [drawn[np.isfinite(drawn[:, :, j]).all(axis=1), :, j] for j in range(len(names))]
    return [np.atleast_2d(redrawn_covariance(values, left_out=left_out)) for values in kept]


def _root(variance: float) -> float:
    return math.sqrt(max(variance, 0.0)) if not math.isnan(variance) else math.nan
