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
from flaxmed.models.weights.recognise import Kind
from flaxmed.models.weights.safetensors_files import write_safetensors


def weights_of(
    model: nnx.Module, source: str = "a network in memory", *, licence: str = "unknown"
) -> Weights:
    """A network's parameters and running statistics, as :func:`open_weights` gives those of a file.

    So what is in memory can go wherever published weights can, into ``load_weights`` above all.

    Args:
        model: one of the three networks; ``model.preprocessing`` and ``model.info`` go along.
        source: by what name messages call it.
        licence: of the weights.

    Returns:
        The tensors, on the host, under flaxmed's own names.

    Raises:
        InputError: a network that is none of the published variants.

    Example:
        >>> from flaxmed.models import create_model
        >>> from flaxmed.models.weights import load_weights
        >>> five, two = (create_model("resnet18", n, rngs=nnx.Rngs(0)) for n in (5, 2))
        >>> load_weights(two, weights_of(five)).kept  # another number of classes
        ('classifier.bias', 'classifier.kernel')
    """
    network, variant = variant_of(model)  # type: ignore[arg-type]
    one: Any = model
    return Weights(
        source,
        Kind(network, "flaxmed", one.stem_name, one.in_channels, one.num_classes),
        variant,
        to_foreign(flatten(nnx.state(model)), model, "flaxmed"),
        getattr(model, "preprocessing", None),
        getattr(model, "info", None),
        licence,
    )


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
    if naming == "flaxmed":
        write_weights(weights_of(model, licence=licence), path)
    else:
        tensors = to_foreign(flatten(nnx.state(model)), model, naming)
        write_safetensors(Path(path), tensors, {"format": "pt"})


def write_weights(weights: Weights, path: str | os.PathLike[str]) -> None:
    """Write weights of flaxmed's own naming, with what the file says of itself.

    Raises:
        InputError, RunError: as :func:`save_weights`.
    """
    kind = weights.kind
    said = metadata.describe(
        network=kind.network,
        variant=weights.variant,
        stem=kind.stem,
        in_channels=kind.in_channels,
        num_classes=kind.num_classes,
        preprocessing=weights.preprocessing,
        info=weights.info,
        licence=weights.licence,
    )
    write_safetensors(Path(path), weights.tensors, said)


def convert_weights(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    naming: str = "flaxmed",
    licence: str = "unknown",
) -> Weights:
    """Read weights of any format and write them as safetensors, every value as it was.

    Args:
        source: as for ``open_weights``.
        path: the file to write.
        naming: whose names it shall have, as for :func:`save_weights`.
        licence: of the weights; "unknown" leaves what they say themselves.

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
    licence = weights.licence if licence == "unknown" else licence
    save_weights(build_as_it_is(weights), path, naming=naming, licence=licence)
    return weights
