"""Several networks on the same images, a column each."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxmed.evaluation.plots import History
from flaxmed.evaluation.report import (
    IDEAL,
    NO_SOURCE,
    Report,
    Source,
    describe_images,
    evaluate,
    reading_notes,
    undefined_notes,
)
from flaxmed.evaluation.tables import (
    DASH,
    aligned,
    csv_number,
    duration,
    escape,
    few,
    fill,
    json_number,
    markdown,
    number,
    whole,
)
from flaxmed.types import InputError, Predictions


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number measured once per seed.

    Attributes:
        values: one per seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean; NaN if any is NaN, or there is none."""
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def min(self) -> float:
        """The smallest, likewise."""
        return float(np.min(self.values)) if self.values else math.nan

    @property
    def max(self) -> float:
        """The largest, likewise."""
        return float(np.max(self.values)) if self.values else math.nan

    def range(self, text: Callable[[float], str]) -> str:
        """From the smallest to the largest, each printed by ``text``; "" for a single seed."""
        if len(self.values) < 2 or math.isnan(self.mean):
            return ""
        return f"{text(self.min)} to {text(self.max)}"

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        values = {"mean": self.mean, "min": self.min, "max": self.max}
        plain = {name: json_number(value) for name, value in values.items()}
        return {**plain, "values": [json_number(value) for value in self.values]}


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """One network of a comparison.

    Attributes:
        name: the network.
        predictions: one per seed, with the images in the same order in all columns.
        reports: one per seed.
        parameters: number of trainable parameters, or None.
        train_seconds: training time of each seed, in seconds; empty where it is not known.
        histories: training curves of each seed; empty where they are not known.
    """

    name: str
    predictions: tuple[Predictions, ...]
    reports: tuple[Report, ...]
    parameters: int | None = None
    train_seconds: tuple[float, ...] = ()
    histories: tuple[History, ...] = ()

    def __getitem__(self, metric: str) -> Spread:
        """A metric over the seeds, e.g. ``column["auc"].mean``."""
        return Spread(tuple(report[metric].value for report in self.reports))

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold."""
        return {
            "name": self.name,
            "seeds": len(self.reports),
            "metrics": {name: self[name].to_dict() for name in self.reports[0]},
            "parameters": self.parameters,
            "train_seconds": Spread(self.train_seconds).to_dict() if self.train_seconds else None,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison(Mapping[str, Column]):
    """Several networks on the same images: a mapping from name to :class:`Column`.

    ``str`` is a table for the terminal; :meth:`to_markdown`, :meth:`to_csv` and :meth:`to_dict`
    say the same. Nothing here tests whether the networks differ.

    Attributes:
        columns: the networks.
        ideal: the ideal observer, on data whose generating model is known, else None.
        source: data set and split, as far as known.

    Example:
        >>> labels = np.array([0, 1, 0])
        >>> p = Predictions.from_probabilities(
        ...     np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), labels=labels, task="binary"
        ... )
        >>> print(compare({"resnet18": p, "xception": p}))
        predictions
        3 images (0 2; 1 1)
        <BLANKLINE>
                        resnet18   xception
        test accuracy     0.6667     0.6667
        test loss         0.4149     0.4149
        AUC               1.0000     1.0000
        <BLANKLINE>
        Measured on 3 test images; whether the networks differ is not tested here.
    """

    columns: tuple[Column, ...]
    ideal: Column | None = None
    source: Source = NO_SOURCE

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"{name!r}; compared are {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        return (column.name for column in self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def n(self) -> int:
        """Number of images."""
        return self._first.n

    def __str__(self) -> str:
        first = self._first
        lines = [
            self.source.title(),
            *describe_images(first.n, first.task, first.classes, first.counts),
            "",
            *aligned(self._table(stacked=True)),
            "",
        ]
        return "\n".join([*lines, *(fill(note) for note in self._notes())])

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self)} on {self.n} images>"

    def to_markdown(self) -> str:
        """The comparison as GitHub Markdown."""
        first = self._first
        about = describe_images(first.n, first.task, first.classes, first.counts, width=0)
        lines = [f"## {escape(self.source.title())}", "", *map(escape, about), ""]
        lines += markdown(self._table())
        return "\n".join([*lines, "", *(f"- {escape(note)}" for note in self._notes()), ""])

    def to_csv(self) -> str:
        """The comparison as CSV at full precision: a column per network, empty where undefined.

        With several seeds the smallest and the largest follow each mean as rows of their own.
        """
        columns = self._columns
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", *(column.name for column in columns)])
        for title, spread, text in self._rows():
            title += " (s)" if text is duration else ""
            spreads = [spread(column) for column in columns]
            writer.writerow([title, *(csv_number(s.mean) for s in spreads)])
            if any(len(s.values) > 1 for s in spreads):
                writer.writerow([f"{title}, smallest", *(csv_number(s.min) for s in spreads)])
                writer.writerow([f"{title}, largest", *(csv_number(s.max) for s in spreads)])
        writer.writerow(["seeds", *(len(column.reports) for column in columns)])
        writer.writerow(["test images", *(self.n for _ in columns)])
        return file.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold: NaN is None; every metric of every seed."""
        first = self._first
        return {
            **{k: v for k, v in self.source.to_dict().items() if k != "model"},
            "n": first.n,
            "task": str(first.task),
            "classes": [
                {"name": name, "images": count}
                for name, count in zip(first.classes, first.counts, strict=True)
            ],
            "positive": first.positive,
            "columns": [column.to_dict() for column in self.columns],
            "ideal_observer": None if self.ideal is None else self.ideal.to_dict(),
            "notes": self._notes(),
        }

    @property
    def _first(self) -> Report:
        return self.columns[0].reports[0]

    @property
    def _columns(self) -> tuple[Column, ...]:
        return self.columns if self.ideal is None else (*self.columns, self.ideal)

    def _sizes_differ(self) -> bool:
        digests = [p.image_sha256 for column in self.columns for p in column.predictions]
        known = [d for d in digests if d is not None]
        return any((d != known[0]).any() for d in known)

    def _rows(self) -> list[tuple[str, Callable[[Column], Spread], Callable[[float], str]]]:
        """Title, what to read from a column, and how to print it."""
        rows: list[tuple[str, Callable[[Column], Spread], Callable[[float], str]]] = [
            ("test accuracy", lambda column: column["accuracy"], number),
            ("test loss", lambda column: column["loss"], number),
            ("AUC", lambda column: column["auc"], number),
        ]
        if any(column.parameters is not None for column in self.columns):
            rows.append(("parameters", _parameters, whole))
        if any(column.train_seconds for column in self.columns):
            rows.append(("training time", lambda column: Spread(column.train_seconds), duration))
        return rows

    def _table(self, *, stacked: bool = False) -> list[list[str]]:
        """Header and rows; the range over seeds beside each mean, or ``stacked`` below it."""
        columns = self._columns
        table = [["", *(column.name for column in columns)]]
        for title, spread, text in self._rows():
            cells = [spread(column) for column in columns]
            means = [text(cell.mean) if cell.values else DASH for cell in cells]
            ranges = [cell.range(text) for cell in cells]
            if stacked:
                table.append([title, *means])
                table += [["  over seeds", *ranges]] if any(ranges) else []
            else:
                both = [f"{m} ({r})" if r else m for m, r in zip(means, ranges, strict=True)]
                table.append([title, *both])
        return table

    def _notes(self) -> list[str]:
        first = self._first
        notes = reading_notes(first.task, first.classes)
        seeds = {column.name: len(column.reports) for column in self.columns}
        if any(count > 1 for count in seeds.values()):
            counts = ", ".join(f"{name} {count}" for name, count in seeds.items())
            notes.append(f"Means over seeds, from the smallest to the largest; seeds: {counts}.")
        if any(column.train_seconds for column in self.columns):
            notes.append("Training time includes compilation, and leaves out evaluation.")
        if self.ideal is not None:
            notes.append(
                f"The {IDEAL} knows the model that generated the images; on average no method "
                "does better, on a finite set of images one may by chance."
            )
        if self._sizes_differ():
            notes.append("The networks did not see the same pixels: other sizes or file formats.")
        tested = f"Measured on {first.n} test image{'s' if first.n != 1 else ''}"
        notes.append(f"{tested}; whether the networks differ is not tested here.")
        found = [(column.name, report) for column in self._columns for report in column.reports]
        return notes + undefined_notes(found, only=("accuracy", "loss", "auc"))


