"""A comparison as rows of text: the classic table, ranks, pairs, and how to read them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from flaxmed.evaluation.column import Column, SeedMean, Spread
from flaxmed.evaluation.report import IDEAL, group_note, macro_notes, undefined_notes
from flaxmed.evaluation.seeds import ESTIMAND, FEWEST
from flaxmed.evaluation.tables import (
    DASH,
    csv_number,
    duration,
    ends,
    number,
    p_text,
    percent,
    whole,
)
from flaxmed.evaluation.verdict import TITLES, Pair, Plan

if TYPE_CHECKING:
    from flaxmed.evaluation.comparison import Comparison

CLASSIC = {"test accuracy": "accuracy", "test loss": "loss", "AUC": "auc"}
"""The metrics of the classic comparison, by the titles of their rows."""

Row = tuple[str, Callable[[Column], Spread], Callable[[float], str]]
"""Title, what to read from a column, and how to print it."""


def rows(comparison: Comparison) -> list[Row]:
    """The rows of the table, for every column."""

    def metric(name: str) -> Callable[[Column], Spread]:
        return lambda column: column[name]

    named = dict(CLASSIC)
    if comparison.plan.metric not in named.values():  # the primary metric is always shown
        named[titled(comparison, comparison.plan.metric)] = comparison.plan.metric
    found: list[Row] = [(title, metric(name), number) for title, name in named.items()]
    if any(column.parameters is not None for column in comparison.columns):
        found.append(("parameters", _parameters, whole))
    if any(column.train_seconds for column in comparison.columns):
        found.append(("training time", lambda column: Spread(column.train_seconds), duration))
    return found


def titled(comparison: Comparison, metric: str) -> str:
    """The metric's title, with the positive class where the value depends on it."""
    positive = comparison.first[metric].positive
    return TITLES[metric] + ("" if positive is None else f" ({positive})")


def main_table(comparison: Comparison, *, stacked: bool = False) -> list[list[str]]:
    """Header and rows; intervals and ranges beside each mean, or ``stacked`` below it."""
    columns = comparison.all_columns
    table = [["", *(column.name for column in columns)]]
    for title, spread, text in rows(comparison):
        cells = [spread(column) for column in columns]
        means = [text(cell.mean) if cell.values else DASH for cell in cells]
        below = _below(comparison, title, [cell.range(text) for cell in cells])
        if stacked:
            table.append([title, *means])
            table += [[f"  {name}", *row] for name, row in below.items()]
            continue
        beside = ["; ".join(filter(None, row)) for row in zip(*below.values(), strict=True)]
        beside = beside or [""] * len(means)
        joined = [f"{m} ({r})" if r else m for m, r in zip(means, beside, strict=True)]
        table.append([title, *joined])
    return table


def side_tables(comparison: Comparison) -> list[list[list[str]]]:
    """Ranks, and what the tests say of each pair; none where there is no pair."""
    if not comparison.pairs:
        return []
    tables = [rank_table(comparison), pair_table(comparison, comparison.plan.metric)]
    if comparison.plan.metric != "accuracy":
        tables.append(pair_table(comparison, "accuracy"))
    return tables


def rank_table(comparison: Comparison) -> list[list[str]]:
    """Header and rows: network, primary metric, letters, and what it is not told apart from."""
    title = titled(comparison, comparison.plan.metric)
    table = [["by rank", title, "letters", "not distinguishable from"]]
    for place, one in enumerate(comparison.ranks, 1):
        alike = ", ".join(one.alike) or DASH
        table.append([f"{place}. {one.name}", number(one.value), one.letters, alike])
    return table


def pair_table(comparison: Comparison, metric: str) -> list[list[str]]:
    """Header and rows: the difference of each two networks in a metric, and its p-values."""
    plan = comparison.plan
    tests = dict.fromkeys(pair.differences[metric].test for pair in comparison.pairs)
    header = ["difference", titled(comparison, metric), f"{percent(plan.level)} interval", "p"]
    primary, mid = metric == plan.metric, any("McNemar" in test for test in tests)
    header += (["p, Holm"] if primary else []) + (["mid-p"] if mid else []) + ["test"]
    table = [header]
    for pair in comparison.pairs:
        d = pair.differences[metric]
        row = [f"{pair.first} – {pair.second}", number(d.value), ends(d.interval), _p(d.p_value)]
        row += [_p(pair.adjusted)] if primary else []
        row += [_p(d.beside.get("mid_p", math.nan))] if mid else []
        table.append([*row, d.test])
    return table


def csv_text(comparison: Comparison) -> str:
    """The table at full precision, with the ends of every interval."""
    columns = comparison.all_columns
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["", *(column.name for column in columns)])
    for title, spread, text in rows(comparison):
        unit = " (s)" if text is duration else ""
        spreads = [spread(column) for column in columns]
        writer.writerow([title + unit, *(csv_number(s.mean) for s in spreads)])
        for name, read in _ends(comparison, title):
            writer.writerow([f"{title}, {name}", *(csv_number(read(c)) for c in columns)])
        if any(len(s.values) > 1 for s in spreads):
            for name, end in (("smallest", "min"), ("largest", "max")):
                values = [csv_number(getattr(s, end)) for s in spreads]
                writer.writerow([f"{title}{unit}, {name}", *values])
    writer.writerow(["seeds", *(len(column.reports) for column in columns)])
    writer.writerow(["test images", *(comparison.n for _ in columns)])
    return file.getvalue()


