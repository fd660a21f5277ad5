"""Thresholds chosen on validation images and judged on test images, and decision curves.

Both are of one class against the rest: an image is called positive where the probability of that
class is at or above the threshold.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from flaxmed.evaluation.bootstrap import ratio_interval
from flaxmed.evaluation.calibration import check_splits
from flaxmed.evaluation.checks import missing
from flaxmed.evaluation.intervals import Interval, normal_quantile
from flaxmed.evaluation.tables import json_number
from flaxmed.types import InputError, Predictions, Task

Rule = Literal["youden", "sensitivity", "specificity"]


@dataclasses.dataclass(frozen=True)
class Share:
    """A share of images, with its interval.

    Attributes:
        value: ``hits / of``; NaN where ``of`` is 0.
        hits, of: images.
        interval: Wilson's, or of redrawn groups where the images have them.
        reason: why the value is NaN, else None.
    """

    value: float
    hits: int
    of: int
    interval: Interval
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None, with its reason."""
        found = self.interval
        values: dict[str, Any] = {
            "value": json_number(self.value),
            "hits": self.hits,
            "of": self.of,
            "low": json_number(found.low),
            "high": json_number(found.high),
            "level": found.level,
            "method": found.method,
        }
        reason = self.reason or found.reason
        return {**values, "reason": reason} if reason else values


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and what it does.

    Attributes:
        rule: how it was chosen: ``"sensitivity at least 0.90 on validation"``.
        of_class: the class (or label) that is called, by name.
        threshold: called positive at or above it; inf: no image is called. NaN if undefined.
        val_sensitivity, val_specificity: on the validation images it was chosen by.
        sensitivity, specificity, ppv, npv: on test images. The predictive values are those of
            their prevalence. The intervals take the threshold as given: what another draw of
            validation images would have changed is not in them.
        reason: why the threshold is NaN, or what is wrong with it, else None.
    """

    rule: str
    of_class: str
    threshold: float
    val_sensitivity: float
    val_specificity: float
    sensitivity: Share
    specificity: Share
    ppv: Share
    npv: Share
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN and inf are None, with their reason."""
        values: dict[str, Any] = {"rule": self.rule, "of_class": self.of_class}
        for name in ("threshold", "val_sensitivity", "val_specificity"):
            values[name] = json_number(getattr(self, name))
        for name in ("sensitivity", "specificity", "ppv", "npv"):
            values[name] = getattr(self, name).to_dict()
        return {**values, "reason": self.reason} if self.reason else values


def operating_point(
    val: Predictions,
    test: Predictions,
    *,
    rule: Rule,
    target: float | None = None,
    of_class: int | None = None,
    level: float = 0.95,
) -> OperatingPoint:
    """A threshold chosen on validation images alone, and its performance on test images.

    ``"sensitivity"``: of the thresholds with at least the wanted sensitivity the highest, which
    has the best specificity. ``"specificity"``: of those with at least the wanted specificity the
    lowest, which has the best sensitivity. ``"youden"``: the largest sensitivity + specificity - 1
    (W. J. Youden, Cancer 3, 32, 1950); of equals the lowest threshold, which misses fewest.

    All thresholds between two neighbouring validation probabilities decide the validation images
    alike; the middle between the two is taken, with 0 and 1 as the outermost neighbours, and the
    upper one where no number lies between.

    Args:
        val: validation predictions, which choose.
        test: test predictions of the same model; they have no influence on the threshold.
        rule: as above.
        target: the wanted sensitivity or specificity, above 0, up to 1; not for ``"youden"``.
        of_class: the class or label to call; of a binary task the positive class if not given.
        level: the wanted coverage of the intervals.

    Returns:
        The operating point; NaN with its reason where validation has no image of the class, or no
        other.

    Raises:
        InputError: splits of different tasks or classes, or options outside their range.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.2, 0.8]])
        >>> p = Predictions.from_probabilities(scores, labels=[0, 1, 0, 1], task="binary")
        >>> point = operating_point(p, p, rule="sensitivity", target=0.9)
        >>> round(point.threshold, 3), point.sensitivity.value, point.specificity.value
        (0.25, 1.0, 0.5)
    """
    check_splits(val, test)
    normal_quantile(level)  # refuses a level outside (0, 1)
    words = _describe(rule, target)
    c = _number(val, of_class)
    name = val.classes[c]
    reason = missing(val.labels, val.task, c, val.classes)
    if reason:
        return _undefined(words, name, level, f"{reason} in validation")
    members, score = one_class(val, c)
    threshold, reason = _choose(members, score, rule, target or 0.0)
    called = score >= threshold
    true, score = one_class(test, c)
    positive = score >= threshold
    return OperatingPoint(
        rule=words,
        of_class=name,
        threshold=threshold,
        val_sensitivity=float(called[members].mean()),
        val_specificity=float((~called)[~members].mean()),
        sensitivity=_share(positive, true, test, level, f"no test image is of {name!r}"),
        specificity=_share(~positive, ~true, test, level, f"no test image is not of {name!r}"),
        ppv=_share(true, positive, test, level, "no test image is called positive"),
        npv=_share(~true, ~positive, test, level, "no test image is called negative"),
        reason=reason,
    )


