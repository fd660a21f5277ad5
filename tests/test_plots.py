"""Figures show what was computed, in full, and leave nothing behind."""

from __future__ import annotations

import io
import itertools
import math
import xml.etree.ElementTree as ElementTree
from unittest import mock

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from flaxmed.evaluation import plots, tables
from flaxmed.evaluation.curves import (
    RocCurve,
    macro_roc_curve,
    precision_recall_curve,
    roc_band,
    roc_curve,
)
from flaxmed.evaluation.plots import History
from flaxmed.evaluation.plots_curves import precision_recall_figure
from flaxmed.types import InputError, Predictions, RunError, Task, softmax

TISSUES = (
    "adipose",
    "background",
    "debris",
    "lymphocytes",
    "mucus",
    "smooth muscle",
    "normal colon mucosa",
    "cancer-associated stroma",
    "colorectal adenocarcinoma epithelium",
)
UNDEFINED = RocCurve(*[np.array([math.nan])] * 3, math.nan)


def curves_of(classes, seed=0, n=90):
    rng = np.random.default_rng(seed)
    k = len(classes)
    labels = np.arange(n) % k
    scores = softmax(rng.normal(size=(n, k)) + np.eye(k)[labels])
    made = [roc_curve(labels, scores, task=Task.MULTICLASS, of_class=c) for c in range(k)]
    macro = macro_roc_curve(labels, scores, task=Task.MULTICLASS)
    return list(zip(classes, made, strict=True)), macro


def predictions_of(classes, n=90):
    labels = np.arange(n) % 2
    logits = np.random.default_rng(0).normal(size=(n, 2)) + np.eye(2)[labels]
    return Predictions(labels=labels, logits=logits, task="binary", classes=classes, positive=0)


def precision_of(classes):
    p = predictions_of("ab")
    scores, task = p.probabilities, p.task
    curve = precision_recall_curve(p.labels, scores, task=task, of_class=0)
    return [(name, curve) for name in classes]


def history(epochs=5, best=3, first_loss=0.7):
    steps = np.arange(1, epochs + 1)
    loss = np.concatenate([[first_loss], 0.6 / steps[1:]])
    series = {
        "train_accuracy": 0.5 + 0.4 * steps / epochs,
        "val_accuracy": 0.5 + 0.3 * steps / epochs,
        "train_loss": 0.7 / steps,
        "val_loss": loss,
    }
    return History(steps, series, best)


def matrix_of(k):
    return np.arange(k * k).reshape(k, k) + 100 * np.eye(k, dtype=int)


FIGURES = {
    "roc of two": lambda: plots.roc_figure(
        curves_of(("malignant", "normal, benign"))[0], title="a, n = 90", positive="malignant"
    ),
    "roc of three": lambda: plots.roc_figure(
        curves_of("abc")[0], title="a (synthetic)", macro=curves_of("abc")[1], ideal=UNDEFINED
    ),
    "roc of nine": lambda: plots.roc_figure(
        [*curves_of(TISSUES[:8])[0], (TISSUES[8], UNDEFINED)], title="pathmnist", macro=UNDEFINED
    ),
    "roc of fourteen": lambda: plots.roc_figure(
        curves_of([f"finding {i}" for i in range(14)])[0], title="chestmnist"
    ),
    "roc with a band": lambda: plots.roc_figure(
        curves_of("ab")[0], title="a, n = 90", positive="a", band=roc_band(predictions_of("ab"))
    ),
    "precision and recall of two": lambda: precision_recall_figure(
        precision_of(("malignant",)), title="a, n = 90", positive="malignant"
    ),
    "precision and recall of nine": lambda: precision_recall_figure(
        precision_of(TISSUES), title="pathmnist test, n = 90"
    ),
    "roc of networks": lambda: plots.comparison_roc_figure(
        {"resnet18": [curves_of("abc")[1]], "xception": [curves_of("abc", i)[1] for i in (1, 2)]},
        title="phantom test (synthetic), n = 90",
        kind="mean over the classes of their one-vs-rest ROC curves",
        ideal=curves_of("abc", 3)[1],
    ),
    "history": lambda: plots.history_figure(history(), title="breastmnist, resnet18"),
    "history of one epoch": lambda: plots.history_figure(history(1, 1), title="breastmnist"),
    "history of a hundred": lambda: plots.history_figure(history(100, None), title="breastmnist"),
    "histories": lambda: plots.comparison_history_figure(
        {"resnet18": [history()], "densenet121": [history(7, 7)], "xception": [history()] * 3},
        title="breastmnist",
    ),
    "histories, one huge loss": lambda: plots.comparison_history_figure(
        {"resnet18": [history(first_loss=90.0)]}, title="breastmnist"
    ),
    "confusion of two": lambda: plots.confusion_figure(
        matrix_of(2), ("malignant", "normal, benign"), title="breastmnist test, n = 156"
    ),
    "confusion of nine": lambda: plots.confusion_figure(matrix_of(9), TISSUES, title="pathmnist"),
    "confusion of labels": lambda: plots.label_confusion_figure(
        np.arange(36).reshape(9, 2, 2), TISSUES, title="chestmnist"
    ),
}
each_figure = pytest.mark.parametrize("name", FIGURES)


