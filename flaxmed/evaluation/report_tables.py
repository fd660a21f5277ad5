"""A report's numbers as tables: lists of rows of text, the first of which is the header."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flaxmed.evaluation.calibration import Calibration
from flaxmed.evaluation.estimates import Metric
from flaxmed.evaluation.gaps import Gap
from flaxmed.evaluation.intervals import Interval
from flaxmed.evaluation.operating import OperatingPoint, Share
from flaxmed.evaluation.report import IDEAL, Report
from flaxmed.evaluation.subgroups import Subgroups
from flaxmed.evaluation.tables import DASH, ends, number, p_text, percent
from flaxmed.types import Task

Rows = list[list[str]]

_SHARES = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}
_IN_SUBGROUPS = ("accuracy", "auc", "sensitivity", "specificity")


def metric_title(metric: Metric | Gap) -> str:
    """Its title, with the positive class where the value depends on it.

    Example:
        >>> metric_title(Metric("f1", "F1", 0.5, positive="malignant"))
        'F1 (malignant)'
    """
    given = "" if metric.positive is None else f" ({metric.positive})"
    return metric.title + given


def with_interval(value: float, interval: Interval) -> str:
    """Such as ``0.865 (0.803 to 0.910)``.

    Example:
        >>> with_interval(0.8654, Interval(0.8027, 0.9103, "Wilson"))
        '0.865 (0.803 to 0.910)'
    """
    if math.isnan(value):
        return "undefined"
    if math.isnan(interval.low):
        return f"{value:.3f} (no interval)"
    return f"{value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def metric_table(report: Report) -> Rows:
    """Every metric with its interval, and how far it is from the ideal observer."""
    header = ["metric", report.source.model or "value", f"{percent(report.level)} interval"]
    rows = [
        [metric_title(metric), number(metric.value), ends(metric.interval)]
        for metric in report.values()
    ]
    if report.ideal is not None:
        header += [IDEAL, "difference"]
        for row, metric in zip(rows, report.values(), strict=True):
            best = report.ideal[metric.name].value
            difference = metric.value - best
            row += [number(best), DASH if math.isnan(difference) else f"{difference:+.4f}"]
    return [header, *rows]


def class_table(report: Report) -> Rows:
    """Of each class (label) against the rest: images, AUC, sensitivity, specificity, PPV, NPV."""
    kind = "class" if report.task.exclusive else "label"
    table = [[kind, "images", "AUC", *_SHARES.values()]]
    for c, (name, count) in enumerate(zip(report.classes, report.counts, strict=True)):
        found = [report.class_auc[c], *(report.class_shares[share][c] for share in _SHARES)]
        table.append([name, str(count), *(with_interval(m.value, m.interval) for m in found)])
    return table


def confusion_table(report: Report) -> Rows:
    """Images by truth (rows) and decision (columns); of labels how each was decided."""
    if report.task is Task.MULTILABEL:
        header = ["label", "found (TP)", "missed (FN)", "false alarm (FP)", "rightly not (TN)"]
        counts = report.confusion[:, ::-1, ::-1].reshape(len(report.classes), 4)
    else:
        header = ["truth", *(f"decided {name}" for name in report.classes)]
        counts = report.confusion
    rows = zip(report.classes, counts.tolist(), strict=True)
    return [header, *([name, *map(str, row)] for name, row in rows)]


def calibration_table(calibration: Calibration) -> Rows:
    """Calibration error and loss, as predicted and after temperature scaling."""
    found = [("as predicted", calibration.test, calibration.loss)]
    if calibration.scaled is not None:
        found.append(("temperature scaled", calibration.scaled, calibration.scaled_loss))
    table = [["", *(name for name, _, _ in found)]]
    table.append(["calibration error, debiased", *(number(r.ece) for _, r, _ in found)])
    table.append(["calibration error, plain", *(number(r.ece_plain) for _, r, _ in found)])
    expected = [number(r.ece_expected) for _, r, _ in found]
    table.append(["plain error, if calibrated", *expected])
    table.append(["p if calibrated", *(p_text(r.p_value).lstrip("= ") for _, r, _ in found)])
    return [*table, ["loss", *(number(loss) for _, _, loss in found)]]


def operating_table(points: Sequence[OperatingPoint]) -> Rows:
    """Thresholds chosen on validation images, and what they give on these.

    Columns for the class and for the rule, where there are several; :func:`operating_caption` has
    what is common to all.
    """
    varied = {
        "class": [point.of_class for point in points],
        "rule": [point.rule for point in points],
    }
    names = [name for name, values in varied.items() if len(set(values)) > 1] or ["rule"]
    table = [[*names, "threshold", "on validation", *_SHARES.values()]]
    for i, point in enumerate(points):
        chosen = "undefined" if math.isnan(point.threshold) else f"{point.threshold:.4g}"
        before = f"{point.val_sensitivity:.3f} / {point.val_specificity:.3f}"
        before = DASH if math.isnan(point.val_sensitivity) else before
        cells = [_share(getattr(point, name)) for name in _SHARES]
        table.append([*(varied[name][i] for name in names), chosen, before, *cells])
    return table


def operating_caption(points: Sequence[OperatingPoint], level: float) -> str:
    """What stands above :func:`operating_table`."""
    classes, rules = {point.of_class for point in points}, {point.rule for point in points}
    common = [f"positive class: {min(classes)}"] if len(classes) == 1 else []
    common += [f"rule: {min(rules)}"] if len(rules) == 1 else []
    return "; ".join(
        [
            "Thresholds chosen on validation images (sensitivity / specificity there), and what "
            f"they give on these, with {percent(level)} intervals",
            *common,
        ]
    )


def subgroup_table(subgroups: Subgroups, report: Report) -> Rows:
    """Each subgroup's images, accuracy and AUC, and what depends on the positive class."""
    names = [name for name in _IN_SUBGROUPS if name in report]
    header = [subgroups.column, "images", *(metric_title(report[name]) for name in names)]
    rows = []
    for part in subgroups.parts:
        metrics = [part.metrics[name] for name in names]
        cells = [with_interval(metric.value, metric.interval) for metric in metrics]
        rows.append([part.value, str(part.n), *cells])
    return [header, *rows]


