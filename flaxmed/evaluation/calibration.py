"""Whether probabilities can be taken at their word, and one temperature that makes them better.

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
from scipy import optimize, special

from flaxmed.evaluation.checks import check, decisions
from flaxmed.evaluation.intervals import normal_quantile
from flaxmed.evaluation.metrics import cross_entropy_loss
from flaxmed.evaluation.tables import json_number
from flaxmed.types import InputError, Predictions, Task

TOP_LABEL, LABELS = "top label", "labels"
_CHUNK = 4_000_000  # random numbers held at once: 32 MB
_NEAR_BOUND = 1e-3  # in log T


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
                f"The band and the p-value take images of one group ({self.groups} groups) as "
                "independent: where they are alike, the band is too narrow and p too small."
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
    they are (the paper redraws them too). Draws are independent, of groups as well: see
    :meth:`Reliability.notes`.

    Args:
        labels, scores, task: as for :func:`flaxmed.evaluation.metrics.accuracy_score`.
        bins: the most bins, 1 or more.
        resamples: number of draws, 1 or more.
        level: share of draws inside the band, in (0, 1).
        seed: of the draws.
        groups: a name per image, or None; changes the notes alone.

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
    events = LABELS if task is Task.MULTILABEL else TOP_LABEL
    confidence, outcome = _events(labels, scores, task)
    n = len(confidence)
    if not n:
        none, whole, nan = np.zeros(0), np.zeros(50, np.int64), math.nan
        empty = (none, none, whole[:0], none, none, whole, nan, nan, nan, nan)
        return Reliability(*empty, resamples, level, 0, events, units, "no images")

    starts = _starts(confidence, max(1, min(bins, n // 2)))
    count = np.diff(starts, append=n)
    expected = np.add.reduceat(confidence, starts) / count
    accuracy = np.add.reduceat(outcome, starts) / count
    drawn = _draw(confidence, starts, resamples, seed) / count
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
    return Reliability(*arrays, *numbers, resamples, level, n, events, units)


@dataclasses.dataclass(frozen=True)
class Temperature:
    """One number by which logits are divided.

    Attributes:
        value: above 0; more than 1 makes probabilities less extreme. NaN where there is no best.
        val_loss: cross-entropy of the validation images as they are. Computed from logits: unlike
            the metric ``loss``, a truth with probability 0 makes it infinite.
        val_loss_scaled: the same after division by the temperature; NaN where there is none.
        reason: why there is no best temperature, else None.
    """

    value: float
    val_loss: float
    val_loss_scaled: float = math.nan
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None, with its reason."""
        names = ("value", "val_loss", "val_loss_scaled")
        values: dict[str, Any] = {name: json_number(getattr(self, name)) for name in names}
        return {**values, "reason": self.reason} if self.reason else values


def fit_temperature(val: Predictions, bounds: tuple[float, float] = (0.05, 20.0)) -> Temperature:
    """The temperature T that minimises the cross-entropy of ``logits / T`` on validation images.

    C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger: On calibration of modern neural networks
    (ICML 2017, https://arxiv.org/abs/1706.04599). One T for all classes or labels. The loss is
    convex in 1 / T, so it has one minimum.

    Args:
        val: predictions on validation images, of which no test image is one.
        bounds: where T is sought, ``0 < low < high`` (else an InputError). A T within 0.1% of a
            bound is no minimum.

    Returns:
        The temperature; NaN with its reason for fewer than 2 images, where all are decided rightly
        (the loss then falls without end as T falls), where a truth has probability 0 at every T,
        and where the minimum is not inside the bounds.

    Example:
        >>> logits = np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [0.0, 4.0]])
        >>> found = fit_temperature(Predictions([0, 1, 0, 0], logits, "binary"))
        >>> round(found.value, 4) == round(4 / math.log(3), 4)  # 3 of 4 are right: odds of 3
        True
    """
    low, high = bounds
    if not 0 < low < high < math.inf:
        raise InputError(f"bounds of a temperature must be 0 < low < high, got {bounds}")
    margins = _margins(val)

    def loss(temperature: float) -> float:
        return float(np.logaddexp.reduce(margins / temperature, axis=1).mean())

    before = loss(1.0) if len(val) else math.nan
    reason = _no_minimum(val, margins)
    if reason:
        return Temperature(math.nan, before, reason=reason)
    found = optimize.minimize_scalar(
        lambda log_t: loss(math.exp(log_t)),
        bounds=(math.log(low), math.log(high)),
        method="bounded",
        options={"xatol": 1e-8},
    )
    if found.x - math.log(low) < _NEAR_BOUND:
        reason = f"the validation loss still falls at the lowest temperature, {low:g}"
    elif math.log(high) - found.x < _NEAR_BOUND:
        reason = f"the validation loss still falls at the highest temperature, {high:g}"
    if reason:
        return Temperature(math.nan, before, reason=reason)
    return Temperature(math.exp(found.x), before, float(found.fun))


