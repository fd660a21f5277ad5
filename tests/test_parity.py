"""flaxmed beside torchvision, timm and Keras: same weights, same images, every number compared.

The references are test-only. Where they are not installed these tests skip, unless
FLAXMED_REQUIRE_ORACLES=1; tests/test_golden.py keeps the comparison alive without them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from oracles import cases, compare
from oracles.cases import CASES, SECOND_REFERENCE
from oracles.compare import (
    FLOAT64_TOLERANCE,
    LOGITS_TOLERANCE,
    Comparison,
    check,
    require,
    smallest_norm,
    worst,
)
from scipy import stats

from flaxmed.models.layers import BatchNorm, lowering
from flaxmed.models.pretrained import flatten, to_foreign

# Tests of one network share a worker process where there are several, and so what it compiled.
TOGETHER = {name: pytest.mark.xdist_group(name) for name in CASES}

# FLAXMED_FULL_PARITY=1 asks for everything. Else training is compared at each network's smallest
# size, grey images, which meet another stem and nothing else, there too and in training for
# ResNet-18; DenseNet-121 trains beside one reference, not also beside one with two other constants.
FULL = os.environ.get("FLAXMED_FULL_PARITY") == "1"
EVALUATED = [
    pytest.param(name, channels, size, id=f"{name}-{channels}-{size}", marks=TOGETHER[name])
    for name, case in CASES.items()
    for channels in (1, 3)
    for size in case.sizes[: None if FULL or channels == 3 else 1]
]
LEARNERS = [name for name in CASES if FULL or name != SECOND_REFERENCE]
TRAINED = [
    pytest.param(name, channels, size, id=f"{name}-{channels}-{size}", marks=TOGETHER[name])
    for name in LEARNERS
    for channels in (1, 3)
    for size in CASES[name].sizes[: None if FULL else 1]
    if FULL or channels == 3 or name.startswith("resnet")
]


@functools.lru_cache(maxsize=1)
def compared(name, channels, size):
    """The comparison that successive tests share: the reference's results are computed once."""
    require(CASES[name].package)
    return Comparison(name, channels, size)


def smallest(name):
    return compared(name, 3, CASES[name].sizes[0])


@pytest.fixture
def hold(request):
    """``check``, with the largest deviation put on record for ``tests/oracles/report.py``."""

    def hold(name, what, deviations, tolerance):
        note(request, name, what, worst(deviations))
        check(deviations, tolerance)

    return hold


def note(request, name, what, deviation):
    request.node.user_properties.append((f"{name}: {what}", deviation))


# One test holds all checks of one run, so that a network is compiled once wherever it is scheduled.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels", "size"), EVALUATED)
def test_evaluation(name, channels, size, hold):
    """Logits and every named map in float64, and the logits in float32."""
    comparison = compared(name, channels, size)
    hold(name, "logits and maps", comparison.evaluation(), FLOAT64_TOLERANCE)
    hold(name, "float32 logits", comparison.evaluation_float32(), LOGITS_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels", "size"), TRAINED)
def test_training(name, channels, size, hold):
    """A training step and five of SGD with momentum, in float64.

    Of the running variance torch stores the unbiased one and Keras the biased one: the networks'
    configurations say which, so that nothing has to be excused here.
    """
    comparison = compared(name, channels, size)
    hold(name, "training logits", comparison.training_logits(), FLOAT64_TOLERANCE)
    hold(name, "running statistics", comparison.statistics(), FLOAT64_TOLERANCE)
    hold(name, "gradients", comparison.gradients(), FLOAT64_TOLERANCE)
    # no gradient is so small that it would be excused as zero but for rounding
    assert smallest_norm(comparison.their_step.gradients) > compare.FLOOR
    hold(name, "5 steps of SGD", comparison.sgd(), FLOAT64_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=TOGETHER[n]) for n in LEARNERS if FULL or n != "resnet18-small"],
)
def test_float32_gradients_are_as_good_as_the_references_own(name, request):
    errors = smallest(name).gradients_float32()
    note(request, name, "float32 gradients", worst(errors.ratios()))
    errors.check()


