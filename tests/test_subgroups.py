"""Metrics in parts of the images, their gaps and tests, and the file that says who is in which."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import stats

from flaxmed.evaluation import gaps, shuffles
from flaxmed.evaluation.bootstrap import resample, unit_index
from flaxmed.evaluation.checks import decisions
from flaxmed.evaluation.estimates import Metric, Sampling, area_interval, estimate_metrics
from flaxmed.evaluation.gaps import difference_interval, gaps_between
from flaxmed.evaluation.intervals import Interval, proportion_interval
from flaxmed.evaluation.metrics import METRICS
from flaxmed.evaluation.report_tables import gap_notes, gap_table
from flaxmed.evaluation.shuffles import gap_p_values
from flaxmed.evaluation.subgroups import read_subgroups, split_metrics
from flaxmed.types import InputError, Predictions

QUICK = Sampling(draws=50)
TASKS = ("binary", "multiclass", "ordinal", "multilabel")
SHARP, BLUNT = np.array([0.1, 0.9, 0.2, 0.8]), np.array([0.6, 0.7, 0.1, 0.3])


def binary(scores, labels, **rest):
    scores = np.asarray(scores)
    both = np.stack([1 - scores, scores], axis=1)
    return Predictions.from_probabilities(both, labels=labels, task="binary", **rest)


def draw(n, seed=0, *, task="binary", sharp=1.0, groups=None, share=0.5):
    """Predictions of a model that is right more often than not, with ids a0000, a0001 ..."""
    rng = np.random.default_rng(seed)
    k = 2 if task == "binary" else 3
    if task == "multilabel":
        labels = rng.integers(0, 2, (n, k))
        hint = 2 * labels - 1
    elif task == "binary":
        labels = (np.arange(n) < share * n).astype(int)
        hint = np.eye(2)[labels]
    else:
        labels = np.arange(n) % k
        hint = np.eye(k)[labels]
    logits = rng.normal(size=(n, k)) + sharp * hint
    ids = [f"a{i:04d}" for i in range(n)]
    return Predictions(labels=labels, logits=logits, task=task, ids=ids, groups=groups)


def rows(p, which):
    """The images ``which`` alone."""
    groups = None if p.groups is None else p.groups[which]
    return dataclasses.replace(
        p, labels=p.labels[which], logits=p.logits[which], ids=p.ids[which], groups=groups
    )


def column(p, values, name="sex"):
    return {name: dict(zip(p.ids.tolist(), values, strict=True))}


def one(p, values, sampling=QUICK, name="sex"):
    (found,) = split_metrics(p, column(p, values, name), sampling)
    return found


def gap_p_value(p, value, name, **options):
    return gap_p_values(p, value, [name], **options)[name]


def names_of(task):
    return [spec.name for spec in METRICS if task in spec.tasks]


def plain(metrics):
    return {name: metric.to_dict() for name, metric in metrics.items()}


def share(k, n):
    return Metric("accuracy", "accuracy", k / n, interval=proportion_interval(k, n))


# ---------------------------------------------------------------------------------- by hand


@pytest.fixture(scope="module")
def small():
    """Four women, ranked and decided rightly; four men: 2 of 4 right, 3 of 4 pairs ranked."""
    p = binary(np.append(SHARP, BLUNT), [0, 1, 0, 1] * 2, classes=("benign", "malignant"))
    return p, one(p, "FFFFMMMM")


def test_a_small_case_by_hand(small):
    _, found = small
    assert found.column == "sex"
    assert [(part.value, part.n, part.groups, part.counts) for part in found.parts] == [
        ("F", 4, None, (2, 2)),
        ("M", 4, None, (2, 2)),
    ]
    women, men = (part.metrics for part in found.parts)
    assert [women[name].value for name in ("accuracy", "auc", "sensitivity")] == [1, 1, 1]
    assert [men[name].value for name in ("accuracy", "auc", "sensitivity")] == [0.5, 0.75, 0.5]
    assert women["sensitivity"].positive == "malignant"
    # Of the four men one of each class is decided rightly, and called so.
    by_hand = {"accuracy": 0.5, "auc": 0.25, "sensitivity": 0.5, "specificity": 0.5, "ppv": 0.5}
    by_hand |= {"npv": 0.5, "f1": 0.5, "balanced_accuracy": 0.5, "kappa": 1.0, "mcc": 1.0}
    by_hand |= {"average_precision": 1 - (1 + 2 / 3) / 2}
    for name, value in by_hand.items():
        gap = found.gaps[name]
        assert gap.value == pytest.approx(value)
        assert (gap.highest, gap.lowest, gap.reason) == ("F", "M", None)
    squares = [np.mean((score - [0, 1, 0, 1]) ** 2) for score in (SHARP, BLUNT)]
    assert found.gaps["brier"].value == pytest.approx(squares[1] - squares[0])
    assert (found.gaps["brier"].highest, found.gaps["brier"].lowest) == ("M", "F")
    assert list(found.gaps) == [spec.name for spec in METRICS]
    assert found.gaps["auc"].title == "AUC"
    assert [gap.positive for gap in found.gaps.values()] == [
        "malignant" if spec.needs_positive else None for spec in METRICS
    ]


def test_the_gap_in_accuracy_has_newcombes_interval(small):
    found = small[1].gaps["accuracy"].interval
    (l1, u1), (l2, u2) = (stats.binomtest(k, 4).proportion_ci(method="wilson") for k in (4, 2))
    assert found.low == pytest.approx(0.5 - math.hypot(1 - l1, u2 - 0.5))
    assert found.high == pytest.approx(0.5 + math.hypot(u1 - 1, 0.5 - l2))
    assert found.method == "squared and added: Wilson"


@pytest.mark.parametrize("name", ["sensitivity", "specificity", "ppv", "npv"])
def test_the_gap_in_a_share_of_some_images_has_newcombes_interval(small, name):
    """Two of two against one of two."""
    found = small[1].gaps[name].interval
    (l1, u1), (l2, u2) = (stats.binomtest(k, 2).proportion_ci(method="wilson") for k in (2, 1))
    assert found.low == pytest.approx(0.5 - math.hypot(1 - l1, u2 - 0.5))
    assert found.high == pytest.approx(0.5 + math.hypot(u1 - 1, 0.5 - l2))


def test_the_gap_in_auc_has_an_interval_of_both_areas(small):
    women, men = (part.metrics["auc"].interval for part in small[1].parts)
    found = small[1].gaps["auc"].interval
    assert found.low == pytest.approx(0.25 - math.hypot(1 - women.low, men.high - 0.75))
    assert found.high == pytest.approx(0.25 + math.hypot(women.high - 1, 0.75 - men.low))
    assert found.method == "squared and added: score (Newcombe) and DeLong, logit"


def value_of(name, y, score):
    """A metric by scikit-learn alone, NaN where undefined; the positive class is 1."""
    d = (score > 0.5).astype(int)
    constant = len(set(y.tolist())) < 2
    found = {
        "accuracy": lambda: sk.accuracy_score(y, d),
        "balanced_accuracy": lambda: math.nan if constant else sk.balanced_accuracy_score(y, d),
        "loss": lambda: sk.log_loss(y, score, labels=[0, 1]),
        "auc": lambda: math.nan if constant else sk.roc_auc_score(y, score),
        "average_precision": lambda: sk.average_precision_score(y, score) if y.any() else math.nan,
        "f1": lambda: sk.f1_score(y, d, zero_division=np.nan),
        "sensitivity": lambda: sk.recall_score(y, d, zero_division=np.nan),
        "specificity": lambda: sk.recall_score(y, d, pos_label=0, zero_division=np.nan),
        "ppv": lambda: sk.precision_score(y, d, zero_division=np.nan),
        "npv": lambda: sk.precision_score(y, d, pos_label=0, zero_division=np.nan),
        "kappa": lambda: sk.cohen_kappa_score(y, d) if len({*y, *d}) > 1 else math.nan,
        "mcc": lambda: (
            math.nan if constant or len(set(d.tolist())) < 2 else sk.matthews_corrcoef(y, d)
        ),
        "brier": lambda: sk.brier_score_loss(y, score, labels=[0, 1]),
    }
    return found[name]()


@pytest.mark.parametrize("name", names_of("binary"))
def test_p_values_are_the_shares_of_all_ways_to_part_the_images(small, name):
    """All 70 ways to choose 4 of 8; for AUC, sensitivity ... the 36 that keep two images of each
    class, and for PPV and NPV the 36 that keep two of each decision."""
    p, found = small
    decided = (p.probabilities[:, 1] > 0.5).astype(int)
    kept = {"auc": p.labels, "sensitivity": p.labels, "specificity": p.labels}
    kept |= {"balanced_accuracy": p.labels, "ppv": decided, "npv": decided}
    ways = [np.isin(np.arange(8), chosen) for chosen in itertools.combinations(range(8), 4)]
    if name in kept:
        ways = [way for way in ways if kept[name][way].sum() == 2]
        assert len(ways) == 36
    score = p.probabilities[:, 1]
    values = [[value_of(name, p.labels[part], score[part]) for part in (w, ~w)] for w in ways]
    known = np.abs(np.subtract(*np.array(values).T))
    known = known[np.isfinite(known)]
    gap = found.gaps[name]
    exact = np.mean(known >= gap.value - 1e-9)
    assert gap.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 1000))
    count, what = gap.test.split(" ", 1)
    alike = " of the same truth" if kept.get(name) is p.labels else ""
    alike = " of the same decision" if name in ("ppv", "npv") else alike
    assert what == f"shuffles of images{alike}"
    assert int(count) == pytest.approx(1000 * len(known) / len(ways), abs=60)


# ------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("task", "grouped"),
    [
        ("binary", True),
        ("multiclass", False),
        ("multilabel", False),
    ],
)
def test_each_part_has_the_metrics_of_its_images_alone(task, grouped):
    groups = [f"p{i // 3}" for i in range(120)] if grouped else None
    p = draw(120, task=task, groups=groups)
    sites = np.array(["south", "north", "north", "east"])[np.arange(120) // 3 % 4]
    found = one(p, sites.tolist())
    assert [part.value for part in found.parts] == ["east", "north", "south"]
    for part in found.parts:
        alone = rows(p, sites == part.value)
        assert part.n == len(alone)
        assert part.groups == (len(alone) / 3 if grouped else None)
        assert plain(part.metrics) == plain(estimate_metrics(alone, QUICK))
        counts = alone.labels.sum(0) if task == "multilabel" else np.bincount(alone.labels)
        assert part.counts == tuple(counts)
    for name, gap in found.gaps.items():
        values = {part.value: part.metrics[name].value for part in found.parts}
        assert gap.value == max(values.values()) - min(values.values())
        assert values[gap.highest] - values[gap.lowest] == gap.value
        assert gap.interval.low < gap.value < gap.interval.high
        extremes = [part for part in found.parts if part.value in (gap.highest, gap.lowest)]
        expected = difference_interval(
            *(part.metrics[name] for part in sorted(extremes, key=lambda e: e.value == gap.lowest))
        )
        assert gap.interval == expected  # no group is in two of them
        assert 0 < gap.p_value <= 1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("ties", [False, True])
def test_shuffles_measure_what_the_metrics_do(task, ties):
    p = draw(150, task=task)
    if task == "binary":
        p = dataclasses.replace(p, positive=0)
    if ties:
        p = dataclasses.replace(p, logits=np.round(p.logits))
    value = np.random.default_rng(1).integers(0, 3, (4, 150))
    specs = {spec.name: spec for spec in METRICS if task in spec.tasks}
    found = shuffles._measure(p, 3, tuple(specs))(value)
    for j, spec in enumerate(specs.values()):
        expected = [[spec(rows(p, row == i)) for i in range(3)] for row in value]
        np.testing.assert_allclose(found[:, :, j], expected, rtol=1e-12, err_msg=spec.name)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("task", TASKS)
def test_shuffles_find_undefined_what_the_metrics_do(task):
    """Parts of one to three images: of one class, or called one class."""
    p = draw(12, task=task, sharp=3.0)
    value = np.repeat(np.arange(5), [1, 2, 3, 3, 3])[None]
    specs = {spec.name: spec for spec in METRICS if task in spec.tasks}
    found = shuffles._measure(p, 6, tuple(specs))(value)
    for j, spec in enumerate(specs.values()):
        expected = [spec(rows(p, value[0] == i)) for i in range(6)]
        np.testing.assert_allclose(found[0, :, j], expected, rtol=1e-12, err_msg=spec.name)
    assert np.isnan(found[0, 5]).all()


def test_the_order_of_the_images_does_not_matter():
    p = draw(90)
    values = np.array(["a", "b", "c"])[np.random.default_rng(1).integers(0, 3, 90)]
    order = np.random.default_rng(2).permutation(90)
    found, other = one(p, values.tolist()), one(rows(p, order), values[order].tolist())
    for name, gap in found.gaps.items():
        one_way, other_way = gap.to_dict(), other.gaps[name].to_dict()
        if "bootstrap" in gap.interval.method:  # which redraws images by their places
            one_way |= {"low": 0, "high": 0}
            other_way |= {"low": 0, "high": 0}
        assert one_way == pytest.approx(other_way)
    for part, again in zip(found.parts, other.parts, strict=True):
        for name in part.metrics:
            assert part.metrics[name].value == pytest.approx(again.metrics[name].value)


def test_values_with_numbers_are_sorted_by_the_numbers():
    p = draw(8)
    found = one(p, ["80+", "9-17", "18-39", "40-79"] * 2)
    assert [part.value for part in found.parts] == ["9-17", "18-39", "40-79", "80+"]


def test_every_column_is_split():
    p = draw(20)
    columns = column(p, ["F", "M"] * 10) | column(p, ["x"] * 10 + ["y"] * 10, name="site")
    assert [found.column for found in split_metrics(p, columns, QUICK)] == ["sex", "site"]


def test_what_is_found_can_be_written_as_json():
    p = draw(20)
    found = one(p, ["F"] * 9 + ["M"] * 9 + ["", "X"])
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [part["value"] for part in written["parts"]] == ["F", "M", "X", "not known"]
    assert [part["known"] for part in written["parts"]] == [True, True, True, False]
    assert written["parts"][2]["metrics"]["auc"]["value"] is None
    assert "every image is of class" in written["parts"][2]["metrics"]["auc"]["reason"]
    assert written["gaps"]["auc"]["highest"] is None
    assert written["gaps"]["accuracy"]["p_value"] == found.gaps["accuracy"].p_value


# ------------------------------------------------------- what is not known, absent or undefined


def test_images_that_are_not_in_the_table_are_counted_and_in_no_gap():
    p = draw(40)
    known = one(rows(p, np.arange(30)), ["F", "M"] * 15)
    table = dict(zip(p.ids[:30].tolist(), ["F", "M"] * 15, strict=True))
    table |= {p.ids[30]: "", "elsewhere/1": "F", "elsewhere/2": ""}
    (found,) = split_metrics(p, {"sex": table}, QUICK)
    assert [(part.value, part.n, part.known) for part in found.parts] == [
        ("F", 15, True),
        ("M", 15, True),
        ("not known", 10, False),
    ]
    unknown = estimate_metrics(rows(p, np.arange(30, 40)), QUICK)
    assert plain(found.parts[-1].metrics) == plain(unknown)
    for name, gap in known.gaps.items():
        assert found.gaps[name].to_dict() == gap.to_dict()
    assert found.notes[-2:] == (
        "sex: not known of 10 images (9 not in the table), in no gap.",
        "The table also has 2 images that these predictions have not.",
    )


def test_a_value_that_only_other_images_have_is_an_empty_subgroup():
    p = draw(20)
    table = column(p, ["F"] * 20)["sex"] | {"train/1": "M"}
    (found,) = split_metrics(p, {"sex": table}, QUICK)
    empty = found.parts[1]
    assert (empty.value, empty.n, empty.counts) == ("M", 0, (0, 0))
    for metric in empty.metrics.values():
        assert math.isnan(metric.value)
        assert metric.reason == "no images"
    for gap in found.gaps.values():
        assert math.isnan(gap.value)
        assert math.isnan(gap.p_value)
        assert gap.reason == "it is defined in fewer than two subgroups"


def test_a_subgroup_of_one_class_has_an_accuracy_and_a_reason():
    p = binary(np.append(SHARP, BLUNT), [0, 1, 0, 1, 1, 1, 1, 1], classes=("benign", "malignant"))
    found = one(p, "FFFFMMMM")
    men = found.parts[1].metrics
    assert men["accuracy"].value == 0.5
    assert math.isnan(men["auc"].value)
    assert men["auc"].reason == ("no image of class 'benign'; every image is of class 'malignant'")
    assert found.gaps["accuracy"].value == 0.5
    assert found.gaps["auc"].reason == "it is defined in fewer than two subgroups"


def test_an_undefined_subgroup_stays_out_of_the_gap_of_the_others():
    """The third has one class only; its images still change places with the others'."""
    p = binary(np.concatenate([SHARP, BLUNT, [0.4]]), [0, 1, 0, 1] * 2 + [1])
    gap = one(p, "FFFFMMMMX").gaps["auc"]
    assert (gap.value, gap.highest, gap.lowest) == (0.25, "F", "M")
    assert 0 < gap.p_value <= 1


