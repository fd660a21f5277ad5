"""Figures from computed curves: nothing here computes a metric.

Each function returns a :class:`matplotlib.figure.Figure` of its own: no pyplot, no window, no
global state. matplotlib is imported inside, so metrics need it only when something is drawn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from flaxmed.evaluation.curves import RocBand, RocCurve
from flaxmed.evaluation.tables import write_file

if TYPE_CHECKING:
    import matplotlib.figure

# Okabe & Ito (2008), https://jfly.uni-koeln.de/color/, less the yellow that vanishes on white:
# told apart with every common colour vision. Line styles take over when the colours run out.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (6, 2, 1, 2)), (0, (1, 1.2)))
_GREY = "#777777"
KINDS, DPI = ("png", "svg"), 150

_STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.parse_math": False,  # a dollar sign in a class name is a dollar sign
    "svg.hashsalt": "flaxmed",  # the same figure gives the same file
}


@dataclasses.dataclass(frozen=True)
class History:
    """What a training run logged after each epoch.

    Attributes:
        epochs: the epoch numbers, ascending, ``[e]``.
        series: by name, e.g. ``"train_loss"``, one value per epoch, ``[e]``; NaN where unknown.
        best_epoch: the epoch whose model was kept, or None.
    """

    epochs: np.ndarray
    series: Mapping[str, np.ndarray]
    best_epoch: int | None = None


def roc_figure(
    curves: Sequence[tuple[str, RocCurve]],
    *,
    title: str,
    macro: RocCurve | None = None,
    positive: str | None = None,
    ideal: RocCurve | None = None,
    band: RocBand | None = None,
) -> matplotlib.figure.Figure:
    """ROC curve of each class against the rest, with its AUC in the legend.

    Args:
        curves: class names and curves; an undefined one is named in the legend and not drawn.
        title: data set, split, number of images.
        macro: the mean of the curves, drawn thick and black.
        positive: the class of ``curves`` that the legend marks as the positive one.
        ideal: the ideal observer's curve (macro, or of the positive class), dotted grey.
        band: of the macro curve, or of the first one; an undefined one is not drawn.
    """
    with _style():
        figure, axes = _roc_axes(title)
        if band is not None and not band.reason:
            look = {"color": PALETTE[0] if macro is None else "black", "alpha": 0.15}
            axes.fill_between(band.fpr, band.low, band.high, label=band.title, linewidth=0, **look)
        for i, (name, curve) in enumerate(curves):
            label = f"{name} (positive)" if name == positive else name
            # the other class of a binary task mirrors the positive one: drawn, but lighter
            mirror = positive is not None and name != positive
            look = {"color": PALETTE[1], "linestyle": _DASHES[1]} if mirror else _look(i)
            width = 1.3 if mirror or len(curves) > 4 else 1.8
            _draw_roc(axes, curve, _auc_label(label, curve.auc), linewidth=width, **look)
        if macro is not None:
            label = _auc_label("mean of the curves", macro.auc)
            _draw_roc(axes, macro, label, color="black", linewidth=2.6)
        if ideal is not None:
            label = _auc_label("ideal observer", ideal.auc)
            _draw_roc(axes, ideal, label, color=_GREY, linestyle=_DASHES[3])
        _roc_legend(figure, axes, outside=len(curves) > 4)
    return figure


def comparison_roc_figure(
    curves: Mapping[str, Sequence[RocCurve]],
    *,
    title: str,
    kind: str,
    ideal: RocCurve | None = None,
) -> matplotlib.figure.Figure:
    """ROC curves of several networks on one pair of axes.

    Args:
        curves: by network, one curve per seed; seeds share a colour and are drawn thinner.
        title: data set, split, number of images.
        kind: what the curve is of, e.g. ``"malignant against the rest"``.
        ideal: the ideal observer's curve, dotted grey.
    """
    with _style():
        figure, axes = _roc_axes(f"{title}\n{kind}")
        for i, (name, seeds) in enumerate(curves.items()):
            thin: dict[str, Any] = {"linewidth": 1.0, "alpha": 0.8} if len(seeds) > 1 else {}
            label = _auc_label(name, *(curve.auc for curve in seeds))
            for curve in seeds:
                _draw_roc(axes, curve, label, **_look(i), **thin)
                label = "_nolegend_"
        if ideal is not None:
            label = _auc_label("ideal observer", ideal.auc)
            _draw_roc(axes, ideal, label, color=_GREY, linestyle=_DASHES[3])
        _roc_legend(figure, axes, outside=len(curves) > 4)
    return figure


def history_figure(history: History, *, title: str) -> matplotlib.figure.Figure:
    """Accuracy and loss by epoch, training and validation, the kept epoch marked.

    Args:
        history: with the series ``train_accuracy``, ``val_accuracy``, ``train_loss``,
            ``val_loss``; one that is missing is left out.
        title: data set and network.
    """
    return _history_grid({title: [history]}, title=title, panel_titles=False)


def comparison_history_figure(
    histories: Mapping[str, Sequence[History]], *, title: str
) -> matplotlib.figure.Figure:
    """Accuracy (top) and loss (bottom) by epoch, one column per network, on common scales.

    Args:
        histories: by network, one per seed; seeds are drawn thinner.
        title: the data set.
    """
    return _history_grid(histories, title=title, panel_titles=True)


def confusion_figure(
    matrix: Int[np.ndarray, "k k"], classes: Sequence[str], *, title: str
) -> matplotlib.figure.Figure:
    """Counts of images by true and decided class, with the share of each true class (row).

    Args:
        matrix: ``[k, k]``, rows are the truth.
        classes: class names.
        title: data set, split, number of images.
    """
    k = len(classes)
    rows = [f"{name}\n(n = {n})" for name, n in zip(_wrap(classes, 22), matrix.sum(1), strict=True)]
    with _style():
        side = max(4.6, 1.6 + 0.82 * k)
        figure, axes = _figure((side + 1.6, side + 0.5))
        _heat(axes, matrix, _row_shares(matrix), rows, _wrap(classes, 22))
        axes.set_ylabel("true class")
        axes.set_xlabel("decided class")
        axes.set_title(f"{title}\nimages, and share of the true class")
    return figure


def label_confusion_figure(
    matrix: Int[np.ndarray, "l 2 2"], classes: Sequence[str], *, title: str
) -> matplotlib.figure.Figure:
    """For each label of a multi-label task, how its images and the others were decided.

    Args:
        matrix: ``[l, 2, 2]``, for each label ``[[TN, FP], [FN, TP]]``.
        classes: label names.
        title: data set, split, number of images.
    """
    table = matrix[:, ::-1, ::-1].reshape(len(classes), 4)  # TP, FN, FP, TN
    shares = np.concatenate([_row_shares(table[:, :2]), _row_shares(table[:, 2:])], axis=1)
    columns = ["found\n(TP)", "missed\n(FN)", "false alarm\n(FP)", "rightly not\n(TN)"]
    rows = [
        f"{name} (n = {n})" for name, n in zip(_wrap(classes, 26), matrix[:, 1].sum(1), strict=True)
    ]
    with _style():
        figure, axes = _figure((7.2, 1.8 + 0.5 * len(classes)))
        _heat(axes, table, shares, rows, columns)
        axes.axvline(1.5, color="black", linewidth=1)
        axes.xaxis.tick_top()
        figure.suptitle(
            f"{title}\nimages, and share of those with (left) and without (right) the label",
            fontsize=11,
        )
    return figure


def render_figure(figure: matplotlib.figure.Figure, kind: str, *, tight: bool = False) -> bytes:
    """The figure as ``"png"`` (150 dpi) or ``"svg"``; the same figure gives the same bytes.

    ``tight`` cuts it to what is drawn, which may be less or more than the figure's own size.
    """
    options: dict[str, Any] = {"dpi": DPI} if kind == "png" else {"metadata": {"Date": None}}
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format=kind, bbox_inches="tight" if tight else None, **options)
    return buffer.getvalue()


def save_figure(figure: matplotlib.figure.Figure, stem: str | os.PathLike[str]) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg``, each whole or not at all; returns the paths.

    Raises:
        InputError: the folder cannot be written.
        RunError: the disk is full.
    """
    files = {Path(f"{os.fspath(stem)}.{kind}"): render_figure(figure, kind) for kind in KINDS}
    for path, content in files.items():
        write_file(path, content)
    return list(files)