def visible_texts(figure):
    """Every piece of text that is drawn."""
    drawn, draw = [], Text.draw

    def recorded(self, *args):
        drawn.append(self)
        draw(self, *args)

    with mock.patch.object(Text, "draw", recorded):
        FigureCanvasAgg(figure).draw()
    return [text for text in drawn if text.get_text().strip()]


def legend_texts(figure):
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [t.get_text() for legend in legends if legend for t in legend.get_texts()]


@each_figure
def test_nothing_is_cut_off(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    texts = visible_texts(figure)
    assert len(texts) > 5
    width, height = figure.canvas.get_width_height()
    for text in texts:
        box = text.get_window_extent()
        if text in itertools.chain(*(axes.texts for axes in figure.axes)):
            continue  # inside the axes
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text
    for axes in figure.axes:  # and what is left for the curves is not a stamp
        box = axes.get_window_extent()
        assert min(box.width, box.height) > 2 * figure.dpi
        if name.startswith("roc"):
            assert min(box.width, box.height) > 4 * figure.dpi


@each_figure
def test_files_are_whole_and_readable(name, tmp_path):
    figure = FIGURES[name]()
    png, svg = plots.save_figure(figure, tmp_path / "new" / "figure")
    assert (png.name, svg.name) == ("figure.png", "figure.svg")
    shape = matplotlib.image.imread(png).shape
    assert shape[:2] == tuple(round(150 * side) for side in figure.get_size_inches()[::-1])
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["figure.png", "figure.svg"]


def test_the_same_figure_gives_the_same_files(tmp_path):
    first, second = (plots.save_figure(FIGURES["history"](), tmp_path / name) for name in "ab")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_a_readers_own_style_neither_changes_nor_is_changed():
    with matplotlib.rc_context({"font.size": 33, "axes.facecolor": "red", "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        figure = FIGURES["roc of three"]()
        assert dict(matplotlib.rcParams) == before
    assert max(text.get_fontsize() for text in visible_texts(figure)) < 13
    assert figure.axes[0].get_facecolor() == (1, 1, 1, 1)


def test_roc_lines_are_the_curves_and_the_legend_says_their_areas():
    (pairs, macro) = curves_of("abc")
    figure = plots.roc_figure(pairs, title="title", macro=macro)
    _, *lines = figure.axes[0].lines  # the first is the diagonal of chance
    for line, curve in zip(lines, [curve for _, curve in pairs] + [macro], strict=True):
        assert (line.get_xdata() == curve.fpr).all()
        assert (line.get_ydata() == curve.tpr).all()
    areas = [*(f"{name}: AUC\xa0{curve.auc:.4f}" for name, curve in pairs)]
    assert legend_texts(figure) == [*areas, f"mean of the curves: AUC\xa0{macro.auc:.4f}"]
    assert figure.axes[0].get_title() == "title"


def test_the_positive_class_is_named():
    labels = legend_texts(FIGURES["roc of two"]())
    assert labels[0].startswith("malignant (positive): AUC")
    assert labels[1].startswith("normal, benign: AUC")


def test_a_band_lies_under_the_curves_and_says_what_it_is():
    figure = FIGURES["roc with a band"]()
    band = roc_band(predictions_of("ab"))
    (drawn,) = figure.axes[0].collections
    vertices = drawn.get_paths()[0].vertices
    assert vertices[:, 1].min() == band.low.min()
    assert set(band.high) <= set(vertices[:, 1])
    assert drawn.get_zorder() < figure.axes[0].lines[1].get_zorder()
    assert "95% band, pointwise\n1000 draws of images" in legend_texts(figure)


def test_an_undefined_curve_is_named_and_not_drawn():
    figure = FIGURES["roc of nine"]()
    text = " ".join(legend_texts(figure)).replace("\n", " ")
    assert "colorectal adenocarcinoma epithelium: AUC\xa0undefined" in text
    assert "mean of the curves: AUC\xa0undefined" in text
    assert sum(len(line.get_xdata()) > 2 for line in figure.axes[0].lines) == 8


def test_lines_can_be_told_apart():
    figure = FIGURES["roc of fourteen"]()
    looks = {(line.get_color(), str(line._dash_pattern)) for line in figure.axes[0].lines[1:]}
    assert len(looks) == 14


def test_a_comparison_shows_every_seed_once_in_the_legend():
    figure = FIGURES["roc of networks"]()
    assert len(figure.axes[0].lines) == 1 + 3 + 1
    names = [text.split(":")[0] for text in legend_texts(figure)]
    assert names == ["resnet18", "xception", "ideal observer"]
    areas = [curves_of("abc", i)[1].auc for i in (1, 2)]
    assert f"mean\xa0AUC\xa0{np.mean(areas):.4f}" in legend_texts(figure)[1]
    assert f"({min(areas):.4f}\xa0to\xa0{max(areas):.4f})" in legend_texts(figure)[1]


def test_history_shows_both_splits_and_marks_the_kept_epoch():
    given = history()
    figure = plots.history_figure(given, title="title")
    for axes, what in zip(figure.axes, ("accuracy", "loss"), strict=True):
        train, val, mark = axes.lines
        assert (train.get_ydata() == given.series[f"train_{what}"]).all()
        assert (val.get_ydata() == given.series[f"val_{what}"]).all()
        assert list(mark.get_xdata()) == [3]
        assert list(mark.get_ydata()) == [given.series[f"val_{what}"][2]]
        assert axes.get_ylabel() == what
        assert 1 in axes.get_xticks()
        assert min(axes.get_xticks()) >= 1
    kept = "kept epoch (3): best validation AUC"
    assert legend_texts(figure) == ["training", "validation", kept]


def test_networks_stand_side_by_side_on_common_scales():
    figure = FIGURES["histories"]()
    top, bottom = figure.axes[:3], figure.axes[3:]
    titles = [axes.get_title() for axes in top]
    assert titles == ["resnet18", "densenet121", "xception, 3 seeds"]
    for row in (top, bottom):
        assert len({axes.get_ylim() for axes in row}) == 1
    assert len(bottom[2].lines) == 9


def test_a_huge_first_loss_does_not_flatten_the_rest():
    assert FIGURES["histories, one huge loss"]().axes[1].get_yscale() == "log"
    assert FIGURES["histories"]().axes[3].get_yscale() == "linear"


def test_confusion_shows_counts_and_shares_of_each_row():
    matrix = np.array([[0, 0, 0], [1, 3, 0], [399, 1, 1]])
    figure = plots.confusion_figure(matrix, "abc", title="title")
    cells = [text.get_text().split("\n") for text in figure.axes[0].texts]
    assert [int(count) for count, _ in cells] == matrix.ravel().tolist()
    shares = [share for _, share in cells]
    assert shares == ["–", "–", "–", "25%", "75%", "0%", ">99%", "<1%", "<1%"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        "a\n(n = 0)",
        "b\n(n = 4)",
        "c\n(n = 401)",
    ]


def test_headers_of_the_label_confusion_stand_above_its_cells():
    classes = ["atelectasis", "effusion", "mass"]
    figure = plots.label_confusion_figure(np.full((3, 2, 2), 5), classes, title="chest")
    figure.savefig(io.BytesIO(), format="png")  # lays it out
    axes = figure.axes[0]
    for label in axes.get_xticklabels():
        assert label.get_window_extent().y0 >= axes.get_window_extent().y1


def test_label_confusion_puts_found_first():
    figure = plots.label_confusion_figure(np.array([[[5, 3], [1, 4]]]), ["edema"], title="title")
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells == ["4\n80%", "1\n20%", "3\n38%", "5\n62%"]
    assert figure.axes[0].get_yticklabels()[0].get_text() == "edema (n = 5)"


def test_a_dollar_sign_is_a_dollar_sign(tmp_path):
    pairs = [("$\\frac{", curves_of("ab")[1]), ("b", curves_of("ab")[1])]
    plots.save_figure(plots.roc_figure(pairs, title="$x$ costs $y"), tmp_path / "figure")


def test_files_are_replaced_whole_and_failures_are_one_line(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    tables.write_file(target, "old")
    tables.write_file(target, "new")
    assert target.read_text() == "new"
    with pytest.raises(InputError, match=r"a\.txt.*cannot be written"):
        tables.write_file(target / "b.txt", "a file where a folder should be")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables.os, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        tables.write_file(target, "newer")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "new"
