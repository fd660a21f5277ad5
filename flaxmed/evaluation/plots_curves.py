"""The figure of precision against recall; like the other plots it computes no metric."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flaxmed.evaluation.curves import PrecisionRecallCurve
from flaxmed.evaluation.plots import _figure, _look, _style

if TYPE_CHECKING:
    import matplotlib.figure

_FEW = 4  # curves whose legend fits below the axes, and whose prevalences are drawn


def precision_recall_figure(
    curves: Sequence[tuple[str, PrecisionRecallCurve]],
    *,
    title: str,
    positive: str | None = None,
) -> matplotlib.figure.Figure:
    """Precision against recall, in steps as the average precision takes them.

    The dotted line of a curve is the share of its class: what calling at random gives. With more
    than four curves it stands in the legend alone.

    Args:
        curves: class names and curves; an undefined one is named in the legend and not drawn.
        title: data set, split, number of images.
        positive: the class of ``curves`` that the legend marks as the positive one.
    """
    with _style():
        figure, axes = _figure((5.6, 6.0))
        for i, (name, curve) in enumerate(curves):
            label = _label(f"{name} (positive)" if name == positive else name, curve)
            _draw(axes, curve, label, _look(i), line=len(curves) <= _FEW)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
        axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)")
        axes.set_title(title)
        _legend(figure, axes, outside=len(curves) > _FEW)
    return figure


def _draw(
    axes: Any, curve: PrecisionRecallCurve, label: str, look: dict[str, Any], *, line: bool
) -> None:
    if math.isnan(curve.average_precision):  # named in the legend, with no line to show
        axes.plot([], [], label=label, color="none")
        return
    axes.plot(curve.recall, curve.precision, label=label, drawstyle="steps-pre", **look)
    if line:
        axes.axhline(curve.prevalence, color=look["color"], linestyle=":", linewidth=1.2)


def _label(name: str, curve: PrecisionRecallCurve) -> str:
    if math.isnan(curve.average_precision):
        value = "AP undefined"
    else:
        value = f"AP {curve.average_precision:.4f}, share {curve.prevalence:.2f}"
    kept = value.replace(" ", "\N{NO-BREAK SPACE}")
    return "\n".join(textwrap.wrap(f"{name}: {kept}", 40))


def _legend(figure: Any, axes: Any, *, outside: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not outside:
        figure.legend(handles, labels, loc="outside lower center", handlelength=2.6)
        return
    lines = [line for label in labels for line in label.split("\n")]
    width, height = 6.3 + 0.078 * max(map(len, lines)), max(5.4, 0.24 * len(lines))
    figure.set_size_inches(round(width, 1), round(height, 1))  # square axes beside the legend
    figure.legend(handles, labels, loc="outside right center", handlelength=2.6)
