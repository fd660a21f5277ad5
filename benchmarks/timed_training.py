"""Training in blocks that are timed, for the scripts beside this one."""

from __future__ import annotations

import argparse
import functools
import itertools
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxmed.benchmark import Setting, about
from flaxmed.data import as_dataset
from flaxmed.data.pipeline import IndexStream, gather
from flaxmed.models.layers import lowering_on
from flaxmed.training import AugmentConfig, OptimizerConfig, TrainConfig
from flaxmed.training.batches import Call, open_calls
from flaxmed.training.optimizer import make_optimizer
from flaxmed.training.run import build_model
from flaxmed.training.rundir import write_json
from flaxmed.training.sharding import make_mesh, padded_size, replicate, shard_batch
from flaxmed.training.stacked import Way, make_seed_mesh, stack, stacked_step
from flaxmed.training.step import compile_training, init_state, make_step_function
from flaxmed.types import Dataset, Preprocessing, Task

CLASSES = 8


def made_up(images: int, size: int, *, seed: int = 0) -> Dataset:
    """Random images and labels, ``images`` of them to train with and a few for the other splits."""
    rng = np.random.default_rng(seed)
    few = 2 * CLASSES

    def split(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % CLASSES  # every class is there
        return rng.integers(0, 256, (n, size, size, 3), np.uint8), labels

    return as_dataset([split(images), split(few), split(few)], name="made up")


def plain_config(**changes: Any) -> TrainConfig:
    """SGD with momentum and nothing beside it, as PyTorch's contestants have it."""
    return TrainConfig(
        augment=AugmentConfig(),
        optimizer=OptimizerConfig(
            name="sgd", schedule="constant", warmup_epochs=0, weight_decay=0, clip_norm=None
        ),
        **changes,
    )


class TimedTraining:
    """A network that trains on some data, from call to call of its programs.

    Args:
        config: its settings.
        data: the data.
        seeds: one, or several in one program.
        way: how several share it.
        held: whether every step has the same batch, which lies on the device.

    Attributes:
        first_losses: of the first seed, in the steps of the first call.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset,
        *,
        seeds: Sequence[int] = (0,),
        way: Way = "vmap",
        held: bool = False,
    ):
        mesh, shape = make_mesh(), data.train.images.shape
        width = padded_size(config.batch_size, mesh)
        indices = [IndexStream(shape[0], config.batch_size, seed=s, width=width) for s in seeds]
        model = build_model(config, data.info, shape[1:3])
        optimizer = make_optimizer(
            config.optimizer, epochs=config.epochs, steps_per_epoch=indices[0].steps_per_epoch
        )
        several = len(seeds) > 1
        function = make_step_function(
            model,
            optimizer,
            task=Task.MULTICLASS,
            preprocessing=Preprocessing(),
            lowering="jax" if several else lowering_on(mesh.size),
        )
        state = init_state(model, optimizer)
        if several:
            mesh = make_seed_mesh(len(seeds))
            step = stacked_step(function, seeds, mesh, way=way)
            self.state = shard_batch(stack([state] * len(seeds)), mesh)
        else:
            step = functools.partial(function, seed=seeds[0])
            self.state = replicate(state, mesh)
        self.first_losses: np.ndarray | None = None
        self._calls: Iterator[Call] = open_calls(step, config, data.train, indices, 0, mesh)
        if held:
            batch = gather(data.train, indices[0][0])
            names = ("images", "labels", "rows", "mask")
            on_device = shard_batch({name: batch[name] for name in names}, mesh)
            run = functools.partial(
                compile_training(step), batch={**on_device, "epoch": jnp.int32(0)}
            )
            self._calls = itertools.repeat(Call(run, 1, config.batch_size))

    def seconds_per_step(self, steps: int) -> float:
        """The mean over at least so many steps; the device may run ahead, as in training."""
        start, done = time.perf_counter(), 0
        while done < steps:
            call = next(self._calls)
            self.state, losses = call.run(self.state)
            if self.first_losses is None:
                self.first_losses = np.asarray(losses).reshape(call.steps, -1)[:, 0]
            done += call.steps
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / done


def measured_by_arguments(
    measure: Callable[..., dict[str, Any]], parser: argparse.ArgumentParser
) -> dict[str, Any]:
    """Call ``measure`` with what the command line says; its result also goes to ``--json FILE``.

    Args:
        measure: takes the parser's arguments, and those that the scripts here share, by name.
        parser: with the script's own arguments, and defaults of all others.
    """
    for name in ("images", "size", "batch", "rounds"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, help="in a block that is timed")
    parser.add_argument("--json", type=Path)
    args = vars(parser.parse_args())
    path = args.pop("json")
    found = measure(**args)
    if path:
        write_json(path, {**machine(), **found})
    return found


def machine() -> dict[str, Any]:
    """What the head of a JSON file says of the machine, the versions and the command."""
    facts = about(Setting())
    facts.pop("setting")
    return {**facts, "command": shlex.join(["python", *sys.argv])}


def take_turns(
    contestants: Mapping[str, TimedTraining], *, rounds: int, steps: int
) -> dict[str, list[float]]:
    """Seconds per step of each contestant, in blocks of ``steps``; they take turns."""
    for one in contestants.values():
        for _ in range(2):  # compiles, and fills what is fetched ahead
            one.seconds_per_step(steps)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, one in contestants.items():
            seconds[name].append(one.seconds_per_step(steps))
    return seconds
