"""Reliability and temperature scaling: by hand, by definition, by simulation; and their figure."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats

from flaxmed.evaluation import metrics
from flaxmed.evaluation import reliability as reliability_module
from flaxmed.evaluation.calibration import Temperature, calibrate, fit_temperature, scale
from flaxmed.evaluation.plots_calibration import reliability_figure
from flaxmed.evaluation.reliability import reliability
from flaxmed.types import InputError, Predictions, Task, sigmoid, softmax

TASKS = [task.value for task in Task]
WIDTH = {"binary": 2, "multiclass": 5, "ordinal": 4, "multilabel": 3}


def draw(task, n, *, seed=0, sharp=1.0, rounded=False, dtype=np.float64):
    """Labels drawn from the softmax (sigmoid) of logits, and ``sharp`` times these logits.

    1.0 is a calibrated model, 2.0 one that is too sure of itself.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, WIDTH[task])) * 1.5
    if rounded:
        logits = np.round(logits)
    if task == "multilabel":
        labels = (rng.random(logits.shape) < sigmoid(logits)).astype(int)
    else:
        below = softmax(logits).cumsum(axis=1)
        labels = (rng.random((n, 1)) > below[:, :-1]).sum(axis=1)
    return Predictions(labels=labels, logits=(sharp * logits).astype(dtype), task=task)


def judge(p, **options):
    return reliability(p.labels, p.probabilities, task=p.task, **options)


def binary(confidences, right):
    """A binary task whose decisions have these confidences, 0.5 or more, and are right or not."""
    confidences = np.asarray(confidences, float)
    return np.asarray(right, int), np.stack([1 - confidences, confidences], axis=1)


# --------------------------------------------------------------------------------- reliability


def plain_bins(confidence, outcome, bins):
    """Bins by the definition: each run of equal confidences where its middle rank belongs."""
    pairs = sorted(zip(confidence, outcome, strict=True))
    n, at, found = len(pairs), 0, {}
    bins = max(1, min(bins, n // 2))
    for _, run in itertools.groupby(pairs, key=lambda pair: pair[0]):
        run = list(run)
        middle = at + len(run) / 2
        found.setdefault(math.floor(middle / n * bins), []).extend(run)
        at += len(run)
    return [np.array(found[i]) for i in sorted(found)]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7, 29, 30, 31, 157])
def test_bins_and_error_are_those_of_the_definition(task, rounded, n):
    p = draw(task, n, rounded=rounded, seed=n)
    scores = np.round(p.probabilities, 10)  # ties are ties
    if task == "multilabel":
        confidence, outcome = scores.ravel(), p.labels.ravel()
    else:
        confidence, outcome = scores.max(axis=1), scores.argmax(axis=1) == p.labels
    expected = plain_bins(confidence, outcome, 15)
    found = reliability(p.labels, scores, task=task, resamples=10)
    assert found.count.tolist() == [len(b) for b in expected]
    np.testing.assert_allclose(found.confidence, [b[:, 0].mean() for b in expected])
    np.testing.assert_allclose(found.accuracy, [b[:, 1].mean() for b in expected])
    gaps = [len(b) * abs(b[:, 0].mean() - b[:, 1].mean()) for b in expected]
    assert found.ece_plain == pytest.approx(sum(gaps) / len(confidence), abs=1e-12)
    cells = np.histogram(confidence, np.linspace(0, 1, 51))[0]
    np.testing.assert_array_equal(found.histogram, cells)
    assert found.n == len(confidence) == found.count.sum() == found.histogram.sum()
    assert found.events == ("labels" if task == "multilabel" else "top label")


def test_different_confidences_fill_bins_of_equal_size():
    labels, scores = binary(np.linspace(0.51, 0.99, 150), np.ones(150))
    assert reliability(labels, scores, task="binary").count.tolist() == [10] * 15
    few = reliability(labels[:11], scores[:11], task="binary")
    assert sorted(few.count) == [2, 2, 2, 2, 3]
    assert reliability(labels, scores, task="binary", bins=1).count.tolist() == [150]


def test_equal_confidences_share_a_bin():
    labels, scores = binary([0.6] * 50 + [0.7] * 3 + [0.9] * 47, np.ones(100))
    found = reliability(labels, scores, task="binary")
    np.testing.assert_allclose(found.confidence, [0.6, 0.7, 0.9])
    assert found.count.tolist() == [50, 3, 47]
    # what differs in the last digit alone is equal too
    scores[1::2, 1] = np.nextafter(scores[1::2, 1], 1)
    assert reliability(labels, scores, task="binary").count.tolist() == [50, 3, 47]


