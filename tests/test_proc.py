"""Areas under ROC curves, their variance, interval and paired test beside R's pROC.

pROC is test-only. Where it is not installed the live comparison skips, unless
FLAXMED_REQUIRE_ORACLES=1; that with its stored answers always runs.
"""

import functools
import math

import numpy as np
import pytest
from oracles import proc
from oracles.compare import check
from scipy import stats

from flaxmed.evaluation import delong
from flaxmed.evaluation.delong import auc_estimate, covariance, paired_test
from flaxmed.evaluation.intervals import auc_interval
from flaxmed.types import InputError

TOLERANCE = 1e-12
# Of two models that differ by 7e-6, either side's difference has only the digits that are left.
TOLERANCES = {"5000, alike": 1e-10}
stored = functools.cache(proc.stored)


def compared(name, answers):
    """Deviations of one case, without z and p where pROC divides by 0 or by what rounding left."""
    found = proc.deviations(proc.ours(proc.CASES[name]), answers["cases"][name])
    return {key: v for key, v in found.items() if name not in proc.NO_TEST or key not in ("z", "p")}


@pytest.mark.parametrize("name", proc.CASES)
def test_beside_proc(name, request):
    found = compared(name, proc.live())
    for what, deviation in proc.by_kind(found).items():
        request.node.user_properties.append((f"pROC: {what}", deviation))
    check(found, TOLERANCES.get(name, TOLERANCE))


@pytest.mark.parametrize("name", proc.CASES)
def test_beside_procs_stored_answers(name):
    check(compared(name, stored()), TOLERANCES.get(name, TOLERANCE))


def test_the_stored_answers_are_to_these_cases():
    """If this fails, the random numbers changed, not the areas."""
    assert stored()["inputs"] == proc.digest()
    assert list(stored()["cases"]) == list(proc.CASES)


@pytest.mark.parametrize("name", proc.NO_TEST)
def test_a_difference_without_variance_has_no_p(name):
    """pROC: z infinite, or 9e7 by rounding, and p 0."""
    case = proc.CASES[name]
    one, two = (
        auc_estimate(case.labels, np.stack([1 - s, s], axis=1), task="binary")
        for s in (case.first, case.second)
    )
    found = paired_test(one, two)
    assert found.difference > 0.1
    assert found.variance == 0
    assert math.isnan(found.z)
    assert math.isnan(found.p_value)
    assert found.reason == "the variance of the difference is not above 0"
    theirs = stored()["cases"][name]
    assert theirs["z"] > 1e7
    assert theirs["p"] == 0


# ---------------------------------------------------------- the comparison can be seen to fail


def refused():
    """The kinds of answer that are beyond the tolerance in some case."""
    return {
        kind
        for name in proc.CASES
        for kind, deviation in proc.by_kind(compared(name, stored())).items()
        if not deviation <= TOLERANCES.get(name, TOLERANCE)
    }


def test_nothing_is_refused_as_it_is():
    assert refused() == set()


def test_ranks_by_order_of_appearance_are_noticed(monkeypatch):
    """Ties must count a half."""
    ordinal = functools.partial(stats.rankdata, method="ordinal")
    monkeypatch.setattr(delong.stats, "rankdata", ordinal)
    assert refused() == {*proc.KINDS.values()}


def test_a_divisor_of_n_is_noticed(monkeypatch):
    """n - 1, not n, makes the variance unbiased."""
    monkeypatch.setattr(delong, "_factors", lambda present: np.ones((len(present), len(present))))
    assert refused() == {*proc.KINDS.values()} - {"AUC"}


def test_the_logit_scale_is_noticed(monkeypatch):
    def on_the_logit_scale(*arguments, **options):
        return auc_interval(*arguments, **options | {"scale": "logit"})

    monkeypatch.setattr(proc, "auc_interval", on_the_logit_scale)
    assert refused() == {"interval"}


def test_an_unpaired_test_is_noticed(monkeypatch):
    """The covariance of the two areas is part of the variance of their difference."""

    def unpaired(first, second):
        difference = first.value - second.value
        variance = np.trace(covariance([first, second]))
        z = difference / math.sqrt(variance) if variance else 0.0
        return delong.PairedAuc(difference, variance, z, float(2 * stats.norm.sf(abs(z))))

    monkeypatch.setattr(proc, "paired_test", unpaired)
    assert refused() == {"z", "paired p"}