@contextlib.contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a reader's own matplotlibrc must not change the report
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]
        yield


def _figure(size: tuple[float, float], rows: int = 1, columns: int = 1, **options: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def _look(i: int) -> dict[str, Any]:
    """Colour and line style of the i-th line; all differ for the first 28.

    The style changes with every line, so that neighbours differ in black and white too.
    """
    return {"color": PALETTE[i % len(PALETTE)], "linestyle": _DASHES[i % len(_DASHES)]}


def _wrap(names: Sequence[str], width: int) -> list[str]:
    return ["\n".join(textwrap.wrap(name, width)) or name for name in names]


def _roc_axes(title: str) -> Any:
    figure, axes = _figure((5.6, 5.8))
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set(
        xlabel="false positive rate (1 - specificity)", ylabel="true positive rate (sensitivity)"
    )
    axes.set_title(title)
    return figure, axes


def _draw_roc(axes: Any, curve: RocCurve, label: str, **look: Any) -> None:
    if math.isnan(curve.auc):  # named in the legend, with no line to show
        axes.plot([], [], label=label, color="none")
    else:
        axes.plot(curve.fpr, curve.tpr, label=label, **look)


def _roc_legend(figure: Any, axes: Any, *, outside: bool) -> None:
    if outside:
        handles, labels = axes.get_legend_handles_labels()
        lines = [line for label in labels for line in label.split("\n")]
        size = 6.3 + 0.078 * max(map(len, lines)), max(5.4, 0.24 * len(lines))
        figure.set_size_inches(size)  # room for square axes beside the legend
        figure.legend(handles, labels, loc="outside right center", handlelength=2.6)
    else:
        axes.legend(loc="lower right", handlelength=2.2)


def _auc_label(name: str, *areas: float) -> str:
    values = [area for area in areas if not math.isnan(area)]
    if not values:
        parts = ["AUC undefined"]
    elif len(values) == 1:
        parts = [f"AUC {values[0]:.4f}"]
    else:
        parts = [f"mean AUC {np.mean(values):.4f}", f"({min(values):.4f} to {max(values):.4f})"]
    kept = " ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)
    return "\n".join(textwrap.wrap(f"{name}: {kept}", 36))


def _history_grid(
    histories: Mapping[str, Sequence[History]], *, title: str, panel_titles: bool
) -> Any:
    """Accuracy above loss for one network beside the next; for one alone, side by side."""
    n = len(histories)
    rows, columns = (2, n) if panel_titles else (1, 2)
    size = (max(5.0, 3.3 * n + 0.6), 6.4) if panel_titles else (9.0, 4.0)
    with _style():
        figure, grid = _figure(
            size, rows, columns, squeeze=False, sharey="row" if panel_titles else False
        )
        panels = grid.T if panel_titles else grid
        for (name, seeds), (accuracy, loss) in zip(histories.items(), panels, strict=True):
            for seed, history in enumerate(seeds):
                look = {"thin": len(seeds) > 1, "named": seed == 0, "number": not panel_titles}
                _draw_history(accuracy, history, "accuracy", **look)
                _draw_history(loss, history, "loss", **look)
            if panel_titles:
                accuracy.set_title(name if len(seeds) == 1 else f"{name}, {len(seeds)} seeds")
        last = max(int(history.epochs[-1]) for seeds in histories.values() for history in seeds)
        for axes in grid.flat:
            _epoch_axis(axes, last)
        losses = [
            values
            for seeds in histories.values()
            for history in seeds
            for key, values in history.series.items()
            if key in ("train_loss", "val_loss")
        ]
        for i, (accuracy, loss) in enumerate(panels):
            outer = i == 0 or not panel_titles
            accuracy.set_ylabel("accuracy" if outer else "")
            _loss_axis(loss, losses, label=outer)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.suptitle(title, fontsize=11)
    return figure


def _draw_history(
    axes: Any, history: History, what: str, *, thin: bool, named: bool, number: bool
) -> None:
    few = len(history.epochs) <= 30
    for i, (part, word) in enumerate((("train", "training"), ("val", "validation"))):
        values = history.series.get(f"{part}_{what}")
        if values is None:
            continue
        axes.plot(
            history.epochs,
            values,
            color=PALETTE[i],
            linestyle=_DASHES[1] if part == "train" else "-",
            marker="o" if few else None,
            markersize=2.5 if len(history.epochs) > 1 else 6,
            linewidth=1.0 if thin else 1.8,
            label=word if named else "_nolegend_",
        )
        if part == "val" and history.best_epoch in history.epochs:
            at = list(history.epochs).index(history.best_epoch)
            which = f"kept epoch ({history.best_epoch})" if number else "kept epoch"
            label = f"{which}: best validation AUC"
            axes.plot(
                [history.best_epoch],
                [values[at]],
                linestyle="none",
                marker="D",
                markersize=8,
                markerfacecolor="none",
                markeredgecolor="black",
                markeredgewidth=1.4,
                label=label if named else "_nolegend_",
            )


def _epoch_axis(axes: Any, last: int) -> None:
    """Whole epochs, the first of which is 1."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(integer=True, nbins=6).tick_values(1, max(last, 2))
    ticks = [tick for tick in ticks if (ticks[1] - ticks[0]) / 2 < tick <= last]
    axes.set_xticks([1, *(tick for tick in ticks if tick > 1)])
    axes.set_xlabel("epoch")
    if last == 1:
        axes.set_xlim(0.5, 1.5)


def _loss_axis(axes: Any, losses: Sequence[np.ndarray], *, label: bool) -> None:
    """A log scale where one early, huge loss would flatten all that follows."""
    values = np.concatenate([np.asarray(v, np.float64) for v in losses]) if losses else np.zeros(0)
    values = values[np.isfinite(values)]
    log = len(values) > 0 and values.min() > 0 and values.max() > 30 * np.median(values)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    if label:
        axes.set_ylabel("loss (log scale)" if log else "loss")


def _row_shares(matrix: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; NaN where a row is empty."""
    total = matrix.sum(axis=1, keepdims=True)
    return np.where(total > 0, matrix / np.maximum(total, 1), np.nan)


def _percent(share: float) -> str:
    """Whole percent, without calling a few none or nearly all all."""
    if np.isnan(share):
        return "–"
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else f"{100 * share:.0f}%"


def _heat(
    axes: Any, counts: np.ndarray, shares: np.ndarray, rows: list[str], columns: list[str]
) -> None:
    """Cells coloured by share, each with its count and percentage."""
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.grid(False)
    for (i, j), count in np.ndenumerate(counts):
        share = float(shares[i, j])
        ink = "white" if share > 0.5 else "black"
        size = 11 if len(rows) <= 4 else 8.5
        text = f"{count}\n{_percent(share)}"
        axes.text(j, i, text, ha="center", va="center", fontsize=size, color=ink)
    axes.set_yticks(range(len(rows)), rows)
    slanted = len(columns) * max(len(line) for name in columns for line in name.split("\n")) > 60
    axes.set_xticks(
        range(len(columns)),
        columns,
        rotation=45 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
    )
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
