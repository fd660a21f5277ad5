"""How often subgroups chosen by chance are as far apart in a metric as the ones there are.

The values of a column are shuffled over the images, many times, and each time the largest gap
between any two subgroups is taken anew: that the two are the extremes is in the p-value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int, Shaped

from flaxmed.evaluation.bootstrap import unit_index
from flaxmed.evaluation.checks import decisions, one_vs_rest
from flaxmed.evaluation.metrics import METRICS
from flaxmed.evaluation.tables import few
from flaxmed.evaluation.weighted import OF_TOTALS, Totals, image_losses, image_squares
from flaxmed.types import InputError, Predictions, Task

PER_IMAGE = ("labels", "logits", "ids", "groups", "image_sha256")
"""What predictions hold for each image."""

ALIKE = {
    "balanced_accuracy": "truth",
    "auc": "truth",
    "sensitivity": "truth",
    "specificity": "truth",
    "ppv": "decision",
    "npv": "decision",
}
"""By metric what images must have in common to change places; in the others all images do."""

SHUFFLES = 1000
_FEWEST_SHUFFLES = 100
_WORK = 400_000_000  # ranked images, over all shuffles: a few seconds
_RANKED = 12  # times as long as ranking its images for a curve takes a shuffle and its sums
_CHUNK = 200_000  # images held at once: their random numbers, 1.6 MB, stay in cache

Measure = Callable[[np.ndarray], np.ndarray]
"""Of every part: from the images' part numbers ``[b, n]`` to ``[b, parts]``, and by metric."""