def compare(
    predictions: Mapping[str, Predictions | Sequence[Predictions]],
    *,
    costs: Mapping[str, Mapping[str, Any]] | None = None,
    ideal: Predictions | None = None,
) -> Comparison:
    """Several networks on the same test images, paired on image ids.

    Args:
        predictions: by network; a list where a network was trained with several seeds.
        costs: by network, any of ``parameters`` (a whole number) and ``train_seconds`` (a number,
            or one per seed).
        ideal: the ideal observer's predictions, on data whose generating model is known.

    Raises:
        InputError: nothing to compare; predictions of different images, labels, tasks or classes
            (the message counts what differs); pixels that differ for some images and not for
            others; costs of a network that is not compared.

    Example:
        >>> labels = np.array([0, 1, 0])
        >>> p = Predictions.from_probabilities(
        ...     np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), labels=labels, task="binary"
        ... )
        >>> comparison = compare({"a": p, "b": [p, p]})
        >>> comparison["b"]["auc"].values
        (1.0, 1.0)
    """
    costs = costs or {}
    seeds = {
        name: (given,) if isinstance(given, Predictions) else tuple(given)
        for name, given in predictions.items()
    }
    if not seeds:
        raise InputError("nothing to compare: expected at least one network's predictions")
    for name, given in seeds.items():
        if not given:
            raise InputError(f"{name}: no predictions to compare")
    unknown = set(costs) - set(seeds)
    if unknown:
        raise InputError(
            f"costs of {min(unknown)!r}, which is not compared; expected {', '.join(seeds)}"
        )
    first_name, first = next((name, given[0]) for name, given in seeds.items())
    columns = []
    for name, given in seeds.items():
        many = len(given) > 1
        paired = tuple(
            _paired(p, f"{name} ({i} of {len(given)})" if many else name, first, first_name)
            for i, p in enumerate(given, 1)
        )
        cost = costs.get(name, {})
        columns.append(
            Column(
                name,
                paired,
                tuple(evaluate(p) for p in given),
                parameters=_cost_parameters(name, cost),
                train_seconds=_cost_seconds(name, cost, len(given)),
            )
        )
    best = None
    if ideal is not None:
        best = Column(IDEAL, (_paired(ideal, IDEAL, first, first_name),), (evaluate(ideal),))
    return Comparison(tuple(columns), best)