def test_the_decision_is_that_of_the_metrics():
    """A tie goes to class 0 of two, to the first of more; binary looks at the last column alone."""
    found = reliability(np.array([0, 1]), np.full((2, 2), 0.5), task="binary")
    assert (found.confidence.tolist(), found.accuracy.tolist()) == ([0.5], [0.5])
    found = reliability(np.array([0]), np.full((1, 2), 0.5), task="binary")
    assert found.accuracy.tolist() == [1.0]
    found = reliability(np.array([2]), np.array([[0.2, 0.4, 0.4]]), task="multiclass")
    assert found.accuracy.tolist() == [0.0]


@pytest.mark.parametrize("task", TASKS)
def test_accuracy_of_the_bins_is_the_metric(task):
    p = draw(task, 200, rounded=True)
    found = judge(p, resamples=10)
    mean = float(found.accuracy @ found.count / found.n)
    if task == "multilabel":
        assert mean == pytest.approx(p.labels.mean())
    else:
        accuracy = metrics.accuracy_score(p.labels, p.probabilities, task=task)
        assert mean == pytest.approx(accuracy)


def same(one, other, exactly):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, str) or a is None:
            assert a == b
        elif exactly:
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        else:
            np.testing.assert_allclose(a, b, atol=1e-9, err_msg=field.name)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rounded", [False, True])
def test_the_order_of_images_does_not_matter(task, rounded):
    p = draw(task, 101, rounded=rounded)
    order = np.random.default_rng(1).permutation(101)
    shuffled = Predictions(labels=p.labels[order], logits=p.logits[order], task=task)
    same(judge(p, resamples=50), judge(shuffled, resamples=50), exactly=True)
    groups = np.arange(101) // 3
    one = judge(p, groups=groups, resamples=50)
    other = judge(shuffled, groups=groups[order], resamples=50)
    same(one, other, exactly=False)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rounded", [False, True])
def test_the_numbers_of_classes_do_not_matter(task, rounded):
    p = draw(task, 101, rounded=rounded)
    new = np.roll(np.arange(WIDTH[task]), 1)
    old = np.argsort(new)
    if rounded and task != "multilabel":  # two equal largest logits are decided by number
        keep = (p.logits == p.logits.max(axis=1, keepdims=True)).sum(axis=1) == 1
        p = Predictions(labels=p.labels[keep], logits=p.logits[keep], task=task)
    labels = p.labels[:, old] if task == "multilabel" else new[p.labels]
    other = Predictions(labels=labels, logits=p.logits[:, old], task=task)
    same(judge(p, resamples=50), judge(other, resamples=50), exactly=False)


def test_the_correction_is_kumars_in_closed_form():
    """Kumar et al. redraw the bins' accuracies: 2 x plain - mean of the redrawn errors."""
    for sharp in (1.0, 1.5, 4.0):
        found = judge(draw("multiclass", 150, sharp=sharp), resamples=10)
        rng = np.random.default_rng(0)
        error = np.sqrt(found.accuracy * (1 - found.accuracy) / found.count)
        drawn = rng.normal(found.accuracy, error, (200_000, len(error)))
        redrawn = np.abs(drawn - found.confidence) @ found.count / found.n
        expected = max(2 * found.ece_plain - redrawn.mean(), 0)
        assert found.ece == pytest.approx(expected, abs=2e-4)
        assert found.ece < found.ece_plain


def test_the_mean_of_a_folded_normal_is_scipys():
    d, s = np.array([0.0, 0.1, 0.3, 0.2, 0.9]), np.array([0.1, 0.1, 0.05, 0.4, 1e-3])
    expected = stats.foldnorm.mean(d / s, scale=s)
    np.testing.assert_allclose(reliability_module._folded_mean(d, s), expected, rtol=1e-12)
    np.testing.assert_array_equal(reliability_module._folded_mean(d, 0 * s), d)


