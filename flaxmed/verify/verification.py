"""The same images through flaxmed's network and the library's own, with the same weights."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from flaxmed.models.pretrained import flatten, to_foreign
from flaxmed.models.weights import Weights, open_weights
from flaxmed.models.weights.load import build_as_it_is
from flaxmed.types import InputError
from flaxmed.verify.keras_network import KerasNetwork
from flaxmed.verify.torch_network import TorchNetwork

TOLERANCE = 1e-4  # of a map's, or the logits', largest value, in float32

# Whose network judges a naming, and under which names it takes tensors.
_LIBRARY = {"kerashub": "keras"}  # the others are called as it is
_SIDES = {"resnet18": (224, 28), "densenet121": (224, 64), "xception": (299, 96)}


@dataclasses.dataclass(frozen=True)
class Verification:
    """How far flaxmed and the library are apart.

    Attributes:
        source: the weights.
        library: ``torchvision``, ``timm`` or ``keras``, as it is printed.
        differences: by stage, in the order of the computation, ``logits`` last: the largest
            absolute difference, and the largest absolute value in the library's.
    """

    source: str
    library: str
    differences: dict[str, tuple[float, float]]

    @property
    def holds(self) -> bool:
        """Whether all are within 1e-4 of the largest value, which float32 rounding stays below."""
        return all(apart <= TOLERANCE * size for apart, size in self.differences.values())

    def __str__(self) -> str:
        width = max(map(len, self.differences))
        rows = [
            f"{stage:<{width}}  {apart:14.2e}  {size:12.4g}"
            for stage, (apart, size) in self.differences.items()
        ]
        verdict = "equal to rounding" if self.holds else "NOT EQUAL"
        return "\n".join(
            [
                f"{self.source}: flaxmed beside {self.library}, float32",
                f"{'stage':<{width}}  max |difference|  max |value|",
                *rows,
                f"{verdict} (tolerance {TOLERANCE:.0e} of the largest value)",
            ]
        )


def verify_weights(
    source: str | os.PathLike[str], *, size: int | None = None, images: int = 2, seed: int = 0
) -> Verification:
    """Run the library that weights come from and flaxmed on the same images, with these weights.

    Args:
        source: as for ``flaxmed.open_weights``. Weights of flaxmed's own format are given to the
            library whose variant they are.
        size: side of the images in pixels; None for the network's usual.
        images: how many, of normal noise.
        seed: of the images.

    Returns:
        The differences, stage by stage.

    Raises:
        InputError: weights that cannot be read; the library is not installed; a network that it
            has not.

    Example:
        >>> verify_weights("no/such.pth")
        Traceback (most recent call last):
        flaxmed.types.InputError: no/such.pth: no such weights; expected a file, a repository OW...
    """
    weights = open_weights(source)
    model = build_as_it_is(weights)
    usual, small = _SIDES[weights.kind.network]
    side = size or (small if weights.kind.stem == "small" else usual)
    shape = (images, side, side, weights.kind.in_channels)
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    library, expected = _of_library(weights, model, x)
    found = _of_flaxmed(model, x)
    differences = {
        stage: (float(np.abs(found[stage] - value).max()), float(np.abs(value).max()))
        for stage, value in sorted(expected.items(), key=lambda item: [*found].index(item[0]))
    }
    return Verification(str(source), library, differences)


def _of_flaxmed(model: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Maps by stage in the order of the computation, and the logits."""

    @nnx.jit
    def run(model: Any, x: Any) -> Any:
        maps = model.features(x)
        return maps, model.head(maps["final"])

    maps, logits = run(model, jnp.asarray(x))
    return {**{stage: np.asarray(value) for stage, value in maps.items()}, "logits": logits}


def _of_library(weights: Weights, model: Any, x: np.ndarray) -> tuple[str, dict[str, np.ndarray]]:
    """The library's name, and its maps and logits."""
    kind = weights.kind
    naming = weights.variant if kind.naming == "flaxmed" else kind.naming
    # of ResNet-18 all have torchvision's function
    library = "torchvision" if kind.network == "resnet18" else _LIBRARY.get(naming, naming)
    if kind.stem == "small" and kind.network != "resnet18":
        raise InputError(
            f'{weights.source}: {kind.network} with stem="small", which no library has; expected '
            'stem="imagenet", or ResNet-18'
        )
    tensors = to_foreign(flatten(nnx.state(model)), model, library)
    options: dict[str, Any] = dict(
        channels=kind.in_channels, classes=model.num_classes, dtype=np.float32
    )
    try:
        reference: Any
        if library == "keras":
            same_stem = weights.variant == "kerashub"
            reference = KerasNetwork(kind.network, size=x.shape[1], same_stem=same_stem, **options)
        else:
            reference = TorchNetwork(kind.network, stem=kind.stem, **options)
    except ImportError as error:
        raise InputError(
            f"{weights.source}: verified by {library}, which cannot be imported: {error}"
        ) from None
    reference.load(tensors)
    logits, maps = reference.evaluate(x)
    said = "keras, its stem padded as KerasHub's" if weights.variant == "kerashub" else library
    return said, {**maps, "logits": logits}
