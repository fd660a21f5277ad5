"""Random changes of training images, on the device, each image with a key of its own.

Images are float, ``[..., h, w, c]`` with values in [0, 1], in every function here; results are
clipped to that range. A transform is a small frozen dataclass whose call receives one image and
one key; nothing else is random, so an image's augmentation depends on (seed, epoch, row) alone and
not on the batch, the device or the way the batch was fetched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, Key

from flaxmed.training.config import AugmentConfig
from flaxmed.types import InputError

Transform = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirror along an axis with probability 1/2: ``horizontal`` swaps left and right."""

    direction: str

    def __call__(self, image: Float[Array, "h w c"], key: Key[Array, ""]) -> Float[Array, "h w c"]:
        axis = {"vertical": 0, "horizontal": 1}[self.direction]
        return jnp.where(jax.random.bernoulli(key), jnp.flip(image, axis), image)


@dataclasses.dataclass(frozen=True)
class Affine:
    """Rotation, change of size and shift in one bilinear resampling; edges are repeated.

    Attributes:
        rotation: largest angle, degrees.
        shift: largest displacement, fraction of height and width.
        scale: largest relative change of size (log-uniform from 1/(1+scale) to 1+scale).
    """

    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0

    def __call__(self, image: Float[Array, "h w c"], key: Key[Array, ""]) -> Float[Array, "h w c"]:
        height, width, _ = image.shape
        u = jax.random.uniform(key, (4,), image.dtype, -1, 1)
        angle = jnp.deg2rad(self.rotation) * u[0]
        size = jnp.exp(jnp.log1p(self.scale) * u[1])
        shift = self.shift * u[2:] * jnp.array([height, width], image.dtype)
        return _resample(image, angle, size, shift)


@dataclasses.dataclass(frozen=True)
class Intensity:
    """Contrast about the image's mean times ``1 ± amount``, then brightness ``± amount``."""

    amount: float

    def __call__(self, image: Float[Array, "h w c"], key: Key[Array, ""]) -> Float[Array, "h w c"]:
        u = self.amount * jax.random.uniform(key, (2,), image.dtype, -1, 1)
        mean = image.mean()
        return jnp.clip(mean + (image - mean) * (1 + u[0]) + u[1], 0, 1)


def _resample(
    image: Float[Array, "h w c"],
    angle: Float[Array, ""],
    size: Float[Array, ""],
    shift: Float[Array, " 2"],
) -> Float[Array, "h w c"]:
    """The image rotated by ``angle`` and enlarged by ``size`` about its centre, then shifted."""
    height, width, _ = image.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2], image.dtype)
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    # for each output pixel, the place in the input it comes from: the inverse of the transform
    y = rows - centre[0] - shift[0]
    x = columns - centre[1] - shift[1]
    cos, sin = jnp.cos(angle) / size, jnp.sin(angle) / size
    source = jnp.stack([cos * y + sin * x + centre[0], -sin * y + cos * x + centre[1]])
    sample = lambda plane: jax.scipy.ndimage.map_coordinates(  # noqa: E731
        plane, list(source), order=1, mode="nearest"
    )
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def make_transforms(config: AugmentConfig, flips: tuple[str, ...]) -> tuple[Transform, ...]:
    """The transforms that ``config`` asks for, in order; only ``flips`` are ever mirrored.

    Example:
        >>> make_transforms(AugmentConfig(flips=True, rotation=10), flips=("horizontal",))
        (Flip(direction='horizontal'), Affine(rotation=10.0, shift=0.0, scale=0.0))
    """
    chosen: list[Transform] = [Flip(direction) for direction in flips] if config.flips else []
    if config.rotation or config.shift or config.scale:
        chosen.append(Affine(config.rotation, config.shift, config.scale))
    if config.intensity:
        chosen.append(Intensity(config.intensity))
    return tuple(chosen)


def augment(
    images: Float[Array, "n h w c"],
    transforms: tuple[Transform, ...],
    *,
    seed: Integer[Array, ""] | int,
    epoch: Int[Array, ""] | int,
    rows: Int[Array, " n"],
) -> Float[Array, "n h w c"]:
    """Each image changed by every transform in turn, keyed by (seed, epoch, row).

    Args:
        images: values in [0, 1].
        transforms: see :func:`make_transforms`.
        seed: of the run.
        epoch: number of the epoch, from 0.
        rows: each image's row number in the training split.

    Example:
        >>> images = jnp.linspace(0, 1, 2 * 8 * 8).reshape(2, 8, 8, 1)
        >>> augment(images, (Intensity(0.1),), seed=0, epoch=3, rows=jnp.array([5, 9])).shape
        (2, 8, 8, 1)
    """
    if not transforms:
        return images
    base = jax.random.fold_in(jax.random.key(seed), epoch)

    def one(image: Array, row: Array) -> Array:
        keys = jax.random.split(jax.random.fold_in(base, row), len(transforms))
        for transform, key in zip(transforms, keys, strict=True):
            image = transform(image, key)
        return image

    return jax.vmap(one)(images, rows)


def parse_augment(words: list[str]) -> AugmentConfig:
    """From the command line: ``["flips", "rotation=15", "shift=0.1"]``; ``["none"]`` for none.

    Raises:
        InputError: an unknown name, or a value that is no number.

    Example:
        >>> parse_augment(["flips", "rotation=15"])
        AugmentConfig(flips=True, rotation=15.0, shift=0.0, scale=0.0, intensity=0.0)
    """
    values: dict[str, bool | float] = {}
    known = [field.name for field in dataclasses.fields(AugmentConfig)]
    for word in words:
        name, _, text = word.partition("=")
        if word == "none" and len(words) == 1:
            continue
        if name not in known:
            raise InputError(f"--augment {word}: expected none alone, or {', '.join(known)}")
        if name == "flips":
            if text:
                raise InputError(f"--augment {word}: flips takes no value")
            values[name] = True
            continue
        try:
            values[name] = float(text)
        except ValueError:
            raise InputError(f"--augment {word}: expected {name}=NUMBER") from None
    return AugmentConfig(**values)  # type: ignore[arg-type]
