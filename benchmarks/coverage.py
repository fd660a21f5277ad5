"""How often the intervals cover the truth, and how often the tests reject a true null.

    python benchmarks/coverage.py --json benchmarks/results/coverage.json

The truth is known because the test sets are drawn, with replacement, from one large finite pool of
predictions: a metric of the whole pool is what every test set estimates. The pool is the phantom's;
an observer is the ideal observer whose logits have noise added. Two such observers with noise of
their own are exchangeable, and the pool holds every image twice, with their answers exchanged, so
that between them every null hypothesis is true to the last digit, and none is the other's copy.

Where a case has several seeds, the pool holds a hundred networks that were trained in one way,
some better than others; a test set is of some of them on some of the images, and the joint interval
is to cover the mean over all of them. Both sides of a comparison are drawn from the same networks.

With 5,000 test sets a coverage of 0.95 is known to 0.003 (one standard error), and the rate of a
test at 0.05 likewise. It takes about an hour on two CPU cores; --sets 200 is a first look.
``--table FILE`` prints the README's table from such a file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning

from flaxmed.data.phantom import posterior, sample
from flaxmed.data.phantom_config import FAMILIES, PhantomClass, PhantomConfig
from flaxmed.evaluation.column import seed_means
from flaxmed.evaluation.estimates import Sampling, estimate_metrics
from flaxmed.evaluation.metrics import METRICS
from flaxmed.evaluation.paired import accuracy_difference, auc_difference, bootstrap_differences
from flaxmed.evaluation.reliability import reliability
from flaxmed.evaluation.tables import DASH, json_text, markdown, write_file
from flaxmed.types import Predictions, Task

BINARY = FAMILIES["phantom-binary"]
LEVEL, ALPHA = 0.95, 0.05


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of test set.

    Attributes:
        name: how the table calls it.
        n: images per test set (of whole patients, where there are any).
        config: the phantom.
        noise: standard deviation of the noise in an observer's logits.
        per_patient: images per patient, which share a class and half of the noise; 1: no patients.
        seeds: networks on each side; more than 1: the joint intervals are measured.
    """

    name: str
    n: int
    config: PhantomConfig
    noise: float = 1.0
    per_patient: int = 1
    seeds: int = 1


def _binary(share: float, elongation: float = 2.5, spread: float = 0.5) -> PhantomConfig:
    """Two classes, the second with this share of the images."""
    round_, long = BINARY.classes
    long = dataclasses.replace(long, elongation=(elongation, spread), weight=share / (1 - share))
    return dataclasses.replace(BINARY, classes=(PhantomClass(**vars(round_)), long))


CASES = (
    Case("binary, 27% positive, n = 156", 156, _binary(0.27)),
    Case("binary, 27% positive, n = 624", 624, _binary(0.27)),
    Case("three classes, n = 156", 156, FAMILIES["phantom"]),
    Case("60 patients of 4 images, n = 240", 240, _binary(0.27), per_patient=4),
    Case("binary, AUC 0.994, n = 156", 156, _binary(0.27, 3.0, 0.3), noise=0.5),
    Case("binary, 27% positive, n = 50", 50, _binary(0.27)),
    Case("3 seeds, joint, n = 156", 156, _binary(0.27), seeds=3),
    Case("6 seeds, joint, n = 156", 156, _binary(0.27), seeds=6),
)