def found_flags(comparison: Comparison) -> list[str]:
    """Signs of collapse and of images in two splits, each once, with the networks that show them.

    A sign that only some seeds of a network show is named by their runs.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for column in comparison.columns:
        for i, report in enumerate(column.reports):
            for flag in report.flags:
                found.setdefault(flag, {}).setdefault(column.name, []).append(i)
    seeds = {column.name: len(column.reports) for column in comparison.columns}
    lines = []
    for flag, held in found.items():
        names = []
        for name, which in held.items():
            if len(which) == seeds[name]:
                names.append(name)
                continue
            runs = comparison.runs.get(name)
            names += [runs[i] if runs else f"{name} ({i + 1} of {seeds[name]})" for i in which]
        everywhere = sum(map(len, held.values())) == sum(seeds.values())
        lines.append(flag if everywhere else f"{', '.join(names)}: {flag}")
    return lines


def reading_notes(comparison: Comparison) -> list[str]:
    """How the numbers are to be read, a sentence or two each."""
    first, level = comparison.first, percent(comparison.plan.level)
    notes = [] if first.positive is None else [f"Positive class: {first.positive}."]
    notes += macro_notes(first.task, first.classes)
    if not comparison.source.synthetic:  # synthetic images are of no patient
        notes.append(group_note(first.n, first.groups))
    notes.append(
        f"{level} intervals are for other images of the same kind, the trained networks held fixed."
    )
    if comparison.pairs:
        notes.append(
            "The tests on the primary metric are corrected for the number of pairs (Holm), the "
            "others, and all intervals, are not: an interval and a test may disagree by a little. "
            "Sharing a letter does not make two networks equal."
        )
    notes += _seed_notes(comparison)
    if any(column.train_seconds for column in comparison.columns):
        notes.append("Training time includes compilation, and leaves out evaluation.")
    if comparison.ideal is not None:
        notes.append(
            f"The {IDEAL} knows the model that generated the images; on average no method "
            "does better, on a finite set of images one may by chance."
        )
        notes += [_beside_ideal(pair, comparison.plan) for pair in comparison.from_ideal]
    if _sizes_differ(comparison):
        notes.append("The networks did not see the same pixels: other sizes or file formats.")
    return notes + undefined_lines(comparison)


def undefined_lines(comparison: Comparison) -> list[str]:
    """Why a metric of the table is undefined, and for which networks."""
    found = [(column.name, r) for column in comparison.all_columns for r in column.reports]
    return undefined_notes(found, only=[*CLASSIC.values(), comparison.plan.metric])


def _below(comparison: Comparison, title: str, ranges: list[str]) -> dict[str, list[str]]:
    """What stands with a row of means: by name, a text per column; empty ones left out."""
    found = {"over seeds": ranges}
    name = _metric(comparison, title)
    if name is not None:
        means = [column.means[name] for column in comparison.all_columns]
        found = {
            f"{percent(comparison.plan.level)} interval": [ends(mean.interval) for mean in means],
            **found,
            "seeds and images": [_joint(mean) for mean in means],
        }
    return {name: row for name, row in found.items() if any(row)}


def _metric(comparison: Comparison, title: str) -> str | None:
    """The metric of a row, or None."""
    metric = comparison.plan.metric
    return {**CLASSIC, titled(comparison, metric): metric}.get(title)


def _joint(mean: SeedMean) -> str:
    return "" if math.isnan(mean.joint.low) else ends(mean.joint)


def _ends(comparison: Comparison, title: str) -> list[tuple[str, Callable[[Column], float]]]:
    """Names of the intervals' ends in the CSV, and how to read them from a column."""
    name = _metric(comparison, title)
    if name is None:
        return []

    def read(which: str, end: str) -> Callable[[Column], float]:
        return lambda column: float(getattr(getattr(column.means[name], which), end))

    found = [("low", read("interval", "low")), ("high", read("interval", "high"))]
    if any(len(column.reports) >= FEWEST for column in comparison.columns):
        found += [("low with new seeds", read("joint", "low"))]
        found += [("high with new seeds", read("joint", "high"))]
    return found


def _seed_notes(comparison: Comparison) -> list[str]:
    seeds = {column.name: len(column.reports) for column in comparison.columns}
    if max(seeds.values()) == 1:
        return []
    counts = ", ".join(f"{name} {count}" for name, count in seeds.items())
    joined = (
        f"Seeds and images joined: {ESTIMAND}."
        if max(seeds.values()) >= FEWEST
        else f"Below {FEWEST} seeds, seeds and images are not joined."
    )
    return [f"Means over seeds, from the smallest to the largest; seeds: {counts}.", joined]


def _beside_ideal(pair: Pair, plan: Plan) -> str:
    d = pair.primary
    if math.isnan(d.value):
        return f"{pair.first} beside the {IDEAL}: undefined ({d.reason})."
    return (
        f"{pair.first}: {plan.title} {d.value:+.4f} from the {IDEAL}'s ({ends(d.interval)}; p "
        f"{p_text(pair.adjusted)}, Holm-adjusted)."
    )


def _sizes_differ(comparison: Comparison) -> bool:
    digests = [p.image_sha256 for column in comparison.columns for p in column.predictions]
    known = [d for d in digests if d is not None]
    return any((d != known[0]).any() for d in known)


def _parameters(column: Column) -> Spread:
    return Spread(() if column.parameters is None else (float(column.parameters),))


def _p(value: float) -> str:
    return DASH if math.isnan(value) else p_text(value).removeprefix("= ")
