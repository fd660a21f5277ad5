"""How far apart a metric is in parts of the images, with an interval and a test.

A gap is the largest value of the metric among the parts less the smallest. It says that the numbers
differ, not why: the images of a part may be harder, or of another scanner.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxmed.evaluation.bootstrap import jackknife
from flaxmed.evaluation.delong import auc_estimate
from flaxmed.evaluation.estimates import Metric, difference_interval, right_shares
from flaxmed.evaluation.intervals import NO_INTERVAL, Interval
from flaxmed.evaluation.metrics import METRICS
from flaxmed.evaluation.shuffles import ALIKE, PER_IMAGE, gap_p_values
from flaxmed.evaluation.tables import json_number
from flaxmed.evaluation.weighted import statistic
from flaxmed.types import Predictions

TITLES = {spec.name: spec.title for spec in METRICS}

Parts = Sequence[tuple[str, Predictions, Mapping[str, Metric]]]
"""Of each subgroup its name, its predictions and its metrics."""


@dataclasses.dataclass(frozen=True)
class Gap:
    """How far apart subgroups are in one metric.

    Attributes:
        name, title: of the metric.
        value: its largest value among the subgroups where it is defined less its smallest, 0 or
            more; NaN where it is defined in fewer than two.
        highest, lowest: these two subgroups, or None.
        positive: the positive class, by name, where the metric depends on it, else None.
        interval: of the difference of these two. It does not know that they were chosen as the
            extremes: of several subgroups it may exclude 0 although they are all equal.
        p_value: of the gap, by shuffling; this allows for the choice.
        test: what was shuffled, and how often.
        reason: why there is no gap, else None.
    """

    name: str
    title: str
    value: float
    highest: str | None = None
    lowest: str | None = None
    positive: str | None = None
    interval: Interval = NO_INTERVAL
    p_value: float = math.nan
    test: str = ""
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None, with its reason."""
        values: dict[str, Any] = {
            "value": json_number(self.value),
            "highest": self.highest,
            "lowest": self.lowest,
            **self.interval.to_dict(),
            "p_value": json_number(self.p_value),
            "test": self.test,
        }
        if self.positive is not None:
            values["positive"] = self.positive
        return {**values, "reason": self.reason} if self.reason else values


def gaps_between(names: Sequence[str], parts: Parts, *, seed: int = 0) -> dict[str, Gap]:
    """The gap of each metric between parts of the images.

    The interval is made from the metric's own intervals in the two parts, whatever their method
    (:func:`flaxmed.evaluation.estimates.difference_interval`), and from the correlation of the two
    where groups (patients) have images in both. Differences of bootstrap draws cover less: measured
    on 30 and 100 images, BCa intervals of a difference of losses hold it in 0.89, these in 0.92 of
    all cases, and of PPV, which is Wilson's, in 0.86 and 0.94.

    Args:
        names: the metrics.
        parts: of each its name, its predictions and its metrics, these among them.
        seed: of the shuffles.

    Returns:
        By metric its gap; NaN with its reason where it is defined in fewer than two parts.

    Example:
        >>> from flaxmed.evaluation.estimates import estimate_metrics
        >>> one = Predictions([0, 1], [[1.0, 0.0], [0.0, 1.0]], "binary", ids=["a", "b"])
        >>> two = Predictions([0, 1], [[1.0, 0.0], [1.0, 0.0]], "binary", ids=["c", "d"])
        >>> parts = [(n, p, estimate_metrics(p)) for n, p in (("F", one), ("M", two))]
        >>> gap = gaps_between(["accuracy"], parts)["accuracy"]
        >>> gap.value, gap.highest, gap.lowest, round(gap.interval.low, 2)
        (0.5, 'F', 'M', -0.27)
    """
    found: dict[str, Gap] = {}
    extremes: dict[str, tuple[int, int]] = {}
    for name in names:
        values = {i: metrics[name].value for i, (_, _, metrics) in enumerate(parts)}
        defined = sorted((i for i in values if math.isfinite(values[i])), key=values.__getitem__)
        if len(defined) > 1:
            extremes[name] = defined[-1], defined[0]
        else:
            found[name] = _no_gap(name, parts)
    if not extremes:
        return found
    p_values = gap_p_values(
        _joined([p for _, p, _ in parts]),
        np.repeat([part for part, _, _ in parts], [len(p) for _, p, _ in parts]),
        list(extremes),
        seed=seed,
    )
    correlations = _correlations([p for _, p, _ in parts], extremes, seed)
    for name, (most, least) in extremes.items():
        (highest, p, high), (lowest, _, low) = parts[most], parts[least]
        p_value, count = p_values[name]
        moved = "images" if p.groups is None else "groups"
        alike = f" of the same {ALIKE[name]}" if name in ALIKE else ""
        found[name] = Gap(
            name,
            TITLES[name],
            high[name].value - low[name].value,
            highest,
            lowest,
            high[name].positive,
            difference_interval(high[name], low[name], correlations[name]),
            p_value,
            f"{count} shuffles of {moved}{alike}",
        )
    return {name: found[name] for name in names}


