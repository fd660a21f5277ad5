"""What a weight file of flaxmed's own says of itself, in the metadata of its safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flaxmed.models.weights.recognise import Kind
from flaxmed.types import DatasetInfo, InputError, Preprocessing, check_shape

_FORMAT = "flaxmed"
_SHAPE = {
    **dict.fromkeys(("network", "variant", "stem", "licence"), str),
    "in_channels": int,
    "num_classes": (int, None),
    "preprocessing": ({"mean": [float], "std": [float]}, None),
    "info": ({}, None),
}


def describe(
    *,
    network: str,
    variant: str,
    stem: str,
    in_channels: int,
    num_classes: int | None,
    preprocessing: Preprocessing | None,
    info: DatasetInfo | None = None,
    licence: str = "unknown",
) -> dict[str, str]:
    """The metadata of a file; safetensors' are texts."""
    values = {
        "network": network,
        "variant": variant,
        "stem": stem,
        "in_channels": in_channels,
        "num_classes": num_classes,
        "preprocessing": preprocessing.to_dict() if preprocessing else None,
        "info": info.to_dict() if info else None,
        "licence": licence,
    }
    return {"format": _FORMAT, "flaxmed": json.dumps(values, ensure_ascii=False)}


def parse(metadata: Mapping[str, str], place: str) -> dict[str, Any] | None:
    """The arguments of ``Weights`` that the metadata of a file give; None for a foreign file.

    Raises:
        InputError: a file of flaxmed's with metadata that are none.

    Example:
        >>> made = describe(
        ...     network="resnet18", variant="torchvision", stem="small", in_channels=1,
        ...     num_classes=2, preprocessing=None,
        ... )
        >>> parse(made, "a.safetensors")["kind"].stem
        'small'
        >>> parse({"format": "pt"}, "model.safetensors") is None
        True
    """
    if metadata.get("format") != _FORMAT:
        return None
    try:
        values = json.loads(metadata.get("flaxmed", ""))
    except (ValueError, RecursionError):
        raise InputError(f"{place}: its metadata are not readable as JSON") from None
    check_shape(values, _SHAPE, f"{place}: metadata")
    missing = [name for name in _SHAPE if name not in values]
    if missing:
        raise InputError(f"{place}: its metadata lack {', '.join(missing)}")
    own, info = values["preprocessing"], values["info"]
    try:
        preprocessing = None if own is None else Preprocessing.from_dict(own)
        info = None if info is None else DatasetInfo.from_dict(info)
    except KeyError as error:
        raise InputError(f"{place}: metadata: {error} is missing") from None
    except ValueError as error:
        raise InputError(f"{place}: metadata: {error}") from None
    return {
        "kind": Kind(
            values["network"],
            "flaxmed",
            values["stem"],
            values["in_channels"],
            values["num_classes"],
        ),
        "variant": values["variant"],
        "preprocessing": preprocessing,
        "info": info,
        "licence": values["licence"],
    }
