"""What a contestant's network costs, and the dictionary of it that a JSON file holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one contestant's network costs.

    Attributes:
        contestant: whose.
        network: which.
        parameters: trainable values.
        multiply_adds: of one image's forward pass.
        compile_seconds: until the training step could run, with nothing compiled before.
        train_seconds: of each training step; empty where it was not asked for, as are the next two.
        infer_seconds: of each batch of inference.
        latency_seconds: of each single image.
        memory: bytes that a training step needs besides parameters and batch; None if unknown, as
            are all that follow.
        activations: bytes that the forward pass of one batch keeps for the backward pass, see
            :func:`flaxmed.training.memory.activation_bytes`.
        peak: the most bytes of the accelerator's memory that were in use.
        bytes_accessed: by one training step, as XLA counts them.
        restart_seconds: until the training step could run again with the compilation cache full,
            see :func:`flaxmed.benchmark.restart.time_compilation`.
        restart_cached: whether it came from the cache then; one that compiles within a second is
            not kept there.

    Example:
        >>> cost = Cost("flaxmed", "resnet18", 10, 20, 1.5, (0.5,), (0.1,), (0.01,))
        >>> cost.to_dict(batch=8, ceiling=1e9)["train_images_per_second"]
        16.0
    """

    contestant: str
    network: str
    parameters: int
    multiply_adds: int
    compile_seconds: float
    train_seconds: tuple[float, ...]
    infer_seconds: tuple[float, ...]
    latency_seconds: tuple[float, ...]
    memory: int | None = None
    activations: int | None = None
    peak: int | None = None
    bytes_accessed: int | None = None
    restart_seconds: float | None = None
    restart_cached: bool | None = None

    def to_dict(self, batch: int, ceiling: float) -> dict[str, Any]:
        """Rates and latencies, and every timing, for JSON; None is what was not measured.

        Args:
            batch: images per step.
            ceiling: floating-point operations per second that the device was seen to reach.
        """
        train, infer = (_rate(batch, s) for s in (self.train_seconds, self.infer_seconds))
        p50, p99 = np.percentile(self.latency_seconds or np.nan, [50, 99]).tolist()
        return {
            "contestant": self.contestant,
            "network": self.network,
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "compile_seconds": round(self.compile_seconds, 2),
            "restart_seconds": _rounded(self.restart_seconds, 2),
            "restart_cached": self.restart_cached,
            "train_images_per_second": _rounded(train, 2),
            "inference_images_per_second": _rounded(infer, 2),
            "latency_ms": {"p50": _rounded(1e3 * p50, 3), "p99": _rounded(1e3 * p99, 3)},
            # Forward, and two products of the same size for the gradients.
            "train_share_of_ceiling": _share(train, 6 * self.multiply_adds, ceiling),
            "inference_share_of_ceiling": _share(infer, 2 * self.multiply_adds, ceiling),
            "memory_bytes": self.memory,
            "activation_bytes": self.activations,
            "peak_bytes": self.peak,
            "bytes_accessed": self.bytes_accessed,
            "train_seconds": [round(value, 5) for value in self.train_seconds],
            "inference_seconds": [round(value, 5) for value in self.infer_seconds],
            "latency_seconds": [round(value, 6) for value in self.latency_seconds],
        }


def _rate(batch: int, seconds: Sequence[float]) -> float | None:
    return batch / float(np.median(seconds)) if len(seconds) else None


def _share(rate: float | None, operations: int, ceiling: float) -> float | None:
    return None if rate is None else round(rate * operations / ceiling, 3)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or np.isnan(value) else round(value, digits)
