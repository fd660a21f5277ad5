"""How long the evaluation of many predictions takes, part by part.

    python benchmarks/evaluation.py --json benchmarks/results/evaluation.json

Binary and nine classes, 100,000 images; each part once to warm up, then the median of three.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flaxmed.evaluation import compare, evaluate, score
from flaxmed.evaluation.delong import auc_estimate, covariance
from flaxmed.evaluation.tables import json_text, write_file
from flaxmed.types import Predictions


def predictions(n: int, k: int, seed: int) -> Predictions:
    """Predictions of some skill; the labels do not depend on the seed."""
    labels = np.random.default_rng(0).integers(0, k, n)
    logits = np.random.default_rng(seed).normal(size=(n, k)) + 1.5 * np.eye(k)[labels]
    return Predictions(labels=labels, logits=logits, task="binary" if k == 2 else "multiclass")


def delong(p: Predictions) -> None:
    """The area with its variance."""
    covariance([auc_estimate(p.labels, p.probabilities, task=p.task)])


def seconds(call: Callable[[], Any], repeats: int = 3) -> float:
    """Median time of a call after a first one."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Time each part; print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    rows = []
    for k in (2, 9):
        p, q = (predictions(args.images, k, seed) for seed in (1, 2))
        parts: dict[str, Callable[[], Any]] = {
            "accuracy, loss and AUC": lambda p=p: score(p),
            "AUC with DeLong's variance": lambda p=p: delong(p),
            "evaluate: every metric with its interval": lambda p=p: evaluate(p),
            "compare: two networks": lambda p=p, q=q: compare({"a": p, "b": q}),
        }
        for name, call in parts.items():
            rows.append({"classes": k, "part": name, "seconds": round(seconds(call), 3)})
            print(f"{k} classes  {name:<42}{rows[-1]['seconds']:8.2f} s", flush=True)
    if args.json:
        about = {
            "command": shlex.join(["python", *sys.argv]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
            "python": platform.python_version(),
            "numpy": np.__version__,
            "images": args.images,
        }
        write_file(args.json, json_text({**about, "rows": rows}))


if __name__ == "__main__":
    main()
