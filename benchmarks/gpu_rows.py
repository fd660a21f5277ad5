"""The rows of benchmarks/gpu.py: each is a function that measures, and returns what JSON holds."""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_pytorch import pytorch_epochs
from input_path import input_path
from seeds import seeds_at_once
from timed_training import CLASSES, made_up, plain_config

from flaxmed.benchmark import Setting, about, measure, measure_ceiling, ratios
from flaxmed.benchmark.ceiling import best_seconds
from flaxmed.benchmark.pytorch import pytorch_packages
from flaxmed.training import train
from flaxmed.training.rundir import read_rows
from flaxmed.training.stacked import Way
from flaxmed.types import InputError


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        networks: those whose training step is measured.
        size, batch, rounds, dtype: of that.
        way: PyTorch's, beside it.
        side: of the matrices whose product is the ceiling.
        values: float32 values in each array of the memory rate.
        epoch_images, epoch_size, epoch_batch: of the epoch; the batch divides the images, so that
            no last, smaller batch is compiled for.
        epochs: warm ones.
        workers, epoch_ways: PyTorch's, for the epoch.
        seeds, seed_ways: how many share a program, and how.
        input_images, steps: of the input path; steps in a block that is timed.
        alone: whether PyTorch is left out.
    """

    networks: tuple[str, ...] = ("resnet18", "xception", "densenet121")
    size: int = 224
    batch: int = 256
    rounds: int = 5
    dtype: str = "bfloat16"
    way: str = "compile"
    side: int = 8192
    values: int = 2**28
    epoch_images: int = 10_240
    epoch_size: int = 28
    epoch_batch: int = 128
    epochs: int = 3
    workers: tuple[int, ...] = (0, 4, 8)
    epoch_ways: tuple[str, ...] = ("eager", "compile")
    seeds: int = 8
    seed_ways: tuple[Way, ...] = ("unrolled",)
    input_images: int = 2048
    steps: int = 16
    alone: bool = False


FULL = Sizes()
TINY = Sizes(
    networks=("resnet18",),
    size=32,
    batch=4,
    rounds=1,
    dtype="float32",
    way="eager",
    side=128,
    values=2**18,
    epoch_images=16,
    epoch_size=8,
    epoch_batch=8,
    epochs=1,
    workers=(0,),
    epoch_ways=("eager",),
    seeds=2,
    input_images=16,
    steps=2,
)


def head(sizes: Sizes) -> dict[str, Any]:
    """The machine, the versions and XLA's options."""
    facts = about(Setting(pytorch=(sizes.way,)))
    facts.pop("setting")
    facts["xla_flags"] = os.environ.get("XLA_FLAGS", "")
    return {**facts, "sizes": dataclasses.asdict(sizes)}