# ------------------------------------------------------------------------------- parameter counts


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("channels", "classes"), [(3, 1000), (1, 2)])
def test_parameter_counts(name, channels, classes):
    case = CASES[name]
    require(case.package)
    if case.package == "keras":
        reference: Any = compare.keras_reference.KerasReference(
            case, channels, np.float32, case.sizes[0], classes
        )
    else:
        reference = compare.torch_reference.TorchReference(case, channels, np.float32, classes)
    model = case.build(channels, np.float32, num_classes=classes)
    statistics = {path for path in cases.shapes(model) if path.endswith((".mean", ".var"))}
    counts = {path: int(np.prod(shape)) for path, shape in cases.shapes(model).items()}
    assert sum(counts[path] for path in set(counts) - statistics) == reference.parameter_count


# --------------------------------------------------------------------------------- initial values

# DenseNet-121 starts as torchvision's does; Keras' draws differ, and are not offered.
INITIALIZED = [
    pytest.param(name, marks=TOGETHER[name]) for name in CASES if name != SECOND_REFERENCE
]


@pytest.mark.parametrize("name", INITIALIZED)
def test_initial_values(name):
    """Every tensor is constant, or drawn from one distribution (Kolmogorov-Smirnov), as theirs."""
    case = CASES[name]
    require(case.package)
    if case.package == "keras":
        compare.keras_reference.import_packages().utils.set_random_seed(0)
        reference: Any = compare.keras_reference.KerasReference(case, 3, np.float32, 96)
    else:
        compare.torch_reference.import_packages()[0].manual_seed(0)
        reference = compare.torch_reference.TorchReference(case, 3, np.float32)
    theirs = reference.tensors()
    model = case.network(cases.CLASSES, in_channels=3, rngs=nnx.Rngs(0), **case.options)
    ours = to_foreign(flatten(nnx.state(model)), model, case.package)
    assert set(ours) == set(theirs)
    for tensor, value in theirs.items():
        assert ours[tensor].shape == value.shape
        if np.ptp(value) == 0:
            np.testing.assert_array_equal(ours[tensor], value, err_msg=tensor)
        else:
            samples = (v.ravel()[:100_000] for v in (ours[tensor], value))
            assert stats.ks_2samp(*samples).pvalue > 1e-5, tensor


# --------------------------------------------------------- the comparisons can be seen to fail

NETWORKS = ["resnet18-torchvision", "densenet121-torchvision", "xception-timm", "xception-keras"]


@pytest.fixture(params=NETWORKS)
def intact(request):
    return smallest(request.param)


@pytest.fixture(scope="module")
def resnet():
    return smallest("resnet18-torchvision")


@pytest.fixture
def retrace(monkeypatch):
    """Compiles anew, so that what a test breaks takes effect."""
    compiled = cases.compiled.__wrapped__

    @functools.cache
    def fresh(function, polished=True):
        return compiled(lambda *inputs: function(*inputs), polished)

    monkeypatch.setattr(cases, "compiled", fresh)


def altered(case, *, bn=None, **changes):
    """The case with another configuration."""
    config = case.options["config"]
    config = dataclasses.replace(config, **changes)
    config = dataclasses.replace(config, bn=dataclasses.replace(config.bn, **(bn or {})))
    return dataclasses.replace(case, options={**case.options, "config": config})


def refused(deviations, tolerance=FLOAT64_TOLERANCE):
    with pytest.raises(AssertionError, match="beyond"):
        check(deviations, tolerance)
    return deviations


