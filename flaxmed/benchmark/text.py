"""The results as text: a table, and how flaxmed stands beside the better of PyTorch's ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_HEAD = (
    *("network", "by", "training", "inference", "latency", "compile", "restart"),
    *("memory", "activations", "of ceiling"),
)
_UNITS = ("", "", "images/s", "images/s", "ms, p50", "s", "s", "MB", "MB", "training")
_KINDS = ("train", "inference", "latency")


def speeds(row: Row) -> dict[str, float | None]:
    """By kind of measurement what is the larger the faster: images per second.

    Example:
        >>> speeds({"train_images_per_second": 8.0, "inference_images_per_second": None,
        ...         "latency_ms": {"p50": 2.0}})
        {'train': 8.0, 'inference': None, 'latency': 500.0}
    """
    p50 = row["latency_ms"]["p50"]
    return {
        "train": row["train_images_per_second"],
        "inference": row["inference_images_per_second"],
        "latency": 1e3 / p50 if p50 else None,
    }


def ratios(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """By network, how many times as fast flaxmed is as the better of PyTorch's ways.

    The better way is found for each kind of measurement by itself. Above 1 flaxmed is faster, of
    latencies too.

    Args:
        rows: of :meth:`flaxmed.benchmark.Cost.to_dict`; networks without PyTorch are left out.

    Example:
        >>> def row(contestant, rate):
        ...     return {"network": "resnet18", "contestant": contestant,
        ...             "train_images_per_second": rate, "inference_images_per_second": None,
        ...             "latency_ms": {"p50": None}}
        >>> ratios([row("flaxmed", 9), row("PyTorch eager", 5), row("PyTorch compile", 6)])
        {'resnet18': {'train': 1.5, 'inference': None, 'latency': None}}
    """
    found = {}
    for ours in rows:
        others = [speeds(row) for row in _beside_it(ours, rows)]
        if ours["contestant"] == "flaxmed" and others:
            own = speeds(ours)
            best = {kind: max(one[kind] or 0.0 for one in others) for kind in _KINDS}
            found[ours["network"]] = {kind: _ratio(own[kind], best[kind]) for kind in _KINDS}
    return found


def _beside_it(ours: Row, rows: Sequence[Row]) -> list[Row]:
    """PyTorch's rows of the same network."""
    return [
        row
        for row in rows
        if row["network"] == ours["network"] and row["contestant"] != ours["contestant"]
    ]


def _ratio(value: float | None, other: float | None) -> float | None:
    return round(value / other, 3) if value and other else None


def closing_lines(rows: Sequence[Row]) -> list[str]:
    """A line per network: its ratios in words; none where PyTorch was not measured."""
    ways = {row["contestant"] for row in rows} - {"flaxmed"}
    other = "the better PyTorch" if len(ways) > 1 else next(iter(ways), "")
    words = {"train": "training", "inference": "inference", "latency": "latency"}
    lines = []
    for network, found in ratios(rows).items():
        parts = [f"{words[kind]} x{value:.2f}" for kind, value in found.items() if value]
        if parts:
            lines.append(f"{network}: {', '.join(parts)} of {other}")
    return lines


def table(rows: Sequence[Row]) -> str:
    """The rows of :meth:`flaxmed.benchmark.Cost.to_dict` as text, a line each.

    What stands in brackets is how many times as fast flaxmed is; a dash is what was not measured.
    """
    cells: list[tuple[str, ...]] = [_HEAD, _UNITS]
    ours: dict[str, Row] = {row["network"]: row for row in rows if row["contestant"] == "flaxmed"}
    for row in rows:
        own, beside = speeds(row), speeds(ours[row["network"]])
        times = {
            kind: "" if row["contestant"] == "flaxmed" else _times(_ratio(beside[kind], own[kind]))
            for kind in _KINDS
        }
        cells.append(
            (
                row["network"],
                row["contestant"],
                _cell(row["train_images_per_second"]) + times["train"],
                _cell(row["inference_images_per_second"]) + times["inference"],
                _cell(row["latency_ms"]["p50"]) + times["latency"],
                _cell(row["compile_seconds"]),
                _cell(row.get("restart_seconds")),
                _cell(row["memory_bytes"], "{:.0f}", 1e-6),
                _cell(row.get("activation_bytes"), "{:.0f}", 1e-6),
                _cell(row["train_share_of_ceiling"], "{:.0%}"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _cell(value: float | None, form: str = "{:.1f}", scale: float = 1.0) -> str:
    return "-" if value is None else form.format(value * scale)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f" (x{ratio:.2f})"
