"""The rows of benchmarks/gpu.py: each is a function that measures, and returns what JSON holds."""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib.util
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from gpu import NotMeasured
from gpu_pytorch import pytorch_epochs

from flaxmed.benchmark import Setting, about, measure, measure_ceiling, ratios
from flaxmed.benchmark.ceiling import _best
from flaxmed.benchmark.pytorch import _packages
from flaxmed.data import as_dataset
from flaxmed.data.pipeline import IndexStream
from flaxmed.models import create_model
from flaxmed.models.layers import lowering_on
from flaxmed.training import AugmentConfig, OptimizerConfig, TrainConfig, train
from flaxmed.training.batches import open_batches
from flaxmed.training.rundir import read_rows
from flaxmed.training.sharding import make_mesh, padded_size, replicate
from flaxmed.training.step import init_state, make_train_step
from flaxmed.types import Dataset, InputError, Preprocessing, Task

CLASSES = 8


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
        input_images, steps: of the input path; steps in a block that is timed.
    """

    networks: tuple[str, ...] = ("resnet18", "xception", "densenet121")
    size: int = 224
    batch: int = 256
    rounds: int = 7
    dtype: str = "bfloat16"
    way: str = "compile"
    side: int = 8192
    values: int = 2**28
    epoch_images: int = 10_240
    epoch_size: int = 28
    epoch_batch: int = 128
    epochs: int = 3
    workers: tuple[int, ...] = (0, 2, 4, 8)
    epoch_ways: tuple[str, ...] = ("eager", "compile")
    input_images: int = 2048
    steps: int = 16


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
    input_images=16,
    steps=2,
)


def head(tiny: bool) -> dict[str, Any]:
    """The machine and the versions."""
    sizes = TINY if tiny else FULL
    facts = about(Setting(pytorch=(sizes.way,)))
    facts.pop("setting")
    return {**facts, "tiny": tiny, "sizes": dataclasses.asdict(sizes)}


def make_rows(sizes: Sizes) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every row by name, what matters most first."""
    first, *others = sizes.networks
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        "ceilings": functools.partial(ceilings, sizes),
        f"train {first}": functools.partial(training, sizes, first),
        "epoch": functools.partial(epoch, sizes),
        "input path": functools.partial(input_path, sizes),
        "eight seeds": functools.partial(eight_seeds, sizes),
    }
    return rows | {f"train {name}": functools.partial(training, sizes, name) for name in others}


def fetches() -> tuple[str, ...]:
    """Ways to fetch batches; those that are streamed need grain."""
    return ("resident", "streamed") if importlib.util.find_spec("grain") else ("resident",)


def pytorch_is_there() -> tuple[bool, str]:
    """Whether PyTorch and timm can be imported, and else why not."""
    try:
        _packages()
    except InputError as error:
        return False, str(error)
    return True, ""


# -------------------------------------------------------------------------------- rates and shares


@functools.cache
def ceilings(sizes: Sizes) -> dict[str, Any]:
    """The most arithmetic and the most memory traffic that the device was seen to do."""
    ceiling = measure_ceiling(sizes.dtype, side=sizes.side)
    b, c = (jnp.full(sizes.values, value, jnp.float32) for value in (1, 2))
    seconds = _best(lambda b, c: b + 3 * c, b, c)
    return {
        "flops_per_second": ceiling.rate,
        "flops_by": f"{ceiling.by}, {sizes.dtype}, side {sizes.side}",
        "bytes_per_second": 3 * 4 * sizes.values / seconds,
        "bytes_by": f"b + 3 * c, float32, {sizes.values} values each: two read, one written",
    }


