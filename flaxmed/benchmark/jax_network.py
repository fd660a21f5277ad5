"""flaxmed's side of the benchmark."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from flaxmed.benchmark.restart import time_compilation
from flaxmed.benchmark.setting import Setting
from flaxmed.models import create_model
from flaxmed.summary import summarize
from flaxmed.training.memory import device_peak, kept_for_gradients
from flaxmed.training.step import init_state, make_train_step
from flaxmed.types import Preprocessing, Task


class JaxNetwork:
    """One of flaxmed's networks, its training step compiled."""

    name = "flaxmed"

    def __init__(self, network: str, setting: Setting):
        size, channels, classes = setting.size, setting.channels, setting.classes
        batch = setting.batch
        self._peak_before = device_peak()
        model = create_model(
            network,
            classes,
            in_channels=channels,
            stem=setting.stem,
            dtype=jnp.dtype(setting.dtype),
            remat=setting.remat,
            rngs=nnx.Rngs(0),
        )
        table = summarize(model, (size, size, channels))
        self.parameters, self.multiply_adds = table.parameters, table.multiply_adds
        optimizer = optax.sgd(1e-3, momentum=0.9)
        self._state = init_state(model, optimizer)
        rng = np.random.default_rng(0)
        shape = (batch, size, size, channels)
        self._batch = {
            "images": jnp.asarray(rng.integers(0, 256, shape, np.uint8)),
            "labels": jnp.asarray(rng.integers(0, classes, batch)),
            "rows": jnp.arange(batch),
            "mask": jnp.ones(batch, bool),
            "epoch": jnp.asarray(0),
        }
        self.activations = kept_for_gradients(model, self._batch)
        found = time_compilation(
            functools.partial(self._compiled, model, optimizer), restart=setting.restart
        )
        self._step, self.compile_seconds = found.program, found.seconds
        self.restart_seconds, self.restart_cached = found.restart_seconds, found.cached
        used = self._step.memory_analysis()
        self.memory = None if used is None else int(used.temp_size_in_bytes)
        self.bytes_accessed = _bytes_accessed(self._step)

        graphdef, weights = nnx.split(nnx.view(model, use_running_average=True))
        self._infer = jax.jit(lambda weights, x: nnx.merge(graphdef, weights)(x))
        self._weights = jax.tree.map(jnp.copy, weights)  # a training step consumes its own
        self._images = {
            n: jnp.asarray(rng.normal(size=(n, *shape[1:])), jnp.float32) for n in {1, batch}
        }

    def _compiled(self, model: nnx.Module, optimizer: optax.GradientTransformation) -> Any:
        """The training step, traced and compiled anew at each call."""
        step: Any = make_train_step(
            model, optimizer, task=Task.MULTICLASS, preprocessing=Preprocessing()
        )
        return step.lower(self._state, self._batch).compile()

    @property
    def peak(self) -> int | None:
        """The most bytes in use on the device; None where an earlier network needed as many."""
        now = device_peak()
        return None if now is None or now <= (self._peak_before or 0) else now

    def train_step(self) -> None:
        """One step on the same batch."""
        self._state, _ = self._step(self._state, self._batch)
        jax.block_until_ready(self._state)

    def infer(self, images: int) -> None:
        """Logits of ``images`` images: one, or a batch."""
        result: Any = self._infer(self._weights, self._images[images])
        jax.block_until_ready(result)


def _bytes_accessed(compiled: Any) -> int | None:
    """By one call of a compiled program, as XLA's analysis has it; None where it has none."""
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) and analysis else analysis
    found = analysis.get("bytes accessed") if isinstance(analysis, dict) else None
    return None if found is None else int(found)