def default_points(
    val: Predictions,
    test: Predictions,
    *,
    sensitivity: float = 0.9,
    specificity: float = 0.9,
    level: float = 0.95,
) -> tuple[OperatingPoint, ...]:
    """The points that a report shows.

    Of a binary task's positive class the largest Youden index, and the wanted sensitivity and
    specificity; of every class or label of another task the largest Youden index.

    Args:
        val: validation predictions, which choose.
        test: test predictions of the same model.
        sensitivity, specificity: the wanted ones.
        level: the wanted coverage of the intervals.
    """
    if val.task is Task.BINARY:
        wanted: list[tuple[Rule, float | None]] = [("youden", None)]
        wanted += [("sensitivity", sensitivity), ("specificity", specificity)]
        return tuple(
            operating_point(val, test, rule=rule, target=target, level=level)
            for rule, target in wanted
        )
    return tuple(
        operating_point(val, test, rule="youden", of_class=c, level=level)
        for c in range(len(val.classes))
    )


@dataclasses.dataclass(frozen=True, eq=False)
class DecisionCurve:
    """What acting on a model's calls is worth, by how sure one wants to be.

    Attributes:
        thresholds: the probabilities at which an image is called positive, ascending, ``[t]``.
        net_benefit: of the model at each, ``[t]``, in true positives per image: a false positive
            costs ``t / (1 - t)`` of one. NaN if undefined.
        treat_all: of calling every image positive, ``[t]``. That of calling none is 0.
        prevalence: share of images of the class.
        of_class: the class (or label), by name.
        n: number of images.
        reason: why the values are NaN, else None.
    """

    thresholds: Float[np.ndarray, " t"]
    net_benefit: Float[np.ndarray, " t"]
    treat_all: Float[np.ndarray, " t"]
    prevalence: float
    of_class: str
    n: int
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None, with its reason."""
        values: dict[str, Any] = {"of_class": self.of_class, "n": self.n}
        values["prevalence"] = json_number(self.prevalence)
        for name in ("thresholds", "net_benefit", "treat_all"):
            values[name] = [json_number(value) for value in getattr(self, name).tolist()]
        return {**values, "reason": self.reason} if self.reason else values


def decision_curve(
    p: Predictions,
    *,
    of_class: int | None = None,
    thresholds: Float[np.ndarray, " t"] | None = None,
) -> DecisionCurve:
    """Net benefit at each threshold: ``TP / n - FP / n * t / (1 - t)``.

    A. J. Vickers, E. B. Elkin: Decision curve analysis, Medical Decision Making 26, 565 (2006).
    The threshold is both the probability at which one would act and the price of acting in vain,
    so it means what it says for calibrated probabilities, at the prevalence of these images.

    Args:
        p: predictions.
        of_class: the class or label to call; of a binary task the positive class if not given.
        thresholds: ascending, in [0, 1); 0.01, 0.02, ... 0.99 if not given.

    Returns:
        The curve; of NaN with its reason where there are no images.

    Raises:
        InputError: thresholds outside their range or not ascending, a class that there is not.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.2, 0.8]])
        >>> p = Predictions.from_probabilities(scores, labels=[0, 1, 0, 1], task="binary")
        >>> decision_curve(p, thresholds=np.array([0.2, 0.5])).net_benefit.tolist()
        [0.4375, 0.0]
    """
    t = np.arange(1, 100) / 100 if thresholds is None else np.asarray(thresholds, np.float64)
    if not (len(t) and (t >= 0).all() and (t < 1).all() and (np.diff(t) > 0).all()):
        raise InputError("thresholds of a decision curve must ascend from 0 or more to below 1")
    c = _number(p, of_class)
    if not len(p):
        nothing = np.full(len(t), math.nan)
        return DecisionCurve(t, nothing, nothing, math.nan, p.classes[c], 0, "no images")
    members, score = one_class(p, c)
    found, false = (
        (len(kind) - np.searchsorted(kind, t, side="left")) / len(p)
        for kind in (np.sort(score[members]), np.sort(score[~members]))
    )
    odds, prevalence = t / (1 - t), float(members.mean())
    return DecisionCurve(
        thresholds=t,
        net_benefit=found - false * odds,
        treat_all=prevalence - (1 - prevalence) * odds,
        prevalence=prevalence,
        of_class=p.classes[c],
        n=len(p),
    )


def one_class(p: Predictions, c: int) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Which images are of class (or have label) ``c``, and its probability in each.

    Unlike the rank of a ROC curve this is the class's own probability for either class of a binary
    task, so that a threshold can be held against what the model says.

    Example:
        >>> p = Predictions.from_probabilities([[0.25, 0.75]], labels=[1], task="binary")
        >>> [values.tolist() for values in one_class(p, 0)]
        [[False], [0.25]]
    """
    members = p.labels[:, c] == 1 if p.task is Task.MULTILABEL else p.labels == c
    return members, p.probabilities[:, c]


