"""The three networks, by class and by name."""

from __future__ import annotations

import os
from typing import Any

import jax.numpy as jnp
from flax import nnx

from flaxmed.models.checks import check_stem
from flaxmed.models.densenet import (
    DENSENET121,
    KERAS_DENSENET121,
    KERASHUB_DENSENET121,
    DenseNet,
    DenseNet121,
)
from flaxmed.models.resnet import RESNET18, ResNet, ResNet18
from flaxmed.models.xception import KERAS, TIMM, Xception
from flaxmed.types import InputError

__all__ = [
    "DenseNet",
    "DenseNet121",
    "ResNet",
    "ResNet18",
    "Xception",
    "create_model",
    "list_models",
    "list_variants",
    "minimum_size",
    "variant_constants",
]

_MODELS: dict[str, Any] = {"resnet18": ResNet18, "densenet121": DenseNet121, "xception": Xception}
_VARIANTS: dict[str, dict[str, Any]] = {
    "resnet18": {"torchvision": RESNET18},
    "densenet121": {
        "torchvision": DENSENET121,
        "keras": KERAS_DENSENET121,
        "kerashub": KERASHUB_DENSENET121,
    },
    "xception": {"keras": KERAS, "timm": TIMM},
}


def list_models() -> list[str]:
    """The names that ``create_model`` knows.

    Example:
        >>> list_models()
        ['resnet18', 'densenet121', 'xception']
    """
    return list(_MODELS)


def list_variants(name: str) -> list[str]:
    """The published ports of a network, which differ in constants and padding; the first is usual.

    Example:
        >>> list_variants("xception")
        ['keras', 'timm']
    """
    _lookup(name)
    return list(_VARIANTS[name])


def variant_constants(name: str, variant: str) -> dict[str, str]:
    """What weights of a variant need of the network around them, as text.

    Args:
        name: One of ``list_models()``.
        variant: One of ``list_variants(name)``.

    Returns:
        ``epsilon`` of the batch normalisations, and ``padding`` of strided layers: "SAME", as
        TensorFlow pads, or "symmetric".

    Raises:
        InputError: For an unknown name or variant.

    Example:
        >>> variant_constants("xception", "keras")
        {'epsilon': '0.001', 'padding': 'SAME'}
    """
    _lookup(name)
    config = _variant(name, variant)
    pads = (getattr(config, "pool_padding", None), *getattr(config, "stem_padding", ()))
    return {
        "epsilon": f"{config.bn.epsilon:g}",
        "padding": "SAME" if "SAME" in pads else "symmetric",
    }


def _variant(name: str, variant: str | None) -> Any:
    known = _VARIANTS[name]
    if variant is not None and variant not in known:
        raise InputError(f"{name}: unknown variant {variant!r}; choose one of {', '.join(known)}")
    return known[variant or next(iter(known))]


def variant_of(model: ResNet | DenseNet | Xception) -> tuple[str, str]:
    """The name and the variant with which ``create_model`` builds a network like this one.

    Raises:
        InputError: a network with a configuration of its own.

    Example:
        >>> variant_of(nnx.eval_shape(lambda: Xception(2, config=TIMM, rngs=nnx.Rngs(0))))
        ('xception', 'timm')
    """
    for name, variants in _VARIANTS.items():
        for variant, config in variants.items():
            if isinstance(model, _MODELS[name]) and model.config == config:
                return name, variant
    raise InputError(f"{type(model).__name__}: its configuration is none of the published ones")


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
    num_classes: int | None = None,
    *,
    in_channels: int = 3,
    stem: str | None = None,
    variant: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> ResNet | DenseNet | Xception:
    """Builds a network by name, with random or with published weights.

    Args:
        name: One of ``list_models()``.
        num_classes: How many logits; with ``weights`` None stands for as many as these have. With
            another number the classifier is a new one.
        in_channels: Channels of the images. From weights for other channels the kernels of the
            first convolution are summed; but where the weights' channels are normalised
            differently, as with ImageNet's means, the network for grey images keeps three, and
            ``flaxmed.predict`` repeats the images for it.
        stem: "imagenet", as published, or "small", for images of 28 to 64 pixels; None for the
            weights', or "imagenet". Weights for the other stem are refused (``load_weights(keep=
            ["stem"])`` leaves a new one); Xception takes them, whose two stems have the same
            kernels, and it is said that they were trained at another stride.
        variant: Whose constants and padding: one of ``list_variants(name)``; None for the weights',
            or the first. Files of Keras do not always tell "keras" and "kerashub" apart; there it
            may be said.
        weights: None for random initial weights; or what ``open_weights`` takes: a name of
            ``flaxmed.list_weights()``, a repository of the Hugging Face hub, a file. What is left
            out of it, and what is new in the network, is said on stderr.
        dtype: Of the computation; see the network's class.
        remat: Whether training computes norms a second time to save memory.
        rngs: Source of the initial values.

    Returns:
        The network, in evaluation mode; from weights with the ``preprocessing`` they need, and with
        ``info`` (the classes' names) where the classifier is theirs.

    Raises:
        InputError: For an unknown name, stem or variant, or a count below 1; for weights that
            cannot be had, are damaged, or are another network's.

    Example:
        >>> model = create_model("resnet18", 2, in_channels=1, stem="small", rngs=nnx.Rngs(0))
        >>> nnx.jit(lambda model, x: model(x))(model, jnp.zeros((1, 28, 28, 1))).shape
        (1, 2)
    """
    network = _lookup(name)
    options: dict[str, Any] = dict(dtype=dtype, remat=remat, rngs=rngs)
    if weights is not None:
        from flaxmed.models.weights import load

        opened = load.open_weights(weights)
        if opened.kind.network != name:
            raise InputError(f"{weights}: weights of {opened.kind.network}, not of {name}")
        config = _variant(name, load.variant_for(opened, variant))
        return load.build(opened, network, num_classes, in_channels, stem, config=config, **options)
    if num_classes is None:
        raise InputError(f"{name}: num_classes is needed, unless weights say how many")
    config = _variant(name, variant)
    options |= dict(in_channels=in_channels, stem=stem or "imagenet", config=config)
    return network(num_classes, **options)
