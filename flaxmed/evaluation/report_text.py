"""A report as text for the terminal, and as Markdown."""

from __future__ import annotations

from flaxmed.evaluation.report import Report, describe_images
from flaxmed.evaluation.report_tables import (
    Rows,
    calibration_table,
    class_table,
    confusion_table,
    gap_notes,
    gap_table,
    metric_table,
    operating_caption,
    operating_table,
    subgroup_table,
)
from flaxmed.evaluation.tables import aligned, escape, fill, markdown, percent
from flaxmed.types import Task

_WIDE = 96  # of a terminal; a wider confusion matrix has numbers for its columns


def report_text(report: Report) -> str:
    """The report for a terminal."""
    lines = [
        report.source.title(),
        *describe_images(report.n, report.task, report.classes, report.counts),
        *(fill(f"! {flag}") for flag in report.flags),
        "",
        *aligned(metric_table(report)),
        "",
        *map(fill, report.notes()),
    ]
    for caption, rows, notes in _chapters(report):
        lines += ["", fill(caption), *aligned(_narrow(rows)), *map(fill, notes)]
    return "\n".join(lines)


def report_markdown(report: Report) -> str:
    """The report as GitHub Markdown."""
    about = describe_images(report.n, report.task, report.classes, report.counts, width=0)
    lines = [f"## {escape(report.source.title())}", "", *map(escape, about)]
    lines += [f"\n**{escape(flag)}**" for flag in report.flags]
    lines += ["", *markdown(metric_table(report))]
    lines += ["", *(f"- {escape(note)}" for note in report.notes())]
    for caption, rows, notes in _chapters(report):
        lines += ["", f"{escape(caption)}:", "", *markdown(rows)]
        lines += ["", *(f"- {escape(note)}" for note in notes)] if notes else []
    return "\n".join([*lines, ""])


def _chapters(report: Report) -> list[tuple[str, Rows, list[str]]]:
    """Caption, table and notes of all that the report has beside its metrics."""
    level = percent(report.level)
    found: list[tuple[str, Rows, list[str]]] = []
    if report.task is not Task.BINARY:
        kind = "class" if report.task.exclusive else "label"
        caption = f"each {kind} against the rest, with {level} intervals"
        found.append((caption, class_table(report), []))
    found.append(("images by truth (rows) and decision (columns)", confusion_table(report), []))
    calibration = report.calibration
    if calibration is not None and not calibration.test.reason and calibration.scaled is not None:
        found.append(("calibration", calibration_table(calibration), calibration.notes()))
    if report.operating_points:
        points = report.operating_points
        caption = operating_caption(points, report.level)
        reasons = dict.fromkeys(f"{p.of_class}: {p.reason}." for p in points if p.reason)
        found.append((caption, operating_table(points), list(reasons)))
    for column in report.subgroups:
        caption = f"by {column.column}, with {level} intervals"
        found.append((caption, subgroup_table(column, report), []))
        notes = [*gap_notes(column), *column.notes]
        found.append((f"largest gaps by {column.column}", gap_table(column), notes))
    return found


def _narrow(rows: Rows) -> Rows:
    """A table for a terminal: a confusion matrix with its classes by number, of each class the
    area alone, others on their side, where that is narrower."""
    if _width(rows) <= _WIDE:
        return rows
    header, *body = rows
    if header[0] == "truth":
        table = [[header[0], *(str(c) for c in range(len(header) - 1))]]
        return [*table, *([f"{c} {row[0]}", *row[1:]] for c, row in enumerate(body))]
    if header[:3] in (["class", "images", "AUC"], ["label", "images", "AUC"]):
        return [row[:3] for row in rows]
    turned = [list(column) for column in zip(*rows, strict=True)]
    return turned if _width(turned) < _width(rows) else rows


def _width(rows: Rows) -> int:
    return max(map(len, aligned(rows)))
