"""Metrics against the medmnist package and scikit-learn, their laws, and what is undefined."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import json
import math
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as sk
from sklearn.exceptions import UndefinedMetricWarning

import flaxmed
from flaxmed.evaluation import checks, curves, metrics, weighted
from flaxmed.evaluation.metrics import METRICS
from flaxmed.types import InputError, Predictions, Task, sigmoid, softmax

MEDMNIST_TASK = {
    "binary": "binary-class",
    "multiclass": "multi-class",
    "ordinal": "ordinal-regression",
    "multilabel": "multi-label, binary-class",
}
TASKS = list(MEDMNIST_TASK)
WIDTH = {"binary": 2, "multiclass": 9, "ordinal": 5, "multilabel": 14}


def make(task, n, *, seed=0, k=None, kind="random", dtype=np.float64):
    """Labels with every class present, and probabilities of the given kind."""
    rng = np.random.default_rng(seed)
    k = k or WIDTH[task]
    if task == "multilabel":
        labels = rng.integers(0, 2, (n, k))
        labels[0], labels[1] = 0, 1
        hint = labels
    else:
        labels = rng.permutation(np.concatenate([np.arange(k), rng.integers(0, k, n - k)]))
        hint = np.eye(k)[labels]
    logits = rng.normal(size=(n, k)) + hint
    if kind == "tied":  # few distinct values, many of them exactly one half
        logits = np.round(logits)
    if kind == "certain":  # probabilities that round to 0 and 1
        logits = logits * 40
    scores = sigmoid(logits) if task == "multilabel" else softmax(logits)
    return labels, scores.astype(dtype)


def predictions(task, n, **options):
    labels, scores = make(task, n, **options)
    positive = 0 if task == "binary" else None
    return Predictions.from_probabilities(scores, labels=labels, task=task, positive=positive)


@pytest.fixture(scope="module")
def evaluator():
    """The installed medmnist package's evaluator.py itself, without what else the package loads."""
    try:
        files = importlib.metadata.files("medmnist") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package medmnist is not installed")
    path = next(f.locate() for f in files if f.name == "evaluator.py")
    source = Path(path).read_text(encoding="utf-8")
    module = types.ModuleType("medmnist_evaluator")
    # pandas reads and writes files there, INFO names the data sets: neither is metrics
    for line in ("import pandas as pd", "from medmnist.info import INFO, DEFAULT_ROOT"):
        assert line in source
        source = source.replace(line, "DEFAULT_ROOT = None" if "INFO" in line else "")
    exec(compile(source, str(path), "exec"), vars(module))
    return module


# ------------------------------------------------------------------------------------- oracles

CASES = [
    (task, n, kind, dtype)
    for task in TASKS
    for n in (WIDTH[task] + 2, 156)
    for kind in ("random", "tied", "certain")
    for dtype in (np.float32, np.float64)
]


@pytest.mark.parametrize(("task", "n", "kind", "dtype"), CASES)
def test_auc_and_accuracy_are_medmnists_to_the_last_digit(evaluator, task, n, kind, dtype):
    for seed in range(2):
        labels, scores = make(task, n, seed=seed, kind=kind, dtype=dtype)
        theirs = MEDMNIST_TASK[task]
        given = labels if task == "multilabel" else labels[:, None]  # as in the .npz files
        assert metrics.auc_score(given, scores, task=task) == evaluator.getAUC(
            given, scores, theirs
        )
        assert metrics.accuracy_score(given, scores, task=task) == evaluator.getACC(
            given, scores, theirs
        )


@pytest.mark.parametrize("task", TASKS)
def test_predictions_score_as_medmnist_scores_their_probabilities(evaluator, task):
    p = predictions(task, 300)
    found = metrics.score(p)
    assert found["auc"] == evaluator.getAUC(p.labels, p.probabilities, MEDMNIST_TASK[task])
    assert found["accuracy"] == evaluator.getACC(p.labels, p.probabilities, MEDMNIST_TASK[task])


