"""The tables of names: complete in both directions, strict about every tensor."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles.cases import CASES, random_tensors, shapes

from flaxmed.models import DenseNet121, ResNet18, Xception
from flaxmed.models.naming import KERAS_XCEPTION, TORCHVISION_DENSENET, Rule, Table
from flaxmed.models.pretrained import flatten, from_foreign, load_state, namings, to_foreign
from flaxmed.types import InputError

ALL = [
    (ResNet18, "torchvision"),
    (ResNet18, "timm"),
    (ResNet18, "medmnist"),
    (ResNet18, "kerashub"),
    (ResNet18, "flaxmed"),
    (DenseNet121, "torchvision"),
    (DenseNet121, "keras"),
    (DenseNet121, "flaxmed"),
    (Xception, "timm"),
    (Xception, "keras"),
    (Xception, "flaxmed"),
]


def abstract(network, **options):
    """A network whose variables are shapes without values: quick to build."""
    return nnx.eval_shape(lambda: network(5, rngs=nnx.Rngs(0), **options))


@functools.cache
def skeleton(network):
    """A network for its names alone: no test may load anything into it."""
    return abstract(network)


@functools.cache
def own_tensors(network):
    return random_tensors(skeleton(network))


@pytest.fixture
def resnet():
    weights = to_foreign(own_tensors(ResNet18), skeleton(ResNet18), "torchvision")
    model = abstract(ResNet18)
    load_state(model, weights)
    return model, weights


def test_the_list_of_namings_is_whole():
    for network in (ResNet18, DenseNet121, Xception):
        expected = [pair for pair in ALL if pair[0] is network]
        assert [(network, naming) for naming in namings(skeleton(network))] == expected
    assert {(case.network, case.package) for case in CASES.values()} <= set(ALL)


@pytest.mark.parametrize(("network", "naming"), ALL)
def test_every_tensor_has_one_foreign_name_and_comes_back(network, naming):
    model, own = skeleton(network), own_tensors(network)
    foreign = to_foreign(own, model, naming)
    assert len(foreign) == len(own)
    back, report = from_foreign(foreign, model, naming)
    assert report.loaded == tuple(sorted(own))
    assert not report.dropped
    assert not report.kept
    assert set(back) == set(own)
    for path, value in own.items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)


# Names and shapes written down from the references' own listings.
@pytest.mark.parametrize(
    ("network", "naming", "own", "name", "shape"),
    [
        (ResNet18, "torchvision", "stem.conv.kernel", "conv1.weight", (64, 3, 7, 7)),
        (ResNet18, "torchvision", "stage4.1.norm2.mean", "layer4.1.bn2.running_mean", (512,)),
        (
            ResNet18,
            "timm",
            "stage2.0.shortcut.conv.kernel",
            "layer2.0.downsample.0.weight",
            (128, 64, 1, 1),
        ),
        (
            ResNet18,
            "medmnist",
            "stage2.0.shortcut.norm.scale",
            "layer2.0.shortcut.1.weight",
            (128,),
        ),
        (ResNet18, "medmnist", "classifier.kernel", "linear.weight", (5, 512)),
        (
            ResNet18,
            "kerashub",
            "stage2.0.shortcut.norm.var",
            "stack1_block0_0_bn/moving_variance",
            (128,),
        ),
        (
            ResNet18,
            "kerashub",
            "stage1.1.conv2.kernel",
            "stack0_block1_2_conv/kernel",
            (3, 3, 64, 64),
        ),
        (
            DenseNet121,
            "torchvision",
            "stage3.23.conv2.kernel",
            "features.denseblock3.denselayer24.conv2.weight",
            (32, 128, 3, 3),
        ),
        (
            DenseNet121,
            "keras",
            "stage4.0.norm2.var",
            "conv5_block1_1_bn/moving_variance",
            (128,),
        ),
        (DenseNet121, "keras", "transition1.conv.kernel", "pool2_conv/kernel", (1, 1, 256, 128)),
        (
            Xception,
            "timm",
            "entry1.sep2.conv.depthwise.kernel",
            "block1.rep.3.conv1.weight",
            (128, 1, 3, 3),
        ),
        (
            Xception,
            "timm",
            "middle8.sep3.conv.pointwise.kernel",
            "block11.rep.7.pointwise.weight",
            (728, 728, 1, 1),
        ),
        (Xception, "timm", "exit1.sep2.norm.bias", "block12.rep.5.bias", (1024,)),
        (Xception, "timm", "exit3.norm.scale", "bn4.weight", (2048,)),
        (
            Xception,
            "keras",
            "exit2.conv.depthwise.kernel",
            "block14_sepconv1/depthwise_kernel",
            (3, 3, 1024, 1),
        ),
        (Xception, "keras", "middle1.sep1.norm.mean", "block5_sepconv1_bn/moving_mean", (728,)),
        (Xception, "keras", "exit1.shortcut.conv.kernel", "conv2d_3/kernel", (1, 1, 728, 1024)),
    ],
)
def test_known_names(network, naming, own, name, shape):
    foreign = to_foreign({own: own_tensors(network)[own]}, skeleton(network), naming)
    assert {key: array.shape for key, array in foreign.items()} == {name: shape}


def test_layouts():
    """One value of each layout, traced by hand."""
    model, own = skeleton(Xception), own_tensors(Xception)
    torch, keras = (to_foreign(own, model, naming) for naming in ("timm", "keras"))
    dense, depth = own["classifier.kernel"], own["exit2.conv.depthwise.kernel"]
    stem = own["stem.conv2.kernel"]
    assert torch["fc.weight"][1, 7] == keras["predictions/kernel"][7, 1] == dense[7, 1]
    assert torch["conv2.weight"][5, 4, 2, 0] == stem[2, 0, 4, 5]
    assert keras["block1_conv2/kernel"][2, 0, 4, 5] == stem[2, 0, 4, 5]
    assert torch["conv3.conv1.weight"][9, 0, 2, 1] == depth[2, 1, 0, 9]
    assert keras["block14_sepconv1/depthwise_kernel"][2, 1, 9, 0] == depth[2, 1, 0, 9]


def test_loading_changes_the_model_and_reports(resnet):
    _, weights = resnet
    model = abstract(ResNet18)
    counters = {f"{norm}.num_batches_tracked": np.array(7) for norm in ("bn1", "layer1.0.bn1")}
    report = load_state(model, weights | counters, "torchvision")
    assert len(report.loaded) == 102
    assert set(report.dropped) == set(counters)
    assert all("counter" in reason for reason in report.dropped.values())
    again = to_foreign(flatten(nnx.state(model)), model, "torchvision")
    for name, value in weights.items():
        np.testing.assert_array_equal(again[name], value)


def test_values_take_the_models_dtype(resnet):
    _, weights = resnet
    model = abstract(ResNet18, dtype=jnp.bfloat16)
    load_state(model, {k: v.astype(np.float16) for k, v in weights.items()}, "torchvision")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {np.dtype(np.float32)}


def test_gradients_alone_pass_the_table(resnet):
    model, weights = resnet
    paths = [path for path in shapes(model) if not path.endswith((".mean", ".var"))]
    parameters = {path: np.ones(shapes(model)[path]) for path in paths}
    names = set(to_foreign(parameters, model, "torchvision"))
    assert names == {name for name in weights if "running" not in name}


def test_every_difference_is_in_one_message(resnet):
    model, weights = resnet
    broken = dict(weights)
    del broken["layer3.1.bn2.bias"]
    del broken["fc.bias"]
    broken["layer5.0.conv1.weight"] = np.zeros((1, 1, 1, 1))
    broken["fc.weight"] = np.zeros((1000, 512))
    broken["conv1.weight"] = np.zeros(3)
    before = flatten(nnx.state(model))
    with pytest.raises(InputError) as caught:
        load_state(model, broken, "torchvision")
    message = str(caught.value)
    assert "\n" not in message
    assert "missing 2: fc.bias, layer3.1.bn2.bias" in message
    assert "unexpected 1: layer5.0.conv1.weight" in message
    assert "misshapen 2:" in message
    assert "fc.weight 1000x512 (expected 5x512)" in message
    assert "conv1.weight 3 (expected 64x3x7x7)" in message
    for path, value in flatten(nnx.state(model)).items():
        np.testing.assert_array_equal(value, before[path])  # none was loaded


def test_a_kept_head_is_named_not_guessed(resnet):
    _, weights = resnet
    model = nnx.eval_shape(lambda: ResNet18(7, rngs=nnx.Rngs(0)))
    load_state(model, weights | {"fc.weight": np.zeros((7, 512)), "fc.bias": np.zeros(7)})
    with pytest.raises(InputError, match=r"misshapen 2: .*fc.weight 5x512"):
        load_state(model, weights, "torchvision")
    report = load_state(model, weights, "torchvision", keep=["classifier"])
    assert report.kept == ("classifier.bias", "classifier.kernel")
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    without = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    assert len(load_state(model, without, "torchvision", keep=["classifier"]).loaded) == 100
    with pytest.raises(InputError, match="nothing to keep under 1: class"):
        load_state(model, weights, "torchvision", keep=["class", "classifier"])


def test_unknown_namings_and_paths_are_refused(resnet):
    model, weights = resnet
    with pytest.raises(InputError, match="'keras' for ResNet18: expected one of torchvision, timm"):
        load_state(model, weights, "keras")
    with pytest.raises(InputError, match=r"no rule for stage1\.0\.conv, head\.kernel"):
        to_foreign({"stage1.0.conv": np.zeros(1), "head.kernel": np.zeros(1)}, model, "torchvision")


def test_the_published_spelling_of_densenet_is_read():
    model = skeleton(DenseNet121)
    weights = to_foreign(own_tensors(DenseNet121), model, "torchvision")
    dotted = {re.sub(r"(denselayer\d+\.\w+?)(\d)", r"\1.\2", k): v for k, v in weights.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in dotted
    own, _ = from_foreign(dotted, model, "torchvision")
    np.testing.assert_array_equal(
        own["stage1.0.norm1.scale"], weights["features.denseblock1.denselayer1.norm1.weight"]
    )
    twice = dotted | {"features.denseblock1.denselayer1.norm1.weight": np.ones(64)}
    with pytest.raises(InputError, match=r"two tensors mean the same one: .*denselayer1.norm1"):
        from_foreign(twice, model, "torchvision")


def test_keras_shortcuts_are_known_by_their_width():
    """Keras numbers them by a counter of the process: another number, another order, same layer."""
    model, own = skeleton(Xception), own_tensors(Xception)
    weights = to_foreign(own, model, "keras")
    numbers = {"": "_9", "_1": "_7", "_2": "_12", "_3": "_8"}
    renamed = {
        re.sub(
            r"^(conv2d|batch_normalization)((?:_\d+)?)/",
            lambda match: f"{match[1]}{numbers[match[2]]}/",
            name,
        ): value
        for name, value in weights.items()
    }
    assert "conv2d_9/kernel" in renamed
    back, _ = from_foreign(renamed, model, "keras")
    for path, value in own.items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)


def test_offsets_read_both_ways():
    table = Table([Rule("block{b+1}.rep.{k+2}", "entry{b}.sep{k}", (1, 0))])
    assert table.own("block3.rep.12") == ("entry2.sep10", (1, 0))
    assert table.foreign("entry2.sep10") == ("block3.rep.12", (1, 0))
    assert table.own("block3.rep.12.weight") is None
    assert table.own("block03.rep.2") is None
    assert TORCHVISION_DENSENET.own("features.denseblock1.denselayer1.norm3") is None
    assert KERAS_XCEPTION.own("block13_sepconv2_bn/gamma") == ("exit1.sep2.norm.scale", None)
