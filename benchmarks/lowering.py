"""Training step of each network: flaxmed's CPU lowerings against plain lax convolutions.

    python benchmarks/lowering.py --json benchmarks/results/lowering_cpu.json

Everything is measured in one run. The same network, weights, batch and optimiser; only
`flaxmed.models.layers.lowering` differs. After a warm-up step the two take turns (A B A B ...), so
that a change of the machine's pace meets both; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from flaxmed.models import create_model
from flaxmed.training.rundir import versions, write_json
from flaxmed.training.step import init_state, make_train_step
from flaxmed.types import Preprocessing, Task


class Candidate:
    """One network under one lowering, compiled, with its own state."""

    def __init__(self, name: str, mode: str, size: int, stem: str, channels: int, batch: Any):
        model = create_model(name, 2, in_channels=channels, stem=stem, rngs=nnx.Rngs(0))
        optimizer = optax.adam(1e-3)
        step = make_train_step(
            model, optimizer, task=Task.BINARY, preprocessing=Preprocessing(), lowering=mode
        )
        self.state = init_state(model, optimizer)
        start = time.perf_counter()
        self.step = step.lower(self.state, batch).compile()
        self.compile_seconds = time.perf_counter() - start
        self.seconds: list[float] = []

    def run(self, batch: Any, keep: bool = True) -> None:
        """One step, timed to its end."""
        start = time.perf_counter()
        self.state, _ = self.step(self.state, batch)
        jax.block_until_ready(self.state)
        if keep:
            self.seconds.append(time.perf_counter() - start)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds per step of both lowerings, and their ratio."""
    rng = np.random.default_rng(0)
    shape = (args.batch, args.size, args.size, args.channels)
    batch = {
        "images": jnp.asarray(rng.integers(0, 256, shape, np.uint8)),
        "labels": jnp.asarray(rng.integers(0, 2, args.batch)),
        "rows": jnp.arange(args.batch),
        "mask": jnp.ones(args.batch, bool),
        "epoch": jnp.asarray(0),
    }
    pair = {
        mode: Candidate(name, mode, args.size, args.stem, args.channels, batch)
        for mode in ("xla", "auto")
    }
    for candidate in pair.values():
        candidate.run(batch, keep=False)
    for _ in range(args.repeats):
        for candidate in pair.values():
            candidate.run(batch)
    plain, ours = (np.median(pair[mode].seconds) for mode in ("xla", "auto"))
    row = {"network": name, "ratio": round(float(plain / ours), 3)}
    for mode, label in (("xla", "plain"), ("auto", "flaxmed")):
        seconds = pair[mode].seconds
        row[label] = {
            "images_per_second": round(args.batch / float(np.median(seconds)), 2),
            "step_seconds": [round(value, 4) for value in seconds],
            "compile_seconds": round(pair[mode].compile_seconds, 1),
        }
    print(
        f"{name:<12} plain {row['plain']['images_per_second']:>6.1f} images/s   "
        f"flaxmed {row['flaxmed']['images_per_second']:>6.1f} images/s   "
        f"{row['ratio']:.2f} times as fast   (compiled in "
        f"{row['plain']['compile_seconds']:.0f} s and {row['flaxmed']['compile_seconds']:.0f} s)",
        flush=True,
    )
    return row


def main() -> None:
    """Measure the networks one after another; print a line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet18", "densenet121", "xception"])
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--stem", default="small")
    parser.add_argument("--channels", type=int, default=1, help="1, as BreastMNIST has")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [measure(name, args) for name in args.models]
    if args.json:
        write_json(
            args.json,
            {
                "command": shlex.join(["python", *sys.argv]),
                "date": time.strftime("%Y-%m-%d"),
                "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
                "versions": versions(),
                "batch": args.batch,
                "size": args.size,
                "stem": args.stem,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
