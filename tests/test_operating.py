"""Operating points and decision curves: against every threshold there is, by hand, and drawn."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import sklearn.metrics as sk
from matplotlib.backends.backend_agg import FigureCanvasAgg

from flaxmed.evaluation import operating
from flaxmed.evaluation.bootstrap import ratio_interval
from flaxmed.evaluation.intervals import proportion_interval
from flaxmed.evaluation.operating import decision_curve, operating_point
from flaxmed.evaluation.plots_calibration import decision_figure
from flaxmed.types import InputError, Predictions, Task, sigmoid, softmax

WIDTH = {"binary": 2, "multiclass": 4, "multilabel": 3}
RULES = [
    ("youden", None),
    *(("sensitivity", target) for target in (0.05, 0.5, 0.9, 1.0)),
    *(("specificity", target) for target in (0.05, 0.5, 0.9, 1.0)),
]


def draw(task, n=60, *, seed=0, tied=False, sharp=1.5, **rest):
    rng = np.random.default_rng(seed)
    k = WIDTH[task]
    if task == "multilabel":
        labels = rng.integers(0, 2, (n, k))
        logits = rng.normal(size=(n, k)) + sharp * (labels - 0.5)
    else:
        labels = rng.permutation(np.arange(n) % k)
        logits = rng.normal(size=(n, k)) + sharp * np.eye(k)[labels]
    logits = np.round(logits) if tied else logits
    scores = sigmoid(logits) if task == "multilabel" else softmax(logits)
    scores = np.round(scores, 6)
    return Predictions.from_probabilities(scores, labels=labels, task=task, **rest)


def members_and_scores(p, c):
    return p.labels[:, c] == 1 if p.task is Task.MULTILABEL else p.labels == c, p.probabilities[
        :, c
    ]


def rates(p, c, threshold):
    """Sensitivity and specificity, by counting."""
    true, score = members_and_scores(p, c)
    called = score >= threshold
    return (called & true).sum() / true.sum(), (~called & ~true).sum() / (~true).sum()


def every_threshold(p, c):
    """Thresholds at, between and beyond all scores, each with its sensitivity and specificity."""
    true, score = members_and_scores(p, c)
    values = np.unique(score)
    t = np.unique(np.concatenate([values, values[:-1] + np.diff(values) / 2, [0.0, 2.0]]))
    called = score >= t[:, None]
    sensitivity = (called & true).sum(axis=1) / true.sum()
    return list(zip(t, sensitivity, (~called & ~true).sum(axis=1) / (~true).sum(), strict=True))


# ---------------------------------------------------------------------------- operating points


@pytest.mark.parametrize("task", WIDTH)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("rule", "target"), RULES)
def test_no_threshold_keeps_the_rule_better(task, tied, rule, target):
    for seed in range(3):
        val, test = draw(task, seed=seed, tied=tied), draw(task, seed=seed + 50, tied=tied)
        for c in range(WIDTH[task]):
            point = operating_point(val, test, rule=rule, target=target, of_class=c)
            found = rates(val, c, point.threshold)
            assert found == (point.val_sensitivity, point.val_specificity)
            each = every_threshold(val, c)
            if rule == "sensitivity":
                best = max((spec, sens) for _, sens, spec in each if sens >= target)
                assert found[0] >= target
                assert found[1] == best[0]
            elif rule == "specificity":
                best = max((sens, spec) for _, sens, spec in each if spec >= target)
                assert found[1] >= target
                assert found[0] == best[0]
            else:
                best = max(sens + spec for _, sens, spec in each)
                assert sum(found) == pytest.approx(best, abs=1e-12)
                equals = [t for t, sens, spec in each if sens + spec > best - 1e-12]
                assert rates(val, c, min(equals)) == found  # the one that misses fewest


@pytest.mark.parametrize("tied", [False, True])
def test_thresholds_are_points_of_scikit_learns_curve(tied):
    val, test = draw("binary", 200, tied=tied), draw("binary", 200, seed=1, tied=tied)
    fpr, tpr, _ = sk.roc_curve(val.labels, val.probabilities[:, 1], drop_intermediate=False)
    youden = operating_point(val, test, rule="youden")
    assert youden.val_sensitivity + youden.val_specificity - 1 == pytest.approx(max(tpr - fpr))
    for target in (0.8, 0.9, 0.95):
        wanted = operating_point(val, test, rule="sensitivity", target=target)
        assert 1 - wanted.val_specificity == pytest.approx(fpr[tpr >= target].min())
        wanted = operating_point(val, test, rule="specificity", target=target)
        assert wanted.val_sensitivity == pytest.approx(tpr[1 - fpr >= target - 1e-12].max())


@pytest.mark.parametrize(("rule", "target"), RULES)
def test_a_threshold_lies_midway_between_two_validation_scores(rule, target):
    val, test = draw("binary", tied=True), draw("binary", seed=1)
    threshold = operating_point(val, test, rule=rule, target=target).threshold
    scores = np.concatenate([[0], np.unique(val.probabilities[:, 1]), [1]])
    below, above = scores[scores < threshold].max(), scores[scores >= threshold].min()
    assert threshold == pytest.approx((below + above) / 2, rel=1e-12)


def by_hand(scores, labels):
    scores = np.asarray(scores, float)
    columns = np.stack([1 - scores, scores], axis=1)
    return Predictions.from_probabilities(columns, labels=labels, task="binary")


def test_by_hand():
    val = by_hand([0.1, 0.3, 0.5, 0.7, 0.9], [0, 1, 0, 1, 1])
    for rule, target, threshold in (
        ("sensitivity", 0.5, 0.6),
        ("sensitivity", 2 / 3, 0.6),
        ("sensitivity", 0.67, 0.2),
        ("specificity", 0.5, 0.2),
        ("specificity", 0.51, 0.6),
        ("youden", None, 0.6),  # 2/3 + 1 - 1, above 1 + 1/2 - 1
    ):
        point = operating_point(val, val, rule=rule, target=target)
        assert point.threshold == pytest.approx(threshold), (rule, target)
    test = by_hand([0.2, 0.65, 0.55, 0.61], [1, 1, 0, 0])
    point = operating_point(val, test, rule="youden")
    shares = [getattr(point, name) for name in ("sensitivity", "specificity", "ppv", "npv")]
    assert [(share.hits, share.of) for share in shares] == [(1, 2)] * 4
    assert [share.value for share in shares] == [0.5] * 4
    assert shares[0].interval == proportion_interval(1, 2)
    assert point.rule == "largest Youden index on validation"
    assert point.of_class == "1"


def test_a_score_at_the_threshold_is_called():
    val = by_hand([0.0, 1.0], [0, 1])
    test = Predictions(labels=[0, 1, 1], logits=np.zeros((3, 2)), task="binary")
    point = operating_point(val, test, rule="youden")
    assert point.threshold == 0.5 == test.probabilities[0, 1]
    assert (point.sensitivity.hits, point.specificity.hits) == (2, 0)
    assert (point.ppv.hits, point.npv.of) == (2, 0)


def test_between_neighbouring_numbers_the_threshold_is_the_upper_one():
    below, above = 0.5, np.nextafter(0.5, 1)
    thresholds, cuts = operating._thresholds(np.array([below, above]))
    assert thresholds[1] == above == cuts[1]
    assert thresholds[0] == 0.25


def test_test_images_do_not_choose():
    val, test = draw("binary", 100), draw("binary", 100, seed=1, sharp=0.2)
    for rule, target in RULES:
        point = operating_point(val, test, rule=rule, target=target)
        other = operating_point(val, draw("binary", seed=2), rule=rule, target=target)
        assert point.threshold == other.threshold
        assert point.val_sensitivity == other.val_sensitivity
        sensitivity, specificity = rates(test, 1, point.threshold)
        assert point.sensitivity.value == sensitivity
        assert point.specificity.value == specificity
    swapped = operating_point(test, val, rule="youden")
    assert swapped.threshold != operating_point(val, test, rule="youden").threshold


@pytest.mark.parametrize("task", WIDTH)
@pytest.mark.parametrize(("rule", "target"), [("youden", None), ("sensitivity", 0.9)])
def test_neither_order_nor_numbers_of_classes_matter(task, rule, target):
    val, test = draw(task, tied=True), draw(task, seed=1, tied=True)
    expected = operating_point(val, test, rule=rule, target=target, of_class=0)
    rng = np.random.default_rng(0)
    new = np.roll(np.arange(WIDTH[task]), 1)
    old = np.argsort(new)

    def moved(p):
        order = rng.permutation(len(p))
        labels = p.labels[order][:, old] if task == "multilabel" else new[p.labels[order]]
        scores = np.round(p.probabilities, 6)[order][:, old]
        return Predictions.from_probabilities(
            scores,
            labels=labels,
            task=task,
            classes=[str(c) for c in old],
            positive=0 if task == "binary" else None,
        )

    found = operating_point(moved(val), moved(test), rule=rule, target=target, of_class=int(new[0]))
    assert found.of_class == "0"
    assert found.threshold == pytest.approx(expected.threshold, abs=1e-9)
    assert found.sensitivity == expected.sensitivity
    assert found.ppv == expected.ppv


def test_the_positive_class_is_called_unless_another_is_named():
    val, test = draw("binary", positive=0), draw("binary", seed=1, positive=0)
    point = operating_point(val, test, rule="youden")
    assert point == operating_point(val, test, rule="youden", of_class=0)
    assert point.of_class == "0"
    assert operating_point(val, test, rule="youden", of_class=1).of_class == "1"
    assert decision_curve(val).of_class == "0"


def test_intervals_are_wilsons_or_those_of_groups():
    val, test = draw("binary"), draw("binary", 80, seed=1)
    point = operating_point(val, test, rule="youden", level=0.9)
    for share in (point.sensitivity, point.specificity, point.ppv, point.npv):
        assert share.interval == proportion_interval(share.hits, share.of, level=0.9)
    grouped = dataclasses.replace(test, groups=np.arange(80) // 4)
    share = operating_point(val, grouped, rule="youden").sensitivity
    called = test.probabilities[:, 1] >= point.threshold
    true = (test.labels == 1).astype(float)
    assert share.interval == ratio_interval(called.astype(float), true, groups=grouped.groups)
    assert "group" in share.interval.method
    assert share.value == point.sensitivity.value


def test_a_model_no_better_than_chance_says_so():
    val = by_hand([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1])
    point = operating_point(val, val, rule="youden")
    assert point.reason == "no threshold does better than chance on validation"
    assert (point.val_sensitivity, point.val_specificity) == (1, 0)


def test_a_negative_with_probability_one_leaves_nothing_to_call():
    val = by_hand([1.0, 0.5, 1.0], [0, 0, 1])
    point = operating_point(val, val, rule="specificity", target=0.9)
    assert point.threshold == math.inf
    assert "none is called" in point.reason
    assert (point.val_sensitivity, point.val_specificity) == (0, 1)
    assert math.isnan(point.ppv.value)
    values = json.loads(json.dumps(point.to_dict(), allow_nan=False))
    assert values["threshold"] is None
    # just below 1 there is a threshold
    val = by_hand([0.9, 0.5, 0.9], [0, 0, 1])
    point = operating_point(val, val, rule="specificity", target=0.9)
    assert point.threshold == pytest.approx(0.95)
    assert point.reason is None


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([], "no images in validation"),
        ([0, 0, 0], "no image of class '1' in validation"),
        ([1, 1, 1], "every image is of class '1' in validation"),
    ],
)
def test_a_validation_split_that_cannot_choose(labels, reason):
    val = Predictions(
        labels=np.array(labels, int), logits=np.zeros((len(labels), 2)), task="binary"
    )
    for rule, target in RULES:
        point = operating_point(val, draw("binary"), rule=rule, target=target)
        assert point.reason == reason
        assert math.isnan(point.threshold)
        assert math.isnan(point.sensitivity.value)
        assert point.npv.reason == reason
        values = json.loads(json.dumps(point.to_dict(), allow_nan=False))
        assert values["ppv"]["low"] is None
        assert values["reason"] == reason


@pytest.mark.parametrize(
    ("labels", "undefined"),
    [
        ([], "sensitivity specificity ppv npv"),
        ([0, 0], "sensitivity ppv"),
        ([1, 1], "specificity ppv"),
    ],
)
def test_a_test_split_that_cannot_be_judged(labels, undefined):
    """Nothing in it is called, as its probabilities are all 0.01."""
    test = by_hand([0.01] * len(labels), np.array(labels, int))
    point = operating_point(draw("binary"), test, rule="youden")
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        share = getattr(point, name)
        assert math.isnan(share.value) == (name in undefined), name
        assert (share.reason is not None) == (name in undefined)
        assert math.isnan(share.interval.low) == (name in undefined)
    assert point.ppv.reason == "no test image is called positive"
    assert point.reason is None


def test_a_dictionary_is_json():
    val, test = draw("binary"), draw("binary", seed=1)
    point = operating_point(val, test, rule="sensitivity", target=0.9)
    values = json.loads(json.dumps(point.to_dict(), allow_nan=False))
    assert values["rule"] == "sensitivity at least 0.90 on validation"
    share = point.sensitivity
    assert values["sensitivity"] == {
        "value": share.value,
        "hits": share.hits,
        "of": share.of,
        "low": share.interval.low,
        "high": share.interval.high,
        "level": 0.95,
        "method": "Wilson",
    }
    assert "reason" not in values
    finer = operating_point(val, test, rule="specificity", target=0.975)
    assert finer.rule == "specificity at least 0.975 on validation"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "youden", "target": 0.9}, "takes no target"),
        ({"rule": "sensitivity"}, "needs a target above 0, up to 1, got None"),
        ({"rule": "sensitivity", "target": 90.0}, "got 90"),
        ({"rule": "specificity", "target": 0.0}, "got 0"),
        ({"rule": "specificity", "target": math.nan}, "got nan"),
        ({"rule": "youden", "of_class": 2}, "class 2 is not among the 2 classes"),
        ({"rule": "youden", "level": 95.0}, "level must lie between 0 and 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        operating_point(draw("binary"), draw("binary", seed=1), **options)


def test_bad_questions_are_refused():
    p = draw("multiclass")
    with pytest.raises(InputError, match="of_class is needed"):
        operating_point(p, p, rule="youden")
    with pytest.raises(InputError, match="of_class is needed"):
        decision_curve(p)
    with pytest.raises(InputError, match="rule must be one of youden"):
        operating._describe("closest", None)
    for name, other in {
        "task": draw("multilabel"),
        "classes": draw("multiclass", classes="abcd"),
    }.items():
        with pytest.raises(InputError, match=f"differ in {name}"):
            operating_point(p, other, rule="youden", of_class=0)


# ----------------------------------------------------------------------------- decision curves


@pytest.mark.parametrize("task", WIDTH)
@pytest.mark.parametrize("tied", [False, True])
def test_net_benefit_is_that_of_the_definition(task, tied):
    p = draw(task, 80, tied=tied)
    for c in range(WIDTH[task]):
        found = decision_curve(p, of_class=c)
        assert found.thresholds.tolist() == [i / 100 for i in range(1, 100)]
        true = p.labels[:, c] == 1 if task == "multilabel" else p.labels == c
        for t, benefit, every in zip(
            found.thresholds, found.net_benefit, found.treat_all, strict=True
        ):
            called = p.probabilities[:, c] >= t
            tp, fp = (called & true).sum(), (called & ~true).sum()
            assert benefit == pytest.approx(tp / 80 - fp / 80 * t / (1 - t), abs=1e-12)
            assert every == pytest.approx(
                true.mean() - (~true).mean() * t / (1 - t), rel=1e-12, abs=1e-12
            )
        assert found.prevalence == true.mean()
        assert (found.n, found.of_class) == (80, str(c))


def test_a_score_at_the_threshold_counts_as_called():
    half = Predictions(labels=[1, 0], logits=np.zeros((2, 2)), task="binary")
    grid = np.array([np.nextafter(0.5, 0), 0.5, np.nextafter(0.5, 1)])
    np.testing.assert_allclose(decision_curve(half, thresholds=grid).net_benefit, 0, atol=1e-15)
    sure = Predictions(labels=[1, 1], logits=np.zeros((2, 2)), task="binary")
    assert decision_curve(sure, thresholds=grid).net_benefit.tolist() == [1, 1, 0]


def test_a_perfect_model_is_worth_the_prevalence_and_none_is_worth_more():
    labels = np.arange(40) % 4 == 0
    perfect = by_hand(labels.astype(float), labels.astype(int))
    np.testing.assert_allclose(decision_curve(perfect).net_benefit, 0.25)
    at_zero = decision_curve(draw("binary"), thresholds=np.array([0.0]))
    assert at_zero.net_benefit.tolist() == at_zero.treat_all.tolist() == [0.5]
    for seed in range(5):
        found = decision_curve(draw("binary", seed=seed))
        assert (found.net_benefit <= found.prevalence).all()


def test_acting_on_calibrated_probabilities_beats_all_and_none():
    """Vickers and Elkin: the best rule is to act where the probability is above the threshold."""
    rng = np.random.default_rng(0)
    scores = rng.beta(1, 2, 20_000)
    p = by_hand(scores, (rng.random(20_000) < scores).astype(int))
    found = decision_curve(p, thresholds=np.arange(5, 80, 5) / 100)
    assert (found.net_benefit > found.treat_all - 0.002).all()
    assert (found.net_benefit > 0).all()


@pytest.mark.parametrize(
    "thresholds", [[], [0.5, 0.5], [0.5, 0.4], [-0.1, 0.5], [0.5, 1.0], [0.5, math.nan]]
)
def test_bad_thresholds_are_refused(thresholds):
    with pytest.raises(InputError, match="must ascend from 0 or more to below 1"):
        decision_curve(draw("binary"), thresholds=np.array(thresholds, float))


def test_a_decision_curve_without_images():
    empty = Predictions(labels=np.zeros(0, int), logits=np.zeros((0, 2)), task="binary")
    found = decision_curve(empty)
    assert found.reason == "no images"
    assert np.isnan(found.net_benefit).all()
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(values["net_benefit"]) == {None}
    assert values["prevalence"] is None


def test_a_decision_curve_as_a_dictionary():
    found = decision_curve(draw("binary"))
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["net_benefit"] == found.net_benefit.tolist()
    assert values["of_class"] == "1"
    assert "reason" not in values


# -------------------------------------------------------------------------------------- figure


def names_in(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_figure_draws_the_curves():
    curve = decision_curve(draw("binary"))
    figure = decision_figure(curve, title="breast test, n = 60")
    none, every, model = figure.axes[0].lines
    assert none.get_ydata() == [0, 0]
    np.testing.assert_array_equal(every.get_ydata(), curve.treat_all)
    np.testing.assert_array_equal(model.get_xdata(), curve.thresholds)
    np.testing.assert_array_equal(model.get_ydata(), curve.net_benefit)
    assert names_in(figure) == ["call none", "call every image", "model"]
    assert figure.axes[0].get_title() == "breast test, n = 60"
    FigureCanvasAgg(figure).draw()
    width, height = figure.canvas.get_width_height()
    for artist in (*figure.axes, *figure.legends):
        box = artist.get_tightbbox()
        assert min(box.x0, box.y0) >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1


def test_several_networks_share_a_figure_if_they_share_the_images():
    p = draw("binary")
    other = dataclasses.replace(p, logits=p.logits * 2)
    empty = Predictions(labels=np.zeros(0, int), logits=np.zeros((0, 2)), task="binary")
    curves = {"resnet18": decision_curve(p), "xception": decision_curve(other)}
    figure = decision_figure(curves | {"densenet121": decision_curve(empty)}, title="title")
    assert names_in(figure)[2:] == ["resnet18", "xception", "densenet121: undefined (no images)"]
    assert len(figure.axes[0].lines) == 5
    for strange in (decision_curve(draw("binary", 90)), decision_curve(p, of_class=0)):
        with pytest.raises(InputError, match="same images and class"):
            decision_figure(curves | {"other": strange}, title="title")
    with pytest.raises(InputError, match="no decision curve"):
        decision_figure({}, title="title")