@pytest.mark.parametrize(("task", "n", "kind", "dtype"), CASES)
def test_loss_is_scikit_learns_to_the_last_digit(task, n, kind, dtype):
    labels, scores = make(task, n, kind=kind, dtype=dtype)
    found = metrics.cross_entropy_loss(labels, scores, task=task)
    if task == "multilabel":
        each = [sk.log_loss(y, p, labels=[0, 1]) for y, p in zip(labels.T, scores.T, strict=True)]
        assert found == sum(each) / len(each)
    else:
        assert found == sk.log_loss(labels, scores, labels=range(scores.shape[1]))


@pytest.mark.parametrize("task", TASKS)
def test_loss_is_the_cross_entropy_that_training_minimises(task):
    p = predictions(task, 200)
    x, y = np.asarray(p.logits, np.float64), p.labels
    if task == "multilabel":
        each = np.logaddexp(0, x) - y * x
    else:
        each = np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(x)), y]
    assert metrics.score(p)["loss"] == pytest.approx(each.mean(), rel=1e-12)


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("kind", ["random", "tied"])
def test_binary_metrics_against_scikit_learn_and_by_hand(positive, kind):
    labels, scores = make("binary", 157, kind=kind)
    decided = (scores[:, 1] > 0.5).astype(int)
    (tn, fp), (fn, tp) = sk.confusion_matrix(labels == positive, decided == positive)
    true = labels == positive
    rank = scores[:, 1] if positive else -scores[:, 1]
    by_hand = {
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "ppv": tp / (tp + fp),
        "npv": tn / (tn + fn),
        "f1": sk.f1_score(labels, decided, pos_label=positive),
        "balanced_accuracy": (tp / (tp + fn) + tn / (tn + fp)) / 2,
        "average_precision": sk.average_precision_score(true, rank),
        "kappa": sk.cohen_kappa_score(labels, decided),
        "mcc": sk.matthews_corrcoef(labels, decided),
        "brier": sk.brier_score_loss(labels, scores[:, 1]),
    }
    p = Predictions.from_probabilities(scores, labels=labels, task="binary", positive=positive)
    for spec in METRICS:
        if spec.name in by_hand:
            assert spec(p) == pytest.approx(by_hand[spec.name], rel=1e-14), spec.name


