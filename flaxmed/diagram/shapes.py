"""The marks that diagrams are made of: boxes, arrows, arcs and text, placed in inches.

matplotlib is imported inside, so that reading an architecture does without it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

# Okabe & Ito (2008), as in the reports' figures: told apart with every common colour vision. Boxes
# carry a pale tint of theirs; in grey their words tell them apart.
INK, MUTED, BAND = "#222222", "#5a5a5a", "#f3f4f6"
ARC, PROJECTION = "#D55E00", "#fbe3d3"
# Of dense connections, by where they begin.
SOURCES = ("#0072B2", "#D55E00", "#009E73", "#B5588C", "#222222")
FILLS: dict[str, tuple[str, str]] = {  # fill and edge by kind of part
    "conv": ("#d3e6f3", "#0072B2"),
    "pointwise": ("#d3e6f3", "#0072B2"),
    "depthwise": ("#fbe9c6", "#B87A00"),
    "max pool": ("#d2ede4", "#00785A"),
    "avg pool": ("#d2ede4", "#00785A"),
    "batch norm": ("#e3e3e3", "#444444"),
    "image": ("#ffffff", "#444444"),
    "linear": ("#f4e1ec", "#A9517F"),
    "projection": (PROJECTION, ARC),
}
HALF = 0.2  # half the height of a box
STRIP = 0.045  # width of the strip that stands for a batch normalisation
TITLE, NAME, BODY, SMALL = 12.5, 10.0, 9.0, 8.0  # points

Point = tuple[float, float]

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    # Verdana has the same widths as DejaVu Sans: an SVG keeps its fit where the latter is missing
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Bitstream Vera Sans", "sans-serif"],
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.parse_math": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and edited
    "svg.hashsalt": "flaxmed",  # the same diagram gives the same file
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look of diagrams, whatever the reader's own matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]
        yield


@functools.lru_cache(maxsize=1024)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of one line of text in inches, at ``size`` points.

    Example:
        >>> text_width("conv", 9.0) < text_width("conv", 9.0, "bold") < 0.5
        True
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return float(TextPath((0, 0), text, prop=font).get_extents().x1) / 72 if text.strip() else 0.0


class Canvas:
    """An empty figure measured in inches, its origin at the lower left.

    Args:
        width: of the figure, in inches.
        height: likewise.

    Example:
        >>> canvas = Canvas(2.0, 1.0)
        >>> canvas.text(0.1, 0.5, "stem")
        >>> canvas.figure.get_size_inches().tolist()
        [2.0, 1.0]
    """

    def __init__(self, width: float, height: float):
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width, height))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.set_axis_off()

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = BODY,
        *,
        color: str = INK,
        bold: bool = False,
        align: str = "left",
    ) -> None:
        """One line of text, ``y`` at half the height of its letters."""
        look: dict[str, Any] = {"fontsize": size, "color": color, "ha": align}
        # centred by the font's own measure, so that letters with tails do not lift a line
        weight = "bold" if bold else "normal"
        self.axes.text(
            x, y - 0.36 * size / 72, text, va="baseline", weight=weight, zorder=6, **look
        )

    def band(self, x0: float, x1: float, y0: float, y1: float, *, dashed: bool = False) -> None:
        """The ground of a stage; or, dashed, the frame of what is repeated."""
        from matplotlib.patches import FancyBboxPatch

        look: dict[str, Any] = {"facecolor": BAND, "edgecolor": "none", "zorder": 0}
        if dashed:
            look = {"facecolor": "none", "edgecolor": MUTED, "linewidth": 0.9, "zorder": 1}
            look["linestyle"] = (0, (4, 2.5))
        rounding = "round,pad=0,rounding_size=0.07"
        box = FancyBboxPatch((x0, y0), x1 - x0, y1 - y0, boxstyle=rounding, **look)
        self.axes.add_patch(box)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        kind: str,
        lines: Sequence[str],
        *,
        norms: tuple[bool, bool] = (False, False),
        half: float = HALF,
        gid: str | None = None,
    ) -> None:
        """A part, its left edge at ``x``, its middle at ``y``; a dark strip for each norm."""
        from matplotlib.patches import Rectangle

        fill, edge = FILLS[kind]
        look: dict[str, Any] = {"facecolor": fill, "edgecolor": edge, "linewidth": 1.0, "zorder": 4}
        box = Rectangle((x, y - half), width, 2 * half, **look)
        box.set_gid(gid)
        self.axes.add_patch(box)
        look = {"color": INK, "linewidth": 0, "zorder": 5}
        for there, left in zip(norms, (x, x + width - STRIP), strict=True):
            if there:
                self.axes.add_patch(Rectangle((left, y - half), STRIP, 2 * half, **look))
        middle = x + width / 2 + STRIP / 2 * (norms[0] - norms[1])
        step = 0.16
        for i, line in enumerate(lines):
            self.text(middle, y + step * ((len(lines) - 1) / 2 - i), line, SMALL, align="center")

    def sign(self, x: float, y: float, sign: str, radius: float = 0.085) -> None:
        """A circle with a sum ("+") or a concatenation ("c") in it."""
        from matplotlib.patches import Circle

        look: dict[str, Any] = {"facecolor": "white", "edgecolor": INK, "linewidth": 1.0}
        self.axes.add_patch(Circle((x, y), radius, zorder=5, **look))
        reach = 0.05
        if sign == "+":
            for dx, dy in ((reach, 0.0), (0.0, reach)):
                ends = [x - dx, x + dx], [y - dy, y + dy]
                self.axes.plot(*ends, color=INK, linewidth=1.1, zorder=6)
        else:
            # a little higher: small letters stand lower than text() reckons
            self.text(x, y + 0.012, sign, SMALL + 1, align="center")

    def dot(self, x: float, y: float, color: str = INK) -> None:
        """Where a line forks."""
        from matplotlib.patches import Circle

        self.axes.add_patch(Circle((x, y), 0.032, color=color, linewidth=0, zorder=5))

    def line(
        self,
        points: Sequence[Point],
        *,
        radius: float = 0.0,
        color: str = INK,
        width: float = 1.0,
        head: bool = True,
        dashed: bool = False,
        gid: str | None = None,
    ) -> None:
        """A line through ``points``, its corners rounded, with an arrow's head at its end."""
        self._stroke(*_rounded(points, radius), color, width, head, dashed, gid)

    def bow(
        self,
        start: Point,
        end: Point,
        rise: float,
        *,
        color: str,
        dashed: bool = False,
        gid: str | None = None,
    ) -> None:
        """A curve that leaves upwards, arrives downwards and reaches ``rise`` above the start."""
        up = start[1] + rise / 0.75  # a cubic reaches three quarters of the way to its handles
        vertices = [start, (start[0], up), (end[0], up), end]
        self._stroke(vertices, [1, 4, 4, 4], color, 1.2, True, dashed, gid)

    def _stroke(
        self,
        vertices: Sequence[Point],
        codes: Sequence[int],
        color: str,
        width: float,
        head: bool,
        dashed: bool,
        gid: str | None,
    ) -> None:
        from matplotlib.patches import FancyArrowPatch, PathPatch
        from matplotlib.path import Path

        dashes: Any = (0, (2.2, 1.6)) if dashed else "-"
        path = Path([*vertices], [*codes])
        stroke = PathPatch(path, fill=False, edgecolor=color, linewidth=width, linestyle=dashes)
        stroke.set(zorder=3, gid=gid, capstyle="butt")
        self.axes.add_patch(stroke)
        if head:
            (x0, y0), (x1, y1) = vertices[-2:]
            length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
            back = (x1 - (x1 - x0) / length * 0.08, y1 - (y1 - y0) / length * 0.08)
            look: dict[str, Any] = {"color": color, "linewidth": 0, "zorder": 3}
            form = "-|>,head_length=5,head_width=2.4"
            tip = FancyArrowPatch(
                back, (x1, y1), arrowstyle=form, mutation_scale=1, shrinkA=0, shrinkB=0, **look
            )
            self.axes.add_patch(tip)


def _rounded(points: Sequence[Point], radius: float) -> tuple[list[Point], list[int]]:
    """Vertices and codes of a path whose inner corners are cut by quadratic curves."""
    vertices, codes = [points[0]], [1]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        vertices += [_towards(corner, before, radius), corner, _towards(corner, after, radius)]
        codes += [2, 3, 3]
    return [*vertices, points[-1]], [*codes, 2]


def _towards(start: Point, end: Point, distance: float) -> Point:
    length = ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5
    part = min(distance, length / 2) / length if length else 0.0
    return start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])
