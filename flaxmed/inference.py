"""From uint8 images to answers: normalisation and batched prediction, in training and in use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from flaxmed.models.layers import lowering, lowering_on
from flaxmed.types import InputError, Preprocessing, sigmoid, softmax


def normalise(
    images: UInt8[Array, "n h w c"], preprocessing: Preprocessing, *, dtype: Any = jnp.float32
) -> Float[Array, "n h w k"]:
    """``(images / 255 - mean) / std``, per channel.

    Args:
        images: 0 to 255.
        preprocessing: mean and std in units of [0, 1]; one value serves all channels.
        dtype: of the result; float32 or float64.

    Raises:
        InputError: as many means as there are channels are needed, or one; grey images take any
            number (:func:`standardise`).

    Example:
        >>> white = jnp.full((1, 2, 2, 1), 255, jnp.uint8)
        >>> float(normalise(white, Preprocessing(mean=(0.5,), std=(0.5,)))[0, 0, 0, 0])
        1.0
    """
    return standardise(images.astype(dtype) / 255, preprocessing)


def standardise(
    images: Float[Array, "n h w c"], preprocessing: Preprocessing
) -> Float[Array, "n h w k"]:
    """The second half of :func:`normalise`, for images that are in [0, 1] already.

    Grey images become as many channels as there are means: each its copy, normalised its own way.
    """
    channels = images.shape[-1]
    if len(preprocessing.mean) not in (1, channels) and channels != 1:
        raise InputError(
            f"preprocessing has {len(preprocessing.mean)} means, the images {channels} channels; "
            f"expected 1 or {channels}"
        )
    mean = jnp.asarray(preprocessing.mean, images.dtype)
    std = jnp.asarray(preprocessing.std, images.dtype)
    return (images - mean) / std


def check_channels(model: Any, preprocessing: Preprocessing) -> None:
    """Raises InputError unless there is one mean, or as many as the network takes channels."""
    means, channels = len(preprocessing.mean), model.in_channels
    if means not in (1, channels):
        raise InputError(
            f"preprocessing has {means} means, the network {channels} channels; "
            f"expected 1 or {channels}"
        )


@functools.partial(jax.jit, static_argnames=("graphdef", "preprocessing", "devices", "head"))
def _forward(
    graphdef: Any, state: Any, images: Array, preprocessing: Preprocessing, devices: int, head: bool
) -> Array:
    model = nnx.merge(graphdef, state)
    # float64 models take float64 input; bfloat16 ones still normalise in float32
    dtype = jnp.promote_types(jnp.float32, jax.tree.leaves(state)[0].dtype)
    with lowering(lowering_on(devices)):
        x = normalise(images, preprocessing, dtype=dtype)
        return model(x) if head else model.features(x)["final"].astype(dtype).mean((1, 2))


def predict_logits(
    model: nnx.Module,
    images: Any,
    *,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 128,
    put: Callable[[np.ndarray], Array] = jnp.asarray,
    get: Callable[[Array], np.ndarray] = np.asarray,
) -> Float[np.ndarray, "n k"]:
    """The network's logits for every image, in order, in evaluation mode.

    Args:
        model: a flaxmed network; one from ``load_model`` carries its preprocessing.
        images: uint8 ``[n, h, w, c]``, in memory or memory-mapped; grey images may omit ``c``.
        preprocessing: only if the model carries none.
        batch_size: images at a time; the last batch is padded, the padding dropped.
        put: moves one padded batch to the devices.
        get: brings its logits back.

    Returns:
        float32 (float64 for a float64 model), ``[n, k]``.

    Raises:
        InputError: images of another type, shape or channel count than the network takes.

    Example:
        >>> from flaxmed import ResNet18
        >>> model = ResNet18(2, in_channels=1, stem="small", rngs=nnx.Rngs(0))
        >>> images = np.zeros((3, 16, 16, 1), np.uint8)
        >>> predict_logits(model, images, preprocessing=Preprocessing()).shape
        (3, 2)
    """
    options: dict[str, Any] = {
        "preprocessing": preprocessing,
        "batch_size": batch_size,
        "put": put,
        "get": get,
    }
    return _in_batches(model, images, head=True, **options)


def pooled_features(model: nnx.Module, images: Any, **options: Any) -> Float[np.ndarray, "n d"]:
    """What the classifier of a network sees: the mean over each of the last maps.

    Arguments, ``options`` among them, and errors are those of :func:`predict_logits`.

    Returns:
        float32 (float64 for a float64 model), ``[n, d]``: 512 for ResNet-18, 1024 for
        DenseNet-121, 2048 for Xception.

    Example:
        >>> from flaxmed import ResNet18
        >>> model = ResNet18(2, in_channels=1, stem="small", rngs=nnx.Rngs(0))
        >>> images = np.zeros((3, 16, 16, 1), np.uint8)
        >>> pooled_features(model, images, preprocessing=Preprocessing()).shape
        (3, 512)
    """
    return _in_batches(model, images, head=False, **options)


def _in_batches(
    model: nnx.Module,
    images: Any,
    *,
    head: bool,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 128,
    put: Callable[[np.ndarray], Array] = jnp.asarray,
    get: Callable[[Array], np.ndarray] = np.asarray,
) -> np.ndarray:
    preprocessing = preprocessing or getattr(model, "preprocessing", None)
    if preprocessing is None:
        raise InputError(
            "the model carries no preprocessing; pass preprocessing=Preprocessing(...)"
        )
    check_channels(model, preprocessing)
    if getattr(images, "dtype", None) != np.uint8 or len(images.shape) not in (3, 4):
        found = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}"
        raise InputError(f"images must be uint8 [n, height, width, channels], got {found}")
    graphdef, state = nnx.split(nnx.view(model, use_running_average=True))
    rows = []
    for padded, count in _padded_batches(images, batch_size):
        batch = put(padded)
        devices = len(batch.sharding.device_set)
        made = _forward(graphdef, state, batch, preprocessing, devices, head)
        rows.append(get(made)[:count])
    if not rows:
        raise InputError("no images: expected at least one")
    return np.concatenate(rows)


def _padded_batches(images: Any, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of one static shape, each with the number of its rows that are real."""
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        batch = batch[..., None] if batch.ndim == 3 else batch
        count = len(batch)
        yield np.pad(batch, [(0, batch_size - count), *[(0, 0)] * 3]), count


def predict(model: nnx.Module, images: Any, *, batch_size: int = 128) -> Float[np.ndarray, "n k"]:
    """Probabilities for uint8 images: normalisation, network, softmax (multi-label: sigmoid).

    Args:
        model: from ``flaxmed.load_model`` or ``train(...).model``: it carries its preprocessing
            and knows whether its labels exclude each other.
        images: uint8 ``[n, h, w, c]``; grey images may omit ``c``.
        batch_size: images at a time; changes no result beyond rounding.

    Returns:
        float64 ``[n, k]`` in [0, 1]; the columns are in the order of ``model.info.classes``.

    Raises:
        InputError: images or a model that do not fit.

    Example:
        >>> import flaxmed
        >>> model = flaxmed.ResNet18(2, in_channels=1, stem="small", rngs=nnx.Rngs(0))
        >>> model.preprocessing = Preprocessing(mean=(0.5,), std=(0.5,))
        >>> flaxmed.predict(model, np.zeros((3, 16, 16, 1), np.uint8)).sum(axis=1).round(6).tolist()
        [1.0, 1.0, 1.0]
    """
    logits = predict_logits(model, images, batch_size=batch_size)
    info = getattr(model, "info", None)
    return sigmoid(logits) if info is not None and not info.task.exclusive else softmax(logits)
