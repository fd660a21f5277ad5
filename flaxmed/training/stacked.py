"""Several seeds of one network in one program: every array of theirs along a first axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from flaxmed.training.step import Batch, StepFunction, TrainState, TrainStep

Way = Literal["vmap", "map", "unrolled"]


def stack(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one, their arrays stacked along a new first axis.

    Example:
        >>> stack([{"a": jnp.array(1)}, {"a": jnp.array(2)}])["a"].tolist()
        [1, 2]
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def take(tree: Any, i: int) -> Any:
    """The ``i``-th of the trees that :func:`stack` put together.

    Example:
        >>> take({"a": jnp.array([1, 2])}, 1)["a"].tolist()
        2
    """
    return jax.tree.map(lambda leaf: leaf[i], tree)


def make_seed_mesh(seeds: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis, ``seed``, over as many devices as ``seeds`` divides among evenly.

    Example:
        >>> make_seed_mesh(3, jax.devices()[:1]).shape["seed"]
        1
    """
    found = list(jax.devices() if devices is None else devices)
    used = max(n for n in range(1, len(found) + 1) if seeds % n == 0)
    return Mesh(np.asarray(found[:used]), ("seed",))


def default_way() -> Way:
    """How several seeds share a device of this kind.

    On a GPU those that are written one after the other overlap (``compile_training``). A step of
    eight of ResNet-18 (28 px, batch 128, bfloat16) took 12.7 ms on an H200, in a first trial; with
    all but the convolutions stacked 14.0, one after another eight times 2.6.

    Example:
        >>> default_way()  # on a CPU
        'vmap'
    """
    return "unrolled" if jax.default_backend() == "gpu" else "vmap"


def stacked_step(
    function: StepFunction, seeds: Sequence[int], mesh: Mesh, *, way: Way | None = None
) -> TrainStep:
    """The step of all ``seeds`` at once, each on a batch of its own; to be compiled.

    The seeds are spread over the mesh, whole networks to a device: nothing passes between them.

    Args:
        function: from ``make_step_function``, with a lowering that can be stacked ("jax" or "xla").
        seeds: of each network's augmentation.
        mesh: from :func:`make_seed_mesh`.
        way: how a device computes several: ``vmap`` stacks every operation (a convolution becomes
            a grouped one); ``map`` takes the seeds in turn, in a loop inside the program;
            ``unrolled`` writes the steps one after the other and leaves the order to XLA. None for
            :func:`default_way`.

    Returns:
        A function ``(state, batch) -> (state, losses)`` whose arguments and results are those of
        a single step with a first axis of seeds, but for ``epoch``, which is everyone's.
    """
    numbers = jnp.asarray(np.asarray(seeds, np.uint32))
    way = way or default_way()

    def all_of(
        state: TrainState, batch: Batch, epoch: Array, seeds: Array
    ) -> tuple[TrainState, Array]:
        def one(state: TrainState, batch: Batch, seed: Array) -> tuple[TrainState, Array]:
            return function(state, batch | {"epoch": epoch}, seed)

        if way == "vmap" and len(seeds) > 1:
            return jax.vmap(one)(state, batch, seeds)
        if way == "map":
            return jax.lax.map(lambda args: one(*args), (state, batch, seeds))
        each = [one(*take((state, batch, seeds), i)) for i in range(len(seeds))]
        return stack(each)

    along = PartitionSpec("seed")
    spread = jax.shard_map(
        all_of,
        mesh=mesh,
        in_specs=(along, along, PartitionSpec(), along),
        out_specs=along,
        check_vma=False,
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Array]:
        own = {name: array for name, array in batch.items() if name != "epoch"}
        return spread(state, own, batch["epoch"], numbers)

    return step