def _cost_parameters(name: str, cost: Mapping[str, Any]) -> int | None:
    value = cost.get("parameters")
    if value is None:
        return None
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 0:
        raise InputError(f"costs of {name}: parameters must be a whole number, got {value!r}")
    return int(value)


def _cost_seconds(name: str, cost: Mapping[str, Any], seeds: int) -> tuple[float, ...]:
    unknown = set(cost) - {"parameters", "train_seconds"}
    if unknown:
        raise InputError(
            f"costs of {name}: unknown {min(unknown)!r}; expected parameters or train_seconds"
        )
    value = cost.get("train_seconds")
    if value is None:
        return ()
    try:
        seconds = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError):
        seconds = np.array([math.nan])
    if seconds.shape not in ((1,), (seeds,)) or not np.all(np.isfinite(seconds) & (seconds >= 0)):
        raise InputError(
            f"costs of {name}: train_seconds must be one number, or one per seed ({seeds}), "
            f"got {value!r}"
        )
    return tuple(seconds.tolist())


def _paired(p: Predictions, name: str, first: Predictions, first_name: str) -> Predictions:
    """``p`` with its images in the order of ``first``'s, or an InputError that counts what
    differs."""
    if p is first:
        return p
    if p.task is not first.task:
        raise InputError(f"{name} is a {p.task} task, {first_name} {first.task}")
    if p.classes != first.classes:
        raise InputError(
            f"{name} has the classes {few(p.classes)}, {first_name} {few(first.classes)}"
        )
    if p.positive != first.positive:
        raise InputError(f"{name} has positive class {p.positive}, {first_name} {first.positive}")
    ids, wanted = np.asarray(p.ids), np.asarray(first.ids)
    extra, absent = np.setdiff1d(ids, wanted), np.setdiff1d(wanted, ids)
    if len(extra) or len(absent):
        raise InputError(
            f"{name} and {first_name} are not predictions of the same images: {len(extra)} of "
            f"{len(ids)} ids of {name} are not in {first_name}, and {len(absent)} of "
            f"{len(wanted)} the other way round"
        )
    by_id = np.argsort(ids)
    order = by_id[np.searchsorted(ids, wanted, sorter=by_id)]
    labels = p.labels[order]
    off = labels != first.labels
    off = off.any(axis=1) if off.ndim > 1 else off
    if off.any():
        raise InputError(
            f"{name} and {first_name} have different labels for {off.sum()} of {len(off)} images, "
            f"{str(wanted[off.argmax()])!r} the first"
        )
    groups = None if p.groups is None else p.groups[order]
    digests = None if p.image_sha256 is None else p.image_sha256[order]
    if digests is not None and first.image_sha256 is not None:
        other = digests != first.image_sha256
        if other.any() and not other.all():  # all: the same images at another size
            raise InputError(
                f"{name} and {first_name} saw different pixels (SHA-256) for {other.sum()} of "
                f"{len(other)} images, {str(wanted[other.argmax()])!r} the first"
            )
    return dataclasses.replace(
        p, labels=labels, logits=p.logits[order], ids=wanted, groups=groups, image_sha256=digests
    )


def _parameters(column: Column) -> Spread:
    return Spread(() if column.parameters is None else (float(column.parameters),))
