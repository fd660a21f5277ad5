"""The static side of a convolution or a pool: sizes, strides, pads, taps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jax import lax

Padding = str | int | Sequence[tuple[int, int]]
Pads = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Window:
    """A window that slides over an image.

    Attributes:
        size: Height and width of the image.
        window: Height and width of the window.
        stride: Step of the window along both axes.
        pads: Pixels added at ``((top, bottom), (left, right))``.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    stride: int
    pads: Pads

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the output."""
        h, w = (
            (n + low + high - k) // self.stride + 1
            for n, k, (low, high) in zip(self.size, self.window, self.pads, strict=True)
        )
        return h, w

    @property
    def taps(self) -> list[tuple[int, int]]:
        """Positions inside the window, row by row."""
        return [(i, j) for i in range(self.window[0]) for j in range(self.window[1])]


@dataclass(frozen=True)
class ConvWindow(Window):
    """A convolution's window, with its input and output channels and its groups."""

    channels: tuple[int, int]
    groups: int


def resolve_padding(
    padding: Padding, size: tuple[int, int], window: tuple[int, int], stride: int
) -> Pads:
    """A padding as explicit ``((top, bottom), (left, right))``."""
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, window, (stride, stride), padding)
    (top, bottom), (left, right) = padding
    return (top, bottom), (left, right)


@dataclass(frozen=True)
class Tap:
    """The part of one tap that falls inside the image: no product is spent on padding.

    Attributes:
        position: Row and column in the window.
        first: The first output pixel that the tap reaches.
        size: How many output pixels it reaches, down and across.
        start: The input pixel under the first.
    """

    position: tuple[int, int]
    first: tuple[int, int]
    size: tuple[int, int]
    start: tuple[int, int]


def cropped_taps(g: Window) -> list[Tap]:
    """The taps that reach the image at all, each cropped to it."""

    def span(axis: int, offset: int) -> tuple[int, int, int]:
        low = g.pads[axis][0]
        first = max(0, -((offset - low) // g.stride))
        last = min(g.out[axis] - 1, (g.size[axis] - 1 + low - offset) // g.stride)
        return first, last - first + 1, first * g.stride + offset - low

    taps = []
    for i, j in g.taps:
        first, size, start = zip(span(0, i), span(1, j), strict=True)
        if min(size) > 0:
            taps.append(Tap((i, j), first, size, start))
    return taps
