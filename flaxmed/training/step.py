"""One training step: augment, normalise, forward, per-example loss, gradients, update."""

from __future__ import annotations

import dataclasses
import functools
import gc
import operator
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
from flaxmed.training.finetune import freeze_norms, gradient_of
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
        ema: the moving averages of both, or None where none are kept.
        sums: over the current epoch so far: ``loss``, ``correct``, ``weight`` (of the loss)
            and ``count`` (of images), float32.
        bad_step: int32, the first step whose loss was not finite, or -1.
    """

    step: Any  # an array; what jax asks for shapes alone puts something else here
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: dict[str, Any] | None
    sums: dict[str, Any]
    bad_step: Any

    @property
    def weights(self) -> dict[str, Any]:
        """Parameters and statistics to evaluate and keep: the averages, where there are any."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


Seed = int | Array
StepFunction = Callable[..., tuple[TrainState, Array]]  # of a state, a batch and a seed
TrainStep = Callable[..., tuple[TrainState, Array]]  # of a state and a batch


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


def average(old: Any, new: Any, step: Int[Array, ""], decay: float) -> Any:
    """Exponential moving average: ``a * old + (1 - a) * new``, ``a = min(decay, (1+t) / (10+t))``.

    The second term lets the average forget the values that training began with, however few steps
    there are (as TensorFlow's ``ExponentialMovingAverage`` does, given the number of updates).

    Args:
        old: averages, a tree of arrays.
        new: values, alike.
        step: ``t``, the steps done before this one.
        decay: above 0 and below 1.

    Example:
        >>> float(average(jnp.array(0.0), jnp.array(1.0), jnp.array(8), 0.999))  # 9 / 18 of the old
        0.5
        >>> float(average(jnp.array(0.0), jnp.array(1.0), jnp.array(10**6), 0.75))
        0.25
    """

    def mixed(old: Array, new: Array) -> Array:
        t = step.astype(old.dtype)
        kept = jnp.minimum(decay, (1 + t) / (10 + t))
        return new + kept * (old - new)  # of equal values this is the same value

    return jax.tree.map(mixed, old, new)