def test_nothing_known_and_no_images():
    p = draw(6)
    found = one(p, [""] * 6)
    assert [(part.value, part.n) for part in found.parts] == [("not known", 6)]
    assert found.gaps["auc"].reason == "it is defined in fewer than two subgroups"
    nothing = Predictions(labels=np.zeros(0, int), logits=np.zeros((0, 2)), task="binary")
    (found,) = split_metrics(nothing, {"sex": {"a": "F", "b": "M"}}, QUICK)
    assert [(part.value, part.n) for part in found.parts] == [("F", 0), ("M", 0)]
    assert split_metrics(p, {}) == ()


def test_equal_subgroups_have_no_gap():
    p = binary(np.tile(BLUNT, 2), [0, 1, 0, 1] * 2)
    for gap in one(p, "FFFFMMMM").gaps.values():
        assert gap.value == 0
        assert {gap.highest, gap.lowest} == {"F", "M"}
        assert gap.interval.low < 0 < gap.interval.high
        assert gap.p_value == 1


def test_the_notes_name_small_subgroups_and_many_looks():
    p = draw(100)
    two, three = one(p, ["F"] * 90 + ["M"] * 10), one(p, ["a", "b", "c", "c"] * 25)
    assert "not corrected for looking at several" in two.notes[0]
    assert two.notes[1:] == ("Subgroups of fewer than 30 images support little: M (10).",)
    assert "picked as the extremes" in three.notes[1]
    assert three.notes[2:] == ("Subgroups of fewer than 30 images support little: a (25), b (25).",)


