"""The optimisers and schedules of the recipes beside torch's own, step by step."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.compare import require

from flaxmed.training import OptimizerConfig, TrainConfig
from flaxmed.training.finetune import Tuning
from flaxmed.training.optimizer import make_optimizer
from flaxmed.training.step import average

EPOCHS, STEPS_PER_EPOCH = 20, 3
SHAPES = {"kernel": (5, 4), "bias": (4,)}

PUBLISHED = TrainConfig.from_recipe("medmnist").optimizer
CASES = {
    "medmnist": PUBLISHED,
    "adamw": OptimizerConfig(
        name="adamw", learning_rate=1e-2, schedule="constant", warmup_epochs=0, weight_decay=0.1
    ),
    "clipped": OptimizerConfig(
        name="adam",
        learning_rate=1e-2,
        schedule="constant",
        warmup_epochs=0,
        weight_decay=0.0,
        clip_norm=0.5,
    ),
    "cosine": OptimizerConfig(
        name="sgd", learning_rate=1e-2, warmup_epochs=0, weight_decay=1e-2, clip_norm=None
    ),
}


@pytest.fixture
def torch():
    require("torchvision")
    return importlib.import_module("torch")


def theirs(torch, config, start, gradients):
    """Parameters after every step: torch's optimiser, its scheduler called after each epoch."""
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [
        {"params": [tensors["kernel"]], "weight_decay": config.weight_decay},
        {"params": [tensors["bias"]], "weight_decay": 0.0},
    ]
    rate = {"lr": config.learning_rate}
    if config.name == "adam":
        optimizer = torch.optim.Adam(tensors.values(), **rate)
    elif config.name == "adamw":
        optimizer = torch.optim.AdamW(groups, **rate)
    else:
        optimizer = torch.optim.SGD(groups, momentum=config.momentum, **rate)
    scheduler, every = None, STEPS_PER_EPOCH
    if config.schedule == "step":
        scheduler = torch.optim.lr_scheduler.MultiStepLR(
            optimizer,
            [int(part * EPOCHS) for part in config.step_milestones],
            gamma=config.step_factor,
        )
    elif config.schedule == "cosine":
        scheduler, every = (
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS_PER_EPOCH),
            1,
        )
    for step, gradient in enumerate(gradients):
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[name])
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(tensors.values(), config.clip_norm)
        optimizer.step()
        if scheduler is not None and (step + 1) % every == 0:
            scheduler.step()
        yield {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def ours(config, start, gradients):
    optimizer = make_optimizer(config, epochs=EPOCHS, steps_per_epoch=STEPS_PER_EPOCH)
    params, state = start, optimizer.init(start)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        yield jax.tree.map(np.asarray, params)


def test_the_published_recipe_is_adam_with_two_drops():
    assert (PUBLISHED.name, PUBLISHED.schedule, PUBLISHED.learning_rate) == ("adam", "step", 1e-3)
    assert (PUBLISHED.step_milestones, PUBLISHED.step_factor) == ((0.5, 0.75), 0.1)
    assert PUBLISHED.clip_norm is None
    assert not PUBLISHED.warmup_epochs


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_torchs(torch, case):
    config, rng = CASES[case], np.random.default_rng(0)
    with jax.enable_x64(True):
        start = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
        gradients = [
            {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
            for _ in range(EPOCHS * STEPS_PER_EPOCH)
        ]
        pairs = zip(
            ours(config, start, gradients), theirs(torch, config, start, gradients), strict=True
        )
        for step, (a, b) in enumerate(pairs):
            for name in SHAPES:
                moved = np.linalg.norm(b[name] - start[name])
                assert np.linalg.norm(a[name] - b[name]) <= 1e-6 * moved, (step, name)


def test_the_moving_average_is_torchs_once_warm(torch):
    """torch's keeps the first values whole and has no warm-up: it is compared late in training."""
    rng, decay, late = np.random.default_rng(0), 0.97, 10**6
    values = [{name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(9)]
    network = torch.nn.ParameterDict(
        {name: torch.nn.Parameter(torch.tensor(value)) for name, value in values[0].items()}
    )
    theirs = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    )
    with jax.enable_x64(True):
        mean = jax.tree.map(jnp.asarray, values[0])
        theirs.update_parameters(network)
        for i, value in enumerate(values[1:]):
            for name, array in value.items():
                network[name].data = torch.tensor(array)
            theirs.update_parameters(network)
            mean = average(mean, jax.tree.map(jnp.asarray, value), jnp.int32(late + i), decay)
        for name, array in mean.items():
            expected = theirs.module[name].detach().numpy()
            np.testing.assert_allclose(array, expected, rtol=1e-12, atol=1e-12)


def test_the_moving_average_forgets_where_training_began():
    """The weights of all values by hand: with warm-up the first of 30 counts next to nothing."""
    mean, weight = jnp.float32(0), np.zeros(31)
    weight[0] = 1.0
    for step in range(30):
        keep = min(0.999, (1 + step) / (10 + step))
        weight, mean = weight * keep, average(mean, jnp.float32(step + 1), jnp.int32(step), 0.999)
        weight[step + 1] = 1 - keep
    np.testing.assert_allclose(mean, weight @ np.arange(31), rtol=1e-5)
    assert weight[0] < 1e-8 < 0.999**30


def test_stages_of_their_own_are_torchs_parameter_groups(torch):
    """Adam with a rate for each group, whose gradients come from an epoch of its own on: as in
    torch, where a parameter that has had no gradient has no state yet."""
    config = OptimizerConfig(
        learning_rate=0.01, schedule="cosine", warmup_epochs=0, weight_decay=0.1, clip_norm=None
    )
    shapes = {"stem": (3, 3), "stage1": (4,), "stage2": (4, 2), "classifier": (5, 4)}
    starts = {"stage1": 7, "stage2": 3, "classifier": 0}
    rates = {"stage1": 0.25, "stage2": 0.5, "classifier": 1.0}
    tuning = Tuning(frozenset({"stem.kernel"}), starts, rates)
    rng = np.random.default_rng(0)

    def draw():
        return {stage: {"kernel": rng.normal(size=shape)} for stage, shape in shapes.items()}

    with jax.enable_x64(True):
        start, gradients = draw(), [draw() for _ in range(EPOCHS * STEPS_PER_EPOCH)]
        tensors = {s: torch.tensor(v["kernel"], requires_grad=True) for s, v in start.items()}
        groups = [
            {
                "params": [tensors[s]],
                "lr": config.learning_rate * rates[s],
                "weight_decay": config.weight_decay if tensors[s].ndim > 1 else 0.0,
            }
            for s in starts
        ]
        theirs = torch.optim.AdamW(groups)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, EPOCHS * STEPS_PER_EPOCH)
        optimizer = make_optimizer(
            config, epochs=EPOCHS, steps_per_epoch=STEPS_PER_EPOCH, tuning=tuning
        )
        params, state = start, optimizer.init(start)
        for step, gradient in enumerate(gradients):
            for stage, tensor in tensors.items():
                begun = step >= starts.get(stage, 10**9) * STEPS_PER_EPOCH
                tensor.grad = torch.tensor(gradient[stage]["kernel"]) if begun else None
            theirs.step()
            cosine.step()
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            for stage, tensor in tensors.items():
                found, expected = params[stage]["kernel"], tensor.detach().numpy()
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12, err_msg=stage)
    assert np.array_equal(params["stem"]["kernel"], start["stem"]["kernel"])