def init_state(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    *,
    dtype: Any = jnp.float32,
    averaged: bool = False,
) -> TrainState:
    """The state at step 0 for ``model``'s present parameters.

    Args:
        model: where they are.
        optimizer: see ``optimizer.py``.
        dtype: of the sums, float32 or float64.
        averaged: whether moving averages are kept; they start as copies.

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
        ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
        if averaged
        else None,
        sums=zero_sums(dtype),
        bad_step=jnp.full((), -1, jnp.int32),
    )


def zero_sums(dtype: Any = jnp.float32) -> dict[str, Array]:
    """Fresh epoch sums."""
    return {name: jnp.zeros((), dtype) for name in ("loss", "correct", "weight", "count")}


def make_step_function(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    *,
    task: Task,
    preprocessing: Preprocessing,
    transforms: tuple[Transform, ...] = (),
    class_weights: Float[Array, " k"] | None = None,
    dtype: Any = jnp.float32,
    lowering: str = "auto",
    accumulate: int = 1,
    ema_decay: float | None = None,
    frozen: frozenset[str] = frozenset(),
) -> StepFunction:
    """One step as a plain function ``(state, batch, seed) -> (state, loss)``.

    It is there to be compiled: alone (:func:`make_train_step`), many in a row (:func:`many_steps`)
    or several seeds side by side (``stacked.py``). The arguments are those of
    :func:`make_train_step`; the seed may be traced.
    """
    train_view = nnx.view(model, use_running_average=False)
    freeze_norms(train_view, frozen)
    graphdef, *_ = nnx.split(train_view, nnx.Param, nnx.BatchStat)

    def summed_loss(params: Any, batch_stats: Any, batch: Batch, seed: Seed) -> tuple[Array, Any]:
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
        return sums["loss"], (new_stats, {name: sums[name].astype(dtype) for name in sums})

    def gradients(state: TrainState, batch: Batch, seed: Seed) -> tuple[Any, Any, dict[str, Array]]:
        """Of the summed loss, with the batch statistics and the sums after the batch."""
        grad = gradient_of(summed_loss, frozen)
        if accumulate == 1:
            grads, (batch_stats, sums) = grad(state.params, state.batch_stats, batch, seed)
            return grads, batch_stats, sums

        def add_one(total: Any, micro_batch: Batch) -> tuple[Any, None]:
            grads, batch_stats, sums = total
            more = grad(state.params, batch_stats, micro_batch | {"epoch": batch["epoch"]}, seed)
            more_grads, (batch_stats, more_sums) = more
            return (add(grads, more_grads), batch_stats, add(sums, more_sums)), None

        zeros = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats, zero_sums(dtype)
        total, _ = jax.lax.scan(add_one, zeros, micro_batches(batch, accumulate))
        return total

    def step(state: TrainState, batch: Batch, seed: Seed) -> tuple[TrainState, Array]:
        with layers.lowering(lowering):
            grads, batch_stats, sums = gradients(state, batch, seed)
        loss = sums["loss"] / sums["weight"]
        grads = jax.tree.map(lambda grad: grad / sums["weight"].astype(grad.dtype), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params, ema = optax.apply_updates(state.params, updates), None
        if ema_decay is not None:
            new = {"params": params, "batch_stats": batch_stats}
            ema = average(state.ema, new, state.step, ema_decay)
        first_bad = (state.bad_step < 0) & ~jnp.isfinite(loss)
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
            sums=add(state.sums, sums),
            bad_step=jnp.where(first_bad, state.step, state.bad_step),
        )
        return state, loss

    return step


def micro_batches(batch: Batch, parts: int) -> Batch:
    """The arrays of a batch as ``[parts, n / parts, ...]``; without ``epoch``.

    Each takes every ``parts``-th row, so that the padding at the end of the last batch is spread
    over all, and a batch that is split over devices stays where it is.

    Example:
        >>> micro_batches({"rows": jnp.arange(6), "epoch": 0}, 2)["rows"].tolist()
        [[0, 2, 4], [1, 3, 5]]
    """
    return {
        name: jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0)
        for name, array in batch.items()
        if name != "epoch"
    }


def add(a: Any, b: Any) -> Any:
    """The sum of two trees of arrays, leaf by leaf.

    Example:
        >>> add({"a": 1, "b": 2}, {"a": 10, "b": 20})
        {'a': 11, 'b': 22}
    """
    return jax.tree.map(operator.add, a, b)


def make_train_step(
    model: Any, optimizer: optax.GradientTransformation, *, seed: int = 0, **settings: Any
) -> TrainStep:
    """The jitted, donated step ``(state, batch) -> (state, loss)``.

    Under ``jit`` with the batch split over a mesh, every sum over the batch (loss, gradients,
    BatchNorm statistics) is over the global batch.

    Args:
        model: gives the structure; its values are not used.
        optimizer: see ``optimizer.py``.
        seed: of the augmentation.
        **settings: ``task``, which decides the loss, and ``preprocessing``, the normalisation after
            augmentation, are needed. ``transforms``: augmentation, keyed by (seed, epoch, row).
            ``class_weights``: ``[k]`` or None. ``dtype``: of images and loss, float32 or float64.
            ``lowering``: of the network's operations, see ``flaxmed.models.layers.lowering``.
            ``accumulate``: micro-batches whose gradients are added up for one update; BatchNorm's
            statistics are then those of each micro-batch. ``ema_decay``: see :func:`average`; the
            state must hold averages. ``frozen``: dotted paths of parameters that are not trained.

    Returns:
        A function of a :class:`TrainState`, which it consumes, and a batch: ``images`` uint8
        ``[n, h, w, c]``, ``labels``, ``rows`` int ``[n]``, ``mask`` bool ``[n]`` (False is
        padding), ``epoch`` int. It returns the next state and the batch's mean loss.
    """
    function = make_step_function(model, optimizer, **settings)
    return compile_training(functools.partial(function, seed=seed), remat=model.remat)


# One CUDA graph of the whole program, its convolutions too, in which whatever need not wait for
# another runs beside it; XLA's own choice is one operation after another.
_OVERLAP = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,"
    "DYNAMIC_SLICE_FUSION,CONVOLUTION",
    "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
}


def compile_training(
    function: TrainStep, *, remat: bool = False, overlap: bool = False
) -> TrainStep:
    """``jax.jit`` of a function that consumes its first argument, the state.

    Args:
        function: of a state, and anything else.
        remat: whether it computes something anew to save memory. XLA's passes for a CPU would drop
            the barriers that jax puts there, see the same computation twice and keep its result.
        overlap: whether a GPU runs beside each other the parts of it that are independent, several
            networks'. None of them may then take another's memory, so that it needs more.
    """
    options = {}
    if remat and jax.default_backend() == "cpu":
        options["xla_disable_hlo_passes"] = "cse_barrier_expander"
    if overlap and jax.default_backend() == "gpu":
        options |= _OVERLAP
    traced = _without_collections(function)
    return jax.jit(traced, donate_argnums=0, compiler_options=options or None)


def _without_collections(function: TrainStep) -> TrainStep:
    """``function``, during whose calls, which trace it, Python looks for no garbage.

    A trace is large, grows and is not garbage: to search it again and again takes a quarter of
    DenseNet-121's tracing time.
    """

    def step(*args: Any, **kwargs: Any) -> Any:
        enabled = gc.isenabled()
        gc.disable()
        try:
            return function(*args, **kwargs)
        finally:
            if enabled:
                gc.enable()

    return step


def many_steps(step: TrainStep) -> TrainStep:
    """Many steps in a row as one function, on images that are on the devices.

    Args:
        step: ``(state, batch) -> (state, loss)``, of one seed or of several stacked; not compiled.

    Returns:
        A function of the state, of the split's ``images`` uint8 and ``labels``, and of each step's
        ``rows`` ``[steps, n]``, ``mask`` ``[steps, n]`` and ``epochs`` ``[steps]``, as
        ``IndexStream.steps`` gives them. It returns the state after them and the loss of each.
    """

    def steps(
        state: TrainState, images: Array, labels: Array, rows: Array, mask: Array, epochs: Array
    ) -> tuple[TrainState, Array]:
        def one(state: TrainState, at: tuple[Array, Array, Array]) -> tuple[TrainState, Array]:
            rows, mask, epoch = at
            batch = {"images": images[rows], "labels": labels[rows], "rows": rows}
            return step(state, batch | {"mask": mask, "epoch": epoch})

        return jax.lax.scan(one, state, (rows, mask, epochs))

    return steps