@pytest.mark.parametrize("task", ["multiclass", "ordinal", "multilabel"])
@pytest.mark.parametrize("kind", ["random", "tied"])
def test_means_over_classes_are_scikit_learns_macro(task, kind):
    labels, scores = make(task, 400, kind=kind)
    if task == "multilabel":
        true, called = labels, (scores > 0.5).astype(int)
    else:
        decided = scores.argmax(axis=1)
        true, called = (np.eye(scores.shape[1], dtype=int)[i] for i in (labels, decided))
    expected = {
        "f1": sk.f1_score(true, called, average="macro"),
        "sensitivity": sk.recall_score(true, called, average="macro"),
        "specificity": sk.recall_score(1 - true, 1 - called, average="macro"),
        "ppv": sk.precision_score(true, called, average="macro"),
        "npv": sk.precision_score(1 - true, 1 - called, average="macro"),
        "average_precision": sk.average_precision_score(true, scores, average="macro"),
    }
    columns = range(scores.shape[1])
    if task == "multilabel":
        pairs = [(true[:, c], called[:, c]) for c in columns]
        expected["kappa"] = np.mean([sk.cohen_kappa_score(*pair) for pair in pairs])
        expected["mcc"] = np.mean([sk.matthews_corrcoef(*pair) for pair in pairs])
        each = [sk.brier_score_loss(true[:, c], scores[:, c]) for c in columns]
        expected["brier"] = np.mean(each)
    else:
        weights = "quadratic" if task == "ordinal" else None
        expected["kappa"] = sk.cohen_kappa_score(labels, decided, weights=weights)
        expected["mcc"] = sk.matthews_corrcoef(labels, decided)
        each = [sk.brier_score_loss(true[:, c], scores[:, c]) for c in columns]
        expected["brier"] = np.sum(each)  # Brier's own: summed over the classes
    given = {"task": task, "positive": None, "classes": None}
    found = {
        spec.name: spec.function(labels, scores, **{name: given[name] for name in spec.options})
        for spec in METRICS
        if spec.name in expected
    }
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["random", "tied", "certain"])
def test_metrics_of_weights_are_the_metrics(task, kind):
    """What is resampled is what is reported: weights 1 give the metric, whole weights copies."""
    labels, scores = make(task, 300, kind=kind)
    positive = 0 if task == "binary" else None
    p = Predictions.from_probabilities(scores, labels=labels, task=task, positive=positive)
    names = [s.name for s in METRICS if p.task in s.tasks and s.name != "auc"]
    assert set(names) == {*weighted.OF_TOTALS, "average_precision"} - (
        {"balanced_accuracy"} if task == "multilabel" else set()
    )
    counts = np.random.default_rng(3).integers(0, 4, len(p))
    counts[: WIDTH[task]] = 1  # every class stays
    copies = np.repeat(np.arange(len(p)), counts)
    rest = {"task": task, "positive": positive}  # from logits: ties stay ties
    repeated = Predictions(labels=p.labels[copies], logits=p.logits[copies], **rest)
    found = weighted.statistic(p, tuple(names))(np.stack([np.ones(len(p)), counts]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        for j, spec in enumerate(s for s in METRICS if s.name in names):
            expected = [spec(p), spec(repeated)]
            np.testing.assert_allclose(found[:, j], expected, rtol=1e-9, err_msg=spec.name)


def test_weights_of_groups_are_weights_of_their_images():
    p = predictions("multiclass", 200)
    groups = np.random.default_rng(0).permutation(np.arange(200) % 40)
    names = (*weighted.OF_TOTALS, "average_precision")
    w = np.random.default_rng(1).integers(0, 3, (5, 40)).astype(float)
    plain = weighted.statistic(p, names)
    grouped = weighted.statistic(dataclasses.replace(p, groups=groups.astype(str)), names)
    index = np.unique(groups.astype(str), return_inverse=True)[1]
    np.testing.assert_allclose(grouped(w), plain(w[:, index]), rtol=1e-9)


def test_balanced_accuracy_is_scikit_learns():
    labels, scores = make("multiclass", 200)
    expected = sk.balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert metrics.balanced_accuracy_score(labels, scores, task="multiclass") == expected


@pytest.mark.parametrize("task", TASKS)
def test_confusion_is_scikit_learns(task):
    labels, scores = make(task, 100)
    found = metrics.confusion_matrix(labels, scores, task=task)
    if task == "multilabel":
        assert (found == sk.multilabel_confusion_matrix(labels, scores > 0.5)).all()
    else:
        assert (found == sk.confusion_matrix(labels, scores.argmax(axis=1))).all()
        assert np.trace(found) / 100 == pytest.approx(
            metrics.accuracy_score(labels, scores, task=task)
        )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["random", "tied"])
def test_class_auc_and_roc_curve_are_scikit_learns(task, kind):
    labels, scores = make(task, 150, kind=kind)
    areas = metrics.class_auc_scores(labels, scores, task=task)
    for c in range(scores.shape[1]):
        true = labels[:, c] if task == "multilabel" else labels == c
        rank = scores[:, c]
        if task == "binary":  # both classes are ranked by the last column
            rank = scores[:, 1] if c else -scores[:, 1]
        curve = curves.roc_curve(labels, scores, task=task, of_class=c)
        fpr, tpr, _ = sk.roc_curve(true, rank)
        assert (curve.fpr == fpr).all()
        assert (curve.tpr == tpr).all()
        assert curve.auc == areas[c] == sk.roc_auc_score(true, rank)


@pytest.mark.parametrize("of_class", [0, 1])
def test_thresholds_give_back_the_rates(of_class):
    labels, scores = make("binary", 80, kind="tied")
    curve = curves.roc_curve(labels, scores, task="binary", of_class=of_class)
    assert curve.thresholds[0] == math.inf
    for fpr, tpr, threshold in zip(curve.fpr, curve.tpr, curve.thresholds, strict=True):
        called = scores[:, of_class] >= threshold - 1e-12
        assert fpr == pytest.approx(called[labels != of_class].mean())
        assert tpr == pytest.approx(called[labels == of_class].mean())


@pytest.mark.parametrize("task", ["multiclass", "ordinal", "multilabel"])
@pytest.mark.parametrize("kind", ["random", "tied", "certain"])
def test_area_under_the_mean_roc_curve_is_the_mean_area(task, kind):
    labels, scores = make(task, 120, kind=kind)
    curve = curves.macro_roc_curve(labels, scores, task=task)
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(curve.auc, abs=1e-12)
    assert curve.auc == metrics.auc_score(labels, scores, task=task)
    assert (np.diff(curve.fpr) >= 0).all()
    assert (np.diff(curve.tpr) >= -1e-15).all()
    assert (curve.tpr[0], curve.tpr[-1]) == (0, 1)


def test_the_mean_roc_curve_of_a_binary_task_is_its_curve():
    labels, scores = make("binary", 60)
    mean = curves.macro_roc_curve(labels, scores, task="binary")
    curve = curves.roc_curve(labels, scores, task="binary", of_class=1)
    assert (mean.tpr == curve.tpr).all()
    assert mean.auc == curve.auc


def test_either_class_of_a_binary_task_has_one_auc_even_where_its_column_is_rounded():
    """1 - 1e-20 and 1 - 1e-30 are the same float: the first column ties where the last does not."""
    scores = np.array([[1, 1e-20], [1, 1e-30], [0.5, 0.5], [1, 1e-25]])
    labels = np.array([1, 0, 1, 0])
    assert metrics.class_auc_scores(labels, scores, task="binary").tolist() == [1, 1]
    assert sk.roc_auc_score(labels == 0, scores[:, 0]) < 1


# ---------------------------------------------------------------------------------------- laws

LAWFUL = (
    "accuracy",
    "balanced_accuracy",
    "loss",
    "auc",
    "average_precision",
    "f1",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "kappa",
    "mcc",
    "brier",
)
DEPENDS_ON_RANKS_ALONE = {"auc", "average_precision"}
FROM_MINUS_ONE = {"kappa", "mcc"}


def test_no_metric_was_forgotten():
    assert tuple(spec.name for spec in METRICS) == LAWFUL
    public = {
        function
        for name, function in inspect.getmembers(metrics, inspect.isfunction)
        if name.endswith(("_score", "_loss")) and not name.startswith("_")
    }
    assert public == {spec.function for spec in METRICS}
    for spec in METRICS:
        wanted = set(inspect.signature(spec.function).parameters) - {"labels", "scores"}
        assert set(spec.options) == wanted, spec.name
        assert spec.lower_is_better == spec.function.__name__.endswith("_loss")


LAW_CASES = [(spec, task) for spec in METRICS for task in spec.tasks]
each_metric = pytest.mark.parametrize(
    ("spec", "task"), LAW_CASES, ids=[f"{spec.name}-{task}" for spec, task in LAW_CASES]
)


def remake(p, labels, scores, positive=None):
    positive = p.positive if positive is None else positive
    return Predictions.from_probabilities(scores, labels=labels, task=p.task, positive=positive)


@each_metric
def test_the_order_of_images_does_not_matter(spec, task):
    p = predictions(task.value, 101)
    order = np.random.default_rng(1).permutation(101)
    shuffled = remake(p, p.labels[order], p.probabilities[order])
    assert spec(shuffled) == pytest.approx(spec(p), rel=1e-12)


@each_metric
def test_the_numbers_of_classes_do_not_matter(spec, task):
    p = predictions(task.value, 101)
    k = p.logits.shape[1]
    new = np.random.default_rng(2).permutation(k) if k > 2 else np.array([1, 0])
    if task is Task.ORDINAL:  # grades may be counted from the other end, and no other way
        new = np.arange(k)[::-1]
    old = np.argsort(new)
    labels = p.labels[:, old] if task is Task.MULTILABEL else new[p.labels]
    positive = None if p.positive is None else int(new[p.positive])
    relabelled = remake(p, labels, p.probabilities[:, old], positive)
    assert spec(relabelled) == pytest.approx(spec(p), rel=1e-12)


@each_metric
def test_every_image_twice_changes_nothing(spec, task):
    p = predictions(task.value, 101)
    doubled = remake(p, np.concatenate([p.labels] * 2), np.concatenate([p.probabilities] * 2))
    assert spec(doubled) == pytest.approx(spec(p), rel=1e-12)


@each_metric
def test_monotone_scores_leave_ranks_alone(spec, task):
    """A metric of ranks is unmoved by a rising function of each score; the others move."""
    p = predictions(task.value, 101)
    if task is Task.BINARY:
        rising = softmax(p.logits + np.array([0, 0.7]))
    elif task is Task.MULTILABEL:
        rising = sigmoid(p.logits + np.linspace(-1, 1, p.logits.shape[1]))
    elif spec.name in DEPENDS_ON_RANKS_ALONE:
        rising = p.probabilities ** np.linspace(0.3, 3, p.logits.shape[1])
    else:
        return  # a rising function of each score leaves no probabilities over the classes
    moved = spec.function(p.labels, rising, **{name: getattr(p, name) for name in spec.options})
    assert (moved == spec(p)) == (spec.name in DEPENDS_ON_RANKS_ALONE)


@each_metric
def test_perfect_predictions(spec, task):
    p = predictions(task.value, 101)
    sure = (
        p.labels.astype(float) if task is Task.MULTILABEL else np.eye(p.logits.shape[1])[p.labels]
    )
    value = spec.function(p.labels, sure, **{name: getattr(p, name) for name in spec.options})
    assert value == pytest.approx(0 if spec.lower_is_better else 1, abs=1e-12)


@each_metric
def test_values_lie_in_their_range(spec, task):
    for seed in range(5):
        value = spec(predictions(task.value, 60, seed=seed))
        lowest = -1 if spec.name in FROM_MINUS_ONE else 0
        assert lowest <= value <= (math.inf if spec.lower_is_better else 1)


# ----------------------------------------------------------------------- undefined, and bad input


@each_metric
def test_without_images_every_metric_is_nan_with_a_warning(spec, task):
    k = WIDTH[task.value]
    labels = np.zeros((0, k) if task is Task.MULTILABEL else 0, np.int64)
    p = Predictions(labels=labels, logits=np.zeros((0, k)), task=task)
    with pytest.warns(UndefinedMetricWarning, match="no image"):
        assert math.isnan(spec(p))


ONE_CLASS = {  # every image of class 0 and called so
    "balanced_accuracy": "no image of class '1'",
    "auc": "every image is of class '0'; no image of class '1'",
    "average_precision": "no image of class '1'",
    "sensitivity": "no image of class '1'",
    "ppv": "no image is called class '1'",
    "f1": "no image of class '1', and none called so",
    "kappa": "one class throughout",
    "mcc": "every image is of one class",
}
STILL = {"loss": -math.log(0.9), "brier": 0.01}


@pytest.mark.parametrize("spec", METRICS, ids=lambda spec: spec.name)
def test_one_class_only(spec):
    labels, scores = np.zeros(5, np.int64), np.tile([0.9, 0.1], (5, 1))
    p = Predictions.from_probabilities(scores, labels=labels, task="binary", positive=1)
    if spec.name in ONE_CLASS:
        with pytest.warns(UndefinedMetricWarning, match=ONE_CLASS[spec.name]):
            assert math.isnan(spec(p))
    else:
        assert spec(p) == pytest.approx(STILL.get(spec.name, 1))


def test_the_other_undefined_binary_metrics():
    labels, scores = np.ones(5, np.int64), np.tile([0.1, 0.9], (5, 1))
    for name, reason in {
        "specificity": "every image is of class",
        "npv": "is called class",
    }.items():
        function = getattr(metrics, f"{name}_score")
        with pytest.warns(UndefinedMetricWarning, match=reason):
            assert math.isnan(function(labels, scores, task="binary", positive=1))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_an_absent_class_leaves_the_other_classes_their_auc(task):
    labels, scores = make(task, 100, k=4)
    if task == "multilabel":
        labels[:, 2] = 0
    else:
        labels[labels == 2] = 1
    with pytest.warns(UndefinedMetricWarning, match="no image of (class|label) 2"):
        areas = metrics.class_auc_scores(labels, scores, task=task)
    assert np.isnan(areas).tolist() == [False, False, True, False]
    with pytest.warns(UndefinedMetricWarning, match="'c'"):
        assert math.isnan(metrics.auc_score(labels, scores, task=task, classes="abcd"))
    with pytest.warns(UndefinedMetricWarning):
        assert math.isnan(curves.roc_curve(labels, scores, task=task, of_class=2).auc)
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(curves.macro_roc_curve(labels, scores, task=task).tpr).all()


def test_a_single_image():
    labels, scores = np.array([1]), np.array([[0.2, 0.8]])
    assert metrics.accuracy_score(labels, scores, task="binary") == 1
    with pytest.warns(UndefinedMetricWarning):
        assert math.isnan(metrics.auc_score(labels, scores, task="binary"))


def test_an_impossible_image_costs_a_large_but_finite_loss():
    loss = metrics.cross_entropy_loss(np.array([0]), np.array([[0.0, 1.0]]), task="binary")
    assert loss == pytest.approx(-math.log(np.finfo(np.float64).eps))


def test_score_is_quiet_where_all_is_defined():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(metrics.score(predictions("binary", 20))) == {"accuracy", "loss", "auc"}


HALF = np.full((3, 2), 0.5)


@pytest.mark.parametrize(
    ("labels", "scores", "task", "message"),
    [
        ([0, 1, 2], HALF, "binary", "labels must be whole numbers from 0 to 1; row 2 has 2"),
        ([0, 1, -1], HALF, "multiclass", "row 2 has -1"),
        ([0.0, 0.5, 1.0], HALF, "binary", "row 1 has 0.5"),
        ([0, 1], HALF, "binary", r"shape \(3,\) to go with the scores, got \(2,\)"),
        ([0, 1, 1], HALF, "multilabel", r"shape \(3, 2\)"),
        ([0, 1, 1], np.full((3, 3), 0.3), "binary", "2 scores per image, got 3"),
        ([0, 1, 1], np.full((3, 1), 0.3), "multiclass", "scores must be"),
        ([0, 1, 1], HALF + 1, "binary", "scores must lie in"),
        ([0, 1, 1], HALF * math.nan, "binary", "row 0 is .nan, nan."),
    ],
)
def test_bad_input_is_named_in_one_line(labels, scores, task, message):
    with pytest.raises(InputError, match=message) as caught:
        checks.check(np.array(labels), scores, task)
    assert "\n" not in str(caught.value)


@each_metric
def test_every_metric_checks_its_arrays(spec, task):
    labels, scores = make(task.value, 30)
    scores[7, 0] = math.nan
    positive = 1 if task is Task.BINARY else None
    options = {"task": task, "classes": None, "positive": positive}
    with pytest.raises(InputError, match="row 7"):
        spec.function(labels, scores, **{name: options[name] for name in spec.options})


def test_misplaced_questions_are_refused():
    labels, scores = make("multilabel", 20)
    with pytest.raises(InputError, match="one class per image"):
        metrics.balanced_accuracy_score(labels, scores, task="multilabel")
    with pytest.raises(InputError, match="positive class must lie in 0 to 1, got 2"):
        metrics.f1_score(labels[:, 0], scores[:, :2], task="binary", positive=2)
    with pytest.raises(InputError, match="class 14 is not among the 14 classes"):
        curves.roc_curve(labels, scores, task="multilabel", of_class=14)


def test_decisions():
    assert checks.decisions(np.array([[0.5, 0.5]]), task="binary").tolist() == [0]
    assert checks.decisions(np.array([[0.5, 0.51]]), task="multilabel").tolist() == [[0, 1]]
    assert checks.decisions(np.array([[0.2, 0.4, 0.4]]), task="ordinal").tolist() == [1]


# --------------------------------------------------------------------------------- without jax

WITHOUT_JAX = """
import sys, warnings
warnings.simplefilter("error")
absent = ("jax", "jaxlib", "flax", "optax", "orbax", "grain")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
root, folder = sys.argv[1:]
sys.path.insert(0, root)
import json
from pathlib import Path
from flaxmed.types import Predictions
from flaxmed.evaluation import (
    compare, comparison_figures, evaluate, evaluate_run, report_figures, write_comparison,
)
from flaxmed.evaluation.plots import save_figure
runs = [Path(folder) / name for name in ("one", "two")]
p, val = (Predictions.load(runs[0] / "predictions" / f"{name}.npz") for name in ("test", "val"))
sex = {"sex": {id: "FM"[i % 2] for i, id in enumerate(p.ids.tolist())}}
report, comparison = evaluate(p, val=val, subgroups=sex), compare({"a": p, "b": [p, p]}, ideal=p)
assert report.groups == 20 and report.subgroups and report.operating_points
assert report.calibration.temperature is not None
print(report, report.to_markdown(), report.to_dict(), comparison, comparison.to_csv())
for name, figure in (report_figures(report, p) | comparison_figures(comparison)).items():
    assert all(path.stat().st_size > 5000 for path in save_figure(figure, Path(folder) / name))
csv = "".join(f"{id},{value}\\n" for id, value in sex["sex"].items())
(Path(folder) / "sex.csv").write_text("id,sex\\n" + csv)
evaluate_run(runs[0], subgroups=Path(folder) / "sex.csv")
write_comparison(runs, Path(folder) / "out")
for path in (runs[0] / "report.html", runs[0] / "MODEL_CARD.md"):
    text = path.read_text(encoding="utf-8")
    assert "sensitivity" in text and "argest gap" in text, path
page = (Path(folder) / "out" / "report.html").read_text(encoding="utf-8")
assert "resnet18" in page and "xception" in page
assert json.loads((runs[0] / "report.json").read_text())["subgroups"]
from flaxmed import cli
assert cli.main(["evaluate", str(runs[1])]) == 0
assert cli.main(["compare", *map(str, runs), "--out", str(Path(folder) / "again")]) == 0
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & set(absent), loaded & set(absent)
assert "matplotlib.pyplot" not in sys.modules
print("done")
"""


@pytest.mark.slow
def test_everything_works_where_jax_is_not_installed(tmp_path):
    """Reports, cards and pages of runs with validation, patients and subgroups, by function and by
    command, in a process that can import none of what training needs."""
    for i, model in enumerate(("resnet18", "xception")):
        run = tmp_path / ("one", "two")[i]
        (run / "predictions").mkdir(parents=True)
        for split in ("test", "val"):
            p = predictions("multiclass", 60, k=3, seed=0 if split == "test" else 1)
            ids = [f"{split}/{row:04}" for row in range(60)]
            groups = [f"{split} patient {row // 3}" for row in range(60)]
            p = dataclasses.replace(p, ids=ids, groups=groups)
            p = dataclasses.replace(p, logits=p.logits / (1 + i))
            p.save(run / "predictions" / f"{split}.npz")
        about = {"name": "patches", "task": "multiclass", "classes": list(p.classes)}
        files = {"config": {"model": model, "seed": i}, "dataset": about, "run": {"parameters": 5}}
        for name, values in files.items():
            (run / f"{name}.json").write_text(json.dumps(values))
        epochs = [{"epoch": e, "train_loss": 1.0, "val_loss": 1.0, "val_auc": 0.5} for e in (0, 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in epochs))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, str(Path(flaxmed.__file__).parents[1]), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


@pytest.mark.parametrize("missing", [None, math.nan, ""])
def test_missing_groups_are_not_one_patient(missing):
    groups = np.array(["a", "b", missing, missing], dtype=object)
    rest = {"labels": [0, 1, 0, 1], "logits": np.zeros((4, 2)), "task": "binary"}
    with pytest.raises(InputError, match="groups: 2 of 4 entries are missing, row 2 the first"):
        Predictions(groups=groups, **rest)