def scale(p: Predictions, temperature: float) -> Predictions:
    """Predictions with their logits divided by a temperature, in float64.

    No decision changes, and no AUC of a binary task or a label, but where probabilities round to
    1. The AUC of one class of three or more may change. A logit of -inf stays one.

    Args:
        p: predictions.
        temperature: finite, above 0; else an InputError.

    Example:
        >>> p = Predictions(labels=[0], logits=[[2.0, 0.0]], task="binary")
        >>> scale(p, 2.0).logits.tolist()
        [[1.0, 0.0]]
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"a temperature must be finite and above 0, got {temperature!r}")
    # Not in float32, where two logits that differ in the last digit could become equal.
    return dataclasses.replace(p, logits=np.asarray(p.logits, np.float64) / temperature)


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """The calibration of test predictions, before and after temperature scaling.

    Attributes:
        test: of the predictions as they are.
        loss: their mean loss, as the metric ``loss``.
        temperature: fitted on validation predictions; None if none were given.
        scaled, scaled_loss: as ``test`` and ``loss`` after scaling; None and NaN where there is no
            temperature.
    """

    test: Reliability
    loss: float
    temperature: Temperature | None = None
    scaled: Reliability | None = None
    scaled_loss: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None, with its reason."""
        return {
            "test": self.test.to_dict(),
            "loss": json_number(self.loss),
            "temperature": None if self.temperature is None else self.temperature.to_dict(),
            "scaled": None if self.scaled is None else self.scaled.to_dict(),
            "scaled_loss": json_number(self.scaled_loss),
        }

    def notes(self) -> list[str]:
        """How the numbers are to be read, one sentence or two each."""
        notes = self.test.notes()
        if self.temperature is not None and self.temperature.reason:
            notes.append(f"No temperature: {self.temperature.reason}.")
        elif self.temperature is not None:
            notes.append(
                "The validation images that gave the temperature also chose the epoch, so it is "
                "somewhat optimistic: test probabilities may stay a little too extreme."
            )
        return notes


