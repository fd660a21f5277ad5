"""What leaves flaxmed for others: a network's weights, its folder, its repository on the hub."""

from __future__ import annotations

import numpy as np
from flax import nnx

import flaxmed
from flaxmed.models import create_model
from flaxmed.models.pretrained import flatten
from flaxmed.models.weights import load_weights, open_weights, weights_of
from flaxmed.types import DatasetInfo, Preprocessing, Task

INFO = DatasetInfo("mine", Task.BINARY, ("benign", "malignant"), channels=1, positive=0)


def network(seed=0, info=INFO):
    """A ResNet-18 for small grey images that knows its classes and its preprocessing."""
    model = create_model(
        "resnet18", info.num_classes, in_channels=1, stem="small", rngs=nnx.Rngs(seed)
    )
    model.info, model.preprocessing = info, Preprocessing((0.3,), (0.2,))
    return model


def assert_same_weights(one, other):
    ours, theirs = flatten(nnx.state(one)), flatten(nnx.state(other))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(theirs[name], value, err_msg=name)


def test_the_weights_of_a_network_are_those_of_its_file(tmp_path):
    model = network()
    flaxmed.save_weights(model, tmp_path / "mine.safetensors", licence="mit")
    read = open_weights(tmp_path / "mine.safetensors")
    held = weights_of(model, read.source, licence="mit")
    for name, value in held.tensors.items():
        np.testing.assert_array_equal(read.tensors[name], value, err_msg=name)
    for name in ("source", "kind", "variant", "preprocessing", "info", "licence"):
        assert getattr(held, name) == getattr(read, name)


def test_weights_in_memory_go_into_another_network():
    model, other = network(0), network(1)
    report = load_weights(other, weights_of(model))
    assert not report.kept
    assert_same_weights(model, other)