def test_the_p_value_is_the_probability_of_a_larger_error():
    """All 64 outcomes of six events, each with its probability."""
    confidence = np.array([0.55, 0.6, 0.7, 0.8, 0.9, 0.95])
    for right in ([1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1]):
        errors, weights = [], []
        for outcome in itertools.product([0, 1], repeat=6):
            one = np.array(outcome)
            gaps = np.abs(one.reshape(3, 2).mean(1) - confidence.reshape(3, 2).mean(1))
            errors.append(gaps.mean())
            weights.append(np.prod(np.where(one, confidence, 1 - confidence)))
        observed = errors[int("".join(map(str, right)), 2)]
        exact = sum(w for w, e in zip(weights, errors, strict=True) if e >= observed - 1e-12)
        found = reliability(*binary(confidence, right), task="binary", resamples=20_000)
        assert found.ece_plain == pytest.approx(observed)
        assert found.p_value == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 20_000))
        assert found.ece_expected == pytest.approx(np.dot(weights, errors), abs=0.005)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_a_calibrated_model_is_found_calibrated(task):
    """200 sets whose labels are drawn from the probabilities themselves."""
    sets = [judge(draw(task, 60, seed=seed), resamples=200, seed=seed) for seed in range(200)]
    p = [found.p_value for found in sets]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    plain, expected, debiased = (
        np.mean([getattr(found, name) for found in sets])
        for name in ("ece_plain", "ece_expected", "ece")
    )
    assert expected == pytest.approx(plain, rel=0.05)
    assert 0 < debiased < 0.8 * plain
    inside = np.concatenate([(f.low <= f.accuracy) & (f.accuracy <= f.high) for f in sets])
    assert 0.94 < inside.mean() < 1  # shares of few events jump: the band holds 95% or more


@pytest.mark.parametrize("task", TASKS)
def test_a_model_too_sure_of_itself_is_found_out(task):
    sharp = judge(draw(task, 400, sharp=3.0))
    assert sharp.p_value == 1 / 1001
    assert sharp.ece_plain > 3 * sharp.ece_expected
    assert sharp.ece > 2 * sharp.ece_expected
    assert ((sharp.accuracy < sharp.low) | (sharp.accuracy > sharp.high)).sum() > 3


def test_the_same_seed_gives_the_same_draws_however_many_are_held_at_once(monkeypatch):
    p = draw("binary", 50)
    whole = judge(p, seed=3)
    monkeypatch.setattr(reliability_module, "_CHUNK", 70)
    same(whole, judge(p, seed=3), exactly=True)
    assert judge(p, seed=4).ece_expected != whole.ece_expected


def test_without_images_all_is_nan_with_its_reason():
    for task in TASKS:
        k = WIDTH[task]
        labels = np.zeros((0, k) if task == "multilabel" else 0, int)
        found = reliability(labels, np.zeros((0, k)), task=task)
        assert found.reason == "no images"
        assert math.isnan(found.ece)
        assert math.isnan(found.p_value)
        assert (found.n, len(found.count)) == (0, 0)
        assert found.to_dict()["ece"] is None
        assert found.to_dict()["reason"] == "no images"


