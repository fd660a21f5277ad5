"""Diagrams show what the model is: every stage, shortcut, connection and part, legibly."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import matplotlib.colors
import matplotlib.image
import pytest
from flax import nnx
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from flaxmed.cli import main
from flaxmed.diagram import diagram_paths, draw, files, save_diagram
from flaxmed.diagram.parts import read_architecture
from flaxmed.diagram.shapes import FILLS
from flaxmed.models import DenseNet, DenseNet121, ResNet, ResNet18, Xception
from flaxmed.models.densenet import DENSENET121
from flaxmed.models.resnet import RESNET18
from flaxmed.models.xception import KERAS
from flaxmed.summary import summarize
from flaxmed.types import InputError, RunError

FIGURES = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
NETWORKS = {  # with the image side they are published for, in pixels
    "resnet18": (ResNet18, 224),
    "densenet121": (DenseNet121, 224),
    "xception": (Xception, 299),
}


def shapes_of(network, *arguments, **options):
    """The network with shapes in place of weights."""
    return nnx.eval_shape(lambda: network(*arguments, rngs=nnx.Rngs(0), **options))


def changed(config, **values):
    return dataclasses.replace(config, **values)


def other_networks():
    """Configurations and images that nobody published."""
    deep = changed(RESNET18, stage_sizes=(3, 4, 6, 3))
    flat = changed(RESNET18, stage_sizes=(1, 2), widths=(8, 8))
    dense = changed(DENSENET121, stage_sizes=(1, 2, 4, 5), growth=12, bottleneck=2)
    entries = changed(KERAS, entry_widths=(16, 24), middle_blocks=2, exit_widths=(64, 32, 16))
    yield "resnet 3-4-6-3", ResNet, {"config": deep}, (96, 64, 3)
    yield "resnet 1-2", ResNet, {"config": flat, "stem": "small", "remat": True}, (33, 31, 12)
    yield "densenet 1-2-4-5", DenseNet, {"config": dense, "remat": True}, (256, 250, 3)
    yield "xception 2-2", Xception, {"config": entries, "stem": "small"}, (40, 40, 1)


CASES = {
    f"{name} {stem}": (network, {"stem": stem}, (size, size, channels), classes)
    for name, (network, large) in NETWORKS.items()
    for stem, size, channels, classes in (("imagenet", large, 3, 1000), ("small", 28, 1, 9))
} | {name: (network, options, shape, 7) for name, network, options, shape in other_networks()}
each_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def model_of(case):
    network, options, shape, classes = CASES[case]
    return shapes_of(network, classes, in_channels=shape[-1], **options), shape


@functools.cache
def figure_of(case):
    figure = draw(*model_of(case))
    FigureCanvasAgg(figure).draw()
    return figure


@functools.cache
def svg_of(case):
    return ElementTree.fromstring(files._render(figure_of(case), "svg"))


def texts_in(svg):
    return [node.text for node in svg.iter() if node.tag.endswith("}text")]


def names_in(svg, kind):
    """What is marked as a part, a residual, a projection or a dense connection."""
    marks = [node.get("id", "") for node in svg.iter()]
    return [mark.removeprefix(f"{kind}:") for mark in marks if mark.startswith(f"{kind}:")]


def modules_with(model, attribute):
    """Paths of the modules that have this attribute, whatever its value."""
    found = nnx.iter_modules(model)
    return {
        ".".join(map(str, path)): module for path, module in found if hasattr(module, attribute)
    }


# -------------------------------------------------------------------------------- what it shows


@each_case
def test_every_stage_has_its_name_shape_and_parameters(case):
    model, shape = model_of(case)
    texts = texts_in(svg_of(case))
    for stage in summarize(model, shape).stages:
        assert " × ".join(map(str, stage.output_shape)) in texts
        if stage.name.startswith("middle") and "2-2" not in case:
            continue  # a row for all of them, below
        assert stage.name in texts
        assert f"{stage.parameters:,}" in texts
    assert " × ".join(map(str, shape)) in texts


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_middle_blocks_are_drawn_once(stem):
    svg = svg_of(f"xception {stem}")
    texts = texts_in(svg)
    assert {"middle1 – middle8", "× 8", "8 residual blocks", "8 × 1,613,976"} <= set(texts)
    assert "middle2" not in " ".join(texts)
    assert names_in(svg, "residual") == ["entry1", "entry2", "entry3", "middle1", "exit1"]


@each_case
def test_every_residual_block_has_one_arc_and_projections_are_the_models(case):
    model, shape = model_of(case)
    rows = read_architecture(model, shape).stages
    blocks = [block for row in rows for block in row.blocks if block.kind == "residual"]
    drawn = names_in(svg_of(case), "residual")
    assert drawn == [block.name for block in blocks]

    shortcuts = modules_with(model, "shortcut")
    identities = modules_with(model, "sep3")  # the middle blocks, which never have a projection
    assert sum(block.repeats for block in blocks) == len({*shortcuts, *identities})
    with_projection = [name for name, block in shortcuts.items() if block.shortcut is not None]
    assert sorted(names_in(svg_of(case), "projection")) == sorted(with_projection)


def test_resnet18_has_eight_arcs_three_of_them_projected():
    svg = svg_of("resnet18 imagenet")
    assert len(names_in(svg, "residual")) == 8
    assert names_in(svg, "projection") == ["stage2.0", "stage3.0", "stage4.0"]
    assert texts_in(svg).count("projection") == 3
    assert {"1×1, 128, /2", "1×1, 256, /2", "1×1, 512, /2"} <= set(texts_in(svg))


def test_equal_residual_blocks_in_a_row_are_counted():
    svg = svg_of("resnet 3-4-6-3")
    assert [text for text in texts_in(svg) if text.startswith("× ")] == ["× 3", "× 3", "× 5"]
    assert names_in(svg, "residual") == [
        "stage1.0", "stage2.0", "stage2.1", "stage3.0", "stage3.1",
        "stage4.0", "stage4.1", "stage4.2",
    ]  # fmt: skip


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("densenet")])
def test_every_dense_layer_is_fed_by_all_before_it(case):
    model, _ = model_of(case)
    svg = svg_of(case)
    connections = names_in(svg, "dense")
    assert len(set(connections)) == len(connections)
    for i, layers in enumerate(model.config.stage_sizes, 1):
        whole = layers <= 4
        # what the stage begins with, the layers that are drawn and, where some are not, these
        drawn = list(range(layers)) if whole else [0, 1, layers - 1]
        places = len(drawn) + (not whole)
        expected = [
            f"{source}:stage{i}.{layer}"
            for place, layer in enumerate(drawn)
            for source in range(place + (1 if whole or layer < layers - 1 else 2))
        ]
        expected += [f"{source}:stage{i}" for source in range(places + 1)]
        own = [c for c in connections if c.split(":")[1].split(".")[0] == f"stage{i}"]
        assert own == expected
        assert (f"{layers - 3} more" in texts_in(svg)) or whole


def test_densenet_says_how_its_channels_grow():
    texts = texts_in(svg_of("densenet121 imagenet"))
    assert {"6 dense layers", "64 + 6 × 32 channels"} <= set(texts)
    assert {"24 dense layers", "256 + 24 × 32 channels", "21 more"} <= set(texts)
    assert {"1×1, 128", "3×3, 32", "batch norm", "1024"} <= set(texts)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_separable_convolutions_are_in_two_parts_that_touch(stem):
    model, shape = model_of(f"xception {stem}")
    figure = figure_of(f"xception {stem}")
    boxes = {box.get_gid(): box for box in figure.axes[0].patches if box.get_gid()}
    pairs = 0
    for row in read_architecture(model, shape).stages:
        for block in row.blocks:
            for i, (first, second) in enumerate(itertools.pairwise(block.parts)):
                if first.kind != "depthwise":
                    continue
                left, right = (boxes[f"part:{block.name}.{j}"] for j in (i, i + 1))
                assert (second.kind, second.joined) == ("pointwise", True)
                assert not first.norm_after
                assert second.norm_after
                assert math.isclose(left.get_x() + left.get_width(), right.get_x())
                assert left.get_facecolor() != right.get_facecolor()
                pairs += block.repeats
    assert pairs == len(modules_with(model, "depthwise")) == 3 * 2 + 8 * 3 + 2 + 2


def test_pools_are_those_of_the_computation():
    kinds = {
        case: [
            (row.names[0], part.kind, part.detail)
            for row in read_architecture(*model_of(case)).stages
            for block in row.blocks
            for part in block.parts
            if "pool" in part.kind
        ]
        for case in ("resnet18 imagenet", "resnet18 small", "densenet121 small", "xception small")
    }
    end = ("classifier", "avg pool", "global")
    assert kinds["resnet18 imagenet"] == [("stem", "max pool", "3×3, /2"), end]
    assert kinds["resnet18 small"] == [end]
    assert kinds["densenet121 small"] == [
        *((f"transition{i}", "avg pool", "2×2, /2") for i in (1, 2, 3)), end,
    ]  # fmt: skip
    reducing = ("entry1", "entry2", "entry3", "exit1")
    assert kinds["xception small"] == [*((name, "max pool", "3×3, /2") for name in reducing), end]


def test_norms_stand_on_their_side_of_the_convolution():
    def sides(case, name):
        rows = read_architecture(*model_of(case)).stages
        (block,) = (block for row in rows for block in row.blocks if block.name == name)
        return [(part.norm_before, part.norm_after) for part in block.parts]

    assert sides("resnet18 small", "stage1.0") == [(False, True), (False, True)]
    assert sides("densenet121 small", "stage1.0") == [(True, True), (False, False)]
    assert sides("densenet121 small", "transition1") == [(True, False), (False, False)]


# ------------------------------------------------------------------------------- how it looks


def boxes_of_texts(figure):
    return [(text.get_text(), text.get_window_extent()) for text in figure.axes[0].texts]


@each_case
def test_no_text_overlaps_or_is_cut_off(case):
    figure = figure_of(case)
    boxes = boxes_of_texts(figure)
    assert len(boxes) > 20
    width, height = figure.canvas.get_width_height()
    for text, box in boxes:
        assert box.x0 >= 5, text
        assert box.y0 >= 5, text
        assert box.x1 <= width - 5, text
        assert box.y1 <= height - 5, text
    # a line's own box has room for tails and accents that it does not use
    boxes = [(text, box.expanded(1, 0.75)) for text, box in boxes]
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), (one, other)


@each_case
def test_words_stay_inside_their_boxes_and_boxes_apart(case):
    figure = figure_of(case)
    parts = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and p.get_gid()]
    frames = [part.get_window_extent() for part in parts]
    inside = [frame.padded(-1) for frame in frames]
    for one, other in itertools.combinations(inside, 2):
        assert not one.overlaps(other)
    for text, box in boxes_of_texts(figure):
        for frame in frames:
            if frame.overlaps(box):
                assert frame.x0 < box.x0, text
                assert box.x1 < frame.x1, text


@each_case
def test_connections_stay_inside_the_drawing(case):
    axes = figure_of(case).axes[0]
    shapes = [box for text, box in boxes_of_texts(figure_of(case)) if text == "parameters"]
    for patch in axes.patches:
        if (patch.get_gid() or "").startswith(("residual", "dense")):
            assert patch.get_window_extent().x1 < shapes[0].x0


def test_kinds_differ_in_colour_and_words_are_dark_on_them():
    kinds = [("depthwise", "pointwise"), ("conv", "max pool"), ("conv", "projection")]
    assert all(FILLS[a] != FILLS[b] for a, b in kinds)
    for fill, _ in FILLS.values():
        red, green, blue = matplotlib.colors.to_rgb(fill)
        assert 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.8


def test_a_readers_own_style_neither_changes_nor_is_changed():
    with matplotlib.rc_context({"font.size": 33, "axes.facecolor": "red", "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        figure = draw(*model_of("resnet18 small"))
        svg = files._render(figure, "svg")
        assert dict(matplotlib.rcParams) == before
    assert svg == files._render(draw(*model_of("resnet18 small")), "svg")
    assert b">stage1</text>" in svg


@pytest.mark.parametrize("name", NETWORKS)
def test_the_figures_beside_the_readme_are_of_this_code(name):
    stored = ElementTree.parse(FIGURES / f"diagram_{name}.svg").getroot()
    now = svg_of(f"{name} imagenet")
    assert texts_in(stored) == texts_in(now)
    for kind in ("part", "residual", "projection", "dense"):
        assert names_in(stored, kind) == names_in(now, kind)


# ------------------------------------------------------------------------------- files and errors


def test_suffix_decides_what_is_written(tmp_path):
    figure = figure_of("resnet18 small")
    assert [p.name for p in save_diagram(figure, tmp_path / "net")] == ["net.svg", "net.png"]
    assert [p.name for p in save_diagram(figure, tmp_path / "one.svg")] == ["one.svg"]
    assert [p.name for p in save_diagram(figure, tmp_path / "one.PNG")] == ["one.PNG"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "net.png",
        "net.svg",
        "one.PNG",
        "one.svg",
    ]
    assert ElementTree.parse(tmp_path / "net.svg").getroot().tag.endswith("svg")
    rows, columns, _ = matplotlib.image.imread(tmp_path / "net.png").shape
    width, height = figure.get_size_inches()
    assert abs(columns - 200 * width) <= 1
    assert abs(rows - 200 * height) <= 1


@pytest.mark.parametrize("name", ["net.pdf", "net.v2", "folder/", "", "."])
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match=r"expected a file name that ends with \.svg or \.png"):
        diagram_paths(name)


def test_where_one_file_cannot_be_written_none_is(tmp_path):
    (tmp_path / "net.png").mkdir()
    with pytest.raises(RunError, match=r"net\.png: cannot be written: is a folder"):
        save_diagram(figure_of("resnet18 small"), tmp_path / "net")
    assert [p.name for p in tmp_path.iterdir()] == ["net.png"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    (tmp_path / "net.svg").write_text("old")
    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(RunError, match=r"net\.svg: cannot be written: No space left"):
        save_diagram(figure_of("resnet18 small"), tmp_path / "net.svg")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("net.svg", "old")]


def test_only_the_three_networks_have_a_diagram():
    with pytest.raises(InputError, match="Linear: only ResNet, DenseNet and Xception"):
        draw(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), (4, 4, 2))
    with pytest.raises(InputError, match="channels"):
        draw(shapes_of(ResNet18, 2), (64, 64, 1))


SMALL = ["summary", "resnet18", "--size", "28", "--stem", "small", "--channels", "1"]


def test_the_command_writes_and_says_so(tmp_path, capsys):
    assert main([*SMALL, "--stages", "--diagram", str(tmp_path / "net")]) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"written to {tmp_path / 'net.svg'} {tmp_path / 'net.png'}\n")
    assert "stage3 " in out
    assert "stage3.0" not in out
    assert "28 × 28 × 1" in texts_in(ElementTree.parse(tmp_path / "net.svg").getroot())


@pytest.mark.parametrize(
    ("file", "code", "line"),
    [
        ("net.pdf", 2, "net.pdf: expected a file name that ends with .svg or .png, or neither"),
        ("no/net.svg", 1, "no/net.svg: cannot be written: No such file or directory"),
        ("taken/net", 1, "taken/net.svg: cannot be written: Not a directory"),
    ],
)
def test_the_command_fails_with_one_line(tmp_path, monkeypatch, capsys, file, code, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    assert main([*SMALL, "--diagram", file]) == code
    captured = capsys.readouterr()
    assert captured.err == f"flaxmed: error: {line}\n"
    assert captured.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