@dataclasses.dataclass(frozen=True)
class Pool:
    """Two exchangeable observers' predictions of many images, and the ideal observer's."""

    labels: np.ndarray
    logits: tuple[np.ndarray, np.ndarray]
    ideal: np.ndarray
    per_patient: int
    task: Task

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Predictions, ...]:
        """A test set: the first observer's predictions, the second's, the ideal's."""
        m = self.per_patient
        first = rng.integers(0, len(self.labels) // m, n // m)
        rows = (first[:, None] * m + np.arange(m)).ravel()
        groups = np.repeat(np.arange(n // m), m).astype(str) if m > 1 else None
        return tuple(
            Predictions(labels=self.labels[rows], logits=one[rows], task=self.task, groups=groups)
            for one in (*self.logits, self.ideal)
        )

    def truths(self) -> dict[str, float]:
        """Every metric of the first observer on all images (the second's are the same)."""
        whole = Predictions(labels=self.labels, logits=self.logits[0], task=self.task)
        return {spec.name: spec(whole) for spec in METRICS if self.task in spec.tasks}


def make_pool(case: Case, images: int, seed: int = 0) -> Pool:
    """Draw phantom images, ask the ideal observer, add noise; every image twice, exchanged."""
    rng = np.random.default_rng(seed)
    pictures, labels, _ = sample(case.config, images, seed)
    with np.errstate(divide="ignore"):
        ideal = np.maximum(np.log(posterior(pictures, case.config)), -40.0)
    m = case.per_patient
    if m > 1:  # patients: images of one class together
        order = np.argsort(labels, kind="stable")
        order = np.concatenate(
            [rows[: len(rows) // m * m] for rows in np.split(order, np.bincount(labels).cumsum())]
        )
        labels, ideal = labels[order], ideal[order]
    noise = case.noise * np.sqrt(1.0 if m == 1 else 0.5)
    logits = []
    for _ in range(2):
        own = rng.normal(0, noise, ideal.shape)
        if m > 1:
            own += np.repeat(rng.normal(0, noise, (len(ideal) // m, ideal.shape[1])), m, axis=0)
        logits.append(ideal + own)
    a, b = logits
    exchanged = (np.concatenate([a, b]), np.concatenate([b, a]))
    task = Task.BINARY if len(case.config.classes) == 2 else Task.MULTICLASS
    return Pool(np.tile(labels, 2), exchanged, np.tile(ideal, (2, 1)), m, task)


@dataclasses.dataclass(frozen=True)
class SeedPool:
    """Many networks' predictions of many images: logits ``[seeds, images, classes]``."""

    labels: np.ndarray
    logits: np.ndarray
    seeds: int
    task: Task

    def draw(self, rng: np.random.Generator, n: int) -> tuple[list[Predictions], list[Predictions]]:
        """A test set: some networks' predictions of some images, and some others' of the same."""
        rows = rng.integers(0, len(self.labels), n)
        sides = rng.integers(0, len(self.logits), (2, self.seeds))
        first, second = ([self._of(seed, rows) for seed in side] for side in sides)
        return first, second

    def truths(self) -> dict[str, float]:
        """Every metric, averaged over all networks, on all images."""
        whole = [self._of(seed, slice(None)) for seed in range(len(self.logits))]
        return {
            spec.name: float(np.mean([spec(one) for one in whole]))
            for spec in METRICS
            if self.task in spec.tasks
        }

    def _of(self, seed: int, rows: Any) -> Predictions:
        logits = self.logits[seed, rows].astype(np.float64)
        return Predictions(labels=self.labels[rows], logits=logits, task=self.task)


def make_seed_pool(case: Case, images: int, networks: int = 100, seed: int = 0) -> SeedPool:
    """Half of a network's noise is its own, half that of all; how much there is differs by seed."""
    rng = np.random.default_rng(seed)
    pictures, labels, _ = sample(case.config, images, seed)
    with np.errstate(divide="ignore"):
        ideal = np.maximum(np.log(posterior(pictures, case.config)), -40.0)
    shared = rng.normal(0, np.sqrt(0.5), ideal.shape)
    logits = np.empty((networks, *ideal.shape), np.float32)
    for one in logits:
        noise = shared + rng.normal(0, np.sqrt(0.5), ideal.shape)
        one[:] = ideal + case.noise * np.exp(rng.normal(0, 0.3)) * noise
    task = Task.BINARY if len(case.config.classes) == 2 else Task.MULTICLASS
    return SeedPool(labels, logits, case.seeds, task)


def measure_seeds(pool: SeedPool, n: int, draws: int, seeds: list[int]) -> list[dict[str, Any]]:
    """For each seed one test set: every joint interval, and the p-values of joint differences."""
    found = []
    for seed in seeds:
        first, second = pool.draw(np.random.default_rng(seed), n)
        sampling, few = Sampling(LEVEL, draws, seed), Sampling(LEVEL, 20, seed)  # intervals unused
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            values = [estimate_metrics(one, few) for one in first]
            means = seed_means(first, values, sampling)
            differences = {
                "AUC": auc_difference(first, second, sampling),
                "accuracy": accuracy_difference(first, second, sampling),
                "loss": bootstrap_differences(first, second, ["loss"], sampling)["loss"],
            }
        found.append(
            {
                "intervals": {name: (m.joint.low, m.joint.high) for name, m in means.items()},
                "differences": {
                    f"{name}, joint": (d.interval.low, d.interval.high)
                    for name, d in differences.items()
                },
                "p_values": {f"{name}, joint": d.p_value for name, d in differences.items()},
            }
        )
    return found


def measure(pool: Pool, n: int, draws: int, seeds: list[int]) -> list[dict[str, Any]]:
    """For each seed one test set: every interval, and every p-value."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        first, second, ideal = pool.draw(rng, n)
        sampling = Sampling(LEVEL, draws, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            metrics = estimate_metrics(first, sampling)
        row: dict[str, Any] = {
            "intervals": {name: (one.low, one.high) for name, one in metrics.items()}
        }
        rest = ("loss", "brier", "average_precision", "mcc")
        differences = {
            "AUC, paired DeLong": auc_difference([first], [second], sampling),
            "accuracy": accuracy_difference([first], [second], sampling),
        }
        redrawn = bootstrap_differences([first], [second], rest, sampling)
        differences |= {f"{name}, paired bootstrap": d for name, d in redrawn.items()}
        row["differences"] = {
            name: (d.interval.low, d.interval.high) for name, d in differences.items()
        }
        exact = differences.pop("accuracy")
        p_values = {name: d.p_value for name, d in differences.items()}
        p_values[f"accuracy, {exact.test}"] = exact.p_value
        if "mid_p" in exact.beside:
            p_values["accuracy, McNemar, mid-p"] = exact.beside["mid_p"]
        scores = ideal.probabilities
        p_values["calibration of the ideal observer, consistency"] = reliability(
            ideal.labels, scores, task=ideal.task, groups=ideal.groups, resamples=200, seed=seed
        ).p_value
        row["p_values"] = p_values
        found.append(row)
    return found


def summarise(case: Case, pool: Pool | SeedPool, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Coverage of each interval and rejection rate of each test, with Monte Carlo errors."""
    truth = pool.truths()
    intervals = {
        name: _coverage([row["intervals"][name] for row in rows], value)
        for name, value in truth.items()
    }
    differences = {
        name: _coverage([row["differences"][name] for row in rows], 0.0)
        for name in rows[0]["differences"]
    }
    tests = {}
    for name in rows[0]["p_values"]:
        p = np.array([row["p_values"][name] for row in rows])
        rate = float(np.mean(p[~np.isnan(p)] <= ALPHA))
        tests[name] = {"rejected": rate, "standard_error": _error(rate, int((~np.isnan(p)).sum()))}
        tests[name] |= {"undefined": int(np.isnan(p).sum())}
    return {
        "name": case.name,
        "n": case.n,
        "patients": case.n // case.per_patient if case.per_patient > 1 else None,
        "seeds": case.seeds,
        "sets": len(rows),
        "pool": len(pool.labels),
        "intervals": {name: {"truth": truth[name], **one} for name, one in intervals.items()},
        "differences": differences,
        "tests": tests,
    }


def _coverage(ends: list[tuple[float, float]], truth: float) -> dict[str, Any]:
    low, high = np.array(ends).T
    known = ~np.isnan(low)
    inside = float(np.mean((low <= truth) & (truth <= high) & known) / max(known.mean(), 1e-12))
    return {
        "covered": inside,
        "standard_error": _error(inside, int(known.sum())),
        "too_low": float(np.mean(high[known] < truth)),
        "too_high": float(np.mean(low[known] > truth)),
        "width": float(np.mean((high - low)[known])),
        "undefined": int((~known).sum()),
    }


def _error(rate: float, n: int) -> float:
    return float(np.sqrt(rate * (1 - rate) / max(n, 1)))


def main() -> None:
    """Measure every case; print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", type=int, default=5000, help="test sets per case")
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap draws per test set")
    parser.add_argument("--pool", type=int, default=20_000, help="phantom images in the pool")
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a file's table, no more")
    args = parser.parse_args()
    if args.table:
        print(markdown_table(json.loads(args.table.read_text(encoding="utf-8"))["cases"]))
        return

    results = []
    for case in (CASES[i] for i in args.cases):
        start = time.monotonic()
        pool, one = make_pool(case, args.pool), measure
        if case.seeds > 1:
            pool, one = make_seed_pool(case, args.pool), measure_seeds
        # Few sets at a time: a process that is slower holds up the others by little.
        seeds = [list(range(i, min(i + 25, args.sets))) for i in range(0, args.sets, 25)]
        jobs = [(pool, case.n, args.draws, some) for some in seeds]
        if args.processes == 1:
            parts = [one(*job) for job in jobs]
        else:
            with multiprocessing.Pool(args.processes, _one_thread) as processes:
                parts = processes.starmap(one, jobs, chunksize=1)
        results.append(summarise(case, pool, [row for part in parts for row in part]))
        print(text(results[-1]), f"{time.monotonic() - start:.0f} s\n", sep="\n", flush=True)
        if args.json:
            about = {
                "command": shlex.join(["python", *sys.argv]),
                "date": time.strftime("%Y-%m-%d"),
                "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
                "numpy": np.__version__,
                "sets": args.sets,
                "draws": args.draws,
                "level": LEVEL,
                "alpha": ALPHA,
            }
            write_file(args.json, json_text({**about, "cases": results}))


def markdown_table(cases: list[dict[str, Any]]) -> str:
    """Every coverage and rejection rate in percent, a column per case."""
    titles = {spec.name: spec.title for spec in METRICS}
    table = [["%", *(case["name"] for case in cases)]]
    for kind, key, words in (
        ("intervals", "covered", "{} covered"),
        ("differences", "covered", "difference in {} covered"),
        ("tests", "rejected", "rejected: {}"),
    ):
        names = dict.fromkeys(name for case in cases for name in case[kind])
        for name in names:
            first = name.split(",")[0]
            title = name.replace(first, titles.get(first, first), 1)
            found = [case[kind].get(name) for case in cases]
            cells = [DASH if one is None else f"{100 * one[key]:.1f}" for one in found]
            table.append([words.format(title), *cells])
    return "\n".join(markdown(table))


def _one_thread() -> None:
    """Two processes that each spread a product of matrices over two cores hinder each other."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def text(result: dict[str, Any]) -> str:
    """One case as a table."""
    lines = [f"{result['name']} ({result['sets']} test sets)"]
    for kind in ("intervals", "differences"):
        for name, one in result[kind].items():
            label = name if kind == "intervals" else f"difference: {name}"
            truth = f"truth {one['truth']:.4f}  " if "truth" in one else ""
            lines.append(
                f"  {label:<48}covered {one['covered']:.4f} ± {one['standard_error']:.4f}  {truth}"
                f"too low {one['too_low']:.3f}, too high {one['too_high']:.3f}, "
                f"undefined {one['undefined']}"
            )
    for name, one in result["tests"].items():
        label = f"test: {name}"
        rate = f"rejects {one['rejected']:.4f} ± {one['standard_error']:.4f}"
        lines.append(f"  {label:<60}{rate}  undefined {one['undefined']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
