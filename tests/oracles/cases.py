"""What is compared: networks, references, sizes, inputs; and flaxmed's side. Imports no reference.

Both sides speak in the reference's tensor names, so each comparison also passes through the tables
of ``flaxmed.models.naming``.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from flaxmed.models import DenseNet121, ResNet18, Xception
from flaxmed.models.densenet import DENSENET121, KERAS_DENSENET121
from flaxmed.models.pretrained import flatten, load_state, to_foreign
from flaxmed.models.resnet import RESNET18
from flaxmed.models.xception import KERAS, TIMM

CLASSES = 5
LEARNING_RATE = 0.01
MOMENTUM = 0.9
STEPS = 5
UNPOLISHED = {"xla_backend_optimization_level": 0}

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """One network of flaxmed beside one reference.

    Attributes:
        network: The class in flaxmed.
        package: Where the reference comes from, and whose names its tensors bear: torchvision,
            timm or keras.
        sizes: Image sides at which the evaluation is compared; the first one serves the rest.
        options: Of the network in flaxmed, its configuration among them.
    """

    network: Callable[..., Any]
    package: str
    sizes: tuple[int, ...]
    options: Mapping[str, Any]

    def build(self, channels: int, dtype: Any, **options: Any) -> Any:
        """The network of flaxmed in evaluation mode, its variables as shapes without values."""
        options = {"num_classes": CLASSES, "dtype": dtype, **self.options, **options}
        return nnx.eval_shape(
            lambda: self.network(in_channels=channels, rngs=nnx.Rngs(0), **options)
        )


def _case(network: Any, package: str, sizes: tuple[int, ...], config: Any, **options: Any) -> Case:
    return Case(network, package, sizes, {"config": config, **options})


CASES: dict[str, Case] = {
    "resnet18-torchvision": _case(ResNet18, "torchvision", (64, 224), RESNET18),
    # MedMNIST's own ResNet-18 is torchvision's with another stem.
    "resnet18-small": _case(ResNet18, "torchvision", (28, 64), RESNET18, stem="small"),
    "densenet121-torchvision": _case(DenseNet121, "torchvision", (64, 224), DENSENET121),
    "densenet121-keras": _case(DenseNet121, "keras", (64,), KERAS_DENSENET121),
    "xception-timm": _case(Xception, "timm", (64, 224, 299), TIMM),
    "xception-keras": _case(Xception, "keras", (96, 224, 299), KERAS),
}
# Of a network that has a first one, and from which it differs in two constants alone.
SECOND_REFERENCE = "densenet121-keras"


@dataclasses.dataclass(frozen=True)
class Step:
    """One training step: its outputs before the update, the gradients, the moved statistics."""

    logits: np.ndarray
    loss: np.ndarray
    gradients: Tensors
    statistics: Tensors


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform numbers in [-1, 1) that depend on the name and the shape alone.

    Float64 that float32 can hold, so that both precisions start from the same weights.
    """
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return (2 * rng.random(shape, np.float32) - 1).astype(np.float64)


def random_tensors(model: nnx.Module) -> Tensors:
    """Weights and running statistics by own path, at scales that keep activations finite."""
    return {path: _random_tensor(path, shape) for path, shape in shapes(model).items()}


def shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and running statistic by own path."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): tuple(leaf.shape) for path, leaf in flat}


def _random_tensor(path: str, shape: tuple[int, ...]) -> np.ndarray:
    unit, kind = draw(path, shape), path.rsplit(".", 1)[-1]
    if kind == "scale":
        value = 1 + unit / 2
    elif kind == "var":
        value = 1.25 + 0.75 * unit
    elif kind == "kernel":
        value = unit * np.sqrt(6 / np.prod(shape[:-1]))  # variance 2 / fan_in (He et al. 2015)
    else:
        value = 0.3 * unit
    return value.astype(np.float32).astype(np.float64)


def images_and_labels(
    size: int, channels: int, batch: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A batch of noise, [batch, size, size, channels] float64 in [-1, 1), and its labels."""
    images = draw(f"images {seed}", (batch, size, size, channels))
    return images, np.arange(batch) * 2 % CLASSES


class Ours:
    """flaxmed's side of a case. Call inside ``jax.enable_x64(True)`` for float64."""

    def __init__(self, case: Case, channels: int, dtype: Any, **options: Any):
        self.case = case
        self.dtype = dtype
        self.model = case.build(channels, dtype, **options)

    def foreign(self, tensors: Tensors) -> Tensors:
        """Tensors by own path under the reference's names."""
        return to_foreign(tensors, self.model, self.case.package)

    def load(self, tensors: Tensors) -> None:
        """Takes the reference's tensors."""
        load_state(self.model, tensors, self.case.package)

    def evaluate(self, images: np.ndarray) -> tuple[np.ndarray, Tensors]:
        """Logits of the network as called, and every named map."""
        forward = compiled(_forward, polished=self.dtype is not np.float64)
        outputs = forward(self.model, jnp.asarray(images, self.dtype))
        logits, maps = jax.tree.map(np.asarray, outputs)
        return logits, maps

    def step(self, images: np.ndarray, labels: np.ndarray) -> Step:
        """One training step on a copy: the model stays as it is."""
        return self._step(images, labels, self._start())[0]

    def sgd(self, images: np.ndarray, labels: np.ndarray) -> Tensors:
        """All tensors after STEPS steps of SGD with momentum on one batch, by foreign name."""
        now = self._start()
        for _ in range(STEPS):
            now = self._step(images, labels, now)[1]
        _, params, statistics, _ = now
        return self.foreign(flatten(params) | flatten(statistics))

    def _start(self) -> Any:
        training = nnx.view(self.model, use_running_average=False)
        graph, params, statistics = nnx.split(training, nnx.Param, nnx.BatchStat)
        return graph, params, statistics, _sgd().init(params)

    def _step(self, images: np.ndarray, labels: np.ndarray, now: Any) -> tuple[Step, Any]:
        graph, *state = now
        small = images.shape[1] < 100
        train = compiled(_train, polished=not small or self.dtype is not np.float64)
        (loss, (logits, statistics)), gradients, params, moments = train(
            graph, *state, jnp.asarray(images, self.dtype), jnp.asarray(labels)
        )
        step = Step(
            np.asarray(logits),
            np.asarray(loss),
            self.foreign(flatten(gradients)),
            self.foreign(flatten(statistics)),
        )
        return step, (graph, params, statistics, moments)


@functools.cache
def compiled(function: Callable[..., Any], polished: bool = True) -> Callable[..., Any]:
    """The function jitted, once for all objects of a kind.

    Unpolished machine code is ready in half the time and runs slower: worth it for a few calls on
    small images in float64. Float32 is always compiled as users compile it, since polishing changes
    roundings.
    """
    return jax.jit(function, compiler_options=None if polished else UNPOLISHED)


def _sgd() -> optax.GradientTransformation:
    return optax.sgd(LEARNING_RATE, momentum=MOMENTUM)


def _forward(model: Any, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    return model(images), model.features(images)


def _train(
    graph: Any, params: Any, statistics: Any, moments: Any, images: jax.Array, labels: jax.Array
) -> Any:
    def objective(params: Any) -> Any:
        model = nnx.merge(graph, params, statistics, copy=True)
        logits = model(images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (logits, nnx.state(model, nnx.BatchStat))

    outputs, gradients = jax.value_and_grad(objective, has_aux=True)(params)
    updates, moments = _sgd().update(gradients, moments, params)
    return outputs, gradients, optax.apply_updates(params, updates), moments
