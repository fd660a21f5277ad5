"""Keras's networks on its JAX backend, called like ``cases.Ours``. Imports keras when it is built.

Keras computes with its own layers and optimiser; the process's jax settings are shared, so float64
needs ``jax.enable_x64(True)`` around every call, as flaxmed does.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cases import CLASSES, LEARNING_RATE, MOMENTUM, STEPS, UNPOLISHED, Case, Step, Tensors


@functools.cache
def import_packages() -> Any:
    """keras on its JAX backend.

    Raises:
        ImportError: It is not installed, or was imported before with another backend.
    """
    os.environ["KERAS_BACKEND"] = "jax"
    with warnings.catch_warnings():
        # of the package's own making, at import alone
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        keras = importlib.import_module("keras")
    if keras.backend.backend() != "jax":
        raise ImportError(f"keras runs on {keras.backend.backend()}, expected its JAX backend")
    return keras


@contextlib.contextmanager
def precision(keras: Any, dtype: type) -> Iterator[None]:
    """Makes Keras build and compute in one precision throughout.

    Losses and new layers take the default precision. And outside TensorFlow, Keras's type promotion
    turns float64 into float32, batch normalisation's inputs among them; here it keeps float64, as
    it does with TensorFlow.
    """
    promotion = importlib.import_module("keras.src.backend.common.dtypes").BIT64_TO_BIT32_DTYPE
    before = keras.config.floatx(), keras.config.dtype_policy(), promotion["float64"]
    name = np.dtype(dtype).name
    keras.config.set_floatx(name)
    keras.config.set_dtype_policy(name)
    promotion["float64"] = name
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])
        promotion["float64"] = before[2]


class KerasReference:
    """A network of ``keras.applications`` in one precision and at one size."""

    def __init__(self, case: Case, channels: int, dtype: type, size: int, classes: int = CLASSES):
        self.keras = import_packages()
        self.dtype = dtype
        build = {
            "Xception": self.keras.applications.Xception,
            "DenseNet121": self.keras.applications.DenseNet121,
        }[case.network.__name__]
        stages = {"Xception": _xception, "DenseNet121": _densenet}[case.network.__name__]
        with precision(self.keras, self.dtype):
            self.model = build(
                weights=None,
                input_shape=(size, size, channels),
                classes=classes,
                classifier_activation=None,
            )
            layers = stages(self.keras, self.model)
            outputs = {stage: layer.output for stage, layer in layers.items()}
            self.probe = self.keras.Model(self.model.inputs, [self.model.output, outputs])

    @property
    def parameter_count(self) -> int:
        """Number of trainable values."""
        return sum(int(np.prod(v.shape)) for v in self.model.trainable_variables)

    def tensors(self) -> Tensors:
        """Every variable by path."""
        values = [np.asarray(variable.value) for variable in self.model.variables]
        return dict(zip(self._fresh_paths(), values, strict=True))

    def load(self, tensors: Tensors) -> None:
        """Takes all variables; ``tensors`` number the unnamed layers as a fresh process would."""
        variables = dict(zip(self._fresh_paths(), self.model.variables, strict=True))
        if set(variables) != set(tensors):
            difference = sorted(set(variables) ^ set(tensors))
            raise ValueError(f"the names differ: {difference}")
        for path, variable in variables.items():
            variable.assign(jnp.asarray(np.asarray(tensors[path]), self.dtype))

    def evaluate(self, images: np.ndarray) -> tuple[np.ndarray, Tensors]:
        """Logits and the maps that flaxmed names."""
        variables = self._values(self.probe)
        call = self._jit(lambda t, n, x: self.probe.stateless_call(t, n, x, training=False))
        with precision(self.keras, self.dtype):
            outputs, _ = call(*variables, jnp.asarray(images, self.dtype))
        logits, maps = jax.tree.map(np.asarray, outputs)
        return logits, maps

    @functools.cached_property
    def _gradient(self) -> Any:
        cross_entropy = self.keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        def objective(trainable: Any, other: Any, images: Any, labels: Any) -> Any:
            logits, moved = self.model.stateless_call(trainable, other, images, training=True)
            return cross_entropy(labels, logits), (logits, moved)

        return self._jit(jax.value_and_grad(objective, has_aux=True))

    def _step(self, trainable: Any, other: Any, images: np.ndarray, labels: np.ndarray) -> Any:
        with precision(self.keras, self.dtype):
            return self._gradient(
                trainable, other, jnp.asarray(images, self.dtype), jnp.asarray(labels)
            )

    def step(self, images: np.ndarray, labels: np.ndarray) -> Step:
        """One training step without the update; the model stays as it is."""
        (loss, (logits, moved)), gradients = self._step(*self._values(self.model), images, labels)
        return Step(
            np.asarray(logits),
            np.asarray(loss),
            self._named(self.model.trainable_variables, gradients),
            self._named(self.model.non_trainable_variables, moved),
        )

    def sgd(self, images: np.ndarray, labels: np.ndarray) -> Tensors:
        """All tensors after STEPS steps of SGD with momentum on one batch."""
        with precision(self.keras, self.dtype):
            optimizer = self.keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM)
            optimizer.build(self.model.trainable_variables)
        trainable, other = self._values(self.model)
        slots = [v.value for v in optimizer.variables]
        update = self._jit(optimizer.stateless_apply)
        for _ in range(STEPS):
            (_, (_, other)), gradients = self._step(trainable, other, images, labels)
            with precision(self.keras, self.dtype):
                trainable, slots = update(slots, gradients, trainable)
        return self._named(self.model.trainable_variables, trainable) | self._named(
            self.model.non_trainable_variables, other
        )

    def _jit(self, function: Any) -> Any:
        return jax.jit(function, compiler_options=UNPOLISHED if self.dtype is np.float64 else None)

    def _values(self, model: Any) -> tuple[list[Any], list[Any]]:
        return (
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
        )

    def _named(self, variables: Any, values: Any) -> Tensors:
        fresh = {id(v): p for v, p in zip(self.model.variables, self._fresh_paths(), strict=True)}
        pairs = zip(variables, values, strict=True)
        return {fresh[id(variable)]: np.asarray(value) for variable, value in pairs}

    def _fresh_paths(self) -> list[str]:
        """Paths with the unnamed layers numbered from zero, in the order of their building."""
        numbers: dict[str, dict[str, int]] = {}
        paths = []
        for variable in self.model.variables:
            layer, value = variable.path.split("/")
            kind = next((k for k in ("conv2d", "batch_normalization") if layer.startswith(k)), None)
            if kind:
                number = numbers.setdefault(kind, {}).setdefault(layer, len(numbers[kind]))
                layer = f"{kind}_{number}" if number else kind
            paths.append(f"{layer}/{value}")
        return paths


def _xception(keras: Any, model: Any) -> dict[str, Any]:
    own = [*(f"entry{i}" for i in range(1, 4)), *(f"middle{i}" for i in range(1, 9)), "exit1"]
    sums = [layer for layer in model.layers if isinstance(layer, keras.layers.Add)]
    return {
        "stem": model.get_layer("block1_conv2_act"),
        **dict(zip(own, sums, strict=True)),
        "exit2": model.get_layer("block14_sepconv1_act"),
        "exit3": model.get_layer("block14_sepconv2_act"),
        "final": model.get_layer("block14_sepconv2_act"),
    }


def _densenet(keras: Any, model: Any) -> dict[str, Any]:
    ends = {1: 6, 2: 12, 3: 24, 4: 16}
    return {
        "stem": model.get_layer("pool1"),
        **{f"stage{i}": model.get_layer(f"conv{i + 1}_block{n}_concat") for i, n in ends.items()},
        **{f"transition{i}": model.get_layer(f"pool{i + 1}_pool") for i in range(1, 4)},
        "final": model.get_layer("relu"),
    }
