"""Every metric in parts of the images, by sex, site, scanner or age band, and the gaps between."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxmed.evaluation.estimates import Metric, Sampling, estimate_metrics
from flaxmed.evaluation.gaps import Gap, gaps_between
from flaxmed.evaluation.metrics import METRICS
from flaxmed.evaluation.shuffles import take
from flaxmed.evaluation.tables import few
from flaxmed.types import InputError, Predictions, Task

SubgroupColumns = Mapping[str, Mapping[str, str]]
"""By column (``"sex"``) the value of each image id; "" where it is not known."""

USUAL = Sampling()
NOT_KNOWN = "not known"
MOST_VALUES = 30
FEW = 30

UNCORRECTED = (
    "Intervals and p-values of subgroups are not corrected for looking at several, nor at several "
    "metrics: among many, some stand out by chance."
)
EXTREMES = (
    "The interval of a gap does not know that its two subgroups were picked as the extremes of "
    "several; its p-value does."
)


@dataclasses.dataclass(frozen=True)
class Part:
    """One subgroup.

    Attributes:
        value: what its images share, such as ``"F"``.
        n: number of images.
        groups: how many groups (patients) they are of, or None where that is not known.
        counts: images of each class (multi-label: with each label).
        metrics: every metric that applies, of these images alone; NaN with its reason where
            undefined.
        known: False for the images whose value is not known.
    """

    value: str
    n: int
    groups: int | None
    counts: tuple[int, ...]
    metrics: Mapping[str, Metric]
    known: bool = True

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        return {
            "value": self.value,
            "known": self.known,
            "n": self.n,
            "groups": self.groups,
            "class_counts": list(self.counts),
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
        }


@dataclasses.dataclass(frozen=True)
class Subgroups:
    """The images, parted by one column.

    Attributes:
        column: its name, such as ``"sex"``.
        parts: the subgroups, by value; last the images whose value is not known, if there are any.
        gaps: the largest of every metric, among the subgroups whose value is known.
        notes: what to mind, a sentence or two each.
    """

    column: str
    parts: tuple[Part, ...]
    gaps: Mapping[str, Gap]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        return {
            "column": self.column,
            "parts": [part.to_dict() for part in self.parts],
            "gaps": {name: gap.to_dict() for name, gap in self.gaps.items()},
            "notes": list(self.notes),
        }


def read_subgroups(path: str | os.PathLike[str]) -> SubgroupColumns:
    """The columns of a CSV file: UTF-8, commas, a header, a column ``id`` and at least one more.

    Args:
        path: the file. Its ids are those of the predictions, such as ``test/0007``; it may have
            more. An empty cell is a value that is not known.

    Returns:
        By column the value of each id, in the order of the file.

    Raises:
        InputError: no such file, or contents that do not fit; names file, line and column.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "patients.csv"
        ...     _ = path.write_text("id,sex\\ntest/0000,F\\ntest/0001,M\\n")
        ...     read_subgroups(path)
        {'sex': {'test/0000': 'F', 'test/0001': 'M'}}
    """
    path = Path(path)
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows = []
    try:
        for cells in reader:
            if cells:  # a blank line has none
                rows.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}") from None
    if not rows:
        raise InputError(f"{path}: is empty; expected a header with id and other columns")
    (line, header), *body = rows
    _check_header(f"{path}: line {line}", header)
    if not body:
        raise InputError(f"{path}: has no line below its header")
    at = header.index("id")
    found: dict[str, dict[str, str]] = {name: {} for name in header if name != "id"}
    lines: dict[str, int] = {}
    for line, cells in body:
        if len(cells) != len(header):
            raise InputError(
                f"{path}: line {line}: {len(cells)} cells, expected {len(header)} "
                f"({_quoted(header)})"
            )
        key = cells[at]
        if not key:
            raise InputError(f"{path}: line {line}: column 'id' is empty")
        if key in lines:
            raise InputError(
                f"{path}: line {line}: column 'id': {key!r} stands on line {lines[key]} too"
            )
        lines[key] = line
        for name, cell in zip(header, cells, strict=True):
            if name != "id":
                found[name][key] = cell
    return found


def split_metrics(
    predictions: Predictions, columns: SubgroupColumns, sampling: Sampling = USUAL
) -> tuple[Subgroups, ...]:
    """Every metric in each subgroup, and its largest gap between two of them, for each column.

    A value that only other images have (those of another split) is a subgroup without images.

    Args:
        predictions: of one model on one split; intervals and shuffles respect their groups.
        columns: a value for each image id; see :func:`read_subgroups`.
        sampling: coverage, draws and seed.

    Raises:
        InputError: a column that has none of the images, or more than 30 different values.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
        >>> p = Predictions.from_probabilities(scores, labels=[0, 1, 0, 1], task="binary")
        >>> (found,) = split_metrics(p, {"sex": {"0": "F", "1": "F", "2": "M", "3": "M"}})
        >>> [(part.value, part.n, part.metrics["accuracy"].value) for part in found.parts]
        [('F', 2, 1.0), ('M', 2, 0.5)]
        >>> found.gaps["accuracy"].value, found.gaps["accuracy"].lowest
        (0.5, 'M')
    """
    return tuple(_split(predictions, name, dict(of), sampling) for name, of in columns.items())


def _text(path: Path) -> str:
    """The text of a file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file of subgroups")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        return content.decode("utf-8-sig")  # with or without the mark that Excel writes
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line}: not UTF-8; save the table as CSV UTF-8") from None