def _no_gap(name: str, parts: Parts) -> Gap:
    """The gap of a metric that is defined in fewer than two parts."""
    metric = parts[0][2][name] if parts else Metric(name, TITLES[name], math.nan)
    none = dataclasses.replace(NO_INTERVAL, level=metric.interval.level)
    reason = "it is defined in fewer than two subgroups"
    return Gap(name, TITLES[name], math.nan, positive=metric.positive, interval=none, reason=reason)


def _joined(pieces: Sequence[Predictions]) -> Predictions:
    """Parts of the same images, put together again."""
    found = {name: [getattr(p, name) for p in pieces] for name in PER_IMAGE}
    arrays = {
        name: None if each[0] is None else np.concatenate(each) for name, each in found.items()
    }
    return dataclasses.replace(pieces[0], **arrays)


def _correlations(
    pieces: Sequence[Predictions], extremes: Mapping[str, tuple[int, int]], seed: int
) -> dict[str, float]:
    """Of each metric in the two parts that are its extremes, whichever is the higher."""
    pairs: dict[tuple[int, int], list[str]] = {}
    for name, (most, least) in extremes.items():
        pairs.setdefault((min(most, least), max(most, least)), []).append(name)
    found: dict[str, float] = {}
    for (i, j), names in pairs.items():
        found |= _pair_correlations(pieces[i], pieces[j], names, seed)
    return found


def _pair_correlations(
    one: Predictions, other: Predictions, names: Sequence[str], seed: int
) -> dict[str, float]:
    """Of metrics in two parts of the images; not 0 where groups have images in both."""
    found = dict.fromkeys(names, 0.0)
    if one.groups is None or other.groups is None:
        return found
    if not len(np.intersect1d(one.groups, other.groups)):
        return found
    groups = np.unique(np.concatenate([one.groups, other.groups]))
    direct = [name for name in names if name in ("accuracy", "auc")]
    for name in direct:
        a, b = (
            np.bincount(np.searchsorted(groups, p.groups), _effects(p, name), minlength=len(groups))
            for p in (one, other)
        )
        found[name] = _cosine(a, b)
    rest = tuple(name for name in names if name not in direct)
    each = [
        (np.searchsorted(groups, np.unique(p.groups)), statistic(p, rest)) for p in (one, other)
    ]

    def both(w: np.ndarray) -> np.ndarray:
        return np.stack([of_weights(w[:, own]) for own, of_weights in each], axis=2)

    left_out = jackknife(both, len(groups), seed=seed)  # of a group images of both parts at once
    for j, name in enumerate(rest):
        values = left_out[np.isfinite(left_out[:, j]).all(axis=1), j]
        found[name] = _cosine(*(values - values.mean(axis=0)).T) if len(values) else 0.0
    return found


def _cosine(a: Float[np.ndarray, " g"], b: Float[np.ndarray, " g"]) -> float:
    """Of two lists of deviations: their correlation."""
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(np.clip(a @ b / size, -1, 1)) if size else 0.0


def _effects(p: Predictions, name: str) -> np.ndarray:
    """What each image adds to the error of the metric, up to a factor."""
    if name == "auc":
        return auc_estimate(p.labels, p.probabilities, task=p.task).components.sum(axis=0)
    right = right_shares(p)
    return right - right.mean()
