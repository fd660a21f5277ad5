"""The phantom against its theory: closed forms, brute force, laws that the posterior obeys."""

import dataclasses
import hashlib
import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from flaxmed.data import phantom
from flaxmed.data.phantom import (
    FAMILIES,
    PhantomClass,
    PhantomConfig,
    ideal_scores,
    load_phantom,
    posterior,
    sample,
)
from flaxmed.types import InputError, Task

# Two classes of one template each: the classical known-signal task.
KNOWN = PhantomConfig(
    name="known",
    classes=(
        PhantomClass("small", size=(0.1, 1e-3), elongation=(1.0, 1.0), contrast=(6.0, 1.0)),
        PhantomClass("large", size=(0.15, 1e-3), elongation=(1.0, 1.0), contrast=(6.0, 1.0)),
    ),
    sizes=(0.1, 0.15),
    elongations=(1.0,),
    contrasts=(6.0,),
    positions=(0.0,),
    angles=1,
    profile="gaussian",
    noise=10.0,
)

# Few, faint templates: here the pixels decide, so that every term of the likelihood counts.
FAINT = PhantomConfig(
    name="faint",
    classes=(
        PhantomClass("a", size=(0.12, 0.05), elongation=(1.2, 0.5), contrast=(14, 8), weight=2),
        PhantomClass("b", size=(0.2, 0.05), elongation=(1.8, 0.5), contrast=(20, 8), weight=3),
        PhantomClass("c", size=(0.16, 0.02), elongation=(2.0, 0.5), contrast=(9, 8), weight=1),
    ),
    size=16,
    sizes=(0.12, 0.2),
    elongations=(1.0, 2.0),
    contrasts=(12.0, 20.0),
    positions=(-0.1, 0.0, 0.1),
    angles=2,
    noise=6.0,
)


def template(config: PhantomConfig, size, elongation, contrast, angle, y, x):
    """Mean image [h, w], written out plainly and in pixels."""
    places = [-(config.size - 1) / 2 + i for i in range(config.size)]
    dy, dx = np.meshgrid(places, places, indexing="ij")
    dy, dx = dy - y * config.size, dx - x * config.size
    major = size * config.size * math.sqrt(elongation)
    u = (dx * math.cos(angle) + dy * math.sin(angle)) / major
    v = (dy * math.cos(angle) - dx * math.sin(angle)) / (major / elongation)
    r = np.hypot(u, v)
    height = {
        "plateau": lambda: 0.5 ** (r**6),
        "gaussian": lambda: np.exp(-0.5 * r**2),
        "ring": lambda: r**2 * np.exp(1 - r**2),
    }[config.profile]()
    return config.background + contrast * height


def each_template(config: PhantomConfig):
    """(mean image [h, w], its probability in each class [k]) for every point of the grids."""

    def normal(value, grid, mean, sd):
        density = [math.exp(-((g - mean) ** 2) / (2 * sd**2)) for g in grid]
        return density[grid.index(value)] / sum(density)

    angles = [math.pi * i / config.angles for i in range(config.angles)]
    uniform = 1 / (len(angles) * len(config.positions) ** 2)
    for s, e, c in itertools.product(config.sizes, config.elongations, config.contrasts):
        chance = [
            uniform
            * normal(s, config.sizes, *k.size)
            * normal(e, config.elongations, *k.elongation)
            * normal(c, config.contrasts, *k.contrast)
            for k in config.classes
        ]
        for angle, y, x in itertools.product(angles, config.positions, config.positions):
            yield template(config, s, e, c, angle, y, x), np.array(chance)


def brute_force(images, config, log_pixel):
    """Bayes' rule in loops; log_pixel(k, mean, sigma) is the log-probability of grey level k."""
    prior = np.array([c.weight for c in config.classes])
    log_joint = [[] for _ in config.classes]
    for mean, chance in each_template(config):
        log_likelihood = log_pixel(images[..., 0].astype(float), mean, config.noise).sum((1, 2))
        for k, weight in enumerate(chance * prior):
            log_joint[k].append(log_likelihood + math.log(weight))
    evidence = np.logaddexp.reduce(np.array(log_joint), axis=1).T
    return np.exp(evidence - np.logaddexp.reduce(evidence, axis=1)[:, None])