def training(sizes: Sizes, network: str) -> dict[str, Any]:
    """Training images per second beside PyTorch, in turns, and the share of both ceilings."""
    there, reason = pytorch_is_there()
    _give_memory_back()
    setting = Setting(
        size=sizes.size,
        stem="imagenet",
        classes=CLASSES,
        batch=sizes.batch,
        dtype=sizes.dtype,
        rounds=sizes.rounds,
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


def made_up(images: int, size: int, *, seed: int = 0) -> Dataset:
    """Random images and labels, ``images`` of them to train with and a few for the other splits."""
    rng = np.random.default_rng(seed)
    few = 2 * CLASSES

    def split(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % CLASSES  # every class is there
        return rng.integers(0, 256, (n, size, size, 3), np.uint8), labels

    return as_dataset([split(images), split(few), split(few)], name="made up")


def config_of(sizes: Sizes, **changes: Any) -> TrainConfig:
    """SGD with momentum and nothing beside it, as the contestant has it."""
    return TrainConfig(
        model="resnet18",
        dtype=sizes.dtype,
        augment=AugmentConfig(),
        optimizer=OptimizerConfig(
            name="sgd", schedule="constant", warmup_epochs=0, weight_decay=0, clip_norm=None
        ),
        **changes,
    )


def epoch(sizes: Sizes) -> dict[str, Any]:
    """Seconds of a warm epoch, data included: flaxmed's train, and PyTorch with its DataLoader."""
    data = made_up(sizes.epoch_images, sizes.epoch_size)
    ours = {}
    for fetch in fetches():
        config = config_of(
            sizes,
            stem="small",
            epochs=1 + sizes.epochs,
            batch_size=sizes.epoch_batch,
            fetch=fetch,
        )
        with tempfile.TemporaryDirectory() as folder:
            run = train(config, data, out=folder, progress=False)
            rows = read_rows(run.dir / "timing.jsonl")
        ours[fetch] = [row["seconds"] for row in rows[1:]]
    there, reason = pytorch_is_there()
    theirs = pytorch_epochs(data.train, sizes, CLASSES) if there else []
    best = min(theirs, key=lambda one: np.median(one["seconds"]), default=None)
    fastest = min(float(np.median(seconds)) for seconds in ours.values())
    return {
        "images": sizes.epoch_images,
        "size": sizes.epoch_size,
        "batch": sizes.epoch_batch,
        "network": "resnet18, small stem",
        "flaxmed": ours,
        "pytorch": theirs if there else reason,
        "best_pytorch": best,
        "ratio": best and round(float(np.median(best["seconds"])) / fastest, 3),
    }


# ------------------------------------------------------------------------------------ many seeds


def eight_seeds(sizes: Sizes) -> dict[str, Any]:
    """Eight seeds of ResNet-18 in one program, against eight runs one after another.

    What is to come here: an epoch of ``made_up(sizes.epoch_images, sizes.epoch_size)`` as in
    :func:`epoch`, once with eight seeds together and eight times with one, and the ratio of the
    seconds.
    """
    raise NotMeasured("not measured: training several seeds in one program is not there yet")


# --------------------------------------------------------------------------------- the input path


def input_path(sizes: Sizes) -> dict[str, Any]:
    """The step's time with fetched batches, over that with one batch held on the device.

    The three take turns in blocks of steps; the device may run ahead within a block, as it does in
    training.
    """
    data = made_up(sizes.input_images, sizes.size)
    mesh = make_mesh()
    width = padded_size(sizes.batch, mesh)
    indices = IndexStream(len(data.train), sizes.batch, seed=0, width=width)
    ways: dict[str, Iterator[Any]] = {}
    for fetch in fetches():
        config = config_of(sizes, stem="imagenet", batch_size=sizes.batch, fetch=fetch)
        batches = open_batches(config, data.train, indices, 0, mesh)
        ways[fetch] = (batch for batch, _ in batches)
    ways = {"held": itertools.repeat(next(ways["resident"])), **ways}
    step, state = _step(sizes, mesh)

    def block(batches: Iterator[Any], steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):
            state, _loss = step(state, next(batches))
        jax.block_until_ready(state)
        return (time.perf_counter() - start) / steps

    for batches in ways.values():
        block(batches, 2)  # compiles, and fills what is fetched ahead
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(sizes.rounds):
        for name, batches in ways.items():
            seconds[name].append(block(batches, sizes.steps))
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "images": sizes.input_images,
        "size": sizes.size,
        "batch": sizes.batch,
        "network": "resnet18, imagenet stem",
        "steps": sizes.steps,
        "step_seconds": {name: [round(v, 6) for v in values] for name, values in seconds.items()},
        "ratio": {name: round(medians[name] / medians["held"], 4) for name in fetches()},
    }


def _step(sizes: Sizes, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """The training step of ResNet-18 as `flaxmed train` makes it, and the state it begins with."""
    dtype = jnp.dtype(sizes.dtype)
    model = create_model("resnet18", CLASSES, stem="imagenet", dtype=dtype, rngs=nnx.Rngs(0))
    optimizer = optax.sgd(1e-3, momentum=0.9)
    step = make_train_step(
        model,
        optimizer,
        task=Task.MULTICLASS,
        preprocessing=Preprocessing(),
        lowering=lowering_on(mesh.size),
    )
    return step, replicate(init_state(model, optimizer), mesh)
