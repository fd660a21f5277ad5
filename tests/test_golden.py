"""flaxmed beside the references' stored answers: the comparison of test_parity without torch."""

from __future__ import annotations

import functools
import os

import numpy as np
import pytest
from oracles import golden
from oracles.cases import CASES, SECOND_REFERENCE, Ours, images_and_labels, random_tensors
from oracles.compare import (
    EVALUATION_BATCH,
    FLOAT64_TOLERANCE,
    FLOOR,
    TRAINING_BATCH,
    check,
    one_by_one,
    precision,
    worst,
)

QUICK = ("resnet18-torchvision", "resnet18-small")


@functools.cache
def expected(name):
    return golden.load(name)


# In one worker process with the live comparison of the same network, for what that compiled.
TOGETHER = {name: pytest.mark.xdist_group(name) for name in CASES}
# Where the references must be there, test_parity trains beside them, all but the second one.
LIVE = os.environ.get("FLAXMED_REQUIRE_ORACLES") == "1"
TRAINED = [name for name in CASES if name == SECOND_REFERENCE or not LIVE]


@pytest.fixture(scope="module", params=[pytest.param(n, marks=TOGETHER[n]) for n in CASES])
def network(request):
    """flaxmed's side with the weights that the reference had."""
    return request.param, built(request.param)


def built(name):
    with precision(np.float64):
        ours = Ours(CASES[name], 3, np.float64)
        ours.load(ours.foreign(random_tensors(ours.model)))
    return ours


def images(name, batch):
    return images_and_labels(CASES[name].sizes[0], 3, batch)


def sketched(ours, stored, floor=FLOOR):
    return golden.sketch_deviations(ours, stored, floor)


def test_every_case_has_a_file():
    assert {path.stem for path in golden.FOLDER.glob("*.npz")} == set(CASES)
    assert sum(path.stat().st_size for path in golden.FOLDER.glob("*.npz")) < 1_000_000


def test_the_weights_are_those_of_the_file(network):
    """Names, shapes and values: if this fails, the random numbers changed, not the networks."""
    name, ours = network
    weights = ours.foreign(random_tensors(ours.model))
    assert sorted(weights) == expected(name)["names"].tolist()
    sizes = ["x".join(map(str, weights[key].shape)) for key in sorted(weights)]
    assert sizes == expected(name)["shapes"].tolist()
    check(sketched(weights, expected(name)["weights"]), 1e-12)


def test_evaluation(network):
    name, ours = network
    with precision(np.float64):
        logits, maps = ours.evaluate(images(name, EVALUATION_BATCH)[0])
    check(one_by_one({"logits": logits}, {"logits": expected(name)["logits"]}), FLOAT64_TOLERANCE)
    check(sketched(maps, expected(name)["maps"], floor=0), FLOAT64_TOLERANCE)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[TOGETHER[name], *([] if name in QUICK else [pytest.mark.slow])])
        for name in TRAINED
    ],
)
def test_training(name):
    """Training-mode logits, statistics, gradients; then five steps of SGD with momentum."""
    ours, batch = built(name), images(name, TRAINING_BATCH)
    with precision(np.float64):
        step = ours.step(*batch)
        trained = ours.sgd(*batch)
    answers = {"training_logits": step.logits, "loss": step.loss}
    check(one_by_one(answers, {key: expected(name)[key] for key in answers}), FLOAT64_TOLERANCE)
    check(sketched(step.statistics, expected(name)["statistics"]), FLOAT64_TOLERANCE)
    check(sketched(step.gradients, expected(name)["gradients"]), FLOAT64_TOLERANCE)
    check(sketched(trained, expected(name)["sgd"]), FLOAT64_TOLERANCE)


# ---------------------------------------------------------- the comparison can be seen to fail


def test_a_sketch_measures_the_difference():
    """Its estimate of a relative L2 error is right within the scatter of two projections."""
    rng = np.random.default_rng(0)
    exact = {f"tensor{i}": rng.normal(size=500) for i in range(100)}
    off = {name: value * (1 + 1e-6 * rng.normal(size=500)) for name, value in exact.items()}
    stored = golden.sketches(exact)
    estimates = list(sketched(off, stored).values())
    assert 0.5e-6 < np.sqrt(np.mean(np.square(estimates))) < 2e-6
    assert worst(sketched(exact, stored)) == 0
    with pytest.raises(AssertionError, match=r"beyond 1e-08: tensor"):
        check(sketched(off, stored), FLOAT64_TOLERANCE)


def test_nan_is_no_agreement():
    stored = golden.sketches({"a": np.ones(3), "b": np.ones(3)})
    with pytest.raises(AssertionError, match="b: nan"):
        check(sketched({"a": np.ones(3), "b": np.array([1, np.nan, 1])}, stored), 1e-8)


@pytest.mark.parametrize("name", QUICK)
def test_two_exchanged_tensors_are_noticed(name):
    with precision(np.float64):
        ours = Ours(CASES[name], 3, np.float64)
        weights = ours.foreign(random_tensors(ours.model))
        one, two = "layer1.0.bn1.weight", "layer1.0.bn2.weight"
        ours.load(weights | {one: weights[two], two: weights[one]})
        logits, maps = ours.evaluate(images(name, EVALUATION_BATCH)[0])
    stored = expected(name)
    with pytest.raises(AssertionError, match="beyond"):
        check(one_by_one({"logits": logits}, {"logits": stored["logits"]}), FLOAT64_TOLERANCE)
    deviations = sketched(maps, stored["maps"], floor=0)
    assert deviations["stem"] <= FLOAT64_TOLERANCE < deviations["stage1"]
