"""The two ways to fetch a run's batches: from images on the devices, or streamed by grain."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from flaxmed.data.pipeline import IndexStream, stream
from flaxmed.training.config import TrainConfig
from flaxmed.training.sharding import replicate, shard_batch
from flaxmed.training.step import Batch
from flaxmed.types import Split

# resident images take device memory beside the network's own; larger splits are streamed
RESIDENT_BYTES = 2 * 2**30


def open_batches(
    config: TrainConfig, split: Split, indices: IndexStream, start: int, mesh: jax.sharding.Mesh
) -> Iterator[tuple[Batch, int]]:
    """The batches from step ``start`` on, on the devices, each with its number of real images."""
    if fetch_kind(config, split) == "streamed":
        for batch in stream(split, indices, start):
            arrays = {name: batch[name] for name in ("images", "labels", "rows", "mask")}
            epoch = jnp.asarray(batch["epoch"], jnp.int32)
            yield {**shard_batch(arrays, mesh), "epoch": epoch}, int(batch["mask"].sum())
        return
    images = replicate(np.asarray(split.images), mesh)
    labels = replicate(np.asarray(split.labels, np.int32), mesh)
    # its own program, so that the step's is the same however its batch was fetched
    gather = jax.jit(lambda rows: {"images": images[rows], "labels": labels[rows], "rows": rows})
    step = start
    while True:
        index = indices[step]
        rows, mask = shard_batch((index.rows, index.mask), mesh)
        batch = gather(rows) | {"mask": mask, "epoch": jnp.asarray(index.epoch, jnp.int32)}
        yield batch, int(index.mask.sum())
        step += 1


def fetch_kind(config: TrainConfig, split: Split) -> str:
    """``resident`` or ``streamed``: as configured, or by the size of the training images."""
    if config.fetch != "auto":
        return config.fetch
    shape = split.images.shape
    return "resident" if int(np.prod(shape, dtype=np.int64)) <= RESIDENT_BYTES else "streamed"


def images_before(step: int, indices: IndexStream, images: int) -> int:
    """Images trained on in the first ``step`` steps."""
    epochs, rest = divmod(step, indices.steps_per_epoch)
    return epochs * images + rest * indices.batch_size
