"""Diagrams as files: SVG with its text as text, and PNG."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flaxmed.diagram.shapes import style
from flaxmed.types import InputError, RunError

if TYPE_CHECKING:
    import matplotlib.figure

KINDS, DPI = ("svg", "png"), 200


def diagram_paths(file: str | os.PathLike[str]) -> list[Path]:
    """The files that a diagram called ``file`` goes to.

    Args:
        file: ends with .svg or .png, for that one, or has no suffix, for both.

    Raises:
        InputError: another suffix, or no name.

    Example:
        >>> [path.name for path in diagram_paths("resnet18")]
        ['resnet18.svg', 'resnet18.png']
    """
    path = Path(file)
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in ("", *KINDS) or not path.name or os.fspath(file).endswith(os.sep):
        name = os.fspath(file) or "no name"
        raise InputError(f"{name}: expected a file name that ends with .svg or .png, or neither")
    return [path] if suffix else [path.with_name(f"{path.name}.{kind}") for kind in KINDS]


def save_diagram(figure: matplotlib.figure.Figure, file: str | os.PathLike[str]) -> list[Path]:
    """Writes a diagram as SVG (text stays text), PNG (200 dots per inch), or both.

    Args:
        figure: what ``draw`` gave.
        file: as for ``diagram_paths``. Its folder must be there.

    Returns:
        The files, each written whole; where one cannot be written, none is.

    Raises:
        InputError: a suffix that is neither.
        RunError: the place cannot be written, or the disk is full.

    Example:
        >>> import tempfile
        >>> from flax import nnx
        >>> from flaxmed.diagram import draw
        >>> from flaxmed.models import ResNet18
        >>> model = nnx.eval_shape(lambda: ResNet18(2, rngs=nnx.Rngs(0)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in save_diagram(draw(model, (64, 64, 3)), f"{folder}/net.svg")]
        ['net.svg']
    """
    _write({path: _render(figure, path.suffix[1:].lower()) for path in diagram_paths(file)})
    return diagram_paths(file)


def _render(figure: matplotlib.figure.Figure, kind: str) -> bytes:
    options: dict[str, Any] = {"dpi": DPI} if kind == "png" else {"metadata": {"Date": None}}
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def _write(contents: Mapping[Path, bytes]) -> None:
    """All files beside their places first, then each under its name."""
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    path = Path()
    try:
        for path, content in contents.items():
            temporary[path].write_bytes(content)
        for path in contents:
            if path.is_dir():  # found out before another file has its name
                raise IsADirectoryError(None, "is a folder")
        for path in contents:
            os.replace(temporary[path], path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        _remove(temporary.values())


def _remove(paths: Any) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError:  # where nothing could be written there is nothing to remove
            continue
