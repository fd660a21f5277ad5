"""flaxmed's side of the benchmark."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from flaxmed.benchmark.setting import Setting
from flaxmed.models import create_model
from flaxmed.summary import summarize
from flaxmed.training.step import init_state, make_train_step
from flaxmed.types import Preprocessing, Task


class JaxNetwork:
    """One of flaxmed's networks, its training step compiled."""

    name = "flaxmed"

    def __init__(self, network: str, setting: Setting):
        size, channels, classes = setting.size, setting.channels, setting.classes
        batch = setting.batch
        model = create_model(
            network,
            classes,
            in_channels=channels,
            stem=setting.stem,
            dtype=jnp.dtype(setting.dtype),
            rngs=nnx.Rngs(0),
        )
        table = summarize(model, (size, size, channels))
        self.parameters, self.multiply_adds = table.parameters, table.multiply_adds
        optimizer = optax.sgd(1e-3, momentum=0.9)
        self._state = init_state(model, optimizer)
        step: Any = make_train_step(
            model, optimizer, task=Task.MULTICLASS, preprocessing=Preprocessing()
        )
        rng = np.random.default_rng(0)
        shape = (batch, size, size, channels)
        self._batch = {
            "images": jnp.asarray(rng.integers(0, 256, shape, np.uint8)),
            "labels": jnp.asarray(rng.integers(0, classes, batch)),
            "rows": jnp.arange(batch),
            "mask": jnp.ones(batch, bool),
            "epoch": jnp.asarray(0),
        }
        start = time.perf_counter()
        self._step = step.lower(self._state, self._batch).compile()
        self.compile_seconds = time.perf_counter() - start
        used = self._step.memory_analysis()
        self.memory = None if used is None else int(used.temp_size_in_bytes)

        graphdef, weights = nnx.split(nnx.view(model, use_running_average=True))
        self._infer = jax.jit(lambda weights, x: nnx.merge(graphdef, weights)(x))
        self._weights = jax.tree.map(jnp.copy, weights)  # a training step consumes its own
        self._images = {
            n: jnp.asarray(rng.normal(size=(n, *shape[1:])), jnp.float32) for n in {1, batch}
        }

    def train_step(self) -> None:
        """One step on the same batch."""
        self._state, _ = self._step(self._state, self._batch)
        jax.block_until_ready(self._state)

    def infer(self, images: int) -> None:
        """Logits of ``images`` images: one, or a batch."""
        result: Any = self._infer(self._weights, self._images[images])
        jax.block_until_ready(result)
