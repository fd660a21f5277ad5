"""What `flaxmed bench` runs: what a network costs, here and beside PyTorch.

All contestants live in one process and take turns (A B A B ...), so that a change of the machine's
pace meets them alike; what is compared are medians. Each runs for a while before it is timed, and a
timing ends when the device has finished.
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

from flaxmed.allocator import keep_freed_memory
from flaxmed.benchmark.ceiling import Ceiling, measure_ceiling
from flaxmed.benchmark.cost import Cost
from flaxmed.benchmark.jax_network import JaxNetwork
from flaxmed.benchmark.pytorch import PyTorchNetwork, pytorch_version
from flaxmed.benchmark.setting import Setting
from flaxmed.benchmark.text import closing_lines, ratios, table
from flaxmed.models import list_models, native
from flaxmed.training.rundir import versions
from flaxmed.types import InputError

__all__ = [
    "Ceiling",
    "Cost",
    "Network",
    "Setting",
    "about",
    "closing_lines",
    "measure",
    "measure_ceiling",
    "ratios",
    "table",
]

KINDS = ("train", "inference", "latency")
_PAUSE = 0.2  # seconds in which the other contestant's threads stop spinning
# Seconds in which a contestant runs untimed before it is timed again: after a pause the system lets
# threads share a core for some 50 ms before it gives each its own.
_WARM_UP = 0.1
_IN_A_ROW = 5  # single images of one contestant
# what not every contestant can tell
_OPTIONAL = (
    *("memory", "activations", "peak", "bytes_accessed"),
    *("restart_seconds", "restart_cached"),
)


class Network(Protocol):
    """A contestant: every call returns when its work is done.

    Attributes:
        name: ``"flaxmed"``, ``"PyTorch eager"``, ``"PyTorch compile"``.
        compile_seconds: until a training step can run, with nothing compiled before.
        parameters: trainable values.
    """

    name: str
    compile_seconds: float
    parameters: int

    def train_step(self) -> None:
        """One step: forward, gradients, update of SGD with momentum."""

    def infer(self, images: int) -> None:
        """Logits of one batch of ``images`` images, in evaluation mode."""


def measure(network: str, setting: Setting, kinds: Sequence[str] = KINDS) -> list[Cost]:
    """The cost of one network: flaxmed's first, then PyTorch's in each way that was asked for.

    Args:
        network: one of :func:`flaxmed.list_models`.
        setting: sizes, dtype, rounds.
        kinds: what is timed besides compilation: training steps, batches of inference, latency.

    Raises:
        InputError: an unknown network, or PyTorch or timm not installed where they are wanted.

    Example:
        >>> setting = Setting(size=8, batch=2, rounds=1)
        >>> (cost,) = measure("resnet18", setting, kinds=("train", "latency"))
        >>> cost.parameters, len(cost.latency_seconds), cost.infer_seconds
        (11172936, 5, ())
    """
    if network not in list_models():
        raise InputError(f"network must be one of {', '.join(list_models())}, got {network!r}")
    ours = JaxNetwork(network, setting)
    networks: list[Network] = [ours]
    networks += [PyTorchNetwork(network, setting, way) for way in setting.pytorch]
    nothing: list[tuple[float, ...]] = [()] * len(networks)
    train, infer, single = nothing, nothing, nothing
    if "train" in kinds:
        train = _take_turns([n.train_step for n in networks], setting.rounds)
    if "inference" in kinds:
        calls = [functools.partial(n.infer, setting.batch) for n in networks]
        infer = _take_turns(calls, setting.rounds)
    if "latency" in kinds:
        calls = [functools.partial(n.infer, 1) for n in networks]
        single = _take_turns(calls, setting.rounds, in_a_row=_IN_A_ROW)
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
            **{name: getattr(one, name, None) for name in _OPTIONAL},
        )
        for i, one in enumerate(networks)
    ]


def _take_turns(
    calls: Sequence[Callable[[], None]], rounds: int, *, in_a_row: int = 1
) -> list[tuple[float, ...]]:
    """Seconds of every call, round by round, each after some that are not timed."""
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for i, call in enumerate(calls):
            if len(calls) > 1:
                time.sleep(_PAUSE)
            start = time.perf_counter()
            while time.perf_counter() - start < _WARM_UP:
                call()
            for _ in range(in_a_row):
                start = time.perf_counter()
                call()
                seconds[i].append(time.perf_counter() - start)
    return [tuple(some) for some in seconds]


def about(setting: Setting) -> dict[str, Any]:
    """The machine, the versions and the setting, for the head of a JSON file."""
    device = jax.devices()[0]
    cpu = jax.default_backend() == "cpu"
    return {
        "device": f"{os.cpu_count()} cores, {_processor()}" if cpu else device.device_kind,
        "convolutions": (native.why_not() or "C++") if cpu else "XLA",
        "versions": versions() | ({"torch": pytorch_version()} if setting.pytorch else {}),
        "allocator": "keeps what is freed"
        if keep_freed_memory()
        else os.environ.get("GLIBC_TUNABLES", "default"),
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
