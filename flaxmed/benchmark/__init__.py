"""What `flaxmed bench` runs: what a network costs, here and beside PyTorch.

All contestants live in one process and take turns (A B A B ...), so that a change of the machine's
pace meets them alike; what is compared are medians. Each runs once before it is timed, and a timing
ends when the device has finished.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from flaxmed.benchmark.jax_network import JaxNetwork
from flaxmed.benchmark.pytorch import PyTorchNetwork, pytorch_version
from flaxmed.benchmark.setting import Setting
from flaxmed.models import list_models, native
from flaxmed.training.rundir import versions
from flaxmed.types import InputError

__all__ = ["Cost", "Network", "Setting", "about", "measure", "measure_ceiling", "table"]

_PAUSE = 0.2  # seconds in which the other contestant's threads stop spinning


class Network(Protocol):
    """A contestant: every call returns when its work is done.

    Attributes:
        name: ``"flaxmed"``, ``"PyTorch eager"``, ``"PyTorch compile"``.
        compile_seconds: from the first call for a training step to its end, less one step.
        parameters: trainable values.
    """

    name: str
    compile_seconds: float
    parameters: int

    def train_step(self) -> None:
        """One step: forward, gradients, update of SGD with momentum."""

    def infer(self, images: int) -> None:
        """Logits of one batch of ``images`` images, in evaluation mode."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one contestant's network costs.

    Attributes:
        contestant: whose.
        network: which.
        parameters: trainable values.
        multiply_adds: of one image's forward pass.
        compile_seconds: until the first training step ran, less one step.
        train_seconds: of each training step.
        infer_seconds: of each batch of inference.
        latency_seconds: of each single image.
        memory: bytes that a training step needs besides parameters and batch; None if unknown.
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

    def to_dict(self, batch: int, ceiling: float) -> dict[str, Any]:
        """Rates and latencies, and every timing, for JSON.

        Args:
            batch: images per step.
            ceiling: floating-point operations per second that the device was seen to reach.
        """
        train, infer = (
            batch / float(np.median(s)) for s in (self.train_seconds, self.infer_seconds)
        )
        p50, p99 = np.percentile(self.latency_seconds, [50, 99])
        return {
            "contestant": self.contestant,
            "network": self.network,
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "compile_seconds": round(self.compile_seconds, 2),
            "train_images_per_second": round(train, 2),
            "inference_images_per_second": round(infer, 2),
            "latency_ms": {"p50": round(1e3 * p50, 3), "p99": round(1e3 * p99, 3)},
            # Forward, and two products of the same size for the gradients.
            "train_share_of_ceiling": round(train * 6 * self.multiply_adds / ceiling, 3),
            "inference_share_of_ceiling": round(infer * 2 * self.multiply_adds / ceiling, 3),
            "memory_bytes": self.memory,
            "train_seconds": [round(value, 5) for value in self.train_seconds],
            "inference_seconds": [round(value, 5) for value in self.infer_seconds],
            "latency_seconds": [round(value, 6) for value in self.latency_seconds],
        }


def measure(network: str, setting: Setting) -> list[Cost]:
    """The cost of one network: flaxmed's first, then PyTorch's in each way that was asked for.

    Args:
        network: one of :func:`flaxmed.list_models`.
        setting: sizes, dtype, rounds.

    Raises:
        InputError: an unknown network, or PyTorch or timm not installed where they are wanted.

    Example:
        >>> setting = Setting(size=8, batch=2, rounds=1)
        >>> (cost,) = measure("resnet18", setting)
        >>> cost.parameters, len(cost.latency_seconds)
        (11172936, 5)
    """
    if network not in list_models():
        raise InputError(f"network must be one of {', '.join(list_models())}, got {network!r}")
    ours = JaxNetwork(network, setting)
    networks: list[Network] = [ours]
    networks += [PyTorchNetwork(network, setting, way) for way in setting.pytorch]
    train = _take_turns([n.train_step for n in networks], setting.rounds)
    infer = _take_turns(
        [functools.partial(n.infer, setting.batch) for n in networks], setting.rounds
    )
    single = _take_turns(
        [functools.partial(n.infer, 1) for n in networks], 5 * setting.rounds, pause=0
    )
    return [
        Cost(
            contestant=one.name,
            network=network,
            parameters=one.parameters,
            multiply_adds=ours.multiply_adds,
            compile_seconds=one.compile_seconds,
            train_seconds=train[i],
            infer_seconds=infer[i],
            latency_seconds=single[i],
            memory=getattr(one, "memory", None),
        )
        for i, one in enumerate(networks)
    ]


def _take_turns(
    calls: Sequence[Callable[[], None]], rounds: int, pause: float = _PAUSE
) -> list[tuple[float, ...]]:
    """Seconds of every call, round by round; each is called once before."""
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for i, call in enumerate(calls):
            if len(calls) > 1 and pause:
                time.sleep(pause)
            start = time.perf_counter()
            call()
            seconds[i].append(time.perf_counter() - start)
    return [tuple(some) for some in seconds]


def measure_ceiling(dtype: str = "float32", *, side: int | None = None) -> float:
    """Floating-point operations per second of a large matrix product: the best of seven.

    Args:
        dtype: of the matrices.
        side: of the matrices; None: 2,048 on a CPU, 8,192 elsewhere.

    Example:
        >>> measure_ceiling(side=64) > 0
        True
    """
    side = side or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        jax.block_until_ready(product(a))
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def about(setting: Setting) -> dict[str, Any]:
    """The machine, the versions and the setting, for the head of a JSON file."""
    device = jax.devices()[0]
    cpu = jax.default_backend() == "cpu"
    return {
        "device": f"{os.cpu_count()} cores, {_processor()}" if cpu else device.device_kind,
        "convolutions": (native.why_not() or "C++") if cpu else "XLA",
        "versions": versions() | ({"torch": pytorch_version()} if setting.pytorch else {}),
        "allocator": os.environ.get("GLIBC_TUNABLES", "default"),
        "date": time.strftime("%Y-%m-%d"),
        "setting": dataclasses.asdict(setting),
    }


def _processor() -> str:
    """The processor's name as the system knows it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.machine()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of :meth:`Cost.to_dict` as text, a line each; ratios are of flaxmed to the other."""
    head = ("network", "by", "training", "inference", "latency", "compile", "memory", "of ceiling")
    units = ("", "", "images/s", "images/s", "ms, p50", "s", "MB", "training")
    cells = [head, units]
    ours: dict[str, Any] = {}
    for row in rows:
        if row["contestant"] == "flaxmed":
            ours = row
        p50 = row["latency_ms"]["p50"]
        cells.append(
            (
                row["network"],
                row["contestant"],
                _beside(row["train_images_per_second"], ours["train_images_per_second"], row),
                _beside(
                    row["inference_images_per_second"], ours["inference_images_per_second"], row
                ),
                _beside(p50, p50 and p50 * p50 / ours["latency_ms"]["p50"], row),
                f"{row['compile_seconds']:.1f}",
                "-" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:.0f}",
                f"{row['train_share_of_ceiling']:.0%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _beside(value: float, ours: float, row: dict[str, Any]) -> str:
    """A rate, and how many times that flaxmed's is."""
    if row["contestant"] == "flaxmed":
        return f"{value:.1f}"
    return f"{value:.1f} (x{ours / value:.2f})"
