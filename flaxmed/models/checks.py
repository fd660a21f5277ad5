"""What all networks refuse to be built with, or called on."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxmed.types import InputError

STEMS = ("imagenet", "small")


def check_stem(stem: str) -> None:
    """Refuses a stem that is neither "imagenet" nor "small", with an InputError."""
    if stem not in STEMS:
        raise InputError(f'stem must be "imagenet" or "small", got {stem!r}')


def check_network(num_classes: int, in_channels: int, stem: str) -> None:
    """Refuses what no network can be built with, with an InputError."""
    check_stem(stem)
    for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")


def check_images(images: Any, *, network: str, stem: str, in_channels: int, minimum: int) -> None:
    """Refuses, with an InputError, images of a shape or dtype that the network cannot take."""
    shape = np.shape(images)
    if len(shape) != 4:
        raise InputError(f"{network} expects images of shape [N, H, W, C], got {list(shape)}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"{network} expects normalised floating-point images, got {images.dtype}: "
            "normalise them first (flaxmed.predict does it)"
        )
    if shape[3] != in_channels:
        channels = "channel" if in_channels == 1 else "channels"
        raise InputError(f"{network} expects {in_channels} {channels}, got {shape[3]}")
    if min(shape[1:3]) < minimum:
        raise InputError(
            f'{network} with stem "{stem}" needs images of at least {minimum}x{minimum} pixels, '
            f"got {shape[1]}x{shape[2]}"
        )
