"""Accuracy against cost: which network gives the most for what it costs, as far as data can tell.

    python benchmarks/cost.py --runs runs/breastmnist/* \\
        --bench benchmarks/results/bench_cpu_28px.json --out cost.svg --json cost.json

Accuracy is that of finished runs on their test images, with its interval; costs are flaxmed's rows
in a file that `flaxmed bench --json` wrote: seconds per 1,000 images trained, and milliseconds per
image of inference in batches. Their error bars are the quartiles of the timings; two costs whose
quartiles overlap count as alike.

A network is called dominated where another that costs less is better beyond the paired test, or
where the paired interval leaves the costlier one no gain that would matter (``--difference``); or
where another that costs alike is better. What the interval leaves open is said to be open.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cost_figure import figure

from flaxmed.evaluation import Comparison
from flaxmed.evaluation.plots import render_figure
from flaxmed.evaluation.runs import compare_runs
from flaxmed.evaluation.tables import json_number, json_text, listed, write_file
from flaxmed.types import InputError

TITLES = {"resnet18": "ResNet-18", "densenet121": "DenseNet-121", "xception": "Xception"}
METRICS = ("auc", "accuracy")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of cost: its name, the unit of its axis, and the timings it is made of."""

    name: str
    unit: str
    timings: str
    factor: float  # from the seconds of one image


KINDS = (
    Kind("training", "s per 1,000 images", "train_seconds", 1e3),
    Kind("inference", "ms per image in batches", "inference_seconds", 1e3),
)


@dataclasses.dataclass(frozen=True)
class Range:
    """A value between two ends."""

    value: float
    low: float
    high: float

    def overlaps(self, other: Range) -> bool:
        """Whether the two have a value in common."""
        return self.low <= other.high and other.low <= self.high

    def to_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return {name: json_number(value) for name, value in vars(self).items()}


@dataclasses.dataclass(frozen=True)
class Network:
    """One network: its accuracy by metric, its cost by kind, its multiply-adds."""

    name: str
    title: str
    seeds: int
    scores: Mapping[str, Range]
    costs: Mapping[str, Range]
    multiply_adds: int


@dataclasses.dataclass(frozen=True)
class Beside:
    """A network beside one that costs less, or alike.

    Attributes:
        name, other: the network, and the one that does not cost more.
        times: how many times the other's cost it has.
        alike: whether the timings leave open which of them costs more.
        gain: of the network in the metric, with the paired interval.
        relation: ``"better"``, ``"worse"`` (both beyond the test), ``"no gain that matters"`` or
            ``"open"``.
    """

    name: str
    other: str
    times: float
    alike: bool
    gain: Range
    relation: str

    @property
    def dominated(self) -> bool:
        """Whether nothing speaks for the network where the other is to be had."""
        return self.relation == "worse" or (
            self.relation == "no gain that matters" and not self.alike
        )


# --------------------------------------------------------------------------------- what is read