def test_the_level_is_the_one_asked_for():
    found = one(draw(40), ["F", "M"] * 20, Sampling(level=0.8, draws=50))
    assert found.gaps["auc"].interval.level == 0.8
    wide = one(draw(40), ["F", "M"] * 20)
    assert wide.gaps["auc"].interval.low < found.gaps["auc"].interval.low


# --------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("a", "m", "b", "n", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17, 873 (1998), table II, method 10
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (6, 7, 2, 7, 0.0582, 0.8062),
        (5, 56, 0, 29, -0.0381, 0.1926),
        (0, 10, 0, 20, -0.1611, 0.2775),
        (10, 10, 0, 20, 0.6791, 1.0000),
    ],
)
def test_differences_of_shares_have_the_published_intervals(a, m, b, n, low, high):
    found = difference_interval(share(a, m), share(b, n))
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_with_plain_intervals_the_variances_add():
    """Symmetric intervals of value +- z * error: those of the difference are the plain ones."""

    def metric(value, error):
        return Metric("", "", value, interval=Interval(value - error, value + error, "plain"))

    a, b, r = metric(0.8, 0.06), metric(0.7, 0.08), 0.5
    found = difference_interval(a, b)
    assert (found.low, found.high) == (pytest.approx(0.0), pytest.approx(0.2))
    half = math.sqrt(0.06**2 + 0.08**2 - 2 * r * 0.06 * 0.08)
    together = difference_interval(a, b, r)
    assert (together.low, together.high) == (pytest.approx(0.1 - half), pytest.approx(0.1 + half))