@np.vectorize
def log_rounded(k, mean, sigma):
    """Log of the probability that a normal value rounds to k, by math.erfc (exact in the tail)."""
    below, above = (k - 0.5 - mean) / sigma, (k + 0.5 - mean) / sigma
    if below < 0:
        below, above = -above, -below
    root = math.sqrt(2)
    return math.log((math.erfc(below / root) - math.erfc(above / root)) / 2)


def log_density(k, mean, sigma):
    return stats.norm.logpdf(k, mean, math.sqrt(sigma**2 + 1 / 12))


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    return load_phantom(n_train=3, n_val=4, n_test=24, seed=2, config=request.param)


def auc_and_error(labels, scores):
    """AUC of class 1 and its standard error (DeLong's structural components)."""
    above = (scores[labels == 1][:, None] > scores[labels == 0][None, :]).astype(float)
    v1, v0 = above.mean(1), above.mean(0)
    return above.mean(), math.sqrt(v1.var(ddof=1) / len(v1) + v0.var(ddof=1) / len(v0))


# --- closed forms -------------------------------------------------------------------------------


def test_known_signals_reach_the_closed_form():
    first, second = (mean for mean, chance in each_template(KNOWN) if chance.max() > 0.5)
    d = np.linalg.norm(first - second) / math.sqrt(KNOWN.noise**2 + 1 / 12)
    assert 1 < d < 3  # neither hopeless nor certain: the test could not fail there
    images, labels, _ = sample(KNOWN, 6000, seed=3)
    p = posterior(images, KNOWN)
    expected = stats.norm.cdf(d / 2)
    error = math.sqrt(expected * (1 - expected) / len(labels))
    assert abs((p.argmax(1) == labels).mean() - expected) < 3 * error
    auc, error = auc_and_error(labels, p[:, 1])
    assert abs(auc - stats.norm.cdf(d / math.sqrt(2))) < 3 * error
    scores = ideal_scores(KNOWN, 6000, seed=3)
    assert abs(scores["accuracy"] - expected) < 0.005
    assert abs(scores["auc"] - stats.norm.cdf(d / math.sqrt(2))) < 0.005


def test_without_noise_the_overlap_alone_limits():
    classes = (
        dataclasses.replace(c, contrast=(5 * c.contrast[0] - 20, 40.0)) for c in FAINT.classes
    )
    config = dataclasses.replace(
        FAINT, classes=tuple(classes), contrasts=(50.0, 90.0), size=24, noise=1.0
    )
    by_shape = {}
    for index, (_, chance) in enumerate(each_template(config)):
        shape = index // (config.angles * len(config.positions) ** 2)
        by_shape[shape] = by_shape.get(shape, 0) + chance * config.prior
    limit = sum(weights.max() for weights in by_shape.values())
    images, labels, latents = sample(config, 3000, seed=5)
    p = posterior(images, config)
    error = math.sqrt(limit * (1 - limit) / len(labels))
    assert abs((p.argmax(1) == labels).mean() - limit) < 3 * error
    # more than on average: every posterior is that of the shape that was drawn
    index = 0
    for name in ("size", "elongation", "contrast"):
        grid = getattr(config, name + "s")
        index = index * len(grid) + np.searchsorted(grid, latents[name])
    truth = np.array([by_shape[i] / by_shape[i].sum() for i in range(len(by_shape))])[index]
    np.testing.assert_allclose(p, truth, atol=1e-6)


# --- brute force --------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["plateau", "gaussian", "ring"])
def test_brute_force_gives_the_same_posterior(profile):
    config = dataclasses.replace(FAINT, profile=profile)
    images, _, _ = sample(config, 40, seed=7)
    p = posterior(images, config)
    assert np.median(p.max(1)) < 0.9  # uncertain images, where errors would show
    np.testing.assert_allclose(p, brute_force(images, config, log_density), atol=1e-10)