def subgroup_metrics(subgroups: Subgroups, report: Report, across: int = 5) -> list[Rows]:
    """Every metric of all images and of each subgroup: a row per metric, for they are many.

    As many tables as there must be for each to have at most ``across`` subgroups, which is what
    fits on paper.
    """
    tables = []
    every = subgroups.parts
    count = max(1, math.ceil(len(every) / across))
    size = max(1, math.ceil(len(every) / count))
    for at in range(0, max(1, len(every)), size):
        parts = every[at : at + size]
        table = [["metric", "all images", *(part.value for part in parts)]]
        table.append(["images", str(report.n), *(str(part.n) for part in parts)])
        for name, metric in report.items():
            found = [metric, *(part.metrics[name] for part in parts)]
            cells = [with_interval(m.value, m.interval) for m in found]
            table.append([metric_title(metric), *cells])
        tables.append(table)
    return tables


def gap_table(subgroups: Subgroups) -> Rows:
    """The largest gap between subgroups in every metric; :func:`gap_notes` says how p was made."""
    header = ["largest gap", "value", "from", "to", "interval of these two", "p"]
    rows = []
    for gap in subgroups.gaps.values():
        value, p = number(gap.value), p_text(gap.p_value).lstrip("= ")
        ends_of = [gap.lowest or DASH, gap.highest or DASH]
        rows.append([metric_title(gap), value, *ends_of, ends(gap.interval), p])
    return [header, *rows]


def gap_notes(subgroups: Subgroups) -> list[str]:
    """What the p-values of the gaps are from, and why a gap or its interval is missing."""
    shuffled: dict[str, tuple[list[str], set[int]]] = {}
    lacking: dict[str, list[str]] = {}
    for gap in subgroups.gaps.values():
        if gap.test:
            count, what = gap.test.split(" ", 1)
            titles, counts = shuffled.setdefault(what, ([], set()))
            titles.append(gap.title)
            counts.add(int(count))
        if gap.reason:
            lacking.setdefault(f"Undefined ({gap.reason})", []).append(gap.title)
        elif gap.interval.reason:
            lacking.setdefault(f"No interval ({gap.interval.reason})", []).append(gap.title)
    lines = []
    for what, (titles, counts) in shuffled.items():
        times = " to ".join(map(str, dict.fromkeys([min(counts), max(counts)])))
        lines.append(f"p by {times} {what}: {', '.join(titles)}.")
    return lines + [f"{why}: {', '.join(titles)}." for why, titles in lacking.items()]


def _share(share: Share) -> str:
    text = with_interval(share.value, share.interval)
    return f"{share.hits}/{share.of}: {text}" if share.of else text