def test_without_an_interval_of_each_there_is_none_of_the_gap():
    """One malignant image tells nothing about the variance of an area."""
    p = binary(np.append(SHARP, BLUNT), [0, 1, 0, 1, 0, 1, 0, 0])
    gap = one(p, "FFFFMMMM").gaps["auc"]
    assert gap.value == pytest.approx(0)
    assert math.isnan(gap.interval.low)
    assert gap.interval.reason == "one of the two has no interval"


@pytest.mark.parametrize("name", ["accuracy", "auc"])
def test_the_interval_covers_the_true_difference(name):
    """Of 100 pairs of subgroups of 60 images: 95 would be 95%, give or take 2."""

    def measure(p):
        score = p.probabilities[:, 1]
        if name == "auc":
            return float(sk.roc_auc_score(p.labels, score))
        return float(np.mean((score > 0.5) == p.labels))

    pools = [draw(10_000, 1, sharp=2.0), draw(10_000, 2, sharp=1.0)]
    truth = measure(pools[0]) - measure(pools[1])
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        found = []
        for pool in pools:
            part = rows(pool, rng.choice(10_000, 60, replace=False))
            value = measure(part)
            if name == "auc":
                interval = area_interval(part, part.probabilities, value)
            else:
                interval = proportion_interval(round(60 * value), 60)
            found.append(Metric(name, name, value, interval=interval))
        interval = difference_interval(*found)
        covered += interval.low <= truth <= interval.high
    assert 90 <= covered <= 99