def _quoted(header: Sequence[str]) -> str:
    """The first names of a header as Python writes them: a line break in one stays on the line."""
    return few([repr(name) for name in header])


def _check_header(where: str, header: Sequence[str]) -> None:
    if "" in header:
        raise InputError(f"{where}: column {header.index('') + 1} has no name")
    twice = [name for i, name in enumerate(header) if name in header[:i]]
    if twice:
        raise InputError(f"{where}: column {twice[0]!r} occurs twice")
    if "id" not in header:
        raise InputError(
            f"{where}: no column 'id'; expected names parted by commas, got {_quoted(header)}"
        )
    if len(header) == 1:
        raise InputError(f"{where}: no column but 'id'; expected one or more, such as sex or site")


def _split(p: Predictions, column: str, of: Mapping[str, str], sampling: Sampling) -> Subgroups:
    names = sorted(set(of.values()) - {""}, key=_natural)
    ids = p.ids.tolist()
    _check_column(column, names, ids, of)
    number = {name: i for i, name in enumerate(names)}
    value = np.array([number.get(of.get(key, ""), -1) for key in ids], np.int64)
    pieces = [(name, take(p, value == i)) for i, name in enumerate(names)]
    parts = [_part(name, piece, sampling) for name, piece in pieces]
    found = [(*piece, part.metrics) for piece, part in zip(pieces, parts, strict=True)]
    applies = [spec.name for spec in METRICS if p.task in spec.tasks]
    gaps = gaps_between(applies, found, seed=sampling.seed)
    notes = _notes(p, column, of, value, parts)
    if (value < 0).any():
        unknown = _part(NOT_KNOWN, take(p, value < 0), sampling)
        parts.append(dataclasses.replace(unknown, known=False))
    return Subgroups(column, tuple(parts), gaps, notes)


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sorts names with numbers in them by the numbers: 9-17 before 18-39."""
    pieces = re.split(r"([0-9]+)", name)
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], name


def _check_column(
    column: str, names: Sequence[str], ids: Sequence[str], of: Mapping[str, str]
) -> None:
    if len(names) > MOST_VALUES:
        raise InputError(
            f"column {column!r} has {len(names)} different values ({few(names)}), expected at "
            f"most {MOST_VALUES}: of a number such as age make bands"
        )
    if ids and not any(key in of for key in ids):
        raise InputError(
            f"column {column!r} has a value for none of the {len(ids)} images: its ids are "
            f"{few(list(of)) or 'none'}; those of the images are {few(ids)}"
        )


def _part(value: str, p: Predictions, sampling: Sampling) -> Part:
    multilabel = p.task is Task.MULTILABEL
    counts = p.labels.sum(axis=0) if multilabel else np.bincount(p.labels, minlength=len(p.classes))
    groups = None if p.groups is None else len(np.unique(p.groups))
    return Part(value, len(p), groups, tuple(counts.tolist()), estimate_metrics(p, sampling))


def _notes(
    p: Predictions,
    column: str,
    of: Mapping[str, str],
    value: Int[np.ndarray, " n"],
    parts: Sequence[Part],
) -> tuple[str, ...]:
    """What to mind about this column."""
    notes = [UNCORRECTED, *([EXTREMES] if len(parts) > 2 else [])]
    kind = "image" if p.groups is None else "group"
    sizes = [(part.value, part.n if part.groups is None else part.groups) for part in parts]
    small = [f"{name} ({size})" for name, size in sizes if 0 < size < FEW]
    if small:
        notes.append(f"Subgroups of fewer than {FEW} {kind}s support little: {', '.join(small)}.")
    lost = int((value < 0).sum())
    if lost:
        absent = sum(key not in of for key in p.ids.tolist())
        also = f" ({absent} not in the table)" if absent else ""
        notes.append(f"{column}: not known of {_images(lost)}{also}, in no gap.")
    elsewhere = len(of) - sum(key in of for key in p.ids.tolist())
    if elsewhere:
        notes.append(f"The table also has {_images(elsewhere)} that these predictions have not.")
    if p.groups is not None:
        pairs = np.unique(np.stack([p.groups[value >= 0], value[value >= 0].astype(str)]), axis=1)
        _, counts = np.unique(pairs[0], return_counts=True)
        mixed = int((counts > 1).sum())
        if mixed:
            notes.append(
                f"{mixed} group{'s have' if mixed > 1 else ' has'} images in several subgroups: "
                "intervals of gaps allow for it, and these images are shuffled within their group."
            )
    return tuple(notes)


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