@pytest.mark.slow
def test_a_dropped_relu_and_another_epsilon_are_noticed(intact, retrace, monkeypatch):
    """Ten per cent more epsilon; and one ReLU left out, half-way through the network."""
    epsilon = intact.case.options["config"].bn.epsilon
    refused(intact.beside(altered(intact.case, bn={"epsilon": 1.1 * epsilon})).evaluation())

    relu, calls, drop = jax.nn.relu, [], 0

    def leaky(x):
        calls.append(x)
        return x if len(calls) == drop else relu(x)

    monkeypatch.setattr(jax.nn, "relu", leaky)
    inputs = np.zeros((1, intact.size, intact.size, 3), np.float32)
    with lowering("xla"):  # in which each ReLU is a call of its own, as in float64
        nnx.eval_shape(lambda model, x: model(x), intact.case.build(3, np.float32), inputs)
    drop = len(calls) // 2
    calls.clear()
    assert drop > 5
    assert refused(intact.evaluation())["logits"] > 1e-3


@pytest.mark.slow
def test_another_padding_of_the_pools_is_noticed():
    intact = smallest("xception-timm")
    deviations = refused(intact.beside(altered(intact.case, pool_padding="SAME")).evaluation())
    assert deviations["stem"] <= FLOAT64_TOLERANCE < deviations["final"]


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"unbiased": False}, {"momentum": 0.89}], ids=str)
def test_other_running_statistics_are_noticed(resnet, change):
    other = resnet.beside(altered(resnet.case, bn=change))
    check(other.training_logits(), FLOAT64_TOLERANCE)
    refused(other.statistics())


@pytest.mark.slow
def test_a_wrong_gradient_is_noticed(resnet, retrace, monkeypatch):
    """Batch statistics taken for constants: the same outputs, other gradients."""
    moments = BatchNorm._moments
    monkeypatch.setattr(
        BatchNorm,
        "_moments",
        lambda *inputs: lax.stop_gradient(moments(*inputs)),
    )
    other = resnet.beside(resnet.case)
    check(other.training_logits(), FLOAT64_TOLERANCE)
    refused(other.gradients())


@pytest.mark.slow
def test_another_optimiser_is_noticed(resnet, retrace, monkeypatch):
    their_sgd = resnet.their_sgd
    monkeypatch.setattr(cases, "MOMENTUM", 0.89)
    other = resnet.beside(resnet.case)
    assert other.their_sgd is their_sgd
    refused(other.sgd())


@pytest.mark.slow
def test_exchanged_tensors_are_noticed(resnet, monkeypatch):
    one, two = "layer1.0.bn1.weight", "layer1.0.bn2.weight"
    weights, intact_evaluation = resnet.weights, resnet.their_evaluation
    other = resnet.beside(resnet.case)
    other.weights = weights | {one: weights[two], two: weights[one]}
    assert other.their_evaluation is intact_evaluation
    refused(other.evaluation())


@pytest.mark.slow
def test_lower_precision_is_noticed(resnet, monkeypatch):
    """bfloat16 instead of float32: beyond the tolerance of the logits and of the gradients."""
    monkeypatch.setattr(compare, "GRADIENT_DRAWS", 2)
    half = dataclasses.replace(resnet.case, options={**resnet.case.options, "dtype": jnp.bfloat16})
    refused(resnet.beside(half).evaluation_float32(), LOGITS_TOLERANCE)
    with pytest.raises(AssertionError, match="beyond"):
        resnet.beside(half).gradients_float32().check()


def test_a_missing_reference_skips_or_fails(monkeypatch):
    def absent():
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(compare.torch_reference, "import_packages", absent)
    monkeypatch.setenv("FLAXMED_REQUIRE_ORACLES", "0")
    with pytest.raises(pytest.skip.Exception, match="torchvision cannot be imported: No module"):
        require("torchvision")
    monkeypatch.setenv("FLAXMED_REQUIRE_ORACLES", "1")
    with pytest.raises(pytest.fail.Exception, match="timm cannot be imported: No module"):
        require("timm")