def patients(count, each, seed=0):
    """Images of patients whose scores resemble each other, with the patient's name."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    mean = rng.normal(size=count) + labels
    score = np.repeat(mean, each) + 0.3 * rng.normal(size=count * each)
    logits = np.stack([np.zeros(count * each), score - 0.5], axis=1)
    groups = np.repeat([f"p{i:03d}" for i in range(count)], each)
    return Predictions(np.repeat(labels, each), logits, "binary", groups=groups)


@pytest.fixture(scope="module")
def redrawn_patients():
    """60 patients with two images in either part, and all metrics of both in 150 redrawn sets."""
    p = patients(60, 4)
    first = np.arange(240) % 4 < 2
    pieces = [rows(p, first), rows(p, ~first)]
    score = p.probabilities[:, 1]
    index, units = unit_index(240, p.groups)
    drawn = {name: [] for name in names_of("binary")}

    def redraw(weights):
        for w in weights[:, index].astype(int):
            each = [np.repeat(np.flatnonzero(part), w[part]) for part in (first, ~first)]
            for name, values in drawn.items():
                values.append([value_of(name, p.labels[at], score[at]) for at in each])
        return weights[:, :1]

    resample(redraw, units, draws=150)
    return p, pieces, drawn


@pytest.mark.slow
@pytest.mark.parametrize("name", names_of("binary"))
def test_subgroups_that_share_patients_vary_together(redrawn_patients, name):
    """The correlation of the two metrics, against that in redrawn sets of patients."""
    p, pieces, drawn = redrawn_patients
    expected = np.corrcoef(np.array(drawn[name]).T)[0, 1]
    (found,) = gaps._pair_correlations(*pieces, [name], 0).values()
    assert found == pytest.approx(expected, abs=0.12)
    assert expected > 0.6
    apart = [dataclasses.replace(piece, groups=None) for piece in pieces]
    assert gaps._pair_correlations(*apart, [name], 0) == {name: 0}
    others = [rows(p, p.groups < "p030"), rows(p, p.groups >= "p030")]
    assert gaps._pair_correlations(*others, [name], 0) == {name: 0}


@pytest.mark.parametrize("name", names_of("binary"))
def test_the_interval_of_a_gap_allows_for_shared_patients(name):
    p = patients(60, 4)
    first = np.arange(240) % 4 < 2
    parts = [(v, rows(p, w)) for v, w in (("a", first), ("b", ~first))]
    found = [(v, piece, estimate_metrics(piece, QUICK)) for v, piece in parts]
    gap = gaps_between([name], found)[name]
    metrics = {v: metrics[name] for v, _, metrics in found}
    alone = difference_interval(metrics[gap.highest], metrics[gap.lowest])
    assert gap.interval.high - gap.interval.low < 0.75 * (alone.high - alone.low)
    assert gap.interval.low < gap.value < gap.interval.high


@pytest.mark.parametrize("name", ["loss", "brier"])
def test_some_patients_in_both_parts_vary_together_less(name):
    """Of a mean the correlation is known: 20 of 60 patients have images in both parts."""
    p = patients(60, 4)
    number = np.arange(240) // 4
    first = np.where(number >= 40, np.arange(240) % 4 < 2, number < 10)
    pieces = [rows(p, first), rows(p, ~first)]
    score, y = p.probabilities[:, 1], p.labels
    each = {"loss": -np.log(np.where(y == 1, score, 1 - score)), "brier": (score - y) ** 2}[name]
    sums = [
        np.bincount(number[part], each[part] - each[part].mean(), minlength=60)
        for part in (first, ~first)
    ]
    expected = sums[0] @ sums[1] / np.sqrt((sums[0] @ sums[0]) * (sums[1] @ sums[1]))
    found = gaps._pair_correlations(*pieces, [name], 0)
    assert found[name] == pytest.approx(expected, abs=0.03)
    assert 0.2 < expected < 0.8


def test_many_patients_are_left_out_in_blocks_of_both_parts():
    """Of more than 1000 groups: the correlation of F1 stays that of 60 such patients."""
    p = patients(1200, 2)
    first = np.arange(2400) % 2 == 0
    found = gaps._pair_correlations(rows(p, first), rows(p, ~first), ["f1", "loss"], 0)
    few = patients(60, 2)
    small = np.arange(120) % 2 == 0
    expected = gaps._pair_correlations(rows(few, small), rows(few, ~small), ["f1", "loss"], 0)
    assert found == pytest.approx(expected, abs=0.15)
    assert found["loss"] > 0.6


# ---------------------------------------------------------------------------------- the test


@pytest.mark.parametrize("name", ["accuracy", "auc", "ppv", "average_precision"])
def test_p_values_are_uniform_where_subgroups_do_not_differ(name):
    """300 sets of three subgroups, of which the second has few images of one class."""
    value = np.array(list("aaaaaaaabbcc" + "aabbbbbbbbccccccccc"))
    if name != "auc":  # the mix of classes is a part of the others
        value = np.random.default_rng(0).permutation(value)
    labels = np.repeat([1, 0], [12, 19])
    found = []
    for seed in range(300):
        logits = np.random.default_rng(seed).normal(size=(31, 2)) + np.eye(2)[labels]
        p = Predictions(labels=labels, logits=logits, task="binary")
        found.append(gap_p_value(p, value, name, seed=seed, shuffles=99)[0])
    found = np.array(found)[np.isfinite(found)]
    small, half = np.mean(found <= 0.05), np.mean(found <= 0.5)
    assert small <= 0.09  # 0.05 and three standard errors
    assert half <= 0.59
    if name in ("auc", "average_precision"):  # shares have few values: their p-values are larger
        assert small >= 0.012
        assert half >= 0.41


def test_sensitivity_does_not_blame_the_mix_of_classes():
    """Equal sensitivities where one site has few ill: the p-value is uniform all the same, and that
    of PPV, which does depend on the mix, is small."""
    sensitivity, ppv = [], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        labels = np.concatenate([rng.random(100) < 0.1, rng.random(100) < 0.7]).astype(int)
        logits = rng.normal(size=(200, 2)) + np.eye(2)[labels]
        p = Predictions(labels=labels, logits=logits, task="binary")
        value = np.repeat(["a", "b"], 100)
        found = gap_p_values(p, value, ["sensitivity", "ppv"], seed=seed, shuffles=99)
        sensitivity.append(found["sensitivity"][0])
        ppv.append(found["ppv"][0])
    assert np.mean(np.array(sensitivity) <= 0.05) <= 0.1
    assert 0.35 <= np.mean(np.array(sensitivity) <= 0.5) <= 0.6
    assert np.mean(np.array(ppv) <= 0.05) > 0.9


@pytest.mark.parametrize("task", TASKS)
def test_a_real_gap_is_found(task):
    sharp = 1.0 if task == "multilabel" else 3.0  # a perfect subgroup would have no interval
    good, bad = draw(150, 1, task=task, sharp=sharp), draw(150, 2, task=task, sharp=0.0)
    p = Predictions(
        labels=np.concatenate([good.labels, bad.labels]),
        logits=np.concatenate([good.logits, bad.logits]),
        task=task,
    )
    for gap in one(p, ["good"] * 150 + ["bad"] * 150).gaps.values():
        worse = gap.name in ("loss", "brier")
        assert (gap.lowest, gap.highest) == (("good", "bad") if worse else ("bad", "good"))
        assert gap.p_value == 1 / 1001  # never 0
        assert gap.interval.low > 0


def test_images_of_one_group_move_together():
    """Three images of each patient say no more than one does."""
    once = draw(40, 3)
    value = np.array(["a", "b"])[np.random.default_rng(0).integers(0, 2, 40)]
    three = np.repeat(np.arange(40), 3)
    p = Predictions(once.labels[three], once.logits[three], "binary", groups=once.ids[three])
    for name in names_of("binary"):
        alone = gap_p_value(once, value, name)
        assert gap_p_value(p, value[three], name) == pytest.approx(alone)
    separate = dataclasses.replace(p, groups=None)
    assert gap_p_value(separate, value[three], "auc")[0] < gap_p_value(p, value[three], "auc")[0]


def test_groups_keep_p_values_uniform():
    """150 sets of 24 patients with 4 images that resemble each other."""
    value = np.repeat(np.array(["a", "b", "b"])[np.arange(24) % 3], 4)
    grouped, separate = [], []
    for seed in range(150):
        p = patients(24, 4, seed)
        alone = dataclasses.replace(p, groups=None)
        grouped.append(gap_p_value(p, value, "auc", shuffles=99)[0])
        separate.append(gap_p_value(alone, value, "auc", shuffles=99)[0])
    assert 0.005 <= np.mean(np.array(grouped) <= 0.05) <= 0.1
    assert 0.4 <= np.mean(np.array(grouped) <= 0.5) <= 0.6
    assert np.mean(np.array(separate) <= 0.05) > 0.2


def test_a_group_in_several_subgroups_is_shuffled_within():
    """Five patients, each right at site a and wrong at b: 2 of 32 ways have a gap of 1."""
    labels = np.ones(10, int)
    p = binary(np.tile([0.9, 0.1], 5), labels, groups=np.repeat(list("vwxyz"), 2))
    found = one(p, "abababab" + "ab")
    assert found.gaps["accuracy"].value == 1
    assert found.gaps["accuracy"].p_value == pytest.approx(2 / 32, abs=0.03)
    assert found.gaps["accuracy"].test == "1000 shuffles of groups"
    assert found.notes[-1].startswith("5 groups have images in several subgroups")
    assert "support little: a (5), b (5)" in found.notes[1]
    some = one(p, "ababaaaabb")
    assert some.notes[-1].startswith("2 groups have images in several subgroups")
    whole = one(p, "aabbaabbaa")
    assert not any("several subgroups:" in note for note in whole.notes)
    alone = dataclasses.replace(p, groups=None)
    assert one(alone, "abababab" + "ab").gaps["accuracy"].p_value < 0.03  # 2 of 252 ways


@pytest.mark.parametrize("alike", ["", "truth", "decision"])
@pytest.mark.parametrize("task", TASKS)
def test_what_a_shuffle_keeps(task, alike):
    """Whole groups stay whole, a group of several values keeps them, and so do the classes."""
    rng = np.random.default_rng(0)
    p = draw(90, task=task, groups=np.sort(rng.integers(0, 40, 90)).astype(str))
    mixed = p.groups < "2"
    value = np.where(mixed, rng.integers(0, 3, 90), p.groups.astype(int) % 3)
    shuffled = shuffles._shuffler(value, *shuffles._movers(p, value, alike))(20, rng)
    assert (shuffled != value).any(axis=1).all()
    for row in shuffled:
        for group in np.unique(p.groups):
            own = p.groups == group
            if len(np.unique(value[own])) > 1:
                assert sorted(row[own]) == sorted(value[own])
            else:
                assert len(np.unique(row[own])) == 1
    alone = dataclasses.replace(p, groups=None)
    shuffle = shuffles._shuffler(value, *shuffles._movers(alone, value, alike))
    for what, answers in (("truth", p.labels), ("decision", decisions(p.probabilities, task=task))):
        table = np.column_stack([answers, value])
        kept = [
            np.array_equal(np.unique(table, axis=0, return_counts=True)[1], counts)
            for row in shuffle(20, rng)
            for counts in [
                np.unique(np.column_stack([answers, row]), axis=0, return_counts=True)[1]
            ]
        ]
        assert all(kept) == (what == alike)


def test_every_order_of_a_few_images_is_as_likely():
    """Three images and two values: each of the three ways in a third of 3000 shuffles."""
    value = np.array([1, 0, 0, 1, 1])
    mover, stratum = np.arange(5), np.array([0, 0, 0, 1, 1])
    drawn = shuffles._shuffler(value, mover, stratum)(3000, np.random.default_rng(0))
    assert (drawn[:, 3:] == 1).all()
    counts = np.unique(drawn[:, :3], axis=0, return_counts=True)[1]
    assert len(counts) == 3
    assert counts == pytest.approx(1000, abs=100)


def test_large_sets_are_shuffled_less_often_and_it_is_said(monkeypatch):
    p = draw(60)
    monkeypatch.setattr(shuffles, "_WORK", 60 * (12 + 2) * 250)
    assert gap_p_value(p, np.array(["a", "b"] * 30), "auc")[1] == 250
    monkeypatch.setattr(shuffles, "_WORK", 10)
    gap = one(p, ["a", "b"] * 30).gaps["auc"]
    assert gap.test.startswith("100 shuffles")
    assert gap.p_value >= 1 / 101


def test_shuffles_in_pieces_are_the_same(monkeypatch):
    p, value, names = draw(60), np.array(["a", "b", "b"] * 20), names_of("binary")
    at_once = gap_p_values(p, value, names)
    monkeypatch.setattr(shuffles, "_CHUNK", 60 * 7)
    assert gap_p_values(p, value, names) == at_once
    assert {name: gap_p_value(p, value, name) for name in names} == at_once


def test_gaps_of_other_metrics_are_refused():
    p = draw(6)
    with pytest.raises(
        InputError, match=r"gaps of binary tasks are of accuracy, .*, not of recall"
    ):
        gap_p_value(p, np.array(["a", "b"] * 3), "recall")
    several = draw(6, task="multilabel")
    with pytest.raises(InputError, match="not of balanced_accuracy"):
        gap_p_value(several, np.array(["a", "b"] * 3), "balanced_accuracy")


@pytest.mark.slow
def test_a_hundred_thousand_images_take_a_few_seconds():
    """Processor time: it was a quarter of this limit where the test was written."""
    p = draw(100_000)
    p = dataclasses.replace(p, ids=np.arange(100_000).astype(str))
    value = np.arange(100_000) % 2
    start = time.process_time()
    found = gap_p_values(p, value, names_of("binary"))
    assert time.process_time() - start < 15
    assert {count for _, count in found.values()} == {285}


def test_the_table_of_gaps_says_what_p_is_from_and_what_is_missing():
    """One benign image: no variance of an area. Nobody is called ill in M: no PPV, F1, MCC."""
    p = binary(
        [0.1, 0.9, 0.2, 0.4, 0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1] * 2, classes=("benign", "ill")
    )
    found = one(p, "FFFFMMMM")
    table = gap_table(found)
    assert table[0] == ["largest gap", "value", "from", "to", "interval of these two", "p"]
    cells = {row[0]: row[1:] for row in table[1:]}
    assert list(cells) == [
        spec.title + (" (ill)" if spec.needs_positive else "") for spec in METRICS
    ]
    assert cells["accuracy"][:3] == ["0.2500", "M", "F"]
    assert cells["sensitivity (ill)"][:3] == ["0.5000", "M", "F"]
    assert cells["PPV (ill)"] == ["undefined", "–", "–", "–", "undefined"]
    notes = gap_notes(found)
    assert "Undefined (it is defined in fewer than two subgroups): PPV, MCC." in notes
    assert "p by 1000 shuffles of images of the same decision: NPV." in notes
    same = "p by 1000 shuffles of images of the same truth: balanced accuracy, AUC, sensitivity, "
    assert f"{same}specificity." in notes
    (no_interval,) = [note for note in notes if note.startswith("No interval")]
    assert no_interval.startswith("No interval (one of the two has no interval): ")


# ---------------------------------------------------------------------------------- the file

TABLE = "id,sex,age band\ntest/0000,F,18-39\ntest/0001, M ,\n"


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode(),
        TABLE.encode("utf-8-sig"),
        TABLE.replace("\n", "\r\n").encode(),
        TABLE.replace("\n", "\n\n").encode(),
        b'"id","sex","age band"\ntest/0000,"F",18-39\ntest/0001,M,\n',
        b"sex,id,age band\nF,test/0000,18-39\nM,test/0001,",
    ],
    ids=["plain", "excel", "windows", "blank lines", "quoted", "id second"],
)
def test_a_table_is_read(tmp_path, content):
    path = tmp_path / "patients.csv"
    path.write_bytes(content)
    assert read_subgroups(path) == {
        "sex": {"test/0000": "F", "test/0001": "M"},
        "age band": {"test/0000": "18-39", "test/0001": ""},
    }


def test_a_table_is_read_and_used(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text("id,site\n" + "".join(f"a{i:04d},Zürich {i % 2}\n" for i in range(20)), "utf-8")
    (found,) = split_metrics(draw(20), read_subgroups(path), QUICK)
    assert [(part.value, part.n) for part in found.parts] == [("Zürich 0", 10), ("Zürich 1", 10)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a header with id and other columns"),
        (b"\n\n", "is empty; expected a header"),
        (b"id,sex\n", "has no line below its header"),
        (b"id\na\n", "line 1: no column but 'id'; expected one or more, such as sex or site"),
        (b"name,sex\na,F\n", "line 1: no column 'id'; expected .* commas, got 'name', 'sex'"),
        (b"id;sex\na;F\n", "line 1: no column 'id'; expected .* commas, got 'id;sex'"),
        (b"id,sex,sex\na,F,F\n", "line 1: column 'sex' occurs twice"),
        (b"\nid,id,sex\na,b,F\n", "line 2: column 'id' occurs twice"),
        (b"id,sex,\na,F,\n", "line 1: column 3 has no name"),
        (b"id,sex\na,F\n\nb,M,1\n", r"line 4: 3 cells, expected 2 \('id', 'sex'\)"),
        (b"id,sex\na,F\nb\n", r"line 3: 1 cells, expected 2 \('id', 'sex'\)"),
        (b"id,sex\na,F\n,M\n", "line 3: column 'id' is empty"),
        (b"id,sex\na,F\nb,M\na,M\n", "line 4: column 'id': 'a' stands on line 2 too"),
        (b"id,sex\na,F\nb,M\xe4nnlich\n", "line 3: not UTF-8; save the table as CSV UTF-8"),
        (b'id,sex\na,"F\n', "line 2: unexpected end of data"),
    ],
)
def test_a_bad_table_is_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "patients.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_subgroups(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_no_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"patients.csv: no such file of subgroups"):
        read_subgroups(tmp_path / "patients.csv")


def test_a_table_of_other_images_is_refused():
    p = draw(10)
    with pytest.raises(InputError) as caught:
        split_metrics(p, {"sex": {"x1": "F", "x2": "M"}})
    assert str(caught.value) == (
        "column 'sex' has a value for none of the 10 images: its ids are x1, x2; those of the "
        "images are a0000, a0001, a0002, a0003 and 6 more"
    )
    with pytest.raises(InputError, match="its ids are none;"):
        split_metrics(p, {"sex": {}})


def test_a_column_of_numbers_is_refused():
    p = draw(40)
    with pytest.raises(InputError) as caught:
        split_metrics(p, column(p, [str(i % 31) for i in range(40)], "age"))
    assert str(caught.value) == (
        "column 'age' has 31 different values (0, 1, 2, 3 and 27 more), expected at most 30: of a "
        "number such as age make bands"
    )
    most = column(p, [str(i % 30) for i in range(40)], "age")
    with pytest.raises(InputError, match="level"):  # which comes after the table
        split_metrics(p, most, Sampling(level=2.0))
