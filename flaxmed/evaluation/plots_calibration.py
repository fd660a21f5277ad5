"""Figures of calibration and of decision curves; like the other plots they compute no metric."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxmed.evaluation.operating import DecisionCurve
from flaxmed.evaluation.plots import _DASHES, _GREY, PALETTE, _figure, _look, _style
from flaxmed.evaluation.reliability import LABELS, Reliability
from flaxmed.types import InputError

if TYPE_CHECKING:
    import matplotlib.figure

_NARROWEST = 0.2  # range of an axis of probabilities


def reliability_figure(
    reliability: Reliability, *, title: str, scaled: Reliability | None = None
) -> matplotlib.figure.Figure:
    """Accuracy against confidence by bin, with the consistency bands; below, how many events
    have which confidence.

    Both axes are cut to where the events are. A point outside its bar is what a calibrated model
    would rarely show.

    Args:
        reliability: of the predictions as they are.
        title: data set, split, number of images.
        scaled: of the same images after temperature scaling, drawn beside it.
    """
    pooled = reliability.events == LABELS
    shown = {"as predicted": reliability}
    if scaled is not None:
        shown["temperature scaled"] = scaled
    with _style():
        figure, (axes, below) = _figure((5.6, 6.8), 2, sharex=True, height_ratios=(5, 1))
        axes.axline((0.5, 0.5), slope=1, color="#999999", linewidth=1, label="calibrated")
        for i, (name, found) in enumerate(shown.items()):
            _draw_bins(axes, found, _error_label(name, found), i)
            below.stairs(
                found.histogram,
                np.linspace(0, 1, len(found.histogram) + 1),
                fill=i == 0,
                color=PALETTE[i],
                alpha=0.5 if i == 0 else 1,
                linewidth=1.3,
            )
        _limit(axes, list(shown.values()))
        axes.set_ylabel("share of images with the label" if pooled else "share decided rightly")
        axes.set_title(f"{title}\nall labels, pooled" if pooled else title)
        below.set_xlabel(
            "probability of the label" if pooled else "confidence (probability of the decision)"
        )
        below.set_ylabel("labels" if pooled else "images")
        _whole_numbers(below)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
    return figure


def decision_figure(
    curves: DecisionCurve | Mapping[str, DecisionCurve], *, title: str
) -> matplotlib.figure.Figure:
    """Net benefit against the threshold, with calling every image and calling none.

    What lies far below zero is cut off: no one would use such a model.

    Args:
        curves: one, or several of the same images and class by name of the network.
        title: data set, split, number of images.

    Raises:
        InputError: no curve, or curves of other images or another class.
    """
    named = {"model": curves} if isinstance(curves, DecisionCurve) else dict(curves)
    if not named:
        raise InputError("no decision curve to draw")
    first = next(iter(named.values()))
    kinds = {(c.of_class, c.n, c.prevalence) for c in named.values() if not c.reason}
    if len(kinds) > 1 or any(c.of_class != first.of_class for c in named.values()):
        raise InputError("decision curves in one figure must be of the same images and class")
    known = [c for c in named.values() if not c.reason]
    with _style():
        figure, axes = _figure((6.2, 4.9))
        axes.axhline(0, color="black", linewidth=1.2, label="call none")
        if known:
            axes.plot(
                known[0].thresholds,
                known[0].treat_all,
                color=_GREY,
                linestyle=_DASHES[3],
                label="call every image",
            )
        for i, (name, curve) in enumerate(named.items()):
            label = "\n".join(textwrap.wrap(name, 30)) or name
            if curve.reason:  # named in the legend, with no line to show
                axes.plot([], [], label=f"{label}: undefined ({curve.reason})", color="none")
            else:
                axes.plot(curve.thresholds, curve.net_benefit, label=label, **_look(i))
        top = max([c.prevalence for c in known] + [float(c.net_benefit.max()) for c in known] + [0])
        top = top or 0.1
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.2 * top, 1.08 * top))
        words = f"threshold: called {first.of_class} at this probability or above"
        axes.set_xlabel(textwrap.fill(words, 64))
        axes.set_ylabel("net benefit (true positives per image)")
        axes.set_title(title)
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=2.6
        )
    return figure


def _draw_bins(axes: Any, found: Reliability, label: str, i: int) -> None:
    """Points joined by a thin line, each over the bar of its band."""
    if found.reason:  # named in the legend, with no line to show
        axes.plot([], [], label=label, color="none")
        return
    look = {"color": PALETTE[i], "linestyle": _DASHES[i], "marker": "os"[i]}
    axes.plot(found.confidence, found.accuracy, label=label, linewidth=1, markersize=5, **look)
    axes.vlines(
        found.confidence,
        found.low,
        found.high,
        color=PALETTE[i],
        linewidth=6 if i == 0 else 3,
        alpha=0.25 if i == 0 else 0.45,
        zorder=1,  # below the points
        label=f"bars: {100 * found.level:g}% of draws of a calibrated model" if i == 0 else None,
    )


def _error_label(name: str, found: Reliability) -> str:
    if found.reason:
        return f"{name}: undefined ({found.reason})"
    p = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
    return f"{name}: ECE {found.ece:.3f} ({p})"


def _limit(axes: Any, shown: list[Reliability]) -> None:
    """Axes around all events, and all bins with their bands; ticks from 0 to 1 alone."""
    from matplotlib.ticker import MaxNLocator

    known = [found for found in shown if not found.reason]
    cells = np.flatnonzero(sum(found.histogram for found in known)) if known else np.arange(50)
    edges = np.array([cells[0], cells[-1] + 1]) / 50
    bins = [v for f in known for v in (f.confidence, f.accuracy, f.low, f.high)] or [edges]
    for values, axis in ((edges, axes.xaxis), (np.concatenate(bins), axes.yaxis)):
        low, high = float(values.min()), float(values.max())
        room = max(0.03 * (high - low), (_NARROWEST - (high - low)) / 2)
        low, high = max(low - room, -0.02), min(high + room, 1.02)
        ticks = np.round(MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high), 6)
        axis.set_ticks([tick for tick in ticks if max(low, 0) <= tick <= min(high, 1)])
        (axes.set_xlim if axis is axes.xaxis else axes.set_ylim)(low, high)


def _whole_numbers(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3, min_n_ticks=1))
    axes.set_ylim(0, max(axes.get_ylim()[1], 1))
