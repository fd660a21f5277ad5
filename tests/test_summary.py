"""The layer table against the published counts of the three networks, and against a hand count."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxmed.models import DenseNet121, ResNet18, Xception
from flaxmed.summary import Layer, Summary, summarize
from flaxmed.types import InputError


def table(network, classes=1000, size=224, channels=3, stem="imagenet") -> Summary:
    model = nnx.eval_shape(
        lambda: network(classes, in_channels=channels, stem=stem, rngs=nnx.Rngs(0))
    )
    return summarize(model, (size, size, channels))


# Trainable parameters, running statistics: torchvision's num_params, Keras' and timm's summaries.
# GMACs: torchvision's `_ops` (convolutions and linear layers; it has no Xception), and the table of
# timm, which also counts two per batch-normalised value and the pooled map.
PUBLISHED = [
    (ResNet18, 224, 11_689_512, 9_600, 1.814, 1.82),
    (DenseNet121, 224, 7_978_856, 83_648, 2.834, 2.87),
    (Xception, 299, 22_855_952, 54_528, None, 8.40),
]


@pytest.mark.parametrize(
    ("network", "size", "parameters", "statistics", "torchvision", "timm"), PUBLISHED
)
def test_totals_are_the_published_ones(network, size, parameters, statistics, torchvision, timm):
    summary = table(network, size=size)
    assert summary.parameters == parameters
    assert summary.statistics == statistics
    if torchvision is not None:
        assert round(summary.multiply_adds / 1e9, 3) == torchvision
    normalised = sum(math.prod(row.output_shape) for row in summary.layers if row.statistics)
    pooled = math.prod(summary.stages[-2].output_shape)
    assert round((summary.multiply_adds + 2 * normalised + pooled) / 1e9, 2) == timm


@pytest.mark.parametrize("network", [ResNet18, DenseNet121, Xception])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_parameters_are_those_of_the_real_model(network, stem):
    model = nnx.eval_shape(lambda: network(9, in_channels=1, stem=stem, rngs=nnx.Rngs(0)))
    summary = summarize(model, (96, 96, 1))
    for kind, counted in ((nnx.Param, summary.parameters), (nnx.BatchStat, summary.statistics)):
        assert counted == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, kind)))


def test_stage_shapes_are_those_of_the_feature_maps():
    """Xception's stages end in pools and sums, which are no layers; they must show all the same."""
    images = jnp.zeros((1, 71, 71, 3))
    maps = jax.eval_shape(lambda: Xception(2, rngs=nnx.Rngs(0)).features(images))
    shapes = {row.name: row.output_shape for row in table(Xception, 2, size=71).stages}
    named = set(maps) - {"final"}
    assert {name: shapes[name] for name in named} == {name: maps[name].shape[1:] for name in named}


def test_xception_at_299_has_the_published_sizes():
    shapes = {row.name: row.output_shape for row in table(Xception, size=299).stages}
    names = ("stem", "entry1", "entry2", "entry3", "exit1")
    assert [shapes[name][0] for name in names] == [147, 74, 37, 19, 10]


class Small(nnx.Module):
    """One of each: grouped convolution, norm, linear layer, a layer used twice, one never used."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(4, 8, (3, 3), strides=2, feature_group_count=2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.twice = nnx.Conv(8, 8, (1, 1), use_bias=False, rngs=rngs)
        self.unused = nnx.Linear(3, 2, rngs=rngs)
        self.linear = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        x = self.twice(self.twice(nnx.relu(self.norm(self.conv(x)))))
        return self.linear(x.mean((1, 2)))


def test_counts_by_hand():
    summary = summarize(Small(nnx.Rngs(0)), (10, 6, 4))
    assert summary.layers == (
        # 5x3 positions, 3x3 window, 2 of 4 input channels per group, 8 outputs; bias not counted
        Layer("conv", "Conv", (5, 3, 8), 3 * 3 * 2 * 8 + 8, 0, 15 * 9 * 2 * 8),
        Layer("norm", "BatchNorm", (5, 3, 8), 16, 16, 0),
        Layer("twice", "Conv", (5, 3, 8), 64, 0, 2 * 15 * 64),
        Layer("linear", "Linear", (5,), 45, 0, 40),
        Layer("unused", "Linear", None, 8, 0, 0),
    )
    assert summary.parameters == sum((152, 16, 64, 45, 8))
    assert "not called" in str(summary)


def test_model_is_left_as_it_was():
    model = Small(nnx.Rngs(0))
    model.train()
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 10, 6, 4)), jnp.float32)
    kinds = [type(module) for _, module in nnx.iter_modules(model)]
    before = jax.tree.map(np.asarray, nnx.state(model))

    summarize(model, (10, 6, 4))

    assert [type(module) for _, module in nnx.iter_modules(model)] == kinds
    assert jax.tree.all(jax.tree.map(np.array_equal, before, nnx.state(model)))
    assert not model.norm.use_running_average
    model(images)
    assert not np.array_equal(before["norm"]["mean"][...], model.norm.mean[...])


def test_dict_survives_json_and_agrees_with_the_rows():
    summary = table(ResNet18, classes=2, size=28, channels=1, stem="small")
    values = json.loads(json.dumps(summary.to_dict()))
    assert values == summary.to_dict()
    assert values["parameters"] == 11_168_706  # MedMNIST's own network, 2 classes, 1 channel
    for rows in (values["layers"], values["stages"]):
        for key in ("parameters", "statistics", "multiply_adds"):
            assert sum(row[key] for row in rows) == values[key]


def test_text_is_aligned_and_names_each_layer():
    summary = table(ResNet18, classes=2, size=28, channels=1, stem="small")
    lines = str(summary).splitlines()
    rows = lines[1 : lines.index("")]
    assert len({len(row) for row in rows}) == 1  # the last column is flush right
    assert [row.split()[0] for row in rows if row.startswith("  ")] == [
        layer.name for layer in summary.layers if layer.name != layer.stage
    ]
    stages = summary.to_text(layers=False).splitlines()
    assert [row.split()[0] for row in stages[2 : stages.index("")]] == [
        "stem", "stage1", "stage2", "stage3", "stage4", "classifier", "total",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 0), (-28, 28, 1), (1, 28, 28, 1), ()])
def test_refuses_what_is_no_image_shape(shape):
    with pytest.raises(InputError, match="image_shape must be"):
        summarize(Small(nnx.Rngs(0)), shape)


@pytest.mark.parametrize(("shape", "words"), [((8, 8, 3), "pixels"), ((64, 64, 1), "channels")])
def test_refuses_what_the_network_refuses(shape, words):
    model = nnx.eval_shape(lambda: ResNet18(2, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=f"ResNet18.*{words}"):
        summarize(model, shape)
