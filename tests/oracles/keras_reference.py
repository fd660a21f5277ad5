"""Keras's networks on its torch backend, called like ``cases.Ours``. Imports keras when built.

Keras computes with its own layers and optimiser. XLA's convolutions by channel are slow in float64
on a CPU, so torch is underneath.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flaxmed.verify import keras_network
from flaxmed.verify.keras_network import KerasNetwork, precision

from . import torch_reference
from .cases import CLASSES, LEARNING_RATE, MOMENTUM, STEPS, Case, Step, Tensors

__all__ = ["KerasReference", "import_packages", "precision"]


def import_packages() -> Any:
    """keras on its torch backend.

    Raises:
        ImportError: It is not installed, or was imported before with another backend.
    """
    torch_reference.import_packages()
    return keras_network.import_packages()


class KerasReference(KerasNetwork):
    """A network of ``keras.applications`` in one precision and at one size, which trains too."""

    def __init__(self, case: Case, channels: int, dtype: type, size: int, classes: int = CLASSES):
        import_packages()
        super().__init__(
            case.network.__name__.lower(),
            channels=channels,
            classes=classes,
            size=size,
            dtype=dtype,
        )

    @property
    def parameter_count(self) -> int:
        """Number of trainable values."""
        return sum(int(np.prod(v.shape)) for v in self.model.trainable_variables)

    def tensors(self) -> Tensors:
        """Every variable by path."""
        return self._named(self.model.variables, map(_array, self.model.variables))

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


def _array(variable: Any) -> np.ndarray:
    return variable.value.detach().numpy().copy()