@pytest.mark.parametrize(("noise", "limit"), [(6.0, 1e-6), (2.0, 1e-4)])
def test_rounding_moves_no_posterior_where_pixels_decide(noise, limit):
    # contrast in proportion to the noise: equally hard, but rounding weighs more
    ratio = noise / FAINT.noise
    classes = (
        dataclasses.replace(c, contrast=(c.contrast[0] * ratio, c.contrast[1] * ratio))
        for c in FAINT.classes
    )
    contrasts = tuple(c * ratio for c in FAINT.contrasts)
    config = dataclasses.replace(FAINT, noise=noise, contrasts=contrasts, classes=tuple(classes))
    images, _, _ = sample(config, 16, seed=11)
    exact = brute_force(images, config, log_rounded)
    assert np.median(exact.max(1)) < 0.9
    assert np.abs(posterior(images, config) - exact).max() < limit


def test_rounding_moves_no_posterior_of_the_default():
    config = dataclasses.replace(FAMILIES["phantom"], positions=(-0.0625, 0.0, 0.0625))  # quick
    images, _, _ = sample(config, 60, seed=13)
    p = posterior(images, config)
    rows = np.argsort(p.max(1))[:10]  # the least certain
    means, chances = map(np.array, zip(*each_template(config), strict=True))
    for row in rows:
        k = images[row, :, :, 0].astype(float)
        rough = -((k - means) ** 2).sum((1, 2)) / (2 * config.noise**2)
        near = rough > rough.max() - 40  # the others weigh less than exp(-40)
        upper = stats.norm.cdf((k + 0.5 - means[near]) / config.noise)
        lower = stats.norm.cdf((k - 0.5 - means[near]) / config.noise)
        log_likelihood = np.log(upper - lower).sum((1, 2))
        joint = np.exp(log_likelihood - log_likelihood.max()) @ chances[near] * config.prior
        assert np.abs(p[row] - joint / joint.sum()).max() < 1e-3


# --- laws ---------------------------------------------------------------------------------------


def test_the_largest_posterior_is_the_accuracy_over_many_seeds():
    excess, variance, per_seed = 0.0, 0.0, []
    for seed in range(12):
        images, labels, _ = sample(FAINT, 500, seed)
        top = posterior(images, FAINT)
        hit, top = top.argmax(1) == labels, top.max(1)
        assert 0.4 < top.mean() < 0.95
        per_seed.append((hit - top).sum() / math.sqrt((top * (1 - top)).sum()))
        excess, variance = excess + (hit - top).sum(), variance + (top * (1 - top)).sum()
    assert abs(excess) < 3 * math.sqrt(variance)
    assert stats.chi2.ppf(1e-3, 12) < np.sum(np.square(per_seed)) < stats.chi2.ppf(0.999, 12)


def test_the_default_is_consistent_too():
    images, labels, _ = sample(FAMILIES["phantom"], 1200, seed=17)
    top = posterior(images, FAMILIES["phantom"])
    hit, top = top.argmax(1) == labels, top.max(1)
    assert abs((hit - top).sum()) < 3 * math.sqrt((top * (1 - top)).sum())


def test_the_posterior_is_calibrated():
    images, labels, _ = sample(FAINT, 6000, seed=19)
    p = posterior(images, FAINT)
    for k in range(3):
        order = np.argsort(p[:, k])
        z = [
            ((labels[i] == k).sum() - p[i, k].sum()) / math.sqrt((p[i, k] * (1 - p[i, k])).sum())
            for i in np.array_split(order, 10)
        ]
        assert np.sum(np.square(z)) < stats.chi2.ppf(0.999, 10)


def test_mirror_images_have_the_same_posterior(family):
    images, axes = family.test.images, {"horizontal": 2, "vertical": 1}
    assert set(family.info.flips) == set(axes)
    mirrored = [np.flip(images, axes[flip]) for flip in family.info.flips]
    assert all((m != images).any() for m in mirrored)
    p = posterior(np.concatenate(mirrored), FAMILIES[family.info.name])
    np.testing.assert_allclose(p, np.tile(family.ideal["test"], (2, 1)), atol=1e-9)


