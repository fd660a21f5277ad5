"""Several seeds of one network: in one program where that is faster, else one after another."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from flaxmed.training.batches import fetch_kind
from flaxmed.training.config import TrainConfig
from flaxmed.training.loop import check_settled, default_dir, open_dataset, train_group
from flaxmed.training.memory import seed_bytes
from flaxmed.training.processes import check_alike, first_does, is_first
from flaxmed.training.record import sound_step
from flaxmed.training.run import Run, build_model
from flaxmed.training.start import settle
from flaxmed.types import Dataset, InputError

# what stacked seeds may take of a device's memory; the rest is for what XLA adds
_SHARE = 0.7


def train_seeds(
    config: TrainConfig,
    seeds: Sequence[int],
    data: Any = None,
    *,
    out: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    together: bool | None = None,
) -> list[Run]:
    """Train one network once per seed, each as :func:`flaxmed.train` would, to rounding.

    On several accelerators the seeds share one program, their parameters stacked along an axis of
    their own that is spread over the devices, one seed on each. Where there is one device, or a
    CPU, or the images are streamed, they are trained one after another; a line says so. What was
    begun goes on when the same call is made again.

    Args:
        config: every setting but the seed.
        seeds: one or more, all different.
        data, data_dir, progress: as for ``train``.
        out: folder for the run directories, one per seed; None for ``runs/DATASET[_SIZE]``.
        together: None to choose as said; False to insist on one after another; True on one program,
            which stacks as many on each device as its memory holds.

    Returns:
        The finished runs, in the order of the seeds.

    Raises:
        InputError: no seeds, one given twice, several for a linear probe, which depends on none;
            or what ``train`` refuses.
        RunError, Interrupted: as ``train``.

    Example:
        >>> import tempfile
        >>> from flaxmed.data.phantom import load_phantom
        >>> data = load_phantom(size=32, n_train=16, n_val=16, n_test=16)
        >>> config = TrainConfig(stem="imagenet", epochs=1, batch_size=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     runs = train_seeds(config, [0, 1], data, out=folder, progress=False)
        >>> [run.dir.name for run in runs]
        ['resnet18-seed0', 'resnet18-seed1']
    """
    if not seeds or len(set(seeds)) < len(seeds):
        given = " ".join(map(str, seeds)) or "none"
        raise InputError(f"seeds: expected one or more, all different, got {given}")
    check_alike("seeds", list(seeds))
    if config.finetune.linear_probe and len(seeds) > 1:
        raise InputError("seeds: a linear probe draws nothing at random; expected one seed")
    dataset = open_dataset(config, data, data_dir)
    runs = {}
    for seed in seeds:
        own = dataclasses.replace(config, seed=seed)
        place = default_dir(own, dataset.info)
        run_dir = place if out is None else Path(out) / place.name
        runs[run_dir] = settle(own, dataset, run_dir)
    for run_dir, own in runs.items():  # a mistake in the last one shows before the first runs
        first_does(functools.partial(check_settled, own, dataset, out=run_dir))

    size, reason = seeds_at_once(runs, dataset, together)
    if progress and is_first() and reason and len(seeds) > 1:
        print(f"{config.model}  {reason}", file=sys.stderr)
    results: list[Run] = []
    places = list(runs)
    for start in range(0, len(places), size):
        group = {place: runs[place] for place in places[start : start + size]}
        advice = "go on with the same command, or call"
        results += train_group(group, dataset, how_to_resume=advice, progress=progress)
    return results


def seeds_at_once(
    runs: dict[Path, TrainConfig], dataset: Dataset, together: bool | None
) -> tuple[int, str | None]:
    """How many seeds share a program, and where that is not all of them, a line that says why."""
    config = next(iter(runs.values()))
    one_by_one = "seeds one after another: "
    if jax.process_count() > 1:
        return 1, one_by_one + "several processes share each"
    if together is False:
        return 1, one_by_one + "as asked"
    if fetch_kind(config, dataset.train) == "streamed":
        return 1, one_by_one + "the training images are streamed"
    # those that are finished are only read back: they count as being at a step of their own
    steps = {-1 if (place / "run.json").exists() else sound_step(place)[0] for place in runs}
    if len(steps) > 1:
        return 1, one_by_one + "they were stopped at different steps"
    if together:
        return seeds_that_fit(config, dataset, len(runs))
    # On one device stacked seeds take longer than one after another: two cores 1.8 to 3.1 times
    # (benchmarks/results/seeds_cpu.json), an H100 1.13 times (seeds_h100.json).
    devices = 1 if jax.default_backend() == "cpu" else jax.device_count()
    if devices >= len(runs):
        return len(runs), None
    if devices == 1:
        return 1, one_by_one + "stacked on one device they would be slower"
    return devices, f"{devices} seeds at a time, one on each device"


def seeds_that_fit(config: TrainConfig, dataset: Dataset, seeds: int) -> tuple[int, str | None]:
    """How many can be stacked, by the memory of a device, where it says how much it has."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return seeds, None
    size = dataset.train.images.shape[1:3]
    model = nnx.eval_shape(lambda: build_model(config, dataset.info, size))
    each = seed_bytes(
        model,
        (config.batch_size // config.accumulate, *size),
        averaged=config.ema_decay is not None,
    )
    devices = max(n for n in range(1, jax.device_count() + 1) if seeds % n == 0)
    fit = max(1, int(_SHARE * limit) // each) * devices
    if fit >= seeds:
        return seeds, None
    line = f"{fit} seeds at a time: one needs about {each / 1e9:.1f} GB of {limit / 1e9:.1f}"
    return fit, line
