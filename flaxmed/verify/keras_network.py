"""Keras's own networks, on its torch backend: built, filled and run. Imports keras when built.

torch, not JAX, underneath: a reference that shares nothing with what it judges says more.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flaxmed.verify import torch_network

Tensors = Mapping[str, np.ndarray]


@functools.cache
def import_packages() -> Any:
    """keras on its torch backend.

    Raises:
        ImportError: It is not installed, or was imported before with another backend.
    """
    torch_network.import_packages()
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


class KerasNetwork:
    """Xception or DenseNet-121 of ``keras.applications``, in evaluation mode, at one size.

    Args:
        network: A name of ``flaxmed.list_models()``.
        channels: Of the images.
        classes: How many logits; no softmax follows.
        size: Side of the images in pixels.
        dtype: Of computation and parameters: float32 or float64.
        same_stem: DenseNet-121 with ``padding="same"`` in its stem, as KerasHub's has it.
    """

    def __init__(
        self,
        network: str,
        *,
        channels: int,
        classes: int,
        size: int,
        dtype: type,
        same_stem: bool = False,
    ):
        self.keras = import_packages()
        self.torch = torch_network.import_packages()[0]
        self.dtype = dtype
        self.kind = getattr(self.torch, np.dtype(dtype).name)
        applications = self.keras.applications
        build, stages = {
            "xception": (applications.Xception, _xception),
            "densenet121": (applications.DenseNet121, _densenet),
        }[network]
        with precision(self.keras, self.dtype):
            self.model = build(
                weights=None,
                input_shape=(size, size, channels),
                classes=classes,
                classifier_activation=None,
            )
            if same_stem:
                self.model = _with_same_stem(self.keras, self.model)
            layers = stages(self.keras, self.model)
            outputs = {stage: layer.output for stage, layer in layers.items()}
            self.probe = self.keras.Model(self.model.inputs, [self.model.output, outputs])

    def load(self, tensors: Tensors) -> None:
        """Takes all variables; ``tensors`` number the unnamed layers as a fresh process would."""
        variables = dict(zip(self._fresh_paths(), self.model.variables, strict=True))
        if set(variables) != set(tensors):
            difference = sorted(set(variables) ^ set(tensors))
            raise ValueError(f"the names differ: {difference}")
        for path, variable in variables.items():
            variable.assign(np.asarray(tensors[path], self.dtype))

    def evaluate(self, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits and the maps that flaxmed names."""
        with precision(self.keras, self.dtype), self.torch.no_grad():
            logits, maps = self.probe(self.torch.tensor(images, dtype=self.kind), training=False)
        return logits.numpy(), {stage: value.numpy() for stage, value in maps.items()}

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


def _with_same_stem(keras: Any, model: Any) -> Any:
    """The paddings of ``keras_hub``'s DenseNet, which has others there than Keras's own."""

    def changed(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.layers.ZeroPadding2D):
            config["padding"] = 0
        elif layer.name in ("conv1_conv", "pool1"):
            config["padding"] = "same"
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=changed)


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
