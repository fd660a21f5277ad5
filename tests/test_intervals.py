"""Areas under ROC curves with their variance, and intervals: against their definitions."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import stats

from flaxmed.evaluation.delong import auc_estimate, covariance, structural_components
from flaxmed.evaluation.intervals import auc_interval, proportion_interval
from flaxmed.evaluation.metrics import auc_score
from flaxmed.types import InputError


def draw(seed, n=60, *, ties=False, k=2, sharp=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % k)
    logits = rng.normal(size=(n, k)) + sharp * np.eye(k)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if ties:
        scores = np.round(scores, 1)
        scores[:, -1] = 1 - scores[:, :-1].sum(1) if k == 2 else scores[:, -1]
    return labels, np.clip(scores, 0, 1)


def psi(x, y):
    """1 where the positive is above the negative, a half for a tie: every pair, as in the paper."""
    return (x[:, None] > y).astype(float) + 0.5 * (x[:, None] == y)


def plain_delong(labels, columns):
    """Equations 3 to 7 of DeLong et al., by the definition, O(mn)."""
    pairs = [psi(score[labels == 1], score[labels == 0]) for score in columns]
    v10 = np.array([p.mean(1) for p in pairs])
    v01 = np.array([p.mean(0) for p in pairs])
    return np.atleast_2d(np.cov(v10)) / v10.shape[1] + np.atleast_2d(np.cov(v01)) / v01.shape[1]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_variance_and_covariance_are_delongs(seed, ties):
    labels, one = draw(seed, ties=ties)
    _, two = draw(seed, ties=ties)
    other = draw(seed + 100, ties=ties)[1]
    two = np.where(np.arange(len(labels))[:, None] % 2, one, other)
    estimates = [auc_estimate(labels, scores, task="binary") for scores in (one, two)]
    expected = plain_delong(labels, [one[:, 1], two[:, 1]])
    np.testing.assert_allclose(covariance(estimates), expected, rtol=1e-12)
    for estimate, scores in zip(estimates, (one, two), strict=True):
        assert estimate.value == pytest.approx(sk.roc_auc_score(labels, scores[:, 1]), abs=1e-14)


def obuchowski(labels, score, groups):
    """Obuchowski (1997), equations 2 to 7, by the definition."""
    x, y = score[labels == 1], score[labels == 0]
    pairs, gx, gy = psi(x, y), groups[labels == 1], groups[labels == 0]
    area, m, n = pairs.mean(), len(x), len(y)
    every = np.unique(groups)
    a = np.array([(pairs.mean(1) - area)[gx == g].sum() for g in every])
    b = np.array([(pairs.mean(0) - area)[gy == g].sum() for g in every])
    i10, i01, i = len(np.unique(gx)), len(np.unique(gy)), len(every)
    s10 = i10 / ((i10 - 1) * m) * (a**2).sum()
    s01 = i01 / ((i01 - 1) * n) * (b**2).sum()
    s11 = i / (i - 1) * (a * b).sum()
    return s10 / m + s01 / n + 2 * s11 / (m * n)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_obuchowskis_clusters(seed):
    labels, scores = draw(seed, ties=seed % 2 == 1)
    groups = np.random.default_rng(seed).integers(0, 20, len(labels))
    estimate = auc_estimate(labels, scores, task="binary")
    expected = obuchowski(labels, scores[:, 1], groups)
    assert covariance([estimate], groups)[0, 0] == pytest.approx(expected, rel=1e-12)
    alone = covariance([estimate], np.arange(len(labels)))
    np.testing.assert_allclose(alone, covariance([estimate]), rtol=1e-12)


def test_duplicated_images_in_a_group_say_nothing_new():
    labels, scores = draw(3)
    twice = auc_estimate(np.tile(labels, 2), np.tile(scores, (2, 1)), task="binary")
    once = covariance([auc_estimate(labels, scores, task="binary")])
    groups = np.tile(np.arange(len(labels)), 2)
    np.testing.assert_allclose(covariance([twice], groups), once, rtol=1e-12)
    assert covariance([twice])[0, 0] < 0.6 * once[0, 0]


@pytest.mark.parametrize("task", ["multiclass", "ordinal", "multilabel"])
def test_the_mean_of_areas_varies_as_drawn_test_sets_do(task):
    """500 test sets from a pool: the mean of the variances is the variance of the means."""
    rng = np.random.default_rng(0)
    labels, scores = draw(0, n=4000, k=3)
    if task == "multilabel":
        labels = (rng.random((4000, 3)) < scores).astype(int)
    values, variances = [], []
    for _ in range(500):
        rows = rng.integers(0, 4000, 150)
        estimate = auc_estimate(labels[rows], scores[rows], task=task)
        values.append(estimate.value)
        variances.append(covariance([estimate])[0, 0])
    assert values[-1] == pytest.approx(auc_score(labels[rows], scores[rows], task=task), abs=1e-12)
    # a variance of 500 draws is known to about sqrt(2 / 500) = 6 %
    assert np.mean(variances) == pytest.approx(np.var(values, ddof=1), rel=0.2)


def test_structural_components_do_not_depend_on_the_order_or_the_scale():
    labels, scores = draw(1, ties=True)
    positive, score = labels == 1, scores[:, 1]
    order = np.random.default_rng(0).permutation(len(labels))
    placed = structural_components(score, positive)
    np.testing.assert_array_equal(
        placed[order], structural_components(score[order], positive[order])
    )
    np.testing.assert_array_equal(placed, structural_components(np.exp(3 * score), positive))


def test_one_kind_alone_is_refused_and_one_image_of_a_kind_has_no_variance():
    labels, scores = draw(0, n=6)
    with pytest.raises(InputError, match="undefined: no image of class 1"):
        auc_estimate(np.zeros(6, int), scores, task="binary")
    labels = np.array([1, 0, 0, 0, 0, 0])
    variance = covariance([auc_estimate(labels, scores, task="binary")])[0, 0]
    assert math.isnan(variance)
    found = auc_interval(0.8, variance, positives=1, negatives=5)
    assert math.isnan(found.low)
    assert "one image of a kind" in found.reason


def test_areas_of_other_images_are_not_compared():
    labels, scores = draw(0)
    with pytest.raises(InputError, match="same images"):
        covariance(
            [
                auc_estimate(labels, scores, task="binary"),
                auc_estimate(1 - labels, scores, task="binary"),
            ]
        )


@pytest.mark.parametrize(("k", "n"), [(0, 10), (136, 156), (10, 10), (1, 3)])
def test_proportions_have_wilsons_interval(k, n):
    found = proportion_interval(k, n, level=0.9)
    z, p = stats.norm.ppf(0.95), k / n
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
    np.testing.assert_allclose((found.low, found.high), expected, atol=1e-12)


def test_no_images_have_no_interval():
    found = proportion_interval(0, 0)
    assert math.isnan(found.low)
    assert found.reason == "no images"
    with pytest.raises(InputError, match="level"):
        proportion_interval(1, 2, level=95)


def test_the_logit_interval_is_the_delta_methods():
    found = auc_interval(0.9, 0.0004, positives=50, negatives=50)
    logits = np.log([found.low / (1 - found.low), found.high / (1 - found.high)])
    assert logits.mean() == pytest.approx(math.log(9))
    assert np.ptp(logits) / 2 == pytest.approx(stats.norm.ppf(0.975) * 0.02 / 0.09)
    plain = auc_interval(0.99, 0.0004, positives=50, negatives=50, scale="plain")
    assert (plain.low, plain.high) == (pytest.approx(0.99 - 1.959964 * 0.02), 1.0)


def test_a_perfect_area_has_an_interval_that_narrows_with_more_images():
    lows = [auc_interval(1.0, 0.0, positives=m, negatives=3 * m).low for m in (3, 10, 40, 400)]
    assert lows == sorted(lows)
    assert 0.5 < lows[0] < 0.9 < lows[2] < lows[3] < 1
    worst = auc_interval(0.0, 0.0, positives=40, negatives=120)
    assert (worst.low, worst.high) == (0.0, pytest.approx(1 - lows[2]))
