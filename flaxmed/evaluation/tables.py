"""Numbers and tables as text: terminal, Markdown, CSV, JSON; files written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxmed.evaluation.intervals import Interval
from flaxmed.types import InputError, RunError

DASH = "–"


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The table with its columns padded: names to the left, numbers to the right."""
    widths = [max(len(row[j]) for row in table) for j in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("   ".join(cells).rstrip())
    return lines


def markdown(table: Sequence[Sequence[str]]) -> list[str]:
    """The table, whose first row is its header, as lines of GitHub Markdown."""
    header, *rows = [[escape(cell) for cell in row] for row in table]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]


def escape(text: str) -> str:
    """``text`` with the characters that Markdown would read as its own made plain."""
    for character in "\\|*_<>`[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def fill(text: str) -> str:
    """``text`` in lines of at most 96 characters."""
    return "\n".join(textwrap.wrap(text, 96, subsequent_indent="  "))


def few(names: Sequence[str] | None) -> str:
    """The first four names, and how many more there are."""
    names = tuple(names or ())
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them.

    Example:
        >>> listed(["a"]), listed(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def number(value: float) -> str:
    """Four decimals, as the field prints them; NaN is "undefined"."""
    return "undefined" if math.isnan(value) else f"{value:.4f}"


def ends(interval: Interval) -> str:
    """Such as ``0.8027 to 0.9103``; a dash where there is no interval."""
    if math.isnan(interval.low):
        return DASH
    return f"{interval.low:.4f} to {interval.high:.4f}"


def p_text(p_value: float) -> str:
    """Such as ``= 0.21``, ``= 0.0034`` or ``< 0.0001``.

    Example:
        >>> p_text(0.2134), p_text(0.00341), p_text(1e-9)
        ('= 0.21', '= 0.0034', '< 0.0001')
    """
    if math.isnan(p_value):
        return "undefined"
    if p_value < 0.0001:
        return "< 0.0001"
    return f"= {p_value:.2f}" if p_value >= 0.1 else f"= {p_value:.2g}"


def percent(share: float) -> str:
    """Such as ``95%`` or ``99.9%``."""
    return f"{100 * share:.6g}%"


def whole(value: float) -> str:
    """A whole number with its thousands set apart."""
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Such as ``12.3 s``, ``4 min 05 s`` or ``2 h 07 min``.

    Example:
        >>> duration(12.34), duration(245), duration(7620)
        ('12.3 s', '4 min 05 s', '2 h 07 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def csv_number(value: float) -> str:
    """Every digit of the number; NaN is an empty cell."""
    if math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() and value >= 1000 else repr(float(value))


def json_number(value: float) -> float | None:
    """The number, or None where it is not finite, which JSON cannot say."""
    return value if math.isfinite(value) else None


def json_text(values: Mapping[str, Any]) -> str:
    """Indented JSON."""
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file whole or not at all, making its folder where needed.

    Raises:
        InputError: the folder cannot be made or written.
        RunError: the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        kind = RunError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else InputError
        raise kind(f"{path}: cannot be written: {error.strerror or error}") from None