def test_nan_is_no_agreement():
    theirs = stored()["cases"]["1 + 20"]
    assert math.isnan(theirs["first.variance"])
    assert proc.deviations(theirs | {"first.variance": 0.0}, theirs)["first.variance"] == math.inf
    theirs = stored()["cases"]["random"]
    with pytest.raises(AssertionError, match="p: nan"):
        check(proc.deviations(theirs | {"p": math.nan}, theirs), TOLERANCE)


def test_a_missing_proc_skips_or_fails(monkeypatch):
    monkeypatch.setattr(proc.shutil, "which", lambda name: None)
    monkeypatch.setenv("FLAXMED_REQUIRE_ORACLES", "0")
    with pytest.raises(pytest.skip.Exception, match="no Rscript"):
        proc.require()
    monkeypatch.setenv("FLAXMED_REQUIRE_ORACLES", "1")
    with pytest.raises(pytest.fail.Exception, match="no Rscript"):
        proc.require()


# ------------------------------------------------------------- what pROC has no answer to


def areas(labels, *columns, task="binary"):
    return [auc_estimate(labels, scores, task=task) for scores in columns]


def random_scores(seed, n, k):
    scores = np.random.default_rng(seed).random((n, k))
    return scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("task", "k"), [("binary", 2), ("multiclass", 4), ("ordinal", 4)])
def test_a_model_does_not_differ_from_itself(task, k):
    labels, scores = np.arange(50) % k, random_scores(0, 50, k)
    (area,) = areas(labels, scores, task=task)
    found = paired_test(area, area)
    assert (found.difference, found.variance, found.z, found.p_value) == (0, 0, 0, 1)
    assert found.reason == "the difference is 0 and so is its variance"


def test_the_paired_test_is_the_one_of_the_covariances():
    labels = np.arange(90) % 3
    one, two = areas(labels, random_scores(1, 90, 3), random_scores(2, 90, 3), task="multiclass")
    groups = np.random.default_rng(0).integers(0, 30, 90)
    for names in (None, groups):
        matrix, found = covariance([one, two], names), paired_test(one, two, names)
        variance = matrix[0, 0] + matrix[1, 1] - 2 * matrix[0, 1]
        assert found.variance == pytest.approx(variance, rel=1e-12)
        assert found.z == pytest.approx((one.value - two.value) / math.sqrt(variance), rel=1e-12)
        assert found.p_value == pytest.approx(math.erfc(abs(found.z) / math.sqrt(2)), rel=1e-12)
        assert found.reason is None
    back = paired_test(two, one)
    assert (back.difference, back.z) == (
        -paired_test(one, two).difference,
        -paired_test(one, two).z,
    )


def test_duplicated_images_in_a_group_do_not_make_a_difference_surer():
    labels, scores = np.arange(40) % 2, [random_scores(seed, 40, 2) for seed in (3, 4)]
    twice = areas(np.tile(labels, 2), *(np.tile(s, (2, 1)) for s in scores))
    once = paired_test(*areas(labels, *scores))
    assert paired_test(*twice, np.tile(np.arange(40), 2)).z == pytest.approx(once.z, rel=1e-12)
    assert abs(paired_test(*twice).z) > 1.3 * abs(once.z)


def test_one_image_or_one_patient_of_a_kind_gives_no_test():
    labels = np.array([1, 1, 1, 0, 0, 0, 0])
    pair = areas(labels, random_scores(5, 7, 2), random_scores(6, 7, 2))
    assert paired_test(*pair).reason is None
    found = paired_test(*pair, np.array([0, 0, 0, 1, 2, 3, 4]))
    assert math.isnan(found.p_value)
    assert "tells nothing" in found.reason


def test_areas_of_other_images_are_not_tested():
    labels, scores = np.arange(20) % 2, random_scores(7, 20, 2)
    with pytest.raises(InputError, match="same images"):
        paired_test(*areas(labels, scores), *areas(1 - labels, scores))


def test_a_model_that_gives_all_images_one_score_has_a_variance_of_0():
    labels = (np.arange(156) % 4 == 0).astype(int)
    (area,) = areas(labels, np.full((156, 2), 0.5))
    assert (area.value, covariance([area])[0, 0]) == (0.5, 0)
    found = auc_interval(0.5, 0.0, positives=39, negatives=117)
    assert found.low < 0.45 < 0.55 < found.high