def test_certain_and_right_is_perfectly_calibrated():
    found = reliability(*binary(np.ones(20), np.ones(20)), task="binary")
    assert (found.ece, found.ece_plain, found.p_value) == (0, 0, 1)
    wrong = reliability(*binary(np.ones(20), np.zeros(20)), task="binary")
    assert (wrong.ece, wrong.ece_plain, wrong.p_value) == (1, 1, 1 / 1001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 0}, "bins and resamples must be 1 or more"),
        ({"resamples": 0}, "bins and resamples must be 1 or more"),
        ({"level": 95.0}, "level must lie between 0 and 1"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        judge(draw("binary", 10), **options)
    with pytest.raises(InputError, match="row 1"):
        reliability(np.array([0, 7]), np.full((2, 2), 0.5), task="binary")


def test_notes_say_what_the_numbers_depend_on():
    p = draw("binary", 60)
    (bins,) = judge(p).notes()
    assert "depends on the bins: here 15" in bins
    assert "30 groups" in judge(p, groups=np.arange(60) // 2).notes()[1]
    assert "pools all labels" in judge(draw("multilabel", 60)).notes()[1]


def patients(task, count, of, *, seed=0, alike=1.0):
    """Patients of ``of`` images, whose labels hang on one random number per patient and label."""
    rng = np.random.default_rng(seed)
    names = np.repeat(np.arange(count), of)
    logits = rng.normal(size=(count, WIDTH[task]))[names] * 1.5
    logits += rng.normal(size=logits.shape) * 0.5

    def number(*shape):
        one, own = rng.random((count, *shape))[names], rng.random((count * of, *shape))
        return np.where(rng.random((count * of, *shape)) < math.sqrt(alike), one, own)

    if task == "multilabel":
        labels = (number(WIDTH[task]) < sigmoid(logits)).astype(int)
    else:
        labels = (number(1) > softmax(logits).cumsum(axis=1)[:, :-1]).sum(axis=1)
    return Predictions(labels=labels, logits=logits, task=task, groups=names.astype(str))


def together_of(p):
    return judge(p, groups=p.groups, resamples=1).together


@pytest.mark.parametrize("task", TASKS)
def test_the_pairs_that_are_alike_are_told_from_their_residuals(task):
    found = [together_of(patients(task, 3000, 3, alike=a)) for a in (0, 0.5, 1)]
    assert found == pytest.approx([0, 0.5, 1], abs=0.06)


def test_the_pairs_together_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    unit, p = rng.integers(0, 12, 60), np.round(rng.random((60, 2)), 1)
    number = np.where(rng.random((60, 1)) < 0.7, rng.random((12, 1))[unit], rng.random((60, 1)))
    outcome = (number < p).astype(float)
    products = largest = 0.0
    for i, j in itertools.permutations(range(60), 2):
        if unit[i] == unit[j]:
            products += ((outcome[i] - p[i]) * (outcome[j] - p[j])).sum()
            largest += (np.minimum(p[i], p[j]) - p[i] * p[j]).sum()
    found = reliability_module._pairs_together(p, outcome, unit)
    assert 0 < found < 1
    assert found == pytest.approx(products / largest)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_a_calibrated_model_of_patients_is_found_calibrated(task):
    """Images of a patient come out alike: taken as independent, too many sets are rejected."""
    together, alone = [], []
    for seed in range(200):
        p = patients(task, 30, 6, seed=seed)
        together.append(judge(p, groups=p.groups, resamples=200, seed=seed).p_value)
        alone.append(judge(p, resamples=200, seed=seed).p_value)
    assert np.mean(np.array(together) <= 0.05) <= 0.1  # 0.05 and three errors
    assert np.mean(np.array(alone) <= 0.05) >= 0.15
    assert stats.kstest(together, "uniform").pvalue > 0.001


@pytest.mark.parametrize("task", TASKS)
def test_groups_of_one_image_are_no_groups(task):
    p = draw(task, 60)
    found = judge(p, groups=np.arange(60), resamples=4000)
    plain = judge(p, resamples=4000)
    assert found.together == 0
    assert found.p_value == pytest.approx(plain.p_value, abs=0.05)
    for name in ("ece", "ece_plain", "confidence", "accuracy", "count"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))


def test_a_dictionary_is_json():
    found = judge(draw("multiclass", 60))
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["accuracy"] == found.accuracy.tolist()
    assert values["count"] == found.count.tolist()
    assert values["p_value"] == found.p_value
    assert "reason" not in values
    assert set(values) == {f.name for f in dataclasses.fields(found)} - {"reason"}


# --------------------------------------------------------------------------------- temperature


def loss_of(p, temperature):
    """The cross-entropy as the field writes it."""
    x = np.asarray(p.logits, np.float64) / temperature
    if p.task is Task.MULTILABEL:
        each = np.where(p.labels == 1, np.logaddexp(0, -x), np.logaddexp(0, x))
        return each.mean()
    return np.mean(np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(x)), p.labels])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("sharp", [0.3, 1.0, 4.0])
def test_the_temperature_is_where_the_loss_is_least(task, sharp):
    p = draw(task, 150, sharp=sharp, dtype=np.float32)
    found = fit_temperature(p)
    step = 1e-4 * found.value
    slope = (loss_of(p, found.value + step) - loss_of(p, found.value - step)) / (2 * step)
    assert abs(slope * found.value) < 1e-6
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 1000))
    losses = [loss_of(p, t) for t in grid]
    assert found.value == pytest.approx(grid[np.argmin(losses)], rel=0.004)
    assert found.val_loss_scaled == pytest.approx(loss_of(p, found.value), rel=1e-12)
    assert found.val_loss == pytest.approx(loss_of(p, 1.0), rel=1e-12)
    assert found.val_loss_scaled <= min(losses) + 1e-12
    assert found.reason is None


@pytest.mark.parametrize("task", TASKS)
def test_a_model_sharpened_threefold_needs_a_temperature_of_three(task):
    found = fit_temperature(draw(task, 4000, sharp=3.0))
    assert found.value == pytest.approx(3, rel=0.1)
    once = fit_temperature(draw(task, 4000))
    assert found.value == pytest.approx(3 * once.value, rel=1e-6)


