"""Writing weights: under flaxmed's own names, or those of the library that shall read them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flax import nnx

from flaxmed.models import variant_of
from flaxmed.models.pretrained import flatten, to_foreign
from flaxmed.models.weights import metadata
from flaxmed.models.weights.load import Weights, build_as_it_is, open_weights
from flaxmed.models.weights.safetensors_files import write_safetensors


def save_weights(
    model: nnx.Module,
    path: str | os.PathLike[str],
    *,
    naming: str = "flaxmed",
    licence: str = "unknown",
) -> None:
    """Write a network's parameters and running statistics as safetensors.

    Under flaxmed's own names the file also says what it takes to use them: network, variant, stem,
    channels, classes, preprocessing. Under torchvision's or timm's names and layout it is what
    their ``load_state_dict`` takes, to the bit.

    Args:
        model: one of the three networks; ``model.preprocessing`` and ``model.info`` go along.
        path: the file to write, whole or not at all.
        naming: one of ``flaxmed.models.pretrained.namings(model)``.
        licence: of the weights.

    Raises:
        InputError: an unknown naming; a network that is none of the published variants; a folder
            that cannot be written.
        RunError: the disk is full.

    Example:
        >>> import tempfile
        >>> from flaxmed.models import create_model
        >>> model = create_model("resnet18", 2, in_channels=1, stem="small", rngs=nnx.Rngs(0))
        >>> path = Path(tempfile.mkdtemp()) / "mine.safetensors"
        >>> save_weights(model, path)
        >>> open_weights(path).kind.num_classes
        2
    """
    tensors = to_foreign(flatten(nnx.state(model)), model, naming)
    said = _describe(model, licence) if naming == "flaxmed" else {"format": "pt"}
    write_safetensors(Path(path), tensors, said)


def _describe(model: Any, licence: str) -> dict[str, str]:
    network, variant = variant_of(model)
    return metadata.describe(
        network=network,
        variant=variant,
        stem=model.stem_name,
        in_channels=model.in_channels,
        num_classes=model.num_classes,
        preprocessing=getattr(model, "preprocessing", None),
        info=getattr(model, "info", None),
        licence=licence,
    )


def convert_weights(
    source: str | os.PathLike[str], path: str | os.PathLike[str], *, naming: str = "flaxmed"
) -> Weights:
    """Read weights of any format and write them as safetensors, every value as it was.

    Args:
        source: as for ``open_weights``.
        path: the file to write.
        naming: whose names it shall have, as for :func:`save_weights`.

    Returns:
        What was read.

    Raises:
        InputError, RunError: as ``open_weights``, ``load_weights`` and :func:`save_weights`.

    Example:
        >>> import tempfile
        >>> from flaxmed.models import create_model
        >>> folder = Path(tempfile.mkdtemp())
        >>> model = create_model("resnet18", 2, stem="small", rngs=nnx.Rngs(0))
        >>> save_weights(model, folder / "mine.safetensors")
        >>> _ = convert_weights(
        ...     folder / "mine.safetensors", folder / "theirs.safetensors", naming="medmnist"
        ... )
        >>> open_weights(folder / "theirs.safetensors").kind.naming
        'medmnist'
    """
    weights = open_weights(source)
    save_weights(build_as_it_is(weights), path, naming=naming, licence=weights.licence)
    return weights
