"""The three networks, by class and by name."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from flaxmed.models.checks import check_stem
from flaxmed.models.densenet import DenseNet, DenseNet121
from flaxmed.models.resnet import ResNet, ResNet18
from flaxmed.models.xception import Xception
from flaxmed.types import InputError

__all__ = [
    "DenseNet",
    "DenseNet121",
    "ResNet",
    "ResNet18",
    "Xception",
    "create_model",
    "list_models",
    "minimum_size",
]

_MODELS: dict[str, Any] = {"resnet18": ResNet18, "densenet121": DenseNet121, "xception": Xception}


def list_models() -> list[str]:
    """The names that ``create_model`` knows.

    Example:
        >>> list_models()
        ['resnet18', 'densenet121', 'xception']
    """
    return list(_MODELS)


def _lookup(name: str) -> Any:
    if name not in _MODELS:
        raise InputError(f"unknown model {name!r}: choose one of {', '.join(_MODELS)}")
    return _MODELS[name]


def minimum_size(name: str, stem: str = "imagenet") -> int:
    """The smallest image side, in pixels, that a network with this stem takes.

    It is the smallest for which no strided layer is given a map of one pixel, which it could only
    copy. DenseNet-121's 29 is what torchvision documents for it.

    Args:
        name: One of ``list_models()``.
        stem: "imagenet" or "small".

    Returns:
        The side, in pixels.

    Raises:
        InputError: For an unknown name or stem.

    Example:
        >>> minimum_size("densenet121"), minimum_size("densenet121", "small")
        (29, 8)
    """
    network = _lookup(name)
    check_stem(stem)
    return network.minimum_size(stem)


def create_model(
    name: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    stem: str = "imagenet",
    weights: str | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> ResNet | DenseNet | Xception:
    """Builds a network by name.

    Args:
        name: One of ``list_models()``.
        num_classes: How many logits.
        in_channels: Channels of the images.
        stem: "imagenet", as published, or "small", for images of 28 to 64 pixels.
        weights: None, for random initial weights.
        dtype: Of the computation; see the network's class.
        remat: Whether training computes norms a second time to save memory.
        rngs: Source of the initial values.

    Returns:
        The network, in evaluation mode.

    Raises:
        InputError: For an unknown name, stem or weights, or a count below 1.

    Example:
        >>> model = create_model("resnet18", 2, in_channels=1, stem="small", rngs=nnx.Rngs(0))
        >>> nnx.jit(lambda model, x: model(x))(model, jnp.zeros((1, 28, 28, 1))).shape
        (1, 2)
    """
    network = _lookup(name)
    if weights is not None:
        raise InputError(
            f"weights={weights!r}: loading published weights is not available yet, use weights=None"
        )
    return network(
        num_classes, in_channels=in_channels, stem=stem, dtype=dtype, remat=remat, rngs=rngs
    )
