"""Learning-rate schedules and optimisers, from their configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from flaxmed.training.config import OptimizerConfig
from flaxmed.training.finetune import FROZEN, Tuning
from flaxmed.types import InputError


def make_schedule(config: OptimizerConfig, *, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate as a function of the step number.

    Args:
        config: its ``learning_rate``, ``schedule`` and ``warmup_epochs`` are used.
        epochs, steps_per_epoch: the length of the run; a warm-up that would fill it is cut to a
            tenth of it.

    Example:
        >>> step = OptimizerConfig(schedule="step", learning_rate=1.0, warmup_epochs=0)
        >>> rate = make_schedule(step, epochs=100, steps_per_epoch=5)
        >>> [round(float(rate(s)), 3) for s in (0, 249, 250, 374, 375)]
        [1.0, 1.0, 0.1, 0.1, 0.01]
    """
    total = epochs * steps_per_epoch
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if warmup >= total:
        # a short trial of a long recipe: keep the shape, a tenth of the run to warm up
        warmup = total // 10
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(config.learning_rate, total - warmup)
    elif config.schedule == "step":
        # milestones are whole epochs, as torch's MultiStepLR counts them
        at = [int(fraction * epochs) * steps_per_epoch for fraction in config.step_milestones]
        factors: dict[int, float] = {}
        for step in at:
            factors[step - warmup] = factors.get(step - warmup, 1.0) * config.step_factor
        main = optax.piecewise_constant_schedule(config.learning_rate, factors)
    else:
        main = optax.constant_schedule(config.learning_rate)
    if not warmup:
        return main
    rise = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, warmup - 1)
    return optax.join_schedules([rise, main], [warmup])


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: kernels. Norm scales and all biases are vectors, spared."""
    return jax.tree.map(lambda leaf: np.ndim(leaf) > 1, params)


def make_optimizer(
    config: OptimizerConfig, *, epochs: int, steps_per_epoch: int, tuning: Tuning | None = None
) -> optax.GradientTransformation:
    """The optax transformation: clipping, then the optimiser with its schedule.

    Args:
        config: all of it.
        epochs, steps_per_epoch: the length of the run, for the schedule.
        tuning: which parameters are trained, from when on and how fast; None: all alike.

    Raises:
        InputError: unknown optimiser.

    Example:
        >>> optimizer = make_optimizer(OptimizerConfig(), epochs=3, steps_per_epoch=10)
        >>> state = optimizer.init({"kernel": np.ones((2, 2), np.float32)})
    """
    rate = make_schedule(config, epochs=epochs, steps_per_epoch=steps_per_epoch)
    if tuning is None:
        main = optax.chain(_direction(config), optax.scale_by_learning_rate(rate))
    else:
        main = _by_stage(_direction(config), rate, tuning, steps_per_epoch)
    if config.clip_norm is None:
        return main
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), main)


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """What the optimiser makes of gradients, before the learning rate."""
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    if config.name == "adam":
        return optax.scale_by_adam()
    if config.name == "adamw":
        return optax.chain(optax.scale_by_adam(), decay)
    if config.name == "sgd":
        return optax.chain(decay, optax.trace(config.momentum))
    raise InputError(f"unknown optimizer {config.name!r}; expected adam, adamw or sgd")


def _by_stage(
    direction: optax.GradientTransformation,
    rate: optax.Schedule,
    tuning: Tuning,
    steps_per_epoch: int,
) -> optax.GradientTransformation:
    """The same for each stage apart: from its first step on, at its own part of the rate.

    Before that the optimiser sees no gradient of the stage: Adam's counts and means begin with it.
    The schedule is everyone's.
    """

    def begun(first_step: int) -> Callable[[jax.Array], jax.Array]:
        return lambda step: step >= first_step

    def scaled(part: float) -> optax.Schedule:
        return lambda step: part * rate(step)

    groups = {FROZEN: optax.set_to_zero()}
    for stage, epoch in tuning.starts.items():
        own = direction
        if epoch > 0:
            own = optax.conditionally_mask(direction, begun(epoch * steps_per_epoch))
        later = optax.scale_by_learning_rate(scaled(tuning.rates[stage]))
        groups[stage] = optax.chain(own, later)
    return optax.partition(groups, tuning.labels)
