"""Every setting of a training run, as dataclasses that go to JSON and back."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from flaxmed.types import InputError, Preprocessing, is_number

OptimizerName = Literal["adam", "adamw", "sgd"]
ScheduleName = Literal["constant", "cosine", "step"]


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _describe(hint: Any) -> str:
    if _is_union(hint):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"a list of {_describe(typing.get_args(hint)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(
        hint, "null" if hint is type(None) else getattr(hint, "__name__", str(hint))
    )


def _refuse_unknown(cls: type, values: Mapping[str, Any], path: str) -> None:
    known = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {path}{near[0]}?" if near else f"expected {', '.join(known)}"
            shown = f"{path}{key}" if str(key).isprintable() else repr(f"{path}{key}")
            raise InputError(f"unknown setting {shown}; {hint}")


def _from_dict(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(
            f"setting {path.rstrip('.') or 'config'} must be an object, got {values!r}"
        )
    _refuse_unknown(cls, values, path)
    hints = typing.get_type_hints(cls)
    made = {key: _convert(hints[key], value, path + key) for key, value in values.items()}
    return cls(**made)


def _convert(hint: Any, value: Any, path: str) -> Any:
    """``value`` from JSON as the annotated type, or an InputError that names the setting."""
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        return _from_dict(typing.cast(type, hint), value, path + ".")
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and value is not None:
            return _convert(option, value, path)
        if typing.get_origin(option) is Literal and value in typing.get_args(option):
            return value
        if option is type(None) and value is None:
            return None
        if option is bool and isinstance(value, bool):
            return value
        if option is int and isinstance(value, int) and is_number(value):
            return value
        if option is float and (is_number(value) or isinstance(value, float)):
            return float(value)  # which is finite, what takes it looks at
        if option is str and isinstance(value, str):
            return value
        if typing.get_origin(option) is tuple and isinstance(value, (list, tuple)):
            inner = typing.get_args(option)[0]
            return tuple(_convert(inner, item, f"{path}[{i}]") for i, item in enumerate(value))
    raise InputError(f"setting {path}: expected {_describe(hint)}, got {value!r}")


def _check_types(config: Any, prefix: str = "") -> None:
    """Every field as its annotation says, whole numbers made floats where a float is meant."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = _convert(hints[field.name], getattr(config, field.name), prefix + field.name)
        object.__setattr__(config, field.name, value)


def _choice(name: str, value: Any, literal: Any) -> None:
    if value not in typing.get_args(literal):
        raise InputError(f"setting {name}: expected {_describe(literal)}, got {value!r}")