def read_bench(path: Path) -> dict[str, Any]:
    """A file of `flaxmed bench --json`.

    Raises:
        InputError: it cannot be read, or is no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _ = found["setting"]["batch"], [row["train_seconds"] for row in found["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--bench {path}: not a file of flaxmed bench: {error!r}") from None
    return found


def check_setting(runs: Sequence[Path], bench: Mapping[str, Any]) -> None:
    """Costs are of one size and stem: those of the runs.

    Raises:
        InputError: they are not.
    """
    for run in runs:
        try:
            shape = json.loads((run / "dataset.json").read_text()).get("image_shape")
            stem = json.loads((run / "config.json").read_text()).get("stem", "auto")
        except (OSError, ValueError):
            continue  # the comparison says what is wrong with it
        if shape is None:
            continue
        size = max(shape[:2])
        stem = ("small" if size <= 64 else "imagenet") if stem == "auto" else stem
        wanted = (bench["setting"]["size"], bench["setting"]["stem"])
        if (size, stem) != wanted:
            raise InputError(
                f"--bench: measured at {wanted[0]} px with the {wanted[1]} stem; "
                f"{run} is of {size} px with the {stem} stem"
            )


def networks(comparison: Comparison, bench: Mapping[str, Any]) -> list[Network]:
    """Accuracy and cost of every network that is compared.

    Raises:
        InputError: the benchmark has no row of one of them.
    """
    rows = {row["network"]: row for row in bench["rows"] if row["contestant"] == "flaxmed"}
    found = []
    for column in comparison.columns:
        model, *rest = column.name.split(",", 1)
        if model not in rows:
            raise InputError(f"--bench: no row of {model}; it has {', '.join(rows) or 'none'}")
        row, batch = rows[model], bench["setting"]["batch"]
        scores = {}
        for metric in METRICS:
            mean = column.means[metric]
            # of new seeds too where there are enough, else of these trained networks
            interval = mean.interval if math.isnan(mean.joint.low) else mean.joint
            scores[metric] = Range(mean.spread.mean, interval.low, interval.high)
        found.append(
            Network(
                name=column.name,
                title=",".join([TITLES.get(model, model), *rest]),
                seeds=len(column.reports),
                scores=scores,
                costs={kind.name: cost(row[kind.timings], batch, kind) for kind in KINDS},
                multiply_adds=row["multiply_adds"],
            )
        )
    return found


def cost(timings: Sequence[float], batch: int, kind: Kind) -> Range:
    """The median of the timings of a batch, with their quartiles, in the unit of ``kind``."""
    if not timings:
        raise InputError(f"--bench: no timings of {kind.name}")
    low, value, high = np.percentile(timings, [25, 50, 75]) * kind.factor / batch
    return Range(float(value), float(low), float(high))


# ---------------------------------------------------------------------------------- what is said


def beside(comparison: Comparison, found: Sequence[Network], kind: Kind) -> list[Beside]:
    """Each network beside every other that does not cost more."""
    result = []
    for one in found:
        for other in found:
            ours, theirs = one.costs[kind.name], other.costs[kind.name]
            alike = ours.overlaps(theirs)
            if one is not other and (alike or ours.value > theirs.value):
                gain, relation = quality(comparison, one.name, other.name)
                times = ours.value / theirs.value
                result.append(Beside(one.name, other.name, times, alike, gain, relation))
    return result


def dominated_networks(comparison: Comparison, found: Sequence[Network], kind: Kind) -> set[str]:
    """The names of the networks that another dominates."""
    return {pair.name for pair in beside(comparison, found, kind) if pair.dominated}


def quality(comparison: Comparison, name: str, other: str) -> tuple[Range, str]:
    """What the paired test says of a network's gain over another in the primary metric."""
    plan = comparison.plan
    (pair,) = (p for p in comparison.pairs if {p.first, p.second} == {name, other})
    d = pair.primary
    low, high = np.clip([d.interval.low, d.interval.high], -1.0, 1.0).tolist()
    gain = Range(d.value, low, high)
    if pair.first == other:
        gain = Range(-gain.value, -gain.high, -gain.low)
    if pair.distinguished(plan.level):
        return gain, "better" if gain.value > 0 else "worse"
    return gain, "no gain that matters" if gain.high < plan.difference else "open"


def verdict(comparison: Comparison, found: Sequence[Network], kind: Kind) -> list[str]:
    """Which network has the better accuracy for its cost, and what the data cannot tell."""
    if len(found) < 2:
        return [f"{kind.name.capitalize()}: one network, nothing to compare."]
    plan, titles = comparison.plan, {one.name: one.title for one in found}
    order = sorted(found, key=lambda one: one.costs[kind.name].value)
    pairs = beside(comparison, found, kind)
    cheapest = order[0]
    value = cheapest.costs[kind.name].value
    said = [f"{kind.name.capitalize()}: {cheapest.title} costs least, {value:.3g} {kind.unit}."]
    dominated = dominated_networks(comparison, found, kind)
    left = [one for one in order if one.name not in dominated]
    for one in order:
        against = [pair for pair in pairs if pair.name == one.name]
        against.sort(key=lambda pair: (not pair.dominated, pair.other != cheapest.name))
        if against and (one.name in dominated or one is not cheapest):
            said.append(statement(against[0], titles, plan.title, plan.difference))
    if len(left) == 1:
        said.append(f"{left[0].title} has the best {plan.title} for its cost.")
        return said
    names = {one.name for one in left}
    unclear, trades = [], []
    for one in left[1:]:
        relations = {p.relation for p in pairs if p.name == one.name and p.other in names}
        (trades if relations == {"better"} else unclear).append(one.title)
    if trades:
        said.append(
            f"{listed(trades)}: more {plan.title} for more cost, a trade; no ratio is the better "
            "by itself."
        )
    if unclear:
        said.append(
            f"Whether more {plan.title} comes with the cost of {listed(unclear)} these "
            f"{comparison.n} test images cannot tell."
        )
    return said


