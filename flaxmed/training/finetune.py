"""Which parameters of a network are trained, from which epoch on, and how fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flaxmed.models.layers import BatchNorm
from flaxmed.training.config import FineTuneConfig
from flaxmed.types import InputError

FROZEN = "frozen"


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A :class:`FineTuneConfig` made out on a network.

    Attributes:
        frozen: dotted paths of the parameters that are never trained.
        starts: by stage, in the order of the network, the epoch from which its other parameters
            are trained; stages without any are left out.
        rates: by stage, its part of the learning rate.
    """

    frozen: frozenset[str]
    starts: Mapping[str, int]
    rates: Mapping[str, float]

    def labels(self, params: Any) -> Any:
        """Of every parameter its stage, or ``"frozen"``, in the structure of ``params``."""

        def label(path: Any, _: Any) -> str:
            name = _dotted(path)
            return FROZEN if name in self.frozen else _stage(name)

        return jax.tree_util.tree_map_with_path(label, params)

    @property
    def phases(self) -> list[int]:
        """The epochs from which more is trained than before; the first is 0."""
        return sorted(set(self.starts.values()))

    def frozen_at(self, epoch: int, params: Any) -> frozenset[str]:
        """Dotted paths of the parameters that are not trained in an epoch."""
        waiting = {stage for stage, start in self.starts.items() if start > epoch}
        return self.frozen | {name for name in by_path(params) if _stage(name) in waiting}


def make_tuning(model: Any, config: FineTuneConfig, *, epochs: int) -> Tuning | None:
    """What the settings mean for a network; None where every layer is trained alike.

    Args:
        model: the network, or its shapes alone.
        config: the settings.
        epochs: the length of the run.

    Raises:
        InputError: a stage or path that the network has not, nothing left to train, or more
            epochs of unfreezing than the run has.

    Example:
        >>> from flaxmed.models import ResNet18
        >>> model = nnx.eval_shape(lambda: ResNet18(2, rngs=nnx.Rngs(0)))
        >>> config = FineTuneConfig(train_from="stage3", layer_decay=0.5, unfreeze_epochs=2)
        >>> tuning = make_tuning(model, config, epochs=10)
        >>> tuning.starts
        {'stage3': 4, 'stage4': 2, 'classifier': 0}
        >>> tuning.rates["stage3"]
        0.25
    """
    if config == FineTuneConfig():
        return None
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    names, stages = set(by_path(params)), model.stages
    frozen = frozenset(_frozen_paths(names, stages, config))
    trained = [stage for stage in stages if any(_stage(n) == stage for n in names - frozen)]
    if not trained:
        raise InputError("setting finetune: every parameter is frozen; nothing is left to train")
    every = config.unfreeze_epochs or 0
    starts = {stage: every * i for i, stage in enumerate(reversed(trained))}
    if starts[trained[0]] >= epochs:
        raise InputError(
            f"setting finetune.unfreeze_epochs: {len(trained)} stages, one more every {every} "
            f"epochs: the last would begin after epoch {starts[trained[0]]} of {epochs}"
        )
    rates = {stage: config.layer_decay**i for i, stage in enumerate(reversed(stages))}
    in_order = {stage: starts[stage] for stage in trained}
    return Tuning(frozen, in_order, {stage: rates[stage] for stage in trained})


def _frozen_paths(names: set[str], stages: list[str], config: FineTuneConfig) -> Iterable[str]:
    begins = list(config.freeze)
    if config.train_from is not None:
        if config.train_from not in stages:
            raise InputError(
                f"setting finetune.train_from: no stage {config.train_from!r}; "
                f"expected one of {', '.join(stages)}"
            )
        begins += stages[: stages.index(config.train_from)]
    for begin in begins:
        below = {name for name in names if name == begin or name.startswith(f"{begin}.")}
        if not below:
            raise InputError(
                f"setting finetune.freeze: no parameter at {begin!r}; expected a stage "
                f"({', '.join(stages)}) or a path in it"
            )
        yield from below


def by_path(params: Any) -> dict[str, Any]:
    """The leaves of a tree by their dotted paths, in the order in which jax takes them.

    Example:
        >>> by_path({"stem": {"kernel": 1.0}, "stage1": {0: {"bias": 2.0}}})
        {'stage1.0.bias': 2.0, 'stem.kernel': 1.0}
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {_dotted(path): leaf for path, leaf in leaves}


def freeze_norms(model: nnx.Module, frozen: frozenset[str]) -> None:
    """Let every norm whose parameters are all frozen use its running statistics, and leave them.

    Args:
        model: a network in training mode, changed in place.
        frozen: dotted paths of parameters.
    """
    for path, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            name = ".".join(map(str, path))
            if {f"{name}.scale", f"{name}.bias"} <= frozen:
                module.use_running_average = True


def gradient_of(loss: Callable[..., tuple[Any, Any]], frozen: frozenset[str]) -> Any:
    """``jax.grad`` of a loss with an auxiliary result, zero for what is ``frozen``.

    What only a frozen parameter's gradient would be needed for is not computed.

    Args:
        loss: of a tree of parameters, and anything else.
        frozen: dotted paths of parameters.

    Example:
        >>> grads, _ = gradient_of(lambda p: (p["a"] * p["b"], None), frozenset({"a"}))(
        ...     {"a": jnp.array(2.0), "b": jnp.array(3.0)}
        ... )
        >>> {name: float(grad) for name, grad in grads.items()}
        {'a': 0.0, 'b': 2.0}
    """
    if not frozen:
        return jax.grad(loss, has_aux=True)

    def grad(params: Any, *others: Any) -> tuple[Any, Any]:
        structure, every = jax.tree.structure(params), by_path(params)

        def of_trained(trained: dict[str, Any]) -> tuple[Any, Any]:
            return loss(jax.tree.unflatten(structure, (every | trained).values()), *others)

        trained = {name: leaf for name, leaf in every.items() if name not in frozen}
        grads, aux = jax.grad(of_trained, has_aux=True)(trained)
        zeros = {name: jnp.zeros_like(leaf) for name, leaf in every.items()}
        return jax.tree.unflatten(structure, (zeros | grads).values()), aux

    return grad


def _dotted(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _stage(name: str) -> str:
    return name.partition(".")[0]