def test_latents_follow_their_distributions():
    _, labels, latents = sample(FAINT, 6000, seed=23)
    assert stats.chisquare(np.bincount(labels), FAINT.prior * len(labels)).pvalue > 1e-3
    names = ("size", "elongation", "contrast")
    grids = (FAINT.sizes, FAINT.elongations, FAINT.contrasts)
    for k, c in enumerate(FAINT.classes):
        for name, grid in zip(names, grids, strict=True):
            mean, sd = getattr(c, name)
            expected = stats.norm.pdf(grid, mean, sd)
            counts = [(latents[name][labels == k] == g).sum() for g in grid]
            expected *= sum(counts) / expected.sum()
            assert stats.chisquare(counts, expected).pvalue > 1e-3, (c.name, name)
    for name, grid in (("x", FAINT.positions), ("y", FAINT.positions), ("angle", (0, math.pi / 2))):
        counts = [np.isclose(latents[name], g).sum() for g in grid]
        assert sum(counts) == len(labels)
        assert stats.chisquare(counts).pvalue > 1e-3, name


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_image_is_the_template_plus_the_noise(name):
    config = FAMILIES[name]
    images, _, latents = sample(config, 200, seed=29)
    rest = images[..., 0].astype(float)
    for i, image in enumerate(rest):
        image -= template(config, **{latent: values[i] for latent, values in latents.items()})
    n, variance = rest.size, config.noise**2 + 1 / 12
    assert abs(rest.mean()) < 4 * math.sqrt(variance / n)
    assert abs(rest.var() / variance - 1) < 4 * math.sqrt(2 / n)
    assert abs((rest[:, :, 1:] * rest[:, :, :-1]).mean()) < 4 * variance / math.sqrt(n)  # white


# --- the default: easy to see, hard to be certain -----------------------------------------------


def test_the_default_is_easy_to_see_and_hard_to_be_certain():
    scores = ideal_scores(FAMILIES["phantom"], 1500, seed=31)
    assert 0.93 < scores["auc"] < 0.96
    assert 0.79 < scores["accuracy"] < 0.85
    faintest = min(map(abs, FAMILIES["phantom"].contrasts))
    assert faintest > 5 * FAMILIES["phantom"].noise


@pytest.mark.parametrize("name", list(FAMILIES))
def test_clipping_is_negligible(name):
    config = FAMILIES[name]
    images, _, _ = sample(config, 1000, seed=37)
    levels = [config.background, *(config.background + c for c in config.contrasts)]
    tail = max(
        stats.norm.cdf(-min(levels) / config.noise),
        stats.norm.sf((255 - max(levels)) / config.noise),
    )
    assert tail * images.size < 1e-6  # expected clipped pixels in a thousand images
    assert 0 < images.min() < images.max() < 255


def test_ideal_scores_agree_with_scores_against_labels():
    images, labels, _ = sample(FAINT, 4000, seed=41)
    p, scores = posterior(images, FAINT), ideal_scores(FAINT, 4000, seed=41)
    auc = np.mean([roc_auc_score(labels == k, p[:, k]) for k in range(3)])
    assert abs(scores["auc"] - auc) < 0.015
    assert abs(scores["accuracy"] - (p.argmax(1) == labels).mean()) < 0.02
    assert abs(scores["loss"] + np.log(p[np.arange(4000), labels]).mean()) < 0.03


# --- seeds, splits, sizes -----------------------------------------------------------------------


def test_same_seed_same_bytes():
    images, labels, _ = sample(FAMILIES["phantom"], 16, seed=0)
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    assert digest == "27262cfe835fab187fa726036289a93337d2fa5eab8fc642c1d84491d0f64493"
    again, _, _ = sample(FAMILIES["phantom"], 16, seed=0)
    other, _, _ = sample(FAMILIES["phantom"], 16, seed=1)
    assert (again == images).all()
    assert (other != images).any()


def test_a_split_depends_on_no_other_split_and_grows_by_appending():
    small = load_phantom(n_train=5, n_val=3, n_test=4, config=FAINT)
    large = load_phantom(n_train=9, n_val=3, n_test=12, config=FAINT)
    for name in ("train", "val", "test"):
        a, b = small.splits[name], large.splits[name]
        n = len(a)
        assert (a.images == b.images[:n]).all()
        assert (a.labels == b.labels[:n]).all()
        assert (a.ids == b.ids[:n]).all()
    assert (large.train.images[:3] != large.val.images).any(axis=(1, 2, 3)).all()
    assert (large.train.images != large.test.images[:9]).any(axis=(1, 2, 3)).all()


def test_families_of_one_seed_share_no_noise():
    noise = []
    for name in ("first", "second"):
        config = dataclasses.replace(KNOWN, name=name, contrasts=(0.5,))
        noise.append(sample(config, 20, seed=0)[0].astype(float).ravel())
    assert abs(np.corrcoef(noise)[0, 1]) < 0.05


