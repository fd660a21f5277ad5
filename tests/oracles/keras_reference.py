"""Keras's networks on its torch backend, called like ``cases.Ours``. Imports keras when built.

Keras computes with its own layers and optimiser. torch, not JAX, underneath: XLA's convolutions by
channel are slow in float64 on a CPU, and a reference that shares nothing with us says more.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import torch_reference
from .cases import CLASSES, LEARNING_RATE, MOMENTUM, STEPS, Case, Step, Tensors


@functools.cache
def import_packages() -> Any:
    """keras on its torch backend.

    Raises:
        ImportError: It is not installed, or was imported before with another backend.
    """
    torch_reference.import_packages()
    os.environ["KERAS_BACKEND"] = "torch"
    with warnings.catch_warnings():
        # of the package's own making, at import alone
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        keras = importlib.import_module("keras")
    if keras.backend.backend() != "torch":
        raise ImportError(f"keras runs on {keras.backend.backend()}, expected its torch backend")
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
        self.torch = torch_reference.import_packages()[0]
        self.dtype = dtype
        self.kind = {np.float32: self.torch.float32, np.float64: self.torch.float64}[dtype]
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
        return self._named(self.model.variables, map(_array, self.model.variables))

    def load(self, tensors: Tensors) -> None:
        """Takes all variables; ``tensors`` number the unnamed layers as a fresh process would."""
        variables = dict(zip(self._fresh_paths(), self.model.variables, strict=True))
        if set(variables) != set(tensors):
            difference = sorted(set(variables) ^ set(tensors))
            raise ValueError(f"the names differ: {difference}")
        for path, variable in variables.items():
            variable.assign(np.asarray(tensors[path], self.dtype))

    def evaluate(self, images: np.ndarray) -> tuple[np.ndarray, Tensors]:
        """Logits and the maps that flaxmed names."""
        with precision(self.keras, self.dtype), self.torch.no_grad():
            logits, maps = self.probe(self.torch.tensor(images, dtype=self.kind), training=False)
        return logits.numpy(), {stage: value.numpy() for stage, value in maps.items()}

    def step(self, images: np.ndarray, labels: np.ndarray) -> Step:
        """One training step without the update: gradients, and the statistics it moves."""
        self.model.zero_grad()
        with precision(self.keras, self.dtype):
            cross_entropy = self.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            logits = self.model(self.torch.tensor(images, dtype=self.kind), training=True)
            loss = cross_entropy(self.torch.tensor(labels), logits)
            loss.backward()
        gradients = [variable.value.grad.numpy() for variable in self.model.trainable_variables]
        statistics = self.model.non_trainable_variables
        return Step(
            logits.detach().numpy(),
            loss.detach().numpy(),
            self._named(self.model.trainable_variables, gradients),
            self._named(statistics, map(_array, statistics)),
        )

    def sgd(self, images: np.ndarray, labels: np.ndarray) -> Tensors:
        """All tensors after STEPS steps of SGD with momentum on one batch."""
        variables = self.model.trainable_variables
        with precision(self.keras, self.dtype):
            optimizer = self.keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM)
            optimizer.build(variables)
        for _ in range(STEPS):
            self.step(images, labels)
            with precision(self.keras, self.dtype), self.torch.no_grad():
                optimizer.apply([variable.value.grad for variable in variables], variables)
        return self.tensors()

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


def _array(variable: Any) -> np.ndarray:
    return variable.value.detach().numpy().copy()


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