def test_logits_of_minus_infinity_stay_so():
    p = draw("multiclass", 150)
    wide = np.column_stack([p.logits, np.full(150, -np.inf)])
    other = Predictions(labels=p.labels, logits=wide, task="multiclass")
    assert fit_temperature(other).value == pytest.approx(fit_temperature(p).value, rel=1e-9)
    cooled = scale(other, 2.5)
    assert np.isneginf(cooled.logits[:, -1]).all()
    np.testing.assert_allclose(cooled.probabilities[:, :-1], scale(p, 2.5).probabilities)
    certain = Predictions(labels=[[1, 0]] * 3, logits=[[np.inf, -np.inf]] * 3, task="multilabel")
    assert scale(certain, 3.0).probabilities.tolist() == [[1, 0]] * 3


RIGHT = [[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]
NO_TEMPERATURE = {
    "no images": (np.zeros(0, int), np.zeros((0, 2)), "no validation images"),
    "one image": ([0], [[0.0, 1.0]], "a single validation image"),
    "all right": ([0, 1, 0], RIGHT, "all decided rightly; no finite temperature is best"),
    "all right by far": ([0, 1, 0], np.array(RIGHT) * 1e4, "all decided rightly"),
    "all wrong": ([1, 0, 1], RIGHT, "still falls at the highest temperature, 20"),
    "no better than chance": ([0, 0, 1], [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], "highest"),
    "tiny logits": ([0, 1, 1], np.array([[3.0, 0], [0, 3], [1, 0]]) * 1e-4, "lowest temperature"),
    "all logits equal": ([0, 1, 0], np.ones((3, 2)), "the same at every temperature"),
    "impossible truth": ([0, 1, 1], [[0.0, -np.inf], [1.0, 0.0], [0.0, -np.inf]], "probability 0"),
}


@pytest.mark.parametrize("case", NO_TEMPERATURE)
def test_where_no_temperature_is_best_there_is_none(case):
    labels, logits, reason = NO_TEMPERATURE[case]
    p = Predictions(labels=labels, logits=logits, task="binary")
    found = fit_temperature(p)
    assert math.isnan(found.value)
    assert math.isnan(found.val_loss_scaled)
    assert reason in found.reason
    if case == "impossible truth":
        assert found.val_loss == math.inf
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["value"] is None
    assert values["reason"] == found.reason


def test_the_bounds_are_kept():
    p = draw("binary", 200, sharp=3.0)
    assert fit_temperature(p).value > 2
    found = fit_temperature(p, bounds=(0.5, 2.0))
    assert found.reason == "the validation loss still falls at the highest temperature, 2"
    for bounds in ((0.0, 2.0), (2.0, 1.0), (1.0, math.inf)):
        with pytest.raises(InputError, match="bounds"):
            fit_temperature(p, bounds)


@pytest.mark.parametrize("task", TASKS)
def test_scaling_keeps_decisions_and_all_but_the_logits(task):
    p = draw(task, 60, dtype=np.float32)
    p = dataclasses.replace(p, ids=[f"i{i}" for i in range(60)], groups=np.arange(60) // 3)
    cooled = scale(p, 3.0)
    np.testing.assert_array_equal(cooled.logits, p.logits.astype(np.float64) / 3)
    for name in ("labels", "ids", "groups", "positive", "classes", "task"):
        np.testing.assert_array_equal(getattr(cooled, name), getattr(p, name))
    decided = [reliability_module.decisions(q.probabilities, task=task) for q in (p, cooled)]
    np.testing.assert_array_equal(*decided)
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="temperature must be finite and above 0"):
            scale(p, bad)


# --------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("task", TASKS)
def test_validation_gives_the_temperature_and_test_is_judged(task):
    test, val = draw(task, 300, sharp=3.0), draw(task, 300, seed=1, sharp=2.0)
    found = calibrate(test, val, bins=10, resamples=100, seed=2)
    assert found.temperature == fit_temperature(val)
    assert found.temperature != fit_temperature(test)
    cooled = scale(test, found.temperature.value)
    options = {"bins": 10, "resamples": 100, "seed": 2}
    same(found.test, judge(test, **options), exactly=True)
    same(found.scaled, judge(cooled, **options), exactly=True)
    assert found.loss == metrics.score(test)["loss"]
    assert found.scaled_loss == metrics.score(cooled)["loss"] < found.loss
    assert found.scaled.ece < found.test.ece
    assert sum("chose the epoch" in note for note in found.notes()) == 1
    json.dumps(found.to_dict(), allow_nan=False)


def test_without_validation_or_a_temperature_nothing_is_scaled():
    test = draw("binary", 50)
    found = calibrate(test)
    assert (found.temperature, found.scaled) == (None, None)
    assert math.isnan(found.scaled_loss)
    assert found.notes() == found.test.notes()
    right = Predictions(labels=[0, 1, 0], logits=RIGHT, task="binary")
    found = calibrate(test, right)
    assert isinstance(found.temperature, Temperature)
    assert found.scaled is None
    assert "No temperature: validation images are all decided rightly" in found.notes()[-1]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["scaled"] is None
    empty = Predictions(labels=np.zeros(0, int), logits=np.zeros((0, 2)), task="binary")
    found = calibrate(empty, draw("binary", 50))
    assert found.scaled.reason == "no images"
    assert math.isnan(found.loss)


def test_groups_of_the_test_images_are_noted():
    p = dataclasses.replace(draw("binary", 60), groups=np.arange(60) // 2)
    notes = calibrate(p, draw("binary", 60, seed=1)).notes()
    assert "30 groups" in notes[1]
    assert len(notes) == 3


def test_splits_must_answer_the_same_question():
    p = draw("binary", 20)
    others = {
        "task": draw("multilabel", 20),
        "classes": dataclasses.replace(p, classes=["a", "b"]),
        "positive": dataclasses.replace(p, positive=0),
    }
    for name, other in others.items():
        with pytest.raises(InputError, match=f"differ in {name}"):
            calibrate(p, other)


# -------------------------------------------------------------------------------------- figure


def figure_of(name):
    if name == "scaled":
        found = calibrate(draw("multiclass", 300, sharp=3.0), draw("multiclass", 300, seed=1))
        return reliability_figure(found.test, scaled=found.scaled, title="a test, n = 300")
    if name == "labels":
        return reliability_figure(judge(draw("multilabel", 300)), title="chest test, n = 300")
    if name == "sure":
        p = scale(draw("binary", 300), 0.05)
        return reliability_figure(judge(p), title="breast test, n = 300")
    if name == "one bin":
        return reliability_figure(
            reliability(*binary([0.7] * 9, np.arange(9) % 2), task="binary"), title="a, n = 9"
        )
    if name == "three images":
        return reliability_figure(judge(draw("multiclass", 3)), title="a, n = 3")
    none = reliability(np.zeros(0, int), np.zeros((0, 2)), task="binary")
    return reliability_figure(none, scaled=none, title="a, n = 0")


@pytest.mark.parametrize("name", ["scaled", "labels", "sure", "one bin", "three images", "none"])
def test_the_figure_shows_every_bin_and_cuts_nothing_off(name):
    figure = figure_of(name)
    FigureCanvasAgg(figure).draw()
    width, height = figure.canvas.get_width_height()
    texts = [*figure.axes, *figure.legends]
    for box in (artist.get_tightbbox() for artist in texts):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
    axes = figure.axes[0]
    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for line in axes.lines[1:]:
        x, y = np.array(line.get_xdata()), np.array(line.get_ydata())
        assert ((low < x) & (x < high) & (bottom < y) & (y < top)).all()


def test_the_figure_says_the_error_and_its_p_value():
    found = calibrate(draw("multiclass", 300, sharp=3.0), draw("multiclass", 300, seed=1))
    figure = reliability_figure(found.test, scaled=found.scaled, title="title")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0] == "calibrated"
    assert texts[1] == f"as predicted: ECE {found.test.ece:.3f} (p < 0.001)"
    assert texts[2] == "bars: 95% of draws of a calibrated model"
    assert texts[3].startswith(f"temperature scaled: ECE {found.scaled.ece:.3f} (p ")
    _, first, second = figure.axes[0].lines
    np.testing.assert_array_equal(first.get_ydata(), found.test.accuracy)
    np.testing.assert_array_equal(second.get_xdata(), found.scaled.confidence)
    histograms = [patch.get_data().values for patch in figure.axes[1].patches]
    np.testing.assert_array_equal(histograms, [found.test.histogram, found.scaled.histogram])
    undefined = [text.get_text() for text in figure_of("none").legends[0].get_texts()]
    assert undefined[1] == "as predicted: undefined (no images)"