def calibrate(
    test: Predictions,
    val: Predictions | None = None,
    *,
    bins: int = 15,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Calibration:
    """Calibration on test images, and after a temperature fitted on validation images.

    Args:
        test: predictions to judge.
        val: the same model's on validation images; None: no temperature is fitted.
        bins, resamples, level, seed: as for :func:`reliability`.

    Raises:
        InputError: ``val`` of another task or other classes, or options outside their range.

    Example:
        >>> logits = np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [0.0, 4.0]])
        >>> p = Predictions(labels=[0, 1, 0, 0], logits=logits, task="binary")
        >>> found = calibrate(p, p)
        >>> round(found.test.ece_plain, 3), round(found.scaled.ece_plain, 3)
        (0.232, 0.0)
    """
    if val is not None:
        check_splits(val, test)
    options: dict[str, Any] = dict(bins=bins, resamples=resamples, level=level, seed=seed)
    before = _reliability_of(test, options), _loss(test)
    if val is None:
        return Calibration(*before)
    temperature = fit_temperature(val)
    if temperature.reason:
        return Calibration(*before, temperature)
    scaled = scale(test, temperature.value)
    return Calibration(*before, temperature, _reliability_of(scaled, options), _loss(scaled))


def check_splits(val: Predictions, test: Predictions) -> None:
    """Nothing if both are answers to one question; images that both hold are no matter here.

    Raises:
        InputError: another task, other classes or another positive class.

    Example:
        >>> p = Predictions(labels=[0], logits=[[2.0, 0.0]], task="binary")
        >>> check_splits(p, p)
    """
    for name in ("task", "classes", "positive"):
        one, other = getattr(val, name), getattr(test, name)
        if one != other:
            raise InputError(f"validation and test differ in {name}: {one} and {other}")


def _events(labels: np.ndarray, scores: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, ascending, and whether each event came true (0 or 1)."""
    if task is Task.MULTILABEL:
        confidence, outcome = scores.ravel(), labels.ravel()
    else:
        decided = decisions(scores, task=task)
        confidence, outcome = scores[np.arange(len(scores)), decided], decided == labels
    order = np.argsort(confidence)
    return confidence[order].astype(np.float64), outcome[order].astype(np.float64)


def _rounded(confidence: np.ndarray) -> np.ndarray:
    """Softmax in another order of classes differs in the last digits: that is no difference."""
    return np.round(confidence, 12)


def _starts(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The first event of each bin. A run of equal confidences goes where its middle belongs."""
    n = len(confidence)
    first = np.flatnonzero(np.diff(_rounded(confidence), prepend=-1.0))
    twice_middle = 2 * first + np.diff(first, append=n)
    return first[np.diff(twice_middle * bins // (2 * n), prepend=-1) > 0]


def _draw(confidence: np.ndarray, starts: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Events of each bin that come true where every confidence is right, ``[draws, bins]``."""
    rng = np.random.default_rng(seed)
    step, parts = max(1, _CHUNK // len(confidence)), []
    for at in range(0, draws, step):
        true = rng.random((min(step, draws - at), len(confidence))) < confidence
        parts.append(np.add.reduceat(true, starts, axis=1, dtype=np.int64))
    return np.concatenate(parts)


def _folded_mean(d: np.ndarray, s: np.ndarray) -> np.ndarray:
    """The mean of |x|, x normal with mean d and standard deviation s."""
    z = np.divide(d, s, out=np.zeros_like(d), where=s > 0)
    folded = s * math.sqrt(2 / math.pi) * np.exp(-(z**2) / 2) + d * (2 * special.ndtr(z) - 1)
    return np.where(s > 0, folded, d)


def _margins(p: Predictions) -> np.ndarray:
    """Each logit less the truth's, a row per event; a label's two classes have logits 0 and x."""
    x = np.asarray(p.logits, np.float64)
    if p.task is Task.MULTILABEL:
        other = np.where(p.labels == 1, -x, x).ravel()
        return np.stack([np.zeros_like(other), other], axis=1)
    truth = x[np.arange(len(x)), p.labels][:, None]
    with np.errstate(invalid="ignore"):  # -inf less -inf
        return np.where(np.isneginf(truth), np.inf, x - truth)


def _no_minimum(val: Predictions, margins: np.ndarray) -> str | None:
    """Why no temperature is best, where that can be seen without a search."""
    if len(val) < 2:
        return "no validation images" if not len(val) else "a single validation image"
    if np.isposinf(margins).any():
        return "a validation image's truth has probability 0 at every temperature"
    if not np.isfinite(margins[margins != 0]).any():
        return "the validation loss is the same at every temperature"
    if (margins <= 0).all():
        return "validation images are all decided rightly; no finite temperature is best"
    return None


def _reliability_of(p: Predictions, options: dict[str, Any]) -> Reliability:
    return reliability(p.labels, p.probabilities, task=p.task, groups=p.groups, **options)


def _loss(p: Predictions) -> float:
    return cross_entropy_loss(p.labels, p.probabilities, task=p.task) if len(p) else math.nan