def _range(
    name: str,
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    bounds = [
        (least, "at least", lambda v, b: v >= b),
        (above, "above", lambda v, b: v > b),
        (most, "at most", lambda v, b: v <= b),
        (below, "below", lambda v, b: v < b),
    ]
    stated = [(bound, word, holds) for bound, word, holds in bounds if bound is not None]
    if not math.isfinite(value) or not all(holds(value, bound) for bound, _, holds in stated):
        wanted = " and ".join(f"{word} {bound:g}" for bound, word, _ in stated)
        raise InputError(f"setting {name}: expected a number {wanted}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates.

    Attributes:
        name: ``adam``, ``adamw`` (decoupled weight decay) or ``sgd`` (with momentum).
        learning_rate: the peak, after warm-up.
        schedule: ``constant``; ``cosine`` down to zero at the last step; or ``step``: times
            ``step_factor`` at each of ``step_milestones``.
        warmup_epochs: linear rise from zero, in epochs; 0 for none.
        step_milestones: fractions of the epochs, as MedMNIST's 50% and 75%.
        step_factor: see ``schedule``.
        weight_decay: decoupled; kernels only: norms and biases are spared.
        clip_norm: gradients are scaled down to this global L2 norm; None for no clipping.
        momentum: for ``sgd``.
    """

    name: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    schedule: ScheduleName = "cosine"
    warmup_epochs: float = 2.0
    step_milestones: tuple[float, ...] = (0.5, 0.75)
    step_factor: float = 0.1
    weight_decay: float = 0.05
    clip_norm: float | None = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check_types(self, "optimizer.")
        _choice("optimizer.name", self.name, OptimizerName)
        _choice("optimizer.schedule", self.schedule, ScheduleName)
        _range("optimizer.learning_rate", self.learning_rate, above=0)
        _range("optimizer.warmup_epochs", self.warmup_epochs, least=0)
        _range("optimizer.weight_decay", self.weight_decay, least=0)
        _range("optimizer.step_factor", self.step_factor, above=0)
        _range("optimizer.momentum", self.momentum, least=0, below=1)
        if self.clip_norm is not None:
            _range("optimizer.clip_norm", self.clip_norm, above=0)
        if self.weight_decay and self.name == "adam":
            raise InputError("optimizer.weight_decay: adam has none; use adamw, or 0")
        for fraction in self.step_milestones:
            _range("optimizer.step_milestones", fraction, above=0, below=1)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images, each drawn anew for every image and epoch.

    Attributes:
        flips: mirror images, each with probability 1/2, along the axes that the data set allows
            (``DatasetInfo.flips``: none where left and right mean something).
        rotation: largest angle in degrees, either way.
        shift: largest displacement, as a fraction of the height and width.
        scale: largest relative change of size, either way (0.1: from 1/1.1 to 1.1 times).
        intensity: largest relative change of contrast and, in units of the full range, of
            brightness, either way.
    """

    flips: bool = False
    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    intensity: float = 0.0

    def __post_init__(self) -> None:
        _check_types(self, "augment.")
        _range("augment.rotation", self.rotation, least=0, most=180)
        _range("augment.shift", self.shift, least=0, below=1)
        _range("augment.scale", self.scale, least=0, below=1)
        _range("augment.intensity", self.intensity, least=0, below=1)


@dataclasses.dataclass(frozen=True)
class FineTuneConfig:
    """Which layers move, and how fast; for a network that starts from weights.

    Stages are named as in ``flaxmed summary``: the first part of a parameter's path. Of a frozen
    layer nothing moves: its parameters are not trained, and a norm whose parameters are frozen
    normalises with its running statistics and leaves them.

    Attributes:
        train_from: the first stage that is trained; those before it are frozen. None: all are.
        freeze: paths of parameters, or their beginnings (``"stage2.0"``), that are frozen besides.
        layer_decay: every stage learns at this times the rate of the one after it, the classifier
            at the full rate (discriminative fine-tuning, Howard & Ruder 2018, section 3.2).
        unfreeze_epochs: train the classifier alone for so many epochs, then with the stage before
            it, and so on, a stage more each time (gradual unfreezing, section 3.3 there); None:
            all from the start.
        linear_probe: train no layer but the classifier, on features that are computed once, to the
            optimum: see :mod:`flaxmed.training.probe`.

    Example:
        >>> TrainConfig(finetune=FineTuneConfig(train_from="stage3")).finetune.layer_decay
        1.0
    """

    train_from: str | None = None
    freeze: tuple[str, ...] = ()
    layer_decay: float = 1.0
    unfreeze_epochs: int | None = None
    linear_probe: bool = False

    def __post_init__(self) -> None:
        _check_types(self, "finetune.")
        if self.linear_probe and dataclasses.replace(self, linear_probe=False) != FineTuneConfig():
            raise InputError("setting finetune.linear_probe: it leaves nothing else to set there")
        _range("finetune.layer_decay", self.layer_decay, above=0, most=1)
        if self.unfreeze_epochs is not None:
            _range("finetune.unfreeze_epochs", self.unfreeze_epochs, least=1)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All that decides what a run computes: the same config and data give the same model.

    Its own values are those of the ``default`` recipe, which was chosen on BreastMNIST's
    validation split: ``benchmarks/recipes.py`` prints the comparison.

    Attributes:
        dataset: a name that ``flaxmed.load_dataset`` knows, or a path to an ``.npz`` file; with
            ``train(config, data=...)`` a label only.
        size: image side in pixels where the data set offers several; None for its default.
        model: a name of ``flaxmed.list_models()``.
        stem: ``imagenet`` (the paper's), ``small`` (for 28 to 64 px) or ``auto``: that of the
            weights, or without any small up to 64 px.
        weights: what to start from: as ``flaxmed.open_weights`` takes it, or the directory of
            another run; None: random values. ``config.json`` keeps what they decide (``auto`` and
            None below), so that a run that is under way needs them no more.
        variant: whose constants and padding, as for ``flaxmed.create_model``; None: the weights'.
        epochs, batch_size: batches are made within the epoch; the last may be smaller.
        seed: of initialisation, order and augmentation.
        dtype: of the computation: ``float32``, ``bfloat16`` or ``float64``.
        optimizer, augment, finetune: see there.
        preprocessing: of the images; None: the weights', or mean and standard deviation 0.5.
        batch_norm_momentum: what a step keeps of BatchNorm's running statistics; None: each
            network's own (0.9 for ResNet-18 and DenseNet-121, Keras' 0.99 for Xception).
        ema_decay: keep an exponential moving average of parameters and running statistics, and
            evaluate and keep that: after ``t`` steps the old average counts ``min(ema_decay,
            (1 + t) / (10 + t))``. None: no average.
        class_weights: None; ``balanced`` (inversely to the training counts); or one per class.
        early_stopping: stop after this many epochs without a better validation AUC, counted from
            when all stages are trained; None: never.
        recipe: the recipe these values came from, for the record.
        fetch: ``resident`` (images on the device), ``streamed`` (read by worker threads as they
            are needed) or ``auto`` by size. The batches are the same, bit for bit.
        eval_batch_size: for validation and test; changes no result beyond rounding.
        steps_per_call: training steps in one compiled call where the images are on the device;
            None: one on a CPU, elsewhere by the size of a batch. Changes no result beyond rounding.
        accumulate: micro-batches into which a batch is split to save memory; their gradients make
            one update, BatchNorm's statistics are those of each micro-batch.
        remat: keep only what convolutions gave for the backward pass and compute norms and
            concatenations anew: less memory, more time, the same result to rounding.

    Example:
        >>> config = TrainConfig.from_recipe("medmnist", dataset="breastmnist", epochs=10)
        >>> config.optimizer.name, config.batch_size, config.epochs
        ('adam', 128, 10)
        >>> TrainConfig.from_dict(config.to_dict()) == config
        True
    """

    dataset: str = "phantom"
    size: int | None = None
    model: str = "resnet18"
    stem: Literal["auto", "imagenet", "small"] = "auto"
    weights: str | None = None
    variant: str | None = None
    epochs: int = 30
    batch_size: int = 64
    seed: int = 0
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig = AugmentConfig(flips=True)
    finetune: FineTuneConfig = FineTuneConfig()
    preprocessing: Preprocessing | None = None
    # At Keras' 0.99 a variance that starts at 1 takes 700 steps to come down to 0.001: on a small
    # set Xception ends while it still evaluates with the running values it began with.
    batch_norm_momentum: float | None = 0.9
    ema_decay: float | None = None
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    early_stopping: int | None = None
    recipe: str = "default"
    fetch: Literal["auto", "resident", "streamed"] = "auto"
    eval_batch_size: int = 128
    steps_per_call: int | None = None
    accumulate: int = 1
    remat: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        if self.size is not None:
            _range("size", self.size, least=1)
        _choice("stem", self.stem, Literal["auto", "imagenet", "small"])
        _choice("dtype", self.dtype, Literal["float32", "bfloat16", "float64"])
        _choice("fetch", self.fetch, Literal["auto", "resident", "streamed"])
        _range("epochs", self.epochs, least=1)
        _range("batch_size", self.batch_size, least=1)
        _range("eval_batch_size", self.eval_batch_size, least=1)
        if self.steps_per_call is not None:
            _range("steps_per_call", self.steps_per_call, least=1)
        _range("accumulate", self.accumulate, least=1, most=self.batch_size)
        _range("seed", self.seed, least=0, below=2**32)
        if self.batch_norm_momentum is not None:
            _range("batch_norm_momentum", self.batch_norm_momentum, least=0, below=1)
        if self.ema_decay is not None:
            _range("ema_decay", self.ema_decay, above=0, below=1)
        if self.early_stopping is not None:
            _range("early_stopping", self.early_stopping, least=1)
        if isinstance(self.class_weights, str):
            _choice("class_weights", self.class_weights, Literal["balanced"])
        elif self.class_weights is not None:
            for weight in self.class_weights:
                _range("class_weights", weight, above=0)

    @classmethod
    def from_recipe(cls, recipe: str = "default", **changes: Any) -> TrainConfig:
        """The settings of a named recipe, with ``changes`` on top.

        ``medmnist`` is the published one of MedMNIST's authors (Yang et al. 2023; their
        ``train_and_eval_pytorch.py``): Adam 1e-3, times 0.1 at 50% and 75% of 100 epochs, batch
        128, no augmentation. ``default`` is flaxmed's own.

        Raises:
            InputError: unknown recipe or setting.
        """
        if recipe not in RECIPES:
            raise InputError(f"unknown recipe {recipe!r}; expected one of {', '.join(RECIPES)}")
        _refuse_unknown(cls, changes, "")
        return cls(**{**RECIPES[recipe], "recipe": recipe, **changes})

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold; :meth:`from_dict` is its inverse."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`; keys that are missing take their recipe's values.

        Raises:
            InputError: an unknown key or recipe, or a value of another type, by name.

        Example:
            >>> TrainConfig.from_dict({"recipe": "medmnist", "epochs": 3}).optimizer.name
            'adam'
        """
        if not isinstance(values, Mapping):
            raise InputError(f"settings must be an object, got {values!r}")
        recipe = cls.from_recipe(str(values.get("recipe", "default")))
        return _from_dict(cls, _overlaid(recipe.to_dict(), values), "")


RECIPES: dict[str, dict[str, Any]] = {
    "default": {},  # what TrainConfig says
    "medmnist": {
        "augment": AugmentConfig(),
        "batch_norm_momentum": None,
        "epochs": 100,
        "batch_size": 128,
        "optimizer": OptimizerConfig(
            name="adam", schedule="step", warmup_epochs=0, weight_decay=0, clip_norm=None
        ),
    },
}


def _overlaid(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` on top, key by key at every depth."""
    result = dict(values)
    for key, change in changes.items():
        both = isinstance(values.get(key), Mapping) and isinstance(change, Mapping)
        result[key] = _overlaid(values[key], change) if both else change
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