def gap_p_values(
    predictions: Predictions,
    values: Shaped[np.ndarray, " n"],
    names: Sequence[str],
    *,
    seed: int = 0,
    shuffles: int = SHUFFLES,
) -> dict[str, tuple[float, int]]:
    """How often subgroups chosen by chance are as far apart in each metric as these are.

    The p-value is (1 + gaps as large) / (1 + shuffles) (B. Phipson, G. K. Smyth, Statistical
    Applications in Genetics and Molecular Biology 9, 39, 2010).

    Which images change places is what the metric is conditional on. Of the AUC, the sensitivity,
    the specificity and the balanced accuracy those of the same truth alone do, so that each
    subgroup keeps its number of images of each class; of PPV and NPV those of the same decision.
    Of all others every image does: a gap in accuracy, F1, loss ... may come from a harder mix of
    classes.

    Where images have groups (patients) a group moves as a whole, and takes the place of one in
    which the same classes (decisions) occur. The values of a group that has several are shuffled
    among its own images.

    Args:
        predictions: of one model on one split.
        values: the subgroup of each image, all known.
        names: the metrics.
        seed: of the shuffles.
        shuffles: how many; fewer, at least 100, of so many images that they would take more than
            a few seconds.

    Returns:
        By metric the p-value, and the number of shuffles it is from: those that leave the metric
        defined in two subgroups or more. NaN and 0 where it is not so as things are.

    Raises:
        InputError: a metric that does not belong to the task.

    Example:
        >>> labels = np.arange(40) % 2
        >>> scores = np.array([[0.7, 0.3], [0.3, 0.7]])[np.where(np.arange(40) < 20, labels, 0)]
        >>> p = Predictions.from_probabilities(scores, labels=labels, task="binary")
        >>> p_value, count = gap_p_values(p, np.repeat(["a", "b"], 20), ["auc"])["auc"]
        >>> p_value < 0.01, count
        (True, 1000)
    """
    order = np.argsort(predictions.ids)  # the same shuffles in whatever order the images come
    p = take(predictions, order)
    parts, value = np.unique(values[order], return_inverse=True)
    known = [spec.name for spec in METRICS if p.task in spec.tasks]
    other = [name for name in names if name not in known]
    if other:
        raise InputError(f"gaps of {p.task} tasks are of {', '.join(known)}, not of {few(other)}")
    curves = len(parts) * (1 if p.task is Task.BINARY else len(p.classes))
    work = max(1, len(p)) * (_RANKED + curves)
    shuffles = min(shuffles, max(_FEWEST_SHUFFLES, _WORK // work))
    found: dict[str, tuple[float, int]] = {}
    for alike in dict.fromkeys(ALIKE.get(name, "") for name in names):
        chosen = tuple(name for name in names if ALIKE.get(name, "") == alike)
        found |= _shuffled_gaps(p, value, len(parts), chosen, alike, seed, shuffles)
    return {name: found[name] for name in names}


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


def _shuffled_gaps(
    p: Predictions,
    value: Int[np.ndarray, " n"],
    parts: int,
    names: tuple[str, ...],
    alike: str,
    seed: int,
    shuffles: int,
) -> dict[str, tuple[float, int]]:
    """p-values of metrics that the same images change places for."""
    measure = _measure(p, parts, names)
    observed = _largest_gap(measure(value[None]))[0]
    if np.isnan(observed).all():
        return dict.fromkeys(names, (np.nan, 0))
    draw = _shuffler(value, *_movers(p, value, alike))
    largest = max(len(p), parts * len(p.classes) ** 2)  # of images, or of confusion matrices
    rng, step = np.random.default_rng(seed), max(1, _CHUNK // largest)
    drawn = np.concatenate(
        [
            _largest_gap(measure(draw(min(step, shuffles - at), rng)))
            for at in range(0, shuffles, step)
        ]
    )
    found = {}
    for j, name in enumerate(names):
        known = drawn[np.isfinite(drawn[:, j]), j]
        # Sums in another order differ in the last digits: that is no difference between gaps.
        as_large = int((known >= observed[j] - 1e-12).sum())
        undefined = bool(np.isnan(observed[j]))
        found[name] = (np.nan, 0) if undefined else ((1 + as_large) / (1 + len(known)), len(known))
    return found


def _measure(p: Predictions, parts: int, names: tuple[str, ...]) -> Measure:
    """The named metrics in each part."""
    scores, binary = p.probabilities, p.task is Task.BINARY
    ranked: dict[str, list[Measure]] = {}
    for name, which, curve in (
        ("auc", [1] if binary else range(scores.shape[1]), _areas),
        ("average_precision", [p.positive] if binary else range(scores.shape[1]), _precisions),
    ):
        if name in names:
            pairs = [one_vs_rest(p.labels, scores, p.task, c) for c in which]
            ranked[name] = [curve(np.asarray(true, bool), rank, parts) for true, rank in pairs]
    totals = _totals(p, scores, parts, means=bool({"loss", "brier"} & set(names)))

    def measure(value: np.ndarray) -> np.ndarray:
        found = np.empty((len(value), parts, len(names)))
        sums = totals(value) if len(ranked) < len(names) else None
        for j, name in enumerate(names):
            if name in ranked:
                found[:, :, j] = np.mean([one(value) for one in ranked[name]], axis=0)
            elif sums is not None:
                with np.errstate(divide="ignore", invalid="ignore"):
                    found[:, :, j] = OF_TOTALS[name](sums).reshape(len(value), parts)
        return found

    return measure


def _totals(
    p: Predictions, scores: np.ndarray, parts: int, *, means: bool
) -> Callable[[np.ndarray], Totals]:
    """The sums over each part's images, ``[b * parts]``; of losses and squares if asked for."""
    decided = decisions(scores, task=p.task)
    if p.task is Task.MULTILABEL:
        shape: tuple[int, int, int] = (scores.shape[1], 2, 2)
        cell = 4 * np.arange(shape[0]) + 2 * p.labels + decided
    else:
        shape = (1, scores.shape[1], scores.shape[1])
        cell = (shape[1] * p.labels + decided)[:, None]
    each = [image(p.labels, scores, p.task) for image in (image_losses, image_squares)]
    features = np.stack(each, axis=1)
    size = math.prod(shape)

    def totals(value: np.ndarray) -> Totals:
        rows = len(value) * parts
        row = parts * np.arange(len(value))[:, None] + value
        counts = sum(
            np.bincount((size * row + column).ravel(), minlength=rows * size) for column in cell.T
        )
        added = np.zeros((rows, 2))
        for i in range(parts if means else 0):
            added[i::parts] = (value == i).astype(np.float64) @ features
        cells = np.asarray(counts, np.float64).reshape(rows, *shape)
        return Totals(cells, added[:, 0], added[:, 1], p.task, p.positive)

    return totals


def _areas(true: Bool[np.ndarray, " n"], score: Shaped[np.ndarray, " n"], parts: int) -> Measure:
    """The area under the ROC curve in each part."""
    order = np.argsort(score)
    positive = true[order]
    at, level = np.flatnonzero(positive), score[order]
    first, last = (np.searchsorted(level, level[at], side=side) for side in ("left", "right"))

    def areas(value: np.ndarray) -> np.ndarray:
        found = np.empty((len(value), parts))
        below = np.zeros((len(value), len(order) + 1), np.int32)
        sorted_value = value.take(order, axis=1)
        for i in range(parts):
            inside = sorted_value == i
            np.cumsum(inside & ~positive, axis=1, out=below[:, 1:])
            member = inside.take(at, axis=1)
            # Twice the negatives below each positive; those that tie with it once.
            won = below.take(first, axis=1) + below.take(last, axis=1)
            pairs = 2.0 * member.sum(axis=1) * below[:, -1]
            with np.errstate(invalid="ignore"):
                found[:, i] = (member * won).sum(axis=1) / pairs
        return found

    return areas


def _precisions(
    true: Bool[np.ndarray, " n"], score: Shaped[np.ndarray, " n"], parts: int
) -> Measure:
    """The average precision in each part: the mean of the precisions at its positives' scores."""
    order = np.argsort(-score)
    at, level = np.flatnonzero(true[order]), -score[order]
    ends, own = (np.searchsorted(of, level[at], side="right") - 1 for of in (level, level[at]))

    def precisions(value: np.ndarray) -> np.ndarray:
        found = np.full((len(value), parts), np.nan)
        sorted_value = value.take(order, axis=1)
        for i in range(parts if len(at) else 0):
            inside = sorted_value == i
            member = inside.take(at, axis=1)
            called = np.cumsum(inside, axis=1, dtype=np.int32).take(ends, axis=1)
            right = np.cumsum(member, axis=1, dtype=np.int32).take(own, axis=1)
            shares = np.divide(right, called, out=np.zeros(member.shape), where=member)
            with np.errstate(invalid="ignore"):
                found[:, i] = shares.sum(axis=1) / member.sum(axis=1)
        return found

    return precisions


def _largest_gap(values: np.ndarray) -> np.ndarray:
    """Of ``[b, parts, metrics]``; NaN where fewer than two of the parts are defined."""
    known = np.isfinite(values)
    gap = np.where(known, values, -np.inf).max(1) - np.where(known, values, np.inf).min(1)
    return np.where(known.sum(1) > 1, gap, np.nan)


def _movers(
    p: Predictions, value: Int[np.ndarray, " n"], alike: str
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
    if not alike:
        return mover, np.unique(owner, return_inverse=True)[1]
    k = len(p.classes)
    answers = p.labels if alike == "truth" else decisions(p.probabilities, task=p.task)
    members = answers == 1 if p.task is Task.MULTILABEL else answers[:, None] == np.arange(k)
    present = np.zeros((count, k), np.int64)
    image, c = np.nonzero(members)
    present[mover[image], c] = 1
    rows = np.column_stack([owner, present])
    return mover, np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)


def _shuffler(
    value: Int[np.ndarray, " n"], mover: Int[np.ndarray, " n"], stratum: Int[np.ndarray, " m"]
) -> Callable[[int, np.random.Generator], np.ndarray]:
    """A function from how many shuffles, and what draws them, to their values ``[count, n]``.

    Random numbers are sorted whose first bits are the stratum and whose last are the value: that
    takes half the time of sorting places by random numbers. In the forty bits between two of
    100,000 are the same once in a thousand shuffles.
    """
    most = int(value.max())
    low, high = most.bit_length(), int(stratum.max()).bit_length()
    own = np.empty(len(stratum), np.uint64)
    own[mover] = value
    by_stratum = np.argsort(stratum, kind="stable")
    fixed = own[by_stratum]
    if high:
        fixed |= stratum[by_stratum].astype(np.uint64) << np.uint64(64 - high)
    place = np.empty(len(own), np.int64)
    place[by_stratum] = np.arange(len(own))
    place = place[mover]

    def draw(count: int, rng: np.random.Generator) -> np.ndarray:
        keys = rng.integers(0, 2**64 - 1, (count, len(own)), dtype=np.uint64, endpoint=True)
        keys >>= np.uint64(high)
        keys &= np.uint64(2**64 - 2**low)
        keys |= fixed
        keys.sort(axis=1)
        keys &= np.uint64(2**low - 1)
        return keys.astype(np.min_scalar_type(most)).take(place, axis=1)

    return draw
