"""What a comparison supports: pairs, corrected for their number; ranks; and the plain sentences."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flaxmed.evaluation.bootstrap import DRAWS
from flaxmed.evaluation.estimates import Sampling
from flaxmed.evaluation.metrics import METRICS
from flaxmed.evaluation.paired import (
    Difference,
    Seeds,
    accuracy_difference,
    auc_difference,
    bootstrap_differences,
    holm,
    images_needed,
)
from flaxmed.evaluation.seeds import FEWEST
from flaxmed.evaluation.tables import json_number, listed, p_text
from flaxmed.types import InputError

_FEW = 100

TITLES = {spec.name: spec.title for spec in METRICS}
LOWER_IS_BETTER = {spec.name for spec in METRICS if spec.lower_is_better}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is declared before looking.

    Attributes:
        metric: the primary metric, on which networks are ranked and tested.
        difference: the smallest difference in it that would matter, above 0.
        power: the wanted probability of finding a difference of that size.
        level: coverage of intervals; 1 - level is the error of the tests over all pairs.
        draws, seed: of everything that is drawn.

    Raises:
        InputError: an unknown metric, or a number outside its range.

    Example:
        >>> Plan(power=80)
        Traceback (most recent call last):
        flaxmed.types.InputError: power must lie between 0 and 1, got 80
    """

    metric: str = "auc"
    difference: float = 0.02
    power: float = 0.8
    level: float = 0.95
    draws: int = DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.metric not in TITLES:
            raise InputError(f"unknown metric {self.metric!r}; expected one of {', '.join(TITLES)}")
        if not 0 < self.difference < math.inf:
            raise InputError(f"difference must be above 0, got {self.difference}")
        for name in ("power", "level"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")

    @property
    def sampling(self) -> Sampling:
        """How intervals are made."""
        return Sampling(self.level, self.draws, self.seed)

    @property
    def title(self) -> str:
        """How tables call the primary metric."""
        return TITLES[self.metric]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two networks of a comparison.

    Attributes:
        first, second: their names; differences are the first less the second.
        metric: the primary metric.
        differences: by metric.
        adjusted: Holm's p-value on the primary metric, over all pairs of the comparison.
        images: test images that would show the declared difference; inf where no number would,
            because seeds differ too much; NaN where it is not known.
    """

    first: str
    second: str
    metric: str
    differences: Mapping[str, Difference]
    adjusted: float = math.nan
    images: float = math.nan

    @property
    def primary(self) -> Difference:
        """The difference in the primary metric."""
        return self.differences[self.metric]

    @property
    def tested(self) -> bool:
        """Whether the test could be made."""
        return not math.isnan(self.adjusted)

    def distinguished(self, level: float) -> bool:
        """Whether the test tells the two apart, corrected for the number of pairs."""
        return self.adjusted <= 1 - level

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        return {
            "first": self.first,
            "second": self.second,
            "holm_p_value": json_number(self.adjusted),
            "images_needed": json_number(self.images),
            "differences": {name: d.to_dict() for name, d in self.differences.items()},
        }


@dataclasses.dataclass(frozen=True)
class Rank:
    """A network's place.

    Attributes:
        name: the network.
        value: its primary metric, the mean over seeds.
        letters: networks that share a letter are not distinguished by the test; it does not make
            them equal.
        alike: the networks from which it is not distinguished.
    """

    name: str
    value: float
    letters: str
    alike: tuple[str, ...]


def compare_pairs(networks: Mapping[str, Seeds], plan: Plan) -> tuple[Pair, ...]:
    """Every pair of networks, on every metric; Holm's correction on the primary one.

    Args:
        networks: by name, predictions of the same images in the same order, one per seed.
        plan: the primary metric, and what is asked of the tests.

    Raises:
        InputError: a primary metric that does not belong to the task.
    """
    task = next(iter(networks.values()))[0].task
    known = [spec.name for spec in METRICS if task in spec.tasks]
    if plan.metric not in known:
        raise InputError(f"the metric {plan.metric} does not belong to {task} tasks")
    found = [
        (one, two, _differences(networks[one], networks[two], known, plan.sampling))
        for one, two in itertools.combinations(networks, 2)
    ]
    adjusted = holm([differences[plan.metric].p_value for _, _, differences in found])
    n = len(next(iter(networks.values()))[0])
    # Holm's first step, the strictest, decides how many images are enough for every pair.
    alpha = (1 - plan.level) / max(len(found), 1)
    pairs = []
    for (one, two, differences), p in zip(found, adjusted, strict=True):
        variance = differences[plan.metric].variance
        images = images_needed(
            variance,
            n,
            plan.difference,
            power=plan.power,
            alpha=alpha,
            seed_variance=differences[plan.metric].seed_variance,
        )
        pairs.append(Pair(one, two, plan.metric, differences, p, images))
    return tuple(pairs)


def compare_with(
    networks: Mapping[str, Seeds], name: str, other: Seeds, plan: Plan
) -> tuple[Pair, ...]:
    """Each network beside one other, the ideal observer, on the primary metric.

    Args:
        networks: by name, predictions of the same images in the same order, one per seed.
        name: what the other is called.
        other: its predictions.
        plan: the primary metric, and what is asked of the tests.
    """
    found = {
        one: _differences(seeds, other, (plan.metric,), plan.sampling)
        for one, seeds in networks.items()
    }
    adjusted = holm([differences[plan.metric].p_value for differences in found.values()])
    return tuple(
        Pair(one, name, plan.metric, differences, p)
        for (one, differences), p in zip(found.items(), adjusted, strict=True)
    )


def rank(values: Mapping[str, float], pairs: Sequence[Pair], plan: Plan) -> tuple[Rank, ...]:
    """Networks by their primary metric, best first, with the groups that are not distinguished.

    Args:
        values: the primary metric by network.
        pairs: all pairs of these networks.
        plan: the primary metric and the level.
    """
    sign = 1 if plan.metric in LOWER_IS_BETTER else -1
    names = sorted(values, key=lambda n: (math.isnan(values[n]), sign * values[n]))
    apart = {frozenset((p.first, p.second)) for p in pairs if p.distinguished(plan.level)}
    tested = {frozenset((p.first, p.second)) for p in pairs if p.tested}
    groups = _alike(names, apart)
    found = []
    for name in names:
        letters = "".join(chr(ord("a") + i) for i, group in enumerate(groups) if name in group)
        alike = [n for n in names if frozenset((n, name)) in tested - apart]
        found.append(Rank(name, values[name], letters, tuple(alike)))
    return tuple(found)


def sentences(
    ranks: Sequence[Rank],
    pairs: Sequence[Pair],
    seeds: Mapping[str, int],
    n: int,
    plan: Plan,
    positive: str | None = None,
) -> tuple[str, ...]:
    """What may be said, what may not, and what would decide it.

    Args:
        ranks, pairs: of the comparison.
        seeds: how many of each network.
        n: number of test images.
        plan: what was declared.
        positive: the positive class, where the primary metric depends on it.
    """
    title = plan.title + ("" if positive is None else f" ({positive})")
    if not pairs:
        return ("One network: there is nothing to compare.",)
    untested = [pair for pair in pairs if not pair.tested]
    told = [pair for pair in pairs if pair.distinguished(plan.level)]
    untold = [pair for pair in pairs if pair.tested and pair not in told]
    said = [_claim(pair, n, plan, title) for pair in told]
    if untold and not told:
        smallest = min(pair.adjusted for pair in untold)
        names = [r.name for r in ranks if any(r.name in (p.first, p.second) for p in untold)]
        said.append(
            f"On these {n} test images no difference in {title} between {listed(names)} is "
            f"established (smallest p {p_text(smallest)}, Holm-adjusted)."
        )
        said.append(
            "It may not be claimed that any of them is better than another, nor that they are "
            "equal: the test did not tell them apart."
        )
    elif untold:
        which = listed([f"{pair.first} and {pair.second}" for pair in untold])
        said.append(
            f"The test did not tell apart {which}: neither that one is better, nor that they are "
            "equal, may be claimed."
        )
    reasons: dict[str, list[str]] = {}
    for pair in untested:
        names = reasons.setdefault(pair.primary.reason or "undefined", [])
        names.append(f"{pair.first} and {pair.second}")
    said += [
        f"Not compared on {title}: {listed(names)} ({reason})." for reason, names in reasons.items()
    ]
    if told or untold:
        said.append(_scope(seeds))
        said += _decisive(untold or told, n, plan, title)
    return tuple(said)


def _differences(
    one: Seeds, two: Seeds, names: Sequence[str], sampling: Sampling
) -> dict[str, Difference]:
    """The difference in each metric, by the test that belongs to it."""
    own = {"accuracy": accuracy_difference, "auc": auc_difference}
    redrawn = bootstrap_differences(one, two, [n for n in names if n not in own], sampling)
    return {name: own[name](one, two, sampling) if name in own else redrawn[name] for name in names}


def _alike(names: Sequence[str], apart: set[frozenset[str]]) -> list[list[str]]:
    """The largest groups within which no two are told apart (Piepho, J. Comp. Graph. Stat. 13, 456,
    2004): each pair that is told apart splits the groups that hold both."""
    groups = [list(names)]
    for pair in apart:
        split: list[list[str]] = []
        for group in groups:
            if pair <= set(group):
                split += [[n for n in group if n != out] for out in sorted(pair)]
            else:
                split.append(group)
        unique = [g for i, g in enumerate(split) if g not in split[:i]]
        groups = [g for g in unique if not any(set(g) < set(other) for other in unique)]
    return sorted(groups, key=lambda group: [names.index(n) for n in group])


def _claim(pair: Pair, n: int, plan: Plan, title: str) -> str:
    d, turned = pair.primary, pair.primary.value < 0
    low, high = d.interval.low, d.interval.high
    if turned:
        low, high = -high, -low
    more, less = (pair.second, pair.first) if turned else (pair.first, pair.second)
    lower = plan.metric in LOWER_IS_BETTER
    better, worse = (less, more) if lower else (more, less)
    interval = "" if math.isnan(low) else f"{low:.4f} to {high:.4f}; "
    return (
        f"On these {n} test images the {title} of {better} is {'lower' if lower else 'higher'} "
        f"than that of {worse} by {abs(d.value):.4f} ({interval}p {p_text(pair.adjusted)}, "
        "Holm-adjusted)."
    )


def _scope(seeds: Mapping[str, int]) -> str:
    """What kind of networks the statements are about."""
    fewest = min(seeds.values())
    if fewest >= FEWEST:
        return (
            "This is about networks trained with new seeds and about new images: the spread over "
            "seeds is part of the error."
        )
    count = "one seed each" if max(seeds.values()) == 1 else "too few seeds to join"
    return (
        f"This is about these trained networks ({count}): trained again with another seed, they "
        f"may rank otherwise. With {FEWEST} seeds or more of each, the seeds' share is included."
    )


def _decisive(pairs: Sequence[Pair], n: int, plan: Plan, title: str) -> list[str]:
    wanted = (
        f"To show a true difference of {plan.difference:g} in {title} with probability "
        f"{plan.power:g},"
    )
    known = [pair.images for pair in pairs if not math.isnan(pair.images)]
    if not known:
        return []
    finite = [images for images in known if math.isfinite(images)]
    if not finite:
        return [f"{wanted} no number of test images is enough: seeds differ too much; train more."]
    low, high = min(finite), max(finite)
    count = f"about {high:,.0f}"
    if high < _FEW:  # too few for the normal approximation that it rests on
        count = f"fewer than {_FEW}"
    elif round(low) < round(high):
        count = f"about {max(low, _FEW):,.0f} to {high:,.0f}, by pair,"
    beyond = "" if len(finite) == len(known) else " (for other pairs the seeds differ too much)"
    return [f"{wanted} {count} test images of this kind are needed{beyond}; here are {n:,}."]