def make_rows(sizes: Sizes) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every row by name; networks whose many shapes take minutes to compile, last."""
    train = {f"train {name}": functools.partial(training, sizes, name) for name in sizes.networks}
    names = list(train)
    return {
        "ceilings": functools.partial(ceilings, sizes),
        **{name: train[name] for name in names[:1]},
        "epoch": functools.partial(epoch, sizes),
        "many seeds": functools.partial(many_seeds, sizes),
        "input path": functools.partial(fetching, sizes),
        **{name: train[name] for name in names[1:]},
    }


def pytorch_is_there(sizes: Sizes) -> tuple[bool, str]:
    """Whether PyTorch and timm run beside, and else why not."""
    if sizes.alone:
        return False, "left out"
    try:
        pytorch_packages()
    except InputError as error:
        return False, str(error)
    return True, ""


# -------------------------------------------------------------------------------- rates and shares


@functools.cache
def ceilings(sizes: Sizes) -> dict[str, Any]:
    """The most arithmetic and the most memory traffic that the device was seen to do."""
    ceiling = measure_ceiling(sizes.dtype, side=sizes.side)
    b, c = (jnp.full(sizes.values, value, jnp.float32) for value in (1, 2))
    seconds = best_seconds(lambda b, c: b + 3 * c, b, c)
    return {
        "flops_per_second": ceiling.rate,
        "flops_by": f"{ceiling.by}, {sizes.dtype}, side {sizes.side}",
        "bytes_per_second": 3 * 4 * sizes.values / seconds,
        "bytes_by": f"b + 3 * c, float32, {sizes.values} values each: two read, one written",
    }


def training(sizes: Sizes, network: str) -> dict[str, Any]:
    """Training images per second beside PyTorch, in turns, and the share of both ceilings."""
    there, reason = pytorch_is_there(sizes)
    _give_memory_back()
    setting = Setting(
        size=sizes.size,
        stem="imagenet",
        classes=CLASSES,
        batch=sizes.batch,
        dtype=sizes.dtype,
        rounds=sizes.rounds,
        restart=False,
        pytorch=(sizes.way,) if there else (),
    )
    most = ceilings(sizes)
    costs = measure(network, setting, kinds=("train",))
    rows = [cost.to_dict(sizes.batch, most["flops_per_second"]) for cost in costs]
    ours = rows[0]
    share = None
    if ours["bytes_accessed"] is not None:
        rate = ours["bytes_accessed"] / float(np.median(costs[0].train_seconds))
        share = round(rate / most["bytes_per_second"], 3)
    return {
        "setting": dataclasses.asdict(setting),
        "contestants": rows,
        "ratio": ratios(rows).get(network, {}).get("train"),
        "share_of_flops": ours["train_share_of_ceiling"],
        "share_of_bytes": share,  # of what XLA's analysis counts, caches not considered
        **({} if there else {"pytorch": reason}),
    }


def _give_memory_back() -> None:
    """What earlier rows left on the device: PyTorch keeps what it freed until it is told."""
    gc.collect()
    jax.clear_caches()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


# --------------------------------------------------------------------------------- a whole epoch


def epoch(sizes: Sizes) -> dict[str, Any]:
    """Seconds of a warm epoch, data included: flaxmed's train, and PyTorch with its DataLoader."""
    data = made_up(sizes.epoch_images, sizes.epoch_size)
    config = plain_config(
        model="resnet18",
        dtype=sizes.dtype,
        stem="small",
        epochs=1 + sizes.epochs,
        batch_size=sizes.epoch_batch,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = train(config, data, out=folder, progress=False)
        ours = [row["seconds"] for row in read_rows(run.dir / "timing.jsonl")[1:]]
    there, reason = pytorch_is_there(sizes)
    theirs = pytorch_epochs(data.train, sizes, CLASSES) if there else []
    best = min(theirs, key=lambda one: np.median(one["seconds"]), default=None)
    return {
        "images": sizes.epoch_images,
        "size": sizes.epoch_size,
        "batch": sizes.epoch_batch,
        "network": "resnet18, small stem",
        "flaxmed": ours,
        "pytorch": theirs if there else reason,
        "best_pytorch": best,
        "ratio": best and round(float(np.median(best["seconds"]) / np.median(ours)), 3),
    }


# ------------------------------------------------------------------- many seeds, the input path


def many_seeds(sizes: Sizes) -> dict[str, Any]:
    """Seeds of ResNet-18 in one program, against as many runs one after another."""
    _give_memory_back()
    return seeds_at_once(
        seeds=sizes.seeds,
        ways=sizes.seed_ways,
        images=sizes.epoch_images,
        size=sizes.epoch_size,
        batch=sizes.epoch_batch,
        dtype=sizes.dtype,
        rounds=sizes.rounds,
        steps=sizes.steps,
    )


def fetching(sizes: Sizes) -> dict[str, Any]:
    """The step's time with fetched batches, over that with one batch held on the device."""
    _give_memory_back()
    return input_path(
        images=sizes.input_images,
        size=sizes.size,
        stem="imagenet",
        batch=sizes.batch,
        dtype=sizes.dtype,
        rounds=sizes.rounds,
        steps=sizes.steps,
    )
