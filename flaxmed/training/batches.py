"""The two ways to fetch a run's batches: from images on the devices, or streamed by grain.

Either gives calls of compiled programs, each some steps long. With images on an accelerator one
call is many steps, so that the host is not waited for; on a CPU it is one: XLA runs the body of a
loop there on fewer threads, and the host has nothing to hide.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Sequence

import jax
import numpy as np

from flaxmed.data.pipeline import IndexStream, stream
from flaxmed.training.config import TrainConfig
from flaxmed.training.sharding import join_shares, replicate, shard_batch
from flaxmed.training.step import TrainState, TrainStep, compile_training, many_steps
from flaxmed.types import Split

# Resident images take device memory beside the network's own; larger splits are streamed. A device
# that says how much it has gives a quarter.
RESIDENT_BYTES = 2 * 2**30
RESIDENT_SHARE = 0.25

# Some tenths of a second of training on an accelerator: the bar moves, and Ctrl-C is heard.
PIXELS_PER_CALL = 2**24
MOST_STEPS_PER_CALL = 32


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a compiled program.

    Attributes:
        run: takes the state, which it consumes, to the state after the call, and the losses.
        steps: how many steps that is.
        images: how many images are trained on, padding left out, over all seeds.
    """

    run: Callable[[TrainState], tuple[TrainState, jax.Array]]
    steps: int
    images: int


def open_calls(
    step: TrainStep,
    config: TrainConfig,
    split: Split,
    indices: Sequence[IndexStream],
    start: int,
    mesh: jax.sharding.Mesh,
) -> Generator[Call, None, None]:
    """The calls that train from step ``start`` on, without end.

    Args:
        step: ``(state, batch) -> (state, loss)``, not compiled; of one seed, or several stacked.
        config: how to fetch, and how many steps to a call.
        split: the training images.
        indices: of each seed.
        start: steps done before.
        mesh: over which each batch is split; with several seeds, over which the seeds are.
    """
    one_step = compile_training(step, remat=config.remat)
    if fetch_kind(config, split) == "streamed":
        (only,) = indices
        yield from _streamed(one_step, split, only, start, mesh)
        return
    several = len(indices) > 1
    scan = compile_training(many_steps(step), remat=config.remat, overlap=several)
    images = replicate(np.asarray(split.images), mesh)
    labels = replicate(np.asarray(split.labels, np.int32), mesh)
    # its own program, so that the step's is the same however its batch was fetched
    gather = jax.jit(lambda images, labels, rows: {"images": images[rows], "labels": labels[rows]})
    most = steps_per_call(config, split)
    for first, count in call_lengths(start, indices[0].steps_per_epoch, most):
        rows, mask, epochs = _rows(indices, first, first + count)
        real = int(mask.sum())
        if count == 1:
            rows, mask = shard_batch((rows[0], mask[0]), mesh)
            batch = gather(images, labels, rows) | {"rows": rows, "mask": mask}
            batch["epoch"] = epochs[0]
            yield Call(functools.partial(one_step, batch=batch), 1, real)
        else:
            rows, mask = shard_batch((rows, mask), mesh, axis=1)
            run = functools.partial(
                scan, images=images, labels=labels, rows=rows, mask=mask, epochs=epochs
            )
            yield Call(run, count, real)


def _streamed(
    one_step: TrainStep, split: Split, indices: IndexStream, start: int, mesh: jax.sharding.Mesh
) -> Iterator[Call]:
    index, count = jax.process_index(), jax.process_count()
    for batch in stream(split, indices, start, process_index=index, process_count=count):
        arrays = {name: batch[name] for name in ("images", "labels", "rows", "mask")}
        on_device = {**join_shares(arrays, mesh), "epoch": np.int32(batch["epoch"])}
        real = int(indices[batch["step"]].mask.sum())
        yield Call(functools.partial(one_step, batch=on_device), 1, real)


def _rows(
    indices: Sequence[IndexStream], start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and masks ``[steps, n]``, of several seeds ``[steps, seeds, n]``, and epochs."""
    each = [one.steps(start, stop) for one in indices]
    if len(each) == 1:
        return each[0]
    rows, masks, epochs = zip(*each, strict=True)
    return np.stack(rows, axis=1), np.stack(masks, axis=1), epochs[0]


def call_lengths(start: int, per_epoch: int, most: int) -> Iterator[tuple[int, int]]:
    """First step and number of steps of each call, without end.

    A call ends with its epoch at the latest. Every length is a program to compile, so there are
    two: ``most``, and one for what remains of an epoch.

    Example:
        >>> import itertools
        >>> list(itertools.islice(call_lengths(0, per_epoch=7, most=3), 4))
        [(0, 3), (3, 3), (6, 1), (7, 3)]
    """
    step = start
    while True:
        count = most if step % per_epoch + most <= per_epoch else 1
        yield step, count
        step += count


def steps_per_call(config: TrainConfig, split: Split) -> int:
    """How many steps one call is long, where the images are on the devices.

    As configured; or 1 on a CPU, and elsewhere what :data:`PIXELS_PER_CALL` allows, of the lengths
    from half of that on the one that leaves the fewest steps of an epoch over.
    """
    if fetch_kind(config, split) == "streamed":
        return 1
    per_epoch = -(-len(split) // config.batch_size)
    if config.steps_per_call is not None:
        return min(config.steps_per_call, per_epoch)
    if jax.default_backend() == "cpu":
        return 1
    pixels = config.batch_size * int(np.prod(split.images.shape[1:3]))
    most = min(max(PIXELS_PER_CALL // pixels, 1), MOST_STEPS_PER_CALL, per_epoch)
    return min(range(most, most // 2, -1), key=lambda length: per_epoch % length)


def fetch_kind(config: TrainConfig, split: Split) -> str:
    """``resident`` or ``streamed``: as configured, or by the size of the training images."""
    if config.fetch != "auto":
        return config.fetch
    return "resident" if image_bytes(split) <= resident_limit() else "streamed"


def image_bytes(split: Split) -> int:
    """What the images of a split take."""
    return int(np.prod(split.images.shape, dtype=np.int64))


def resident_limit() -> int:
    """The most bytes of images that are kept on a device when nothing else is asked for."""
    memory = jax.local_devices()[0].memory_stats() or {}
    limit = memory.get("bytes_limit")
    return RESIDENT_BYTES if limit is None else int(RESIDENT_SHARE * limit)


def describe_fetch(config: TrainConfig, split: Split) -> str:
    """One line for the person who waits: where the training images are, and why.

    Example:
        >>> from flaxmed.data.phantom import load_phantom
        >>> train = load_phantom(size=16, n_train=8, n_val=8, n_test=8).train
        >>> describe_fetch(TrainConfig(fetch="streamed"), train)
        'training images: streamed, as asked'
    """
    kind, size = fetch_kind(config, split), f"{image_bytes(split) / 1e6:,.1f} MB"
    if kind == "resident":
        calls = steps_per_call(config, split)
        many = f", {calls} steps to a call" if calls > 1 else ""
        return f"training images: on the device, {size}{many}"
    if config.fetch == "streamed":
        return "training images: streamed, as asked"
    return (
        f"training images: streamed, since {size} are more than the "
        f"{resident_limit() / 1e6:,.0f} MB that are kept on a device"
    )


def images_before(step: int, indices: IndexStream, images: int) -> int:
    """Images trained on in the first ``step`` steps."""
    epochs, rest = divmod(step, indices.steps_per_epoch)
    return epochs * images + rest * indices.batch_size
