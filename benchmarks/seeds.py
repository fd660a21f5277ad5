"""Several seeds of ResNet-18 in one program, over as many runs one after another.

    python benchmarks/seeds.py --seeds 4 --json benchmarks/results/seeds_cpu.json

Three ways to put them into one program are measured beside a single run, in turns: ``vmap`` stacks
every operation (a convolution becomes a grouped one), ``map`` is a loop over the seeds inside the
program, ``unrolled`` writes their steps one after the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from timed_training import (
    TimedTraining,
    made_up,
    measured_by_arguments,
    plain_config,
    take_turns,
)

from flaxmed.training.stacked import Way


def seeds_at_once(
    *,
    seeds: int,
    ways: Sequence[Way],
    images: int,
    size: int,
    batch: int,
    dtype: str,
    rounds: int,
    steps: int,
) -> dict[str, Any]:
    """Seconds per step of a single run and of all seeds in each way; ratios to so many runs."""
    data = made_up(images, size)
    config = plain_config(model="resnet18", stem="small", batch_size=batch, dtype=dtype)
    contestants = {"one": TimedTraining(config, data)}
    for way in ways:
        contestants[way] = TimedTraining(config, data, seeds=range(seeds), way=way)
    seconds = take_turns(contestants, rounds=rounds, steps=steps)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    alone = contestants["one"].first_losses
    off = {way: np.abs(contestants[way].first_losses / alone - 1).max() for way in ways}
    return {
        "network": "resnet18, small stem",
        **{"seeds": seeds, "images": images, "size": size, "batch": batch, "dtype": dtype},
        "step_seconds": {name: [round(v, 6) for v in values] for name, values in seconds.items()},
        "ratio": {way: round(medians[way] / (seeds * medians["one"]), 4) for way in ways},
        # of the first seed, trained alone and with the others
        "losses_differ_by": {way: float(f"{value:.2g}") for way, value in off.items()},
        "steps_compared": len(alone),
    }


def main() -> None:
    """Measure, print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--ways", nargs="+", choices=get_args(Way), default=get_args(Way))
    parser.set_defaults(images=256, size=28, batch=32, rounds=3, steps=2)
    found = measured_by_arguments(seeds_at_once, parser)
    for way, ratio in found["ratio"].items():
        print(f"{way}: {found['seeds']} seeds take {ratio:.2f} times as long as one after another")


if __name__ == "__main__":
    main()
