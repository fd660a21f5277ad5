"""The figure of accuracy against cost; what it shows is worked out in cost.py."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from flaxmed.evaluation import Comparison
from flaxmed.evaluation.plots import PALETTE, _figure, _style


def figure(
    comparison: Comparison,
    found: Sequence[Any],
    kinds: Sequence[Any],
    dominated: Mapping[str, Collection[str]],
) -> Any:
    """A panel for each kind of cost: a point per network with its intervals, named beside it.

    Args:
        comparison: of the networks, for the titles.
        found: the networks, with their ``scores`` by metric and ``costs`` by kind.
        kinds: with ``name`` and ``unit``.
        dominated: by kind the networks whose circles are open.
    """
    metric, percent = comparison.plan.metric, f"{100 * comparison.plan.level:.6g}%"
    with _style():
        drawn, panels = _figure((9.0, 4.4), 1, len(kinds), sharey=True)
        for axes, kind in zip(panels, kinds, strict=True):
            for i, one in enumerate(found):
                point(
                    axes,
                    one,
                    metric,
                    kind,
                    PALETTE[i % len(PALETTE)],
                    one.name in dominated[kind.name],
                )
            axes.set_xlim(0, 1.18 * max(one.costs[kind.name].high for one in found))
            axes.margins(y=0.18)
            axes.set_xlabel(f"cost of {kind.name}, {kind.unit}")
            axes.set_title(kind.name)
        panels[0].set_ylabel(f"test {comparison.plan.title}")
        drawn.suptitle(comparison.source.title(comparison.n), fontsize=11)
        joint = all(one.seeds >= 3 for one in found)
        note = f"vertical: {percent} interval over test images{' and seeds' if joint else ''}; "
        note += "horizontal: quartiles of the timings"
        note += "; open circle: dominated" if any(dominated.values()) else ""
        drawn.supxlabel(note, fontsize=9, color="#555555")
        FigureCanvasAgg(drawn).draw()  # only now is it known where everything is
        drawn.set_layout_engine("none")
        for axes, kind in zip(panels, kinds, strict=True):
            label(drawn, axes, found, metric, kind)
    return drawn


def point(axes: Any, one: Any, metric: str, kind: Any, color: str, hollow: bool) -> None:
    """A network's point, with both error bars."""
    x, y = one.costs[kind.name], one.scores[metric]
    axes.errorbar(
        [x.value],
        [y.value],
        xerr=[[x.value - x.low], [x.high - x.value]],
        yerr=[[y.value - y.low], [y.high - y.value]],
        fmt="o",
        color=color,
        markersize=7,
        markerfacecolor="white" if hollow else color,
        markeredgewidth=1.6,
        elinewidth=1.4,
        capsize=3,
    )


def label(drawn: Any, axes: Any, found: Sequence[Any], metric: str, kind: Any) -> None:
    """Every network's name near its point, where it hides nothing that is drawn."""
    taken = [box for one in found for box in marks(axes, one, metric, kind)]
    inside = axes.get_window_extent()
    for i, one in enumerate(found):
        x, y = one.costs[kind.name].value, one.scores[metric]
        made = [
            axes.annotate(
                one.title,
                (x, at),
                offset,
                textcoords="offset points",
                ha=across,
                va=up,
                fontsize=10,
                color=PALETTE[i % len(PALETTE)],
            )
            for across, up, at, offset in places(y)
        ]
        boxes = [text.get_window_extent(drawn.canvas.get_renderer()) for text in made]

        def hidden(box: Any) -> float:
            outside = box.x0 < inside.x0 or box.x1 > inside.x1 + 8 or box.y1 > inside.y1
            return sum(area(box, other) for other in taken) + 1e6 * (outside or box.y0 < inside.y0)

        best = min(range(len(made)), key=lambda k: hidden(boxes[k]))
        for k, text in enumerate(made):
            if k != best:
                text.remove()
        taken.append(boxes[best])


def places(y: Any) -> list[tuple[str, str, float, tuple[float, float]]]:
    """Where a name may stand: beside the point, over and under it, at the ends of its bar."""
    found: list[tuple[str, str, float, tuple[float, float]]] = []
    for up, height in (("bottom", 4), ("top", -4), ("center", 0), ("bottom", 16), ("top", -16)):
        found += [("left", up, y.value, (8, height)), ("right", up, y.value, (-8, height))]
    found += [("center", "bottom", y.high, (0, 5)), ("center", "top", y.low, (0, -5))]
    for at, up, height in ((y.high, "top", -2), (y.low, "bottom", 2)):
        found += [("left", up, at, (8, height)), ("right", up, at, (-8, height))]
    return found


def marks(axes: Any, one: Any, metric: str, kind: Any) -> list[Any]:
    """The boxes of a network's point and error bars, in pixels."""
    x, y = one.costs[kind.name], one.scores[metric]
    to_pixels = axes.transData.transform
    (x0, y0), (x1, y1) = to_pixels((x.low, y.low)), to_pixels((x.high, y.high))
    px, py = to_pixels((x.value, y.value))
    return [
        Bbox([[px - 4, y0], [px + 4, y1]]),
        Bbox([[x0, py - 4], [x1, py + 4]]),
        Bbox([[px - 6, py - 6], [px + 6, py + 6]]),
    ]


def area(box: Any, other: Any) -> float:
    """How much of two boxes is common, in square pixels."""
    width = min(box.x1, other.x1) - max(box.x0, other.x0)
    height = min(box.y1, other.y1) - max(box.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)
