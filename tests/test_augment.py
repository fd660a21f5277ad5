"""Augmentation: against NumPy and SciPy, and keyed by (seed, epoch, row) alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from flaxmed.training.augment import Affine, Flip, Intensity, _resample, augment, make_transforms
from flaxmed.training.config import AugmentConfig

ALL = make_transforms(
    AugmentConfig(flips=True, rotation=20, shift=0.1, scale=0.2, intensity=0.2),
    flips=("horizontal", "vertical"),
)


def images(n=6, height=12, width=9, channels=2):
    return jnp.asarray(np.random.default_rng(0).random((n, height, width, channels), np.float32))


def test_an_image_does_not_depend_on_its_batch():
    batch, rows = images(), jnp.array([40, 3, 7, 11, 5, 0])
    together = augment(batch, ALL, seed=1, epoch=2, rows=rows)
    order = np.array([4, 1, 5])
    apart = augment(batch[order], ALL, seed=1, epoch=2, rows=rows[order])
    np.testing.assert_array_equal(together[order], apart)


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 3}, {"rows": jnp.arange(1, 7)}])
def test_seed_epoch_and_row_each_change_the_picture(change):
    usual = {"seed": 1, "epoch": 2, "rows": jnp.arange(6)}
    first = augment(images(), ALL, **usual)
    second = augment(images(), ALL, **{**usual, **change})
    assert (np.abs(first - second).max(axis=(1, 2, 3)) > 1e-3).all()


def test_no_transforms_change_nothing():
    batch = images()
    assert make_transforms(AugmentConfig(), flips=("horizontal",)) == ()
    assert augment(batch, (), seed=0, epoch=0, rows=jnp.arange(6)) is batch


def test_values_stay_between_0_and_1():
    out = augment(images(50), ALL, seed=0, epoch=0, rows=jnp.arange(50))
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1


def test_flips_happen_along_their_axis_in_half_of_the_images():
    n = 400
    batch = np.broadcast_to(images(1), (n, 12, 9, 2))
    for direction, axis in (("vertical", 1), ("horizontal", 2)):
        out = np.asarray(
            augment(jnp.asarray(batch), (Flip(direction),), seed=0, epoch=0, rows=jnp.arange(n))
        )
        flipped = (out == np.flip(batch, axis)).all(axis=(1, 2, 3))
        kept = (out == batch).all(axis=(1, 2, 3))
        assert (flipped ^ kept).all()
        assert abs(flipped.mean() - 0.5) < 4 * 0.5 / n**0.5


def test_only_flips_that_the_data_set_allows():
    assert make_transforms(AugmentConfig(flips=True), flips=()) == ()


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_quarter_turns_agree_with_numpy(quarter_turns):
    image = images(1, 8, 8)[0]
    turned = _resample(image, jnp.asarray(np.pi / 2 * quarter_turns), jnp.ones(()), jnp.zeros(2))
    np.testing.assert_allclose(turned, np.rot90(image, quarter_turns), atol=2e-5)


def test_resampling_agrees_with_scipy():
    image = images(1, 13, 10, 1)[0]
    angle, size, shift = 0.3, 1.2, np.array([1.5, -0.75])
    ours = _resample(image, jnp.asarray(angle), jnp.asarray(size), jnp.asarray(shift))
    inverse = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / size
    centre = np.array([6, 4.5])
    theirs = scipy.ndimage.affine_transform(
        np.asarray(image[..., 0], np.float64),
        inverse,
        centre - inverse @ (centre + shift),
        order=1,
        mode="nearest",
    )
    np.testing.assert_allclose(ours[..., 0], theirs, atol=1e-5)


def test_a_shift_moves_content_down_and_right():
    image = jnp.zeros((9, 9, 1)).at[4, 4].set(1)
    out = _resample(image, jnp.zeros(()), jnp.ones(()), jnp.array([2.0, 3.0]))
    assert np.unravel_index(np.argmax(out), out.shape) == (6, 7, 0)


def test_affine_stays_within_its_bounds():
    image = np.zeros((33, 33, 1), np.float32)
    image[16, 16] = 1
    places = []
    for i in range(50):
        out = Affine(shift=0.25)(jnp.asarray(image), jax.random.key(i))
        places.append(np.unravel_index(np.argmax(out), out.shape)[:2])
    offsets = np.abs(np.array(places) - 16)
    assert offsets.max() <= 9  # a quarter of 33, rounded up
    assert offsets.max() >= 6


def test_intensity_changes_contrast_and_brightness_within_bounds():
    image = jnp.asarray(images(1, 16, 16, 1)[0] * 0.2 + 0.4)
    contrast, brightness = [], []
    for i in range(100):
        out = Intensity(0.1)(image, jax.random.key(i))
        contrast.append(float(out.std() / image.std()))
        brightness.append(float(out.mean() - image.mean()))
    assert 0.9 - 1e-4 <= min(contrast) < 0.93 < 1.07 < max(contrast) <= 1.1 + 1e-4
    assert -0.1 - 1e-4 <= min(brightness) < -0.07 < 0.07 < max(brightness) <= 0.1 + 1e-4


def test_same_under_jit():
    rows = jnp.arange(6)
    plain = augment(images(), ALL, seed=3, epoch=1, rows=rows)
    jitted = jax.jit(lambda x, e: augment(x, ALL, seed=3, epoch=e, rows=rows))(images(), 1)
    np.testing.assert_allclose(plain, jitted, atol=1e-5)
