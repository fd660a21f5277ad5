"""Losses, weights, schedules and optimisers against scikit-learn, NumPy and their definitions."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import nnx
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight

from flaxmed.models.resnet import RESNET18, ResNet, ResNetConfig
from flaxmed.training.config import OptimizerConfig
from flaxmed.training.optimizer import decay_mask, make_optimizer, make_schedule
from flaxmed.training.step import (
    compile_training,
    example_weights,
    init_state,
    make_train_step,
    per_example_accuracy,
    per_example_loss,
)
from flaxmed.types import Preprocessing, Task

RNG = np.random.default_rng(0)
TINY = ResNetConfig(stage_sizes=(1, 1), widths=(4, 8), bn=RESNET18.bn)


@pytest.mark.parametrize("task", [Task.BINARY, Task.MULTICLASS, Task.ORDINAL])
def test_exclusive_losses_agree_with_scikit_learn(task):
    k = 2 if task is Task.BINARY else 5
    logits = jnp.asarray(RNG.normal(size=(40, k)) * 3, jnp.float32)
    labels = jnp.asarray(RNG.integers(0, k, 40))
    ours = per_example_loss(logits, labels, task).mean()
    p = scipy.special.softmax(np.asarray(logits, np.float64), axis=1)
    theirs = log_loss(labels, p, labels=range(k))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    right = (np.argmax(logits, 1) == labels).mean()
    assert float(per_example_accuracy(logits, labels, task).mean()) == pytest.approx(right)


def test_multilabel_loss_is_the_mean_over_labels():
    logits = jnp.asarray(RNG.normal(size=(30, 4)) * 3, jnp.float32)
    labels = jnp.asarray(RNG.integers(0, 2, (30, 4)))
    ours = per_example_loss(logits, labels, Task.MULTILABEL).mean()
    p = np.asarray(jax.nn.sigmoid(logits), np.float64)
    theirs = np.mean([log_loss(labels[:, j], p[:, j], labels=[0, 1]) for j in range(4)])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    right = ((p > 0.5) == (np.asarray(labels) == 1)).mean()
    accuracy = per_example_accuracy(logits, labels, Task.MULTILABEL).mean()
    assert float(accuracy) == pytest.approx(right)


def test_class_weights_agree_with_scikit_learn():
    labels = RNG.integers(0, 3, 50)
    per_class = {0: 0.5, 1: 2.0, 2: 1.0}
    ours = example_weights(
        jnp.asarray(labels), jnp.ones(50, bool), jnp.array([0.5, 2.0, 1.0]), Task.MULTICLASS
    )
    np.testing.assert_allclose(ours, compute_sample_weight(per_class, labels))


def test_padding_weighs_nothing():
    mask = jnp.array([True, False])
    for weights in (None, jnp.ones(2)):
        w = example_weights(jnp.array([1, 1]), mask, weights, Task.BINARY)
        np.testing.assert_array_equal(w, [1, 0])


def one_step(n, width, class_weights=None):
    """The state after one SGD step on n images in a batch padded to width."""
    model = ResNet(3, in_channels=1, config=TINY, rngs=nnx.Rngs(0))
    optimizer = optax.sgd(0.1)
    step = make_train_step(
        model,
        optimizer,
        task=Task.MULTICLASS,
        preprocessing=Preprocessing(),
        class_weights=class_weights,
    )
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (n, 32, 32, 1), np.uint8)
    labels = rng.integers(0, 3, n)
    batch = {
        # what fills a padded row must not matter: noise, not zeros
        "images": np.concatenate(
            [
                images,
                np.random.default_rng(width).integers(0, 256, (width - n, 32, 32, 1), np.uint8),
            ]
        ),
        "labels": np.concatenate([labels, np.ones(width - n, int)]),
        "rows": np.zeros(width, int),
        "mask": np.arange(width) < n,
        "epoch": np.int32(0),
    }
    state, loss = step(init_state(model, optimizer), jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(loss, state.sums["loss"] / state.sums["weight"], rtol=1e-6)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("class_weights", [None, jnp.array([1.0, 2.0, 3.0])])
def test_a_padded_batch_trains_as_the_batch_without_its_padding(class_weights):
    whole, padded = one_step(5, 5, class_weights), one_step(5, 8, class_weights)
    for name in ("params", "batch_stats", "sums"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
            getattr(whole, name),
            getattr(padded, name),
        )


def test_sums_count_images_and_right_answers():
    state = one_step(5, 8)
    assert float(state.sums["count"]) == 5
    assert float(state.sums["weight"]) == 5
    assert 0 <= float(state.sums["correct"]) <= 5
    assert int(state.step) == 1
    assert int(state.bad_step) == -1


def test_warm_up_rises_to_the_peak_and_cosine_falls_to_zero():
    config = OptimizerConfig(learning_rate=0.5, warmup_epochs=2)
    rate = make_schedule(config, epochs=10, steps_per_epoch=5)
    rates = np.array([float(rate(step)) for step in range(51)])
    assert rates[0] == pytest.approx(0.05)
    assert np.all(np.diff(rates[:10]) > 0)
    assert rates[9] == rates.max() == pytest.approx(0.5)
    assert rates[30] == pytest.approx(0.25, abs=0.01)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[50] == pytest.approx(0, abs=1e-8)


def test_a_run_shorter_than_its_warm_up_still_trains_at_the_peak():
    config = OptimizerConfig(learning_rate=1.0, warmup_epochs=5)
    rate = make_schedule(config, epochs=2, steps_per_epoch=10)
    assert max(float(rate(step)) for step in range(20)) == pytest.approx(1.0)


def test_weight_decay_spares_norms_and_biases():
    model = ResNet(3, in_channels=1, config=TINY, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    flat, _ = jax.tree_util.tree_flatten_with_path(decay_mask(params))
    for path, decays in flat:
        assert decays == ("kernel" in jax.tree_util.keystr(path)), path
    # decay alone moves a kernel towards zero and leaves a bias where it is
    optimizer = make_optimizer(
        OptimizerConfig(weight_decay=0.5, warmup_epochs=0, schedule="constant", learning_rate=0.1),
        epochs=1,
        steps_per_epoch=1,
    )
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    np.testing.assert_allclose(updates["kernel"], -0.05)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_gradients_are_clipped_to_a_global_norm():
    optimizer = make_optimizer(
        OptimizerConfig(
            name="sgd",
            momentum=0,
            learning_rate=1,
            schedule="constant",
            warmup_epochs=0,
            weight_decay=0,
            clip_norm=1.0,
        ),
        epochs=1,
        steps_per_epoch=1,
    )
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    gradients = {"a": jnp.full(3, 10.0), "b": jnp.full((2, 2), -10.0)}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert float(optax.tree.norm(updates)) == pytest.approx(1.0)


def test_no_garbage_is_looked_for_while_a_step_is_traced():
    seen = []

    def fails(state):
        raise RuntimeError

    def step(state):
        seen.append(gc.isenabled())
        return state + 1, state

    assert gc.isenabled()
    compile_training(step)(jnp.zeros(()))
    assert seen == [False]
    assert gc.isenabled()
    with pytest.raises(RuntimeError):
        compile_training(fails)(jnp.zeros(()))
    assert gc.isenabled()
    gc.disable()
    try:
        compile_training(lambda state: step(state))(jnp.zeros(()))
        assert not gc.isenabled()  # as it was found
    finally:
        gc.enable()
