"""Calibration on test images, and one temperature, fitted on validation, that makes it better."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import optimize

from flaxmed.evaluation.metrics import cross_entropy_loss
from flaxmed.evaluation.reliability import Reliability, reliability
from flaxmed.evaluation.tables import json_number
from flaxmed.types import InputError, Predictions, Task

_NEAR_BOUND = 1e-3  # in log T


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
