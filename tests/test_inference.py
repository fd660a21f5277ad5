"""Normalisation and prediction."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flaxmed
from flaxmed.inference import normalise, predict_logits
from flaxmed.models.resnet import RESNET18, ResNet, ResNetConfig
from flaxmed.types import DatasetInfo, InputError, Preprocessing, Task

TINY = ResNetConfig(stage_sizes=(1, 1), widths=(4, 8), bn=RESNET18.bn)
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 1), np.uint8)


def model(k=3, channels=1, dtype=jnp.float32):
    made = ResNet(k, in_channels=channels, config=TINY, dtype=dtype, rngs=nnx.Rngs(0))
    made.preprocessing = Preprocessing((0.5,), (0.25,))
    return made


def test_normalisation_is_per_channel():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), np.uint8))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = normalise(images, Preprocessing(mean, std))
    theirs = (np.asarray(images, np.float64) / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    grey = normalise(images[..., :1], Preprocessing(mean, std))  # its copies, each its own way
    copies = normalise(jnp.repeat(images[..., :1], 3, axis=-1), Preprocessing(mean, std))
    np.testing.assert_array_equal(grey, copies)
    with pytest.raises(InputError, match="3 means, the images 2 channels"):
        normalise(images[..., :2], Preprocessing(mean, std))


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_every_image_is_answered_once_whatever_the_batch_size(batch_size):
    network = model()
    expected = network(normalise(jnp.asarray(IMAGES), network.preprocessing))
    ours = predict_logits(network, IMAGES, batch_size=batch_size)
    assert ours.shape == (11, 3)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_prediction_is_in_evaluation_mode_even_for_a_model_in_training():
    network = model()
    expected = predict_logits(network, IMAGES)
    network.train()
    np.testing.assert_array_equal(predict_logits(network, IMAGES), expected)


def test_probabilities_follow_the_task():
    network = model()
    np.testing.assert_allclose(flaxmed.predict(network, IMAGES).sum(axis=1), 1)
    network.info = DatasetInfo("x", Task.MULTILABEL, ("a", "b", "c"), 1)
    logits = predict_logits(network, IMAGES).astype(np.float64)
    np.testing.assert_allclose(flaxmed.predict(network, IMAGES), 1 / (1 + np.exp(-logits)))


def test_grey_images_may_omit_their_channel():
    network = model()
    np.testing.assert_array_equal(
        flaxmed.predict(network, IMAGES[..., 0]), flaxmed.predict(network, IMAGES)
    )


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (IMAGES.astype(np.float32), "images must be uint8"),
        (IMAGES[0, 0], "images must be uint8"),
        ([1, 2], "images must be uint8"),
        (IMAGES[:0], "no images"),
        (np.repeat(IMAGES, 3, axis=3), "expects 1 channel, got 3"),
        (IMAGES[:, :1, :1], "at least"),
    ],
)
def test_bad_images_are_refused_in_one_line(images, line):
    with pytest.raises(InputError, match=line) as caught:
        flaxmed.predict(model(), images)
    assert "\n" not in str(caught.value)


def test_a_model_without_preprocessing_is_refused():
    bare = ResNet(3, in_channels=1, config=TINY, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="carries no preprocessing"):
        flaxmed.predict(bare, IMAGES)
