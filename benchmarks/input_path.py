"""What fetching costs: a training step with fetched batches, over one with a batch that is held.

    python benchmarks/input_path.py --json benchmarks/results/input_path_cpu.json

ResNet-18 is trained three ways, in turns: on one batch that lies on the device; on images that lie
there (resident); on images that grain's threads gather (streamed).
"""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

import numpy as np
from timed_training import TimedTraining, made_up, measured_by_arguments, plain_config, take_turns


def fetches() -> tuple[str, ...]:
    """Ways to fetch batches; those that are streamed need grain."""
    return ("resident", "streamed") if importlib.util.find_spec("grain") else ("resident",)


def input_path(
    *, images: int, size: int, stem: str, batch: int, dtype: str, rounds: int, steps: int
) -> dict[str, Any]:
    """Seconds per step of all ways, and their ratios to the held batch."""
    data = made_up(images, size)

    def training(**changes: Any) -> TimedTraining:
        held = changes.pop("held", False)
        config = plain_config(model="resnet18", stem=stem, batch_size=batch, dtype=dtype, **changes)
        return TimedTraining(config, data, held=held)

    ways = {"held": training(held=True)} | {fetch: training(fetch=fetch) for fetch in fetches()}
    seconds = take_turns(ways, rounds=rounds, steps=steps)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "network": f"resnet18, {stem} stem",
        **{"images": images, "size": size, "batch": batch, "dtype": dtype, "steps": steps},
        "step_seconds": {name: [round(v, 6) for v in values] for name, values in seconds.items()},
        "ratio": {name: round(medians[name] / medians["held"], 4) for name in fetches()},
    }


def main() -> None:
    """Measure, print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stem", default="small")
    parser.set_defaults(images=1024, size=28, batch=64, rounds=9, steps=4)
    found = measured_by_arguments(input_path, parser)
    for fetch, ratio in found["ratio"].items():
        print(f"{fetch}: a step takes {ratio:.3f} times as long as with a batch held on the device")


if __name__ == "__main__":
    main()
