"""How far apart a metric is in parts of the images, with an interval and a test.

A gap is the largest value of the metric among the parts less the smallest. It says that the numbers
differ, not why: the images of a part may be harder, or of another scanner.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from flaxmed.evaluation.bootstrap import unit_index
from flaxmed.evaluation.checks import one_vs_rest
from flaxmed.evaluation.delong import auc_estimate
from flaxmed.evaluation.estimates import Metric, difference_interval, right_shares
from flaxmed.evaluation.intervals import NO_INTERVAL, Interval
from flaxmed.evaluation.metrics import METRICS
from flaxmed.evaluation.tables import json_number
from flaxmed.types import InputError, Predictions, Task

TITLES = {spec.name: spec.title for spec in METRICS if spec.name in ("accuracy", "auc")}
"""The metrics whose gaps are told, and how tables call them."""

PER_IMAGE = ("labels", "logits", "ids", "groups", "image_sha256")
"""What predictions hold for each image."""

SHUFFLES = 1000
_FEWEST_SHUFFLES = 100
_WORK = 1_000_000_000  # images times parts times curves, over all shuffles: ten seconds
_CHUNK = 1_000_000  # images times parts held at once

Measure = Callable[[np.ndarray], np.ndarray]
"""A metric of every part: from the images' part numbers ``[b, n]`` to values ``[b, parts]``."""


@dataclasses.dataclass(frozen=True)
class Gap:
    """How far apart subgroups are in one metric.

    Attributes:
        name, title: of the metric.
        value: its largest value among the subgroups where it is defined less its smallest, 0 or
            more; NaN where it is defined in fewer than two.
        highest, lowest: these two subgroups, or None.
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
    interval: Interval = NO_INTERVAL
    p_value: float = math.nan
    test: str = ""
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None, with its reason."""
        values = {
            "value": json_number(self.value),
            "highest": self.highest,
            "lowest": self.lowest,
            **self.interval.to_dict(),
            "p_value": json_number(self.p_value),
            "test": self.test,
        }
        return {**values, "reason": self.reason} if self.reason else values


def gap_between(
    name: str, parts: Sequence[tuple[str, Predictions, Metric]], *, seed: int = 0
) -> Gap:
    """The gap of a metric between parts of the images.

    Args:
        name: the metric, ``"accuracy"`` or ``"auc"``.
        parts: of each its name, its predictions and the metric in it.
        seed: of the shuffles.

    Returns:
        The gap; NaN with its reason where the metric is defined in fewer than two parts.

    Example:
        >>> from flaxmed.evaluation.estimates import estimate_metrics
        >>> one = Predictions([0, 1], [[1.0, 0.0], [0.0, 1.0]], "binary", ids=["a", "b"])
        >>> two = Predictions([0, 1], [[1.0, 0.0], [1.0, 0.0]], "binary", ids=["c", "d"])
        >>> parts = [(n, p, estimate_metrics(p)["accuracy"]) for n, p in (("F", one), ("M", two))]
        >>> gap = gap_between("accuracy", parts)
        >>> gap.value, gap.highest, gap.lowest, round(gap.interval.low, 2)
        (0.5, 'F', 'M', -0.27)
    """
    defined = sorted(
        (part for part in parts if math.isfinite(part[2].value)), key=lambda part: part[2].value
    )
    if len(defined) < 2:
        reason = "it is defined in fewer than two subgroups"
        level = parts[0][2].interval.level if parts else NO_INTERVAL.level
        none = dataclasses.replace(NO_INTERVAL, level=level)
        return Gap(name, TITLES[name], math.nan, interval=none, reason=reason)
    (lowest, low, least), (highest, high, most) = defined[0], defined[-1]
    together = _joined([p for _, p, _ in parts])
    values = np.repeat([part for part, _, _ in parts], [len(p) for _, p, _ in parts])
    p_value, count = gap_p_value(together, values, name, seed=seed)
    moved = "images" if low.groups is None else "groups"
    alike = " of the same truth" if name == "auc" else ""
    return Gap(
        name,
        TITLES[name],
        most.value - least.value,
        highest,
        lowest,
        difference_interval(most, least, _correlation(high, low, name)),
        p_value,
        f"{count} shuffles of {moved}{alike}",
    )