def _number(p: Predictions, of_class: int | None) -> int:
    """The number of the class to call."""
    if of_class is None and p.positive is None:
        raise InputError("of_class is needed: the number of the class or label to call")
    c = p.positive if of_class is None else of_class
    if not 0 <= c < len(p.classes):
        raise InputError(f"class {c} is not among the {len(p.classes)} classes")
    return int(c)


def _describe(rule: str, target: float | None) -> str:
    """The rule in words, or an InputError."""
    if rule not in get_args(Rule):
        raise InputError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    if rule == "youden":
        if target is not None:
            raise InputError("the rule youden takes no target")
        return "largest Youden index on validation"
    if target is None or not 0 < target <= 1:
        raise InputError(f"the rule {rule} needs a target above 0, up to 1, got {target!r}")
    number = f"{target:.2f}" if round(target, 2) == target else f"{target:g}"
    return f"{rule} at least {number} on validation"


def _choose(
    members: np.ndarray, score: np.ndarray, rule: str, target: float
) -> tuple[float, str | None]:
    """The threshold by the rule, and what is wrong with it; images of both kinds are needed."""
    thresholds, cuts = _thresholds(np.unique(score))
    positives, negatives = np.sort(score[members]), np.sort(score[~members])
    found = len(positives) - np.searchsorted(positives, cuts, side="left")
    spared = np.searchsorted(negatives, cuts, side="left")
    if rule == "sensitivity":
        at = np.flatnonzero(found / len(positives) >= target)[-1]
    elif rule == "specificity":
        at = np.flatnonzero(spared / len(negatives) >= target)[0]
    else:  # in whole numbers, so that equals are equal
        gain = found * len(negatives) + spared * len(positives)
        at = np.argmax(gain)
        if gain[at] == len(positives) * len(negatives):
            return float(thresholds[at]), "no threshold does better than chance on validation"
    if math.isinf(thresholds[at]):
        return math.inf, "a validation image of another kind has probability 1: none is called"
    return float(thresholds[at]), None


def _thresholds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every threshold that decides otherwise than the next, ascending, and its lowest call."""
    lower = np.append(0.0, values)
    upper = np.append(values, 1.0)
    middle = lower + (upper - lower) / 2
    middle[1:] = np.where(middle[1:] > lower[1:], middle[1:], upper[1:])
    if values[-1] == 1:  # nothing in [0, 1] calls none
        middle[-1] = math.inf
    return middle, np.append(values, math.inf)


def _share(hits: np.ndarray, of: np.ndarray, p: Predictions, level: float, if_none: str) -> Share:
    """Of the images ``of`` those that are also ``hits``."""
    interval = ratio_interval(
        hits.astype(np.float64), of.astype(np.float64), groups=p.groups, level=level
    )
    top, bottom = int((hits & of).sum()), int(of.sum())
    if not bottom:
        return Share(math.nan, 0, 0, dataclasses.replace(interval, reason=if_none), if_none)
    return Share(top / bottom, top, bottom, interval)


def _undefined(words: str, name: str, level: float, reason: str) -> OperatingPoint:
    nan = math.nan
    share = Share(nan, 0, 0, Interval(nan, nan, "Wilson", level, reason), reason)
    return OperatingPoint(words, name, nan, nan, nan, share, share, share, share, reason)
