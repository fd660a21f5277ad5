"""The generating models of the phantom: how lesions look, and how each class draws them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from flaxmed.types import InputError

MIN_SIZE = 16  # below this the smallest lesions fall between the pixels
MARGIN = 5.0  # noise standard deviations that every expected pixel keeps from 0 and 255


@dataclasses.dataclass(frozen=True)
class PhantomClass:
    """How the lesions of one class are distributed.

    Each latent follows a normal distribution restricted to the config's grid and renormalised;
    the three are independent given the class.

    Attributes:
        name: the class name.
        size: mean and standard deviation of the size, in units of the image side.
        elongation: mean and standard deviation of the ratio of the axes.
        contrast: mean and standard deviation of the peak height, in grey levels.
        weight: prior probability of the class, up to a factor common to all classes.

    Example:
        >>> PhantomClass("round", size=(0.1, 0.02), elongation=(1.2, 0.3)).weight
        1.0
    """

    name: str
    size: tuple[float, float]
    elongation: tuple[float, float]
    contrast: tuple[float, float] = (70.0, 20.0)
    weight: float = 1.0

    def __post_init__(self) -> None:
        for latent in ("size", "elongation", "contrast"):
            value = tuple(float(v) for v in getattr(self, latent))
            object.__setattr__(self, latent, value)
            if len(value) != 2 or not np.all(np.isfinite(value)) or value[1] <= 0:
                raise InputError(
                    f"phantom class {self.name!r}: {latent} must be "
                    f"(mean, standard deviation > 0), got {value}"
                )
        if not 0 < self.weight < math.inf:
            raise InputError(
                f"phantom class {self.name!r}: weight must be positive, got {self.weight}"
            )


@dataclasses.dataclass(frozen=True)
class PhantomConfig:
    """The generating model of a phantom: all that :func:`~flaxmed.data.phantom.sample` and
    :func:`~flaxmed.data.phantom.posterior` need.

    Attributes:
        name: the family's name; families of different names share no random numbers.
        classes: at least two.
        size: height and width of the image in pixels, at least 16.
        sizes: grid of the lesion's size, the geometric mean of its two semi-axes, in units of the
            image side. A semi-axis reaches to half of the peak height (``"plateau"``), to the
            standard deviation (``"gaussian"``) or to the crest (``"ring"``).
        elongations: grid of the ratio of the major to the minor axis, at least 1.
        contrasts: grid of the peak height above (or, negative, below) the background, grey levels.
        positions: grid of the centre's offset from the image centre along each axis, in units of
            the image side; symmetric about 0, so that mirror images are as likely as originals.
        angles: number of orientations, evenly spaced over half a turn, the horizontal among them.
        profile: how the height falls off with the elliptic radius r: ``"plateau"``
            (exp(-ln 2 r^6)), ``"gaussian"`` (exp(-r^2 / 2)) or ``"ring"`` (r^2 exp(1 - r^2)).
        background: grey level of the background.
        noise: standard deviation of the noise in grey levels, at least 1, before rounding.

    Raises:
        InputError: a value out of range, or expected pixels that come nearer than five noise
            standard deviations to 0 or 255, where clipping would spoil the posterior.

    Example:
        >>> PhantomConfig().class_names
        ('compact', 'broad', 'elongated')
        >>> PhantomConfig(noise=-1.0)
        Traceback (most recent call last):
        flaxmed.types.InputError: phantom: noise must be at least 1 grey level, got -1.0
    """

    name: str = "phantom"
    classes: tuple[PhantomClass, ...] = (
        PhantomClass("compact", size=(0.105, 0.025), elongation=(1.4, 0.4)),
        PhantomClass("broad", size=(0.165, 0.025), elongation=(1.4, 0.4)),
        PhantomClass("elongated", size=(0.135, 0.025), elongation=(2.3, 0.4)),
    )
    size: int = 32
    sizes: tuple[float, ...] = (0.07, 0.09, 0.11, 0.13, 0.15, 0.17, 0.19, 0.21)
    elongations: tuple[float, ...] = (1.0, 1.4, 1.8, 2.2, 2.6, 3.0)
    contrasts: tuple[float, ...] = (50.0, 70.0, 90.0)
    positions: tuple[float, ...] = (-0.125, -0.0625, 0.0, 0.0625, 0.125)
    angles: int = 6
    profile: str = "plateau"
    background: float = 90.0
    noise: float = 6.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        if len(self.classes) < 2 or len(set(self.class_names)) != len(self.classes):
            raise InputError(
                f"{self.name}: at least two classes of different names expected, "
                f"got {list(self.class_names)}"
            )
        for grid in ("sizes", "elongations", "contrasts", "positions"):
            values = tuple(float(v) for v in getattr(self, grid))
            object.__setattr__(self, grid, values)
            if not values or not np.all(np.isfinite(values)) or len(set(values)) < len(values):
                raise InputError(f"{self.name}: {grid} must be different numbers, got {values}")
        checks = (
            (self.size >= MIN_SIZE, f"size must be at least {MIN_SIZE} pixels, got {self.size}"),
            (min(self.sizes) > 0, f"sizes must be positive, got {self.sizes}"),
            (min(self.elongations) >= 1, f"elongations must be at least 1, got {self.elongations}"),
            (
                np.allclose(np.sort(self.positions), -np.sort(self.positions)[::-1], atol=1e-12),
                f"positions must be symmetric about 0, got {self.positions}",
            ),
            (self.angles >= 1, f"angles must be at least 1, got {self.angles}"),
            (
                self.profile in PROFILES,
                f"unknown profile {self.profile!r}; expected one of {', '.join(PROFILES)}",
            ),
            (
                1 <= self.noise < math.inf,  # below, rounding is no small normal error any more
                f"noise must be at least 1 grey level, got {self.noise}",
            ),
        )
        for holds, message in checks:
            if not holds:
                raise InputError(f"{self.name}: {message}")
        low = self.background + min(0.0, *self.contrasts)
        high = self.background + max(0.0, *self.contrasts)
        if not MARGIN * self.noise <= low <= high <= 255 - MARGIN * self.noise:
            raise InputError(
                f"{self.name}: pixels between {low:g} and {high:g} come within {MARGIN:g} noise "
                f"standard deviations ({MARGIN * self.noise:g}) of 0 or 255"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names, in the order of the label numbers."""
        return tuple(c.name for c in self.classes)

    @property
    def prior(self) -> Float[np.ndarray, " k"]:
        """Prior probability of each class, float64 ``[k]``."""
        weights = np.array([c.weight for c in self.classes], np.float64)
        return weights / weights.sum()


# Height by squared elliptic radius; each peaks at exactly 1, so contrast is the peak height.
PROFILES = MappingProxyType(
    {
        "plateau": lambda r2: np.exp(-math.log(2) * r2 * r2 * r2),
        "gaussian": lambda r2: np.exp(-r2 / 2),
        "ring": lambda r2: r2 * np.exp(1 - r2),
    }
)

FAMILIES: Mapping[str, PhantomConfig] = MappingProxyType(
    {
        config.name: config
        for config in (
            PhantomConfig(),
            PhantomConfig(
                name="phantom-binary",
                classes=(
                    PhantomClass("round", size=(0.14, 0.05), elongation=(1.4, 0.5)),
                    PhantomClass("elongated", size=(0.14, 0.05), elongation=(2.5, 0.5)),
                ),
            ),
            PhantomConfig(
                name="phantom-ring",
                profile="ring",
                background=160.0,
                contrasts=(-90.0, -70.0, -50.0),
                classes=tuple(
                    dataclasses.replace(c, contrast=(-70.0, 20.0)) for c in PhantomConfig.classes
                ),
            ),
        )
    }
)
"""The built-in phantoms by name: three classes, two classes, and dark rings for transfer."""