def statement(pair: Beside, titles: Mapping[str, str], metric: str, difference: float) -> str:
    """One network beside one that does not cost more, in a sentence."""
    one, other, gain = titles[pair.name], titles[pair.other], pair.gain
    if pair.alike:
        price = f"{one} costs about as much as {other}"
    else:
        price = f"{one} costs {pair.times:.2f} times as much as {other}"
    known = not math.isnan(gain.low)
    ends = f"{gain.value:+.3f}" + (f", {gain.low:+.3f} to {gain.high:+.3f}" if known else "")
    if pair.relation == "better":
        return f"{price}, and its {metric} is higher ({ends})."
    if pair.relation == "worse":
        return f"{price}, and its {metric} is lower ({ends}): it is dominated."
    if pair.relation == "no gain that matters":
        end = ": it is dominated" if pair.dominated else ""
        return (
            f"{price}, for a gain in {metric} below the {difference:g} that would matter "
            f"({ends}){end}."
        )
    return f"{price}; whether its {metric} is higher is open ({ends})."


# ----------------------------------------------------------------------------------- the command


def to_dict(
    comparison: Comparison, found: Sequence[Network], bench: Mapping[str, Any]
) -> dict[str, Any]:
    """All of it, for JSON."""
    rows = {row["network"]: row for row in bench["rows"] if row["contestant"] == "flaxmed"}
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "source": comparison.source.to_dict(),
        "n": comparison.n,
        "plan": dataclasses.asdict(comparison.plan),
        "bench": {name: bench.get(name) for name in ("device", "date", "versions", "setting")},
        "networks": [
            {
                "name": one.name,
                "seeds": one.seeds,
                "multiply_adds": one.multiply_adds,
                **{metric: score.to_dict() for metric, score in one.scores.items()},
                "cost": {name: value.to_dict() for name, value in one.costs.items()},
                "train_images_per_second": rows[one.name.split(",")[0]]["train_images_per_second"],
                "latency_ms": rows[one.name.split(",")[0]]["latency_ms"],
            }
            for one in found
        ],
        "pairs": {
            kind.name: [
                {**vars(pair), "gain": pair.gain.to_dict(), "dominated": pair.dominated}
                for pair in beside(comparison, found, kind)
            ]
            for kind in KINDS
        },
        "verdict": {kind.name: verdict(comparison, found, kind) for kind in KINDS},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, compare, draw, say; the exit code: 0 done, 2 the input is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs="+", required=True, metavar="RUN")
    parser.add_argument("--bench", type=Path, required=True, help="of flaxmed bench --json")
    parser.add_argument("--out", type=Path, required=True, help="FIGURE.svg or FIGURE.png")
    parser.add_argument("--json", type=Path, help="also write the numbers and sentences here")
    parser.add_argument("--metric", choices=METRICS, default="auc")
    parser.add_argument("--difference", type=float, default=0.02, help="what would matter")
    args = parser.parse_args(arguments)
    try:
        kind = args.out.suffix.lstrip(".")
        if kind not in ("svg", "png"):
            raise InputError(f"--out: expected a name that ends in .svg or .png, got {args.out}")
        bench = read_bench(args.bench)
        check_setting(args.runs, bench)
        comparison = compare_runs(args.runs, metric=args.metric, difference=args.difference)
        found = networks(comparison, bench)
        dominated = {one.name: dominated_networks(comparison, found, one) for one in KINDS}
        content = render_figure(figure(comparison, found, KINDS, dominated), kind)
        write_file(args.out, content)
        if args.json is not None:
            write_file(args.json, json_text(to_dict(comparison, found, bench)))
    except InputError as error:
        print(f"cost.py: {error}", file=sys.stderr)
        return 2
    for one in KINDS:
        print(" ".join(verdict(comparison, found, one)))
    print(*(said for said in comparison.verdict if said.startswith("This is about")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
