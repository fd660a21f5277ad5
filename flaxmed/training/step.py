"""One training step: augment, normalise, forward, per-example loss, gradients, update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from flaxmed.inference import standardise
from flaxmed.models import layers
from flaxmed.training.augment import Transform, augment
from flaxmed.types import Preprocessing, Task

Batch = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that moves during training; arrays only, so that a checkpoint holds the whole of it.

    Attributes:
        step: int32, steps done; with the seed it is the run's whole position.
        params, batch_stats: the network's, as plain nested dictionaries.
        opt_state: the optimiser's.
        sums: over the current epoch so far: ``loss``, ``correct``, ``weight`` (of the loss)
            and ``count`` (of images), float32.
        bad_step: int32, the first step whose loss was not finite, or -1.
    """

    step: Any  # an array; what jax asks for shapes alone puts something else here
    params: Any
    batch_stats: Any
    opt_state: Any
    sums: dict[str, Any]
    bad_step: Any


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Array]]


def per_example_loss(
    logits: Float[Array, "n k"], labels: Int[Array, "n ..."], task: Task
) -> Float[Array, " n"]:
    """Cross-entropy of each image; for multi-label tasks the mean binary one over its labels.

    Args:
        logits: float32 or wider.
        labels: ``[n]`` class numbers; multi-label ``[n, k]`` of 0 and 1.
        task: decides between softmax and sigmoid.

    Example:
        >>> even = jnp.zeros((1, 4))
        >>> round(float(per_example_loss(even, jnp.array([2]), Task.MULTICLASS)[0]), 4)
        1.3863
    """
    if task.exclusive:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean(axis=-1)


def per_example_accuracy(
    logits: Float[Array, "n k"], labels: Int[Array, "n ..."], task: Task
) -> Float[Array, " n"]:
    """1 where the largest logit is the label's; multi-label: the fraction of labels right."""
    if task.exclusive:
        return (logits.argmax(axis=-1) == labels).astype(logits.dtype)
    return ((logits > 0) == (labels == 1)).mean(axis=-1).astype(logits.dtype)


def example_weights(
    labels: Int[Array, "n ..."],
    mask: Bool[Array, " n"],
    class_weights: Float[Array, " k"] | None,
    task: Task,
) -> Float[Array, " n"]:
    """Each image's weight in the mean loss: 0 for padding, else its class's weight.

    For multi-label tasks an image's weight is the mean of the weights of its positive labels
    (1 for an image with none).
    """
    if class_weights is None:
        return mask.astype(jnp.float32)
    if task.exclusive:
        return mask * class_weights[labels]
    positives = labels.sum(axis=-1)
    mean = (labels * class_weights).sum(axis=-1) / jnp.maximum(positives, 1)
    return mask * jnp.where(positives > 0, mean, 1.0)


def init_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, *, dtype: Any = jnp.float32
) -> TrainState:
    """The state at step 0 for ``model``'s present parameters.

    Raises:
        ValueError: the model holds variables that are neither parameters nor batch statistics.
    """
    _, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = (nnx.to_pure_dict(state) for state in states)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        sums=zero_sums(dtype),
        bad_step=jnp.full((), -1, jnp.int32),
    )


def zero_sums(dtype: Any = jnp.float32) -> dict[str, Array]:
    """Fresh epoch sums."""
    return {name: jnp.zeros((), dtype) for name in ("loss", "correct", "weight", "count")}


def make_train_step(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    *,
    task: Task,
    preprocessing: Preprocessing,
    transforms: tuple[Transform, ...] = (),
    seed: int = 0,
    class_weights: Float[Array, " k"] | None = None,
    dtype: Any = jnp.float32,
    lowering: str = "auto",
) -> TrainStep:
    """The jitted, donated step ``(state, batch) -> (state, loss)``.

    Under ``jit`` with the batch split over a mesh, every sum over the batch (loss, gradients,
    BatchNorm statistics) is over the global batch.

    Args:
        model: gives the structure; its values are not used.
        optimizer: see ``optimizer.py``.
        task: decides the loss.
        preprocessing: normalisation, after augmentation.
        transforms, seed: augmentation, keyed by (seed, epoch, row).
        class_weights: ``[k]`` or None.
        dtype: of images and loss: float32, or float64.
        lowering: of the network's operations: see ``flaxmed.models.layers.lowering``.

    Returns:
        A function of a :class:`TrainState`, which it consumes, and a batch: ``images`` uint8
        ``[n, h, w, c]``, ``labels``, ``rows`` int ``[n]``, ``mask`` bool ``[n]`` (False is
        padding), ``epoch`` int. It returns the next state and the batch's mean loss.
    """
    train_view = nnx.view(model, use_running_average=False)
    graphdef, *_ = nnx.split(train_view, nnx.Param, nnx.BatchStat)

    def loss_and_rest(params: Any, batch_stats: Any, batch: Batch) -> tuple[Array, Any]:
        images = batch["images"].astype(dtype) / 255
        images = augment(images, transforms, seed=seed, epoch=batch["epoch"], rows=batch["rows"])
        network = nnx.merge(graphdef, params, batch_stats)
        logits = network(standardise(images, preprocessing), mask=batch["mask"])
        losses = per_example_loss(logits, batch["labels"], task)
        weights = example_weights(batch["labels"], batch["mask"], class_weights, task)
        correct = batch["mask"] * per_example_accuracy(logits, batch["labels"], task)
        sums = {
            "loss": (weights * losses).sum(),
            "correct": correct.sum(),
            "weight": weights.sum(),
            "count": batch["mask"].sum(),
        }
        new_stats = nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))
        return sums["loss"] / sums["weight"], (new_stats, sums)

    @jax.jit(donate_argnums=0)
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Array]:
        grad = jax.value_and_grad(loss_and_rest, has_aux=True)
        with layers.lowering(lowering):
            (loss, (batch_stats, sums)), grads = grad(state.params, state.batch_stats, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        first_bad = (state.bad_step < 0) & ~jnp.isfinite(loss)
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            sums={name: state.sums[name] + sums[name].astype(dtype) for name in sums},
            bad_step=jnp.where(first_bad, state.step, state.bad_step),
        )
        return state, loss

    return step