def gap_p_value(
    predictions: Predictions,
    values: Shaped[np.ndarray, " n"],
    name: str,
    *,
    seed: int = 0,
    shuffles: int = SHUFFLES,
) -> tuple[float, int]:
    """How often subgroups chosen by chance are as far apart in a metric as these are.

    The values are shuffled over the images, and the largest gap between any two subgroups is taken
    anew: that the two are the extremes is in the p-value, (1 + gaps as large) / (1 + shuffles) (B.
    Phipson, G. K. Smyth, Statistical Applications in Genetics and Molecular Biology 9, 39, 2010).

    For the AUC images of the same truth alone change places, so that each subgroup keeps its
    number of images of each class, on which the error of an area depends. For the accuracy all do:
    a gap in accuracy may thus come from a harder mix of classes.

    Where images have groups (patients) a group moves as a whole, and for the AUC takes the place of
    one in which the same classes occur. The values of a group that has several are shuffled among
    its own images.

    Args:
        predictions: of one model on one split.
        values: the subgroup of each image, all known.
        name: ``"accuracy"`` or ``"auc"``.
        seed: of the shuffles.
        shuffles: how many; fewer, at least 100, where images times subgroups times curves (one for
            each class or label) are more than a million.

    Returns:
        The p-value, and the number of shuffles it is from: those that leave the metric defined in
        two subgroups or more. NaN and 0 where it is not so as things are.

    Example:
        >>> labels = np.arange(40) % 2
        >>> scores = np.array([[0.7, 0.3], [0.3, 0.7]])[np.where(np.arange(40) < 20, labels, 0)]
        >>> p = Predictions.from_probabilities(scores, labels=labels, task="binary")
        >>> p_value, count = gap_p_value(p, np.repeat(["a", "b"], 20), "auc")
        >>> p_value < 0.01, count
        (True, 1000)
    """
    order = np.argsort(predictions.ids)  # the same shuffles in whatever order the images come
    p = take(predictions, order)
    names, value = np.unique(values[order], return_inverse=True)
    size = max(1, len(p) * len(names))
    if name not in TITLES:
        raise InputError(f"gaps are of {' or '.join(TITLES)}, not of {name}")
    if name == "auc":
        curves = 1 if p.task is Task.BINARY else len(p.classes)
        shuffles = min(shuffles, max(_FEWEST_SHUFFLES, _WORK // (size * curves)))
        measure = _areas(p, len(names))
    else:
        measure = _accuracies(p, len(names))
    observed = float(_largest_gap(measure(value[None]))[0])
    if math.isnan(observed):
        return math.nan, 0
    mover, stratum = _movers(p, value, within_truth=name == "auc")
    rng, step = np.random.default_rng(seed), max(1, _CHUNK // size)
    drawn = np.concatenate(
        [
            _largest_gap(measure(_shuffled(value, mover, stratum, min(step, shuffles - at), rng)))
            for at in range(0, shuffles, step)
        ]
    )
    known = drawn[np.isfinite(drawn)]
    # Sums in another order differ in the last digits: that is no difference between gaps.
    as_large = int((known >= observed - 1e-12).sum())
    return (1 + as_large) / (1 + len(known)), len(known)


def take(predictions: Predictions, rows: Shaped[np.ndarray, " m"]) -> Predictions:
    """Some of the images, by number or by yes and no.

    Example:
        >>> p = Predictions(labels=[0, 1], logits=[[1.0, 0.0], [0.0, 1.0]], task="binary")
        >>> take(p, np.array([False, True])).ids.tolist()
        ['1']
    """
    found = {name: getattr(predictions, name) for name in PER_IMAGE}
    chosen = {name: None if array is None else array[rows] for name, array in found.items()}
    return dataclasses.replace(predictions, **chosen)


def _joined(pieces: Sequence[Predictions]) -> Predictions:
    """Parts of the same images, put together again."""
    found = {name: [getattr(p, name) for p in pieces] for name in PER_IMAGE}
    arrays = {
        name: None if each[0] is None else np.concatenate(each) for name, each in found.items()
    }
    return dataclasses.replace(pieces[0], **arrays)


def _correlation(one: Predictions, other: Predictions, name: str) -> float:
    """Of a metric in two parts of the images; not 0 where groups have images in both."""
    if one.groups is None or other.groups is None:
        return 0.0
    names = np.unique(np.concatenate([one.groups, other.groups]))
    a, b = (
        np.bincount(np.searchsorted(names, p.groups), _effects(p, name), minlength=len(names))
        for p in (one, other)
    )
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(np.clip(a @ b / size, -1, 1)) if size else 0.0


def _effects(p: Predictions, name: str) -> np.ndarray:
    """What each image adds to the error of the metric, up to a factor."""
    if name == "auc":
        return auc_estimate(p.labels, p.probabilities, task=p.task).components.sum(axis=0)
    right = right_shares(p)
    return right - right.mean()


def _accuracies(p: Predictions, parts: int) -> Measure:
    """The accuracy in each part."""
    right = right_shares(p)

    def measure(value: np.ndarray) -> np.ndarray:
        cell = _cells(value, parts)
        hits = np.bincount(cell.ravel(), np.tile(right, len(value)), len(value) * parts)
        of = np.bincount(cell.ravel(), minlength=len(value) * parts)
        with np.errstate(invalid="ignore"):
            return (hits / of).reshape(len(value), parts)

    return measure


def _areas(p: Predictions, parts: int) -> Measure:
    """The area under the ROC curve in each part, or its mean over classes or labels."""
    scores = p.probabilities
    curves = []
    for c in [1] if p.task is Task.BINARY else range(scores.shape[1]):
        true, score = one_vs_rest(p.labels, scores, p.task, c)
        steps, step = np.unique(score, return_inverse=True)
        curves.append((np.asarray(true, bool), step, len(steps)))

    def measure(value: np.ndarray) -> np.ndarray:
        total = np.zeros((len(value), parts))
        cell = _cells(value, parts)
        for true, step, steps in curves:
            shape = (len(value), parts, steps)
            at = cell * steps + step  # images by shuffle, part and score
            positive, negative = (
                np.bincount(at[:, kind].ravel(), minlength=math.prod(shape)).reshape(shape)
                for kind in (true, ~true)
            )
            below = np.cumsum(negative, axis=2) - negative / 2
            with np.errstate(invalid="ignore"):
                total += (positive * below).sum(2) / (positive.sum(2) * negative.sum(2))
        return total / len(curves)

    return measure


def _cells(value: np.ndarray, parts: int) -> np.ndarray:
    """A number of its own for each part of each shuffle."""
    return value + parts * np.arange(len(value))[:, None]


def _largest_gap(values: np.ndarray) -> np.ndarray:
    """Of each row; NaN where fewer than two of its values are defined."""
    known = np.isfinite(values)
    gap = np.where(known, values, -np.inf).max(1) - np.where(known, values, np.inf).min(1)
    return np.where(known.sum(1) > 1, gap, np.nan)


def _movers(
    p: Predictions, value: Int[np.ndarray, " n"], *, within_truth: bool
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """What changes place as one: its number for each image; and among which it does, its stratum.

    A group whose images have one value moves as a whole, among all such groups. Of another group
    each image moves alone, among the group's own.
    """
    group, units = unit_index(len(p), p.groups)
    kinds = np.unique(np.stack([group, value]), axis=1)[0]
    mixed = (np.bincount(kinds, minlength=units) > 1)[group]
    mover = np.unique(np.where(mixed, units + np.arange(len(p)), group), return_inverse=True)[1]
    count = int(mover.max()) + 1
    owner = np.zeros(count, np.int64)
    owner[mover] = np.where(mixed, 1 + group, 0)
    if not within_truth:
        return mover, owner
    k = len(p.classes)
    members = p.labels == 1 if p.task is Task.MULTILABEL else p.labels[:, None] == np.arange(k)
    present = np.zeros((count, k), np.int64)
    image, c = np.nonzero(members)
    present[mover[image], c] = 1
    rows = np.column_stack([owner, present])
    return mover, np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)


def _shuffled(
    value: np.ndarray,
    mover: np.ndarray,
    stratum: np.ndarray,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The values of ``count`` shuffles, ``[count, n]``."""
    own = np.empty(len(stratum), np.int64)
    own[mover] = value
    order = np.argsort(stratum + rng.random((count, len(stratum))), axis=1)  # within each stratum
    moved = np.empty(order.shape, np.int64)
    np.put_along_axis(moved, order, own[np.argsort(stratum, kind="stable")][None], axis=1)
    return moved[:, mover]