def test_blocks_change_nothing(monkeypatch):
    images, labels, _ = sample(FAINT, 30, seed=43)
    p = posterior(images, FAINT)
    monkeypatch.setattr(phantom, "_BLOCK", 7 * FAINT.size**2)
    again, same, _ = sample(FAINT, 30, seed=43)
    assert (again == images).all()
    assert (same == labels).all()
    np.testing.assert_allclose(posterior(images, FAINT), p, atol=1e-12)


@pytest.mark.parametrize("size", [28, 32, 48, 64])
def test_sizes(size):
    data = load_phantom(size, n_train=2, n_val=2, n_test=60)
    assert data.test.images.shape == (60, size, size, 1)
    assert data.test.images.dtype == np.uint8
    # the lesion grows with the image, so the overlap, and with it the ideal accuracy, stays
    assert abs(data.ideal["test"].max(1).mean() - 0.82) < 0.08


def test_the_data_set_says_what_it_is(family):
    info, config = family.info, FAMILIES[family.info.name]
    assert info.synthetic
    assert info.classes == config.class_names
    binary = len(config.classes) == 2
    assert info.task is (Task.BINARY if binary else Task.MULTICLASS)
    assert info.positive == (1 if binary else None)
    assert (len(family.train), len(family.val), len(family.test)) == (3, 4, 24)
    assert len(set(family.train.ids) | set(family.val.ids) | set(family.test.ids)) == 31
    assert set(family.ideal) == {"val", "test"}
    images = np.concatenate([family.val.images, family.test.images])
    ideal = np.concatenate([family.ideal["val"], family.ideal["test"]])
    assert ideal.dtype == np.float64
    np.testing.assert_allclose(ideal.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(ideal, posterior(images, config), atol=1e-12)
    assert json.loads(json.dumps(family.origin))["seed"] == 2


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_phantom(8), "size must be at least 16 pixels, got 8"),
        (lambda: load_phantom(n_train=0), "n_train must be at least 1, got 0"),
        (lambda: load_phantom(n_test=-3), "n_test must be at least 1, got -3"),
        (lambda: load_phantom(seed=-1), "seed must be 0 or more, got -1"),
        (lambda: load_phantom(config="fantom"), "'fantom'; expected one of phantom, "),
        (lambda: sample(FAINT, 0), "at least 1, got 0"),
        (lambda: posterior(np.zeros((1, 28, 28, 1), np.uint8), FAINT), "16 x 16 pixels, got 28"),
        (lambda: PhantomConfig(classes=FAINT.classes[:1]), "at least two classes"),
        (lambda: PhantomConfig(classes=FAINT.classes[:1] * 2), "of different names"),
        (lambda: PhantomConfig(noise=0.5), "noise must be at least 1 grey level"),
        (lambda: PhantomConfig(noise=30.0), "5 noise standard deviations"),
        (lambda: PhantomConfig(contrasts=(-80.0,)), "5 noise standard deviations"),
        (lambda: PhantomConfig(background=250.0), "5 noise standard deviations"),
        (lambda: PhantomConfig(positions=(0.0, 0.1)), "symmetric"),
        (lambda: PhantomConfig(sizes=()), "sizes must be different numbers"),
        (lambda: PhantomConfig(sizes=(0.1, 0.1)), "sizes must be different numbers"),
        (lambda: PhantomConfig(sizes=(0.0, 0.1)), "sizes must be positive"),
        (lambda: PhantomConfig(elongations=(0.5,)), "elongations must be at least 1"),
        (lambda: PhantomConfig(angles=0), "angles must be at least 1"),
        (lambda: PhantomConfig(profile="square"), "unknown profile 'square'; expected one of"),
        (lambda: PhantomClass("a", size=(0.1, 0.0), elongation=(1, 1)), "'a': size must be"),
        (
            lambda: PhantomClass("a", size=(0.1, 0.1), elongation=(1, math.nan)),
            "elongation must be",
        ),
        (
            lambda: PhantomClass("a", size=(0.1, 0.1), elongation=(1, 1), weight=0.0),
            "weight must be positive",
        ),
    ],
)
def test_bad_input_gives_one_clear_line(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
