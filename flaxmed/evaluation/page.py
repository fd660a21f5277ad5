"""Reports as one self-contained HTML page: its parts, and how they become text.

A page is sentences, tables and figures; ``templates/report.html`` alone knows HTML. The page holds
all it shows (figures as data, no script, no font, no style from elsewhere) and forbids the browser
to fetch anything.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import importlib.resources
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from flaxmed.evaluation.plots import DPI, render_figure
from flaxmed.evaluation.sentences import NOT_A_DEVICE

MAX_SVG = 150_000  # bytes: a larger figure is shown as PNG
_NARROW = 6.5  # inches: a wider figure keeps its size, and scrolls on a phone
_COMPACT = 0.8  # of its size is what another figure is drawn in: its text is larger beside it
_INTERVAL = re.compile(r" (\([-0-9.]+ to [-0-9.]+\))$")
_ADDRESS = re.compile(r"(https?://[^\s<>\"'()]*[^\s<>\"'().,;:])")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: what it shows, one line.
        rows: of text; the first is the header, the first cell of each other one names its row.
        words: whether the cells hold words rather than numbers.
    """

    caption: str
    rows: Sequence[Sequence[str]]
    words: bool = False


@dataclasses.dataclass(frozen=True)
class Folded:
    """Tables that the reader unfolds; they are printed all the same.

    Attributes:
        title: what they are, a few words.
        folded: the tables.
    """

    title: str
    folded: tuple[Table, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """A figure.

    Attributes:
        figure: a matplotlib figure.
        alt: what it shows, for those who do not see it.
        caption: below it; names the positive class where the figure depends on it.
    """

    figure: Any
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """An image of a data set.

    Attributes:
        pixels: ``[h, w, c]``, 0 to 255; c = 1 is grey, 3 is RGB, of others the first is shown.
        alt: what it is, for those who do not see it.
        lines: below it.
    """

    pixels: UInt8[np.ndarray, "h w c"]
    alt: str
    lines: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Section:
    """A chapter of a page, in the order of its attributes.

    Attributes:
        heading: a few words.
        notes: sentences before its figures.
        drawings, pictures, tables: what it shows.
        after: sentences below.
        folded: whether the reader can fold it away; it is printed all the same.
    """

    heading: str
    notes: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table | Folded, ...] = ()
    after: tuple[str, ...] = ()
    folded: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Page:
    """A report.

    Attributes:
        title: data set, network, number of images.
        lead: the verdict, a sentence or two each.
        facts: short lines below the title: positive class, classes and their images.
        flags: what a reader must know before any number.
        sections: in order.
        footer: small print.
    """

    title: str
    lead: tuple[str, ...]
    facts: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    footer: tuple[str, ...] = ()


def render_page(page: Page) -> str:
    """The page as HTML, whole.

    Args:
        page: its parts; all text is plain text, and web addresses in it become links.

    Example:
        >>> text = render_page(Page("a < b", lead=("Nothing to say.",)))
        >>> "<h1>a &lt; b</h1>" in text, "<script" in text
        (True, False)
    """
    from flaxmed import __version__

    return str(
        _template().render(
            page=page, notice=NOT_A_DEVICE, version=__version__, drawn=_drawn, picture=_picture
        )
    )


def _drawn(drawing: Drawing) -> dict[str, Any]:
    """The figure's data address, the width at which it is shown, and the least width, in inches.

    Each figure is a document of its own: no name in one can meet the same name in another.
    """
    figure = drawing.figure
    size = figure.get_size_inches().copy()
    narrow = bool(size[0] <= _NARROW)
    figure.set_size_inches(size * (_COMPACT if narrow else 1))
    try:
        content, kind = render_figure(figure, "svg", tight=True), "image/svg+xml"
        found = re.search(rb'<svg[^>]* width="([0-9.]+)pt"', content)
        inches = float(found[1]) / 72 if found else float(size[0])
        if len(content) > MAX_SVG:
            content, kind = render_figure(figure, "png", tight=True), "image/png"
            inches = int.from_bytes(content[16:20]) / DPI  # a PNG begins with its width
    finally:
        figure.set_size_inches(size)
    shown, least = (inches / _COMPACT, 0.0) if narrow else (inches, _COMPACT * inches)
    return {"source": _data(kind, content), "width": shown, "least": least}


def _picture(picture: Picture) -> str:
    """The image's data address."""
    from PIL import Image

    pixels = picture.pixels if picture.pixels.shape[2] == 3 else picture.pixels[:, :, 0]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="png", optimize=True)
    return _data("image/png", buffer.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@functools.cache
def _template() -> Any:
    import jinja2

    source = importlib.resources.files(__package__) / "templates" / "report.html"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"linked": _linked, "paired": _paired, "breakable": _breakable}
    return environment.from_string(source.read_text(encoding="utf-8"))


def _paired(text: Any) -> Any:
    """A number and its interval: a line may break between the two, and inside neither."""
    from markupsafe import Markup, escape

    # of Markup, sub would escape what it puts in
    return Markup(_INTERVAL.sub(r' <span class="keep">\1</span>', str(escape(text))))


def _breakable(text: str) -> Any:
    """A name in which a line may break after dots and underscores."""
    from markupsafe import Markup, escape

    return Markup(re.sub("([._])(?=.)", r"\1<wbr>", str(escape(text))))


def _linked(text: str) -> Any:
    """``text`` with its web addresses as links, and all else as it is."""
    from markupsafe import Markup, escape

    link = Markup('<a href="{0}" rel="noreferrer">{0}</a>')
    pieces = _ADDRESS.split(text)  # every second one is an address
    return Markup("").join(
        link.format(piece) if i % 2 else escape(piece) for i, piece in enumerate(pieces)
    )
