"""Whether probabilities can be taken at their word: bins, expected calibration error, a test.

An event is predicted with a confidence and comes true or not. In tasks with one class per image
the events are "the decided class is right", one per image, predicted with the probability of that
class (top-label calibration); in multi-label tasks "the image has the label", one per image and
label, all labels pooled. A model is calibrated if of the events predicted with 0.8 a share of 0.8
comes true, and so for every other number.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import special

from flaxmed.evaluation.bootstrap import unit_index
from flaxmed.evaluation.checks import check, decisions
from flaxmed.evaluation.intervals import normal_quantile
from flaxmed.evaluation.tables import json_number
from flaxmed.types import InputError, Task

TOP_LABEL, LABELS = "top label", "labels"
_CHUNK = 4_000_000  # random numbers held at once: 32 MB


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence against what came true, in bins of equal numbers of events.

    Attributes:
        confidence: mean confidence of each bin, ascending, ``[b]``.
        accuracy: share of the bin's events that came true, ``[b]``.
        count: events in the bin, ``[b]``.
        low, high: the consistency band, ``[b]``: where a calibrated model's accuracies would lie.
        histogram: events in 50 cells of equal width over the confidences from 0 to 1, ``[50]``.
        ece: expected calibration error, debiased: the mean over events of the distance between
            their bin's accuracy and confidence, less what chance adds to it; 0 or more.
        ece_plain: the same with nothing taken off. It is above 0 for a calibrated model too.
        ece_expected: the mean of ``ece_plain`` over the draws: what a calibrated model with these
            confidences would show.
        p_value: share of draws of a calibrated model with an ``ece_plain`` this large or larger.
        resamples: number of draws.
        level: share of the draws inside the band.
        n: number of events: images; multi-label: images times labels.
        events: ``"top label"`` or ``"labels"``.
        groups: number of groups (patients) of the images, None where each is its own.
        together: share of the pairs of images of one group that a draw decides as one, from 0
            (independent) to 1; None without groups.
        reason: why the numbers are NaN and the arrays empty, else None.
    """

    confidence: Float[np.ndarray, " b"]
    accuracy: Float[np.ndarray, " b"]
    count: Int[np.ndarray, " b"]
    low: Float[np.ndarray, " b"]
    high: Float[np.ndarray, " b"]
    histogram: Int[np.ndarray, " 50"]
    ece: float
    ece_plain: float
    ece_expected: float
    p_value: float
    resamples: int
    level: float
    n: int
    events: str
    groups: int | None = None
    together: float | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None, with its reason."""
        values = dataclasses.asdict(self)
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                values[name] = value.tolist()
            elif isinstance(value, float):
                values[name] = json_number(value)
        return {name: value for name, value in values.items() if name != "reason" or value}

    def notes(self) -> list[str]:
        """How the numbers are to be read, one sentence or two each."""
        bins = f"{len(self.count)} bin{'' if len(self.count) == 1 else 's'}"
        notes = [f"The calibration error depends on the bins: here {bins} of about equal numbers."]
        if self.events == LABELS:
            notes.append(
                "Calibration pools all labels; the band and the p-value take the labels of one "
                "image as independent."
            )
        if self.groups is not None:
            notes.append(
                f"The band and the p-value draw images of one group ({self.groups} groups) "
                f"together, as far as they are alike: {self.together:.0%} of their pairs."
            )
        return notes


def reliability(
    labels: Shaped[np.ndarray, " n *l"],
    scores: Float[np.ndarray, "n k"],
    *,
    task: Task | str,
    bins: int = 15,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> Reliability:
    """The calibration of probabilities: bins, expected calibration error, a test.

    The events are sorted by confidence and cut into bins of equal numbers. Equal confidences are
    never parted: all go where the middle one of them belongs, so the order of the images does not
    matter, and bins left empty are dropped. There are at most half as many bins as events.

    The plain error exceeds the true one, as the chance deviations of the bins do not cancel. Taken
    off is the excess of the mean of |x| over |d|, x normal around a bin's distance d with the
    standard error of its accuracy: A. Kumar, P. Liang, T. Ma, Verified uncertainty calibration
    (NeurIPS 2019, https://arxiv.org/abs/1909.10155), where x is drawn and not integrated. It is
    part of the excess, not all: for a calibrated model, whose d are chance alone, about two fifths
    of the plain error, and nothing in bins whose events all went one way. To judge an error, hold
    ``ece_plain`` against ``ece_expected``, or read the p-value.

    The p-value and the band come from consistency resampling: J. Broecker, L. A. Smith, Weather
    and Forecasting 22, 651 (2007). Outcomes are drawn as if each confidence were right; p is
    (1 + draws with an error no smaller) / (1 + draws). The confidences, and so the bins, stay as
    they are (the paper redraws them too).

    Draws of images are independent; of images of one group (patient) they are not. A truth is drawn
    by holding a uniform random number against the cumulated probabilities of the classes. An image
    takes its group's number with a probability of sqrt(q), else one of its own, so that a share q
    of the pairs in a group is decided by one number. Each image keeps its probabilities, and the
    residuals of a pair have q times the largest covariance that these allow, so the pairs' own
    residuals tell q (by the method of moments, kept between 0 and 1).

    Args:
        labels, scores, task: as for :func:`flaxmed.evaluation.metrics.accuracy_score`.
        bins: the most bins, 1 or more.
        resamples: number of draws, 1 or more.
        level: share of draws inside the band, in (0, 1).
        seed: of the draws.
        groups: a name per image, or None; drawn as above. They change the band, the p-value and
            ``ece_expected``, not the bins and errors.

    Returns:
        The reliability; without images of NaN, with its reason.

    Raises:
        InputError: what the metrics refuse, or options outside their range.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.4, 0.6]])
        >>> found = reliability(np.array([0, 1, 0, 1]), scores, task="binary", bins=2)
        >>> found.confidence.round(2).tolist(), found.accuracy.tolist(), round(found.ece_plain, 3)
        ([0.6, 0.85], [0.5, 1.0], 0.125)
    """
    labels, scores, task = check(labels, scores, task)
    if bins < 1 or resamples < 1:
        raise InputError(f"bins and resamples must be 1 or more, got {bins} and {resamples}")
    normal_quantile(level)  # refuses a level outside (0, 1)
    if groups is not None and len(groups) != len(labels):
        raise InputError(f"groups must have one entry per image ({len(labels)}): {len(groups)}")
    units = None if groups is None else len(np.unique(groups))
    events = _events(labels, scores, task, groups)
    confidence, outcome, n = events.confidence, events.outcome, len(events.confidence)
    kind = LABELS if task is Task.MULTILABEL else TOP_LABEL
    if not n:
        none, whole, nan = np.zeros(0), np.zeros(50, np.int64), math.nan
        empty = (none, none, whole[:0], none, none, whole, nan, nan, nan, nan)
        return Reliability(*empty, resamples, level, 0, kind, units, events.together, "no images")

    starts = _starts(confidence, max(1, min(bins, n // 2)))
    count = np.diff(starts, append=n)
    expected = np.add.reduceat(confidence, starts) / count
    accuracy = np.add.reduceat(outcome, starts) / count
    drawn = _draw(events, starts, resamples, seed) / count
    plain = float(np.abs(accuracy - expected) @ count / n)
    calibrated = np.abs(drawn - expected) @ count / n
    # Sums in another order differ in the last digits: that is no difference between draws.
    p_value = (1 + int((calibrated >= plain - 1e-12).sum())) / (1 + resamples)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    error = np.sqrt(accuracy * (1 - accuracy) / count)
    excess = float(_folded_mean(np.abs(accuracy - expected), error) @ count / n) - plain
    histogram = np.histogram(_rounded(confidence), 50, (0, 1))[0]
    arrays = (expected, accuracy, count, low, high, histogram)
    numbers = (max(plain - excess, 0.0), plain, float(calibrated.mean()), p_value)
    return Reliability(*arrays, *numbers, resamples, level, n, kind, units, events.together)


@dataclasses.dataclass(frozen=True)
class _Events:
    """What was predicted and what came true, by ascending confidence: ``[e]`` each.

    Attributes:
        confidence: the probability of each event.
        outcome: whether it came true (0 or 1).
        start: a uniform random number from ``start`` to ``start + confidence`` makes it true.
        unit: the number of the group's random number, None without groups.
        together: as for :class:`Reliability`.
    """

    confidence: Float[np.ndarray, " e"]
    outcome: Float[np.ndarray, " e"]
    start: Float[np.ndarray, " e"]
    unit: Int[np.ndarray, " e"] | None = None
    together: float | None = None


def _events(
    labels: np.ndarray, scores: np.ndarray, task: Task, groups: np.ndarray | None
) -> _Events:
    """The events of a task; of multi-label tasks each label of a group has a random number."""
    scores = scores.astype(np.float64)
    below = np.cumsum(scores, axis=1)[:, :-1]  # probability of the classes up to each but the last
    if task is Task.MULTILABEL:
        confidence, outcome = scores.ravel(), labels.ravel()
        start = np.zeros_like(confidence)
    else:
        rows, decided = np.arange(len(scores)), decisions(scores, task=task)
        confidence, outcome = scores[rows, decided], decided == labels
        start = np.pad(below, ((0, 0), (1, 0)))[rows, decided]
    outcome = outcome.astype(np.float64)
    if groups is None:  # any numbers will do, and these do not ask which class was decided
        order = np.argsort(confidence)
        return _Events(confidence[order], outcome[order], np.zeros_like(confidence))
    unit, _ = unit_index(len(scores), groups)
    if task is Task.MULTILABEL:
        together = _pairs_together(scores, labels, unit)
        unit = (unit[:, None] * scores.shape[1] + np.arange(scores.shape[1])).ravel()
    else:
        together = _pairs_together(below, labels[:, None] <= np.arange(below.shape[1]), unit)
    order = np.lexsort((unit, start, confidence))
    return _Events(confidence[order], outcome[order], start[order], unit[order], together)


def _pairs_together(
    probability: Float[np.ndarray, "n c"], outcome: Shaped[np.ndarray, "n c"], unit: np.ndarray
) -> float:
    """The share of pairs of one unit that one random number decides, from their residuals.

    Pairs of outcomes with probabilities p and p' that one number decides have a covariance of
    min(p, p') - p p', others of 0: the sum of products of residuals over the sum of the former.
    """
    products = largest = 0.0
    for p, true in zip(probability.T, outcome.T, strict=True):
        order = np.lexsort((p, unit))
        number, p, residual = unit[order], p[order], (true - p)[order]
        size = np.bincount(number)
        higher = (np.cumsum(size)[number] - 1) - np.arange(len(p))  # images of the unit after it
        smaller = 2 * float((p * higher).sum())  # over ordered pairs, as all of these sums
        largest += smaller - float((np.bincount(number, p) ** 2).sum() - (p**2).sum())
        products += float((np.bincount(number, residual) ** 2).sum() - (residual**2).sum())
    return min(max(products / largest, 0.0), 1.0) if largest > 1e-12 else 0.0


def _rounded(confidence: np.ndarray) -> np.ndarray:
    """Softmax in another order of classes differs in the last digits: that is no difference."""
    return np.round(confidence, 12)


def _starts(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The first event of each bin. A run of equal confidences goes where its middle belongs."""
    n = len(confidence)
    first = np.flatnonzero(np.diff(_rounded(confidence), prepend=-1.0))
    twice_middle = 2 * first + np.diff(first, append=n)
    return first[np.diff(twice_middle * bins // (2 * n), prepend=-1) > 0]


def _draw(events: _Events, starts: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Events of each bin that come true where every confidence is right, ``[draws, bins]``."""
    rng = np.random.default_rng(seed)
    e = len(events.confidence)
    step, parts = max(1, _CHUNK // e), []
    for at in range(0, draws, step):
        rows = min(step, draws - at)
        number = rng.random((rows, e))
        if events.unit is not None and events.together:
            shared = rng.random((rows, events.unit.max() + 1))[:, events.unit]
            number = np.where(rng.random((rows, e)) < math.sqrt(events.together), shared, number)
        number -= events.start
        true = (number >= 0) & (number < events.confidence)
        parts.append(np.add.reduceat(true, starts, axis=1, dtype=np.int64))
    return np.concatenate(parts)


def _folded_mean(d: np.ndarray, s: np.ndarray) -> np.ndarray:
    """The mean of |x|, x normal with mean d and standard deviation s."""
    z = np.divide(d, s, out=np.zeros_like(d), where=s > 0)
    folded = s * math.sqrt(2 / math.pi) * np.exp(-(z**2) / 2) + d * (2 * special.ndtr(z) - 1)
    return np.where(s > 0, folded, d)
