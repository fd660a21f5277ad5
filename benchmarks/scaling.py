"""How far data parallelism carries the three networks: measured steps, counted bytes, a cost model.

    python benchmarks/scaling.py --json benchmarks/results/scaling.json
    python benchmarks/scaling.py --page        writes the tables of examples/launch/README.md anew

What passes between devices is counted in the program that XLA makes of a training step for eight of
them: the gradients, which can be summed while the backward pass goes on, and the statistics of each
BatchNorm, forward and back, for which every layer waits. An all-reduce of ``s`` bytes over ``p``
devices is taken to cost ``2 (p - 1) / p * s / bandwidth + 2 log2(p) * latency`` (Thakur et al.
2005, section 4.5: reduce-scatter, then all-gather). The time of a step on one device is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from timed_training import machine

from flaxmed.models import create_model
from flaxmed.training import OptimizerConfig
from flaxmed.training.optimizer import make_optimizer
from flaxmed.training.rundir import write_json
from flaxmed.training.sharding import make_mesh
from flaxmed.training.step import init_state, make_step_function
from flaxmed.types import Preprocessing, Task

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "examples" / "launch" / "README.md"
BLOCK = re.compile(r"(<!-- scaling -->\n).*?(<!-- end -->)", re.DOTALL)
NETWORKS = {"resnet18": "ResNet-18", "densenet121": "DenseNet-121", "xception": "Xception"}
SIZE, CLASSES = 224, 8
DEVICES = (8, 64, 512)
BATCHES = (256, 32)  # images of a step on each device
_REDUCE = re.compile(r"= (?P<shapes>.*?) all-reduce(?:-start)?\(")
_SHAPE = re.compile(r"(?P<type>[a-z]+)(?P<bits>\d+)\[(?P<extents>[\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Link:
    """What connects devices: bytes per second of one device, and seconds of one message."""

    bandwidth: float
    latency: float


# Of one device, one way, by their makers; the latency is what one step of a collective takes in
# practice (NCCL's own model counts 5 to 25 us between nodes).
LINKS = {
    "NVLink 4": Link(450e9, 3e-6),
    "InfiniBand NDR, a port each": Link(50e9, 10e-6),
    "Ethernet, 10 Gb/s each": Link(1.25e9, 50e-6),
}


def count(network: str, devices: int = 8) -> dict[str, int]:
    """The all-reduces of a training step: how many, and their bytes; of these, what layers wait for
    ("statistics")."""
    model = nnx.eval_shape(lambda: create_model(network, CLASSES, rngs=nnx.Rngs(0)))
    plain = OptimizerConfig(name="sgd", schedule="constant", warmup_epochs=0, clip_norm=None)
    optimizer = make_optimizer(plain, epochs=1, steps_per_epoch=1)
    mesh = make_mesh(jax.devices()[:devices])
    whole, split = (NamedSharding(mesh, PartitionSpec(*s)) for s in ((), ("data",)))
    function = make_step_function(
        model,
        optimizer,
        task=Task.MULTICLASS,
        preprocessing=Preprocessing(),
        lowering="xla",  # the quickest to compile; what passes between devices is the same
    )
    state = jax.eval_shape(lambda: init_state(model, optimizer))
    n = 2 * devices
    batch = {
        "images": jax.ShapeDtypeStruct((n, SIZE, SIZE, 3), jnp.uint8, sharding=split),
        "labels": jax.ShapeDtypeStruct((n,), jnp.int32, sharding=split),
        "rows": jax.ShapeDtypeStruct((n,), jnp.int32, sharding=split),
        "mask": jax.ShapeDtypeStruct((n,), jnp.bool_, sharding=split),
        "epoch": jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
    }
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), state
    )
    options = {"xla_backend_optimization_level": 0}
    step = jax.jit(lambda state, batch: function(state, batch, 0), out_shardings=whole)
    text = step.lower(placed, batch).compile(compiler_options=options).as_text()
    found = [match["shapes"] for match in _REDUCE.finditer(text)]
    # Where kernels' gradients are among what is summed at once, nothing in the step waits for it.
    waited_for = [shapes for shapes in found if not _has_kernels(shapes)]
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "all_reduces": len(found),
        "bytes": sum(map(_bytes, found)),
        "statistics": len(waited_for),
        "statistics_bytes": sum(map(_bytes, waited_for)),
    }


def _has_kernels(shapes: str) -> bool:
    return any("," in match["extents"] for match in _SHAPE.finditer(shapes))


def _bytes(shapes: str) -> int:
    return sum(
        math.prod(int(extent) for extent in match["extents"].split(",") if extent)
        * int(match["bits"])
        // 8
        for match in _SHAPE.finditer(shapes)
    )


def all_reduce_seconds(size: float, devices: int, link: Link) -> float:
    """The cost model: bytes that every device sends and receives, and the rounds it takes.

    Example:
        >>> round(all_reduce_seconds(45e6, 8, LINKS["NVLink 4"]) * 1e6)
        193
    """
    sent = 2 * (devices - 1) / devices * size
    return sent / link.bandwidth + 2 * math.log2(devices) * link.latency


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A step on many devices, each with the same number of images.

    Attributes:
        step: seconds of computation.
        statistics: seconds that the layers wait for BatchNorm's sums.
        gradients: seconds of summing the gradients, of which two thirds of a step (the backward
            pass) can hide as much.
    """

    step: float
    statistics: float
    gradients: float

    @property
    def efficiency(self) -> float:
        """Computation's share of the whole."""
        exposed = max(0.0, self.gradients - 2 / 3 * self.step)
        return self.step / (self.step + self.statistics + exposed)


def scaled(step: float, counted: Mapping[str, int], devices: int, link: Link) -> Scaled:
    """What a step takes on so many devices."""
    number, size = counted["statistics"], counted["statistics_bytes"]
    return Scaled(
        step=step,
        statistics=number * all_reduce_seconds(size / number, devices, link),
        gradients=all_reduce_seconds(counted["bytes"] - size, devices, link),
    )


def measured() -> list[tuple[str, str, int, float]]:
    """Network, card, images of a step and its seconds, from what was measured on GPUs."""
    rows = []
    for path in sorted(RESULTS.glob("gpu_*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, row in found["rows"].items():
            if name.startswith("train ") and "contestants" in row:
                ours = next(c for c in row["contestants"] if c["contestant"] == "flaxmed")
                batch = row["setting"]["batch"]
                seconds = batch / ours["train_images_per_second"]
                rows.append((ours["network"], found["device"], batch, seconds))
    return sorted(rows, key=lambda row: list(NETWORKS).index(row[0]))


def tables(counted: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The page's tables, as Markdown."""
    lines = [
        "| of a step | parameters | gradients, MB | sums that layers wait for | their MB |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, counts in counted.items():
        gradients = (counts["bytes"] - counts["statistics_bytes"]) / 1e6
        lines.append(
            f"| {NETWORKS[name]} | {counts['parameters']:,} | {gradients:.1f} | "
            f"{counts['statistics']} | {counts['statistics_bytes'] / 1e6:.2f} |"
        )
    titles = ["network", "images", "step, ms", "link", *(f"{p} devices" for p in DEVICES)]
    lines += ["", f"| {' | '.join(titles)} |", "|---|---:|---:|---|" + "---:|" * len(DEVICES)]
    for network, _, batch, seconds in measured():
        for share in BATCHES:
            step = seconds * share / batch
            at = f"{NETWORKS[network]} | {share} | {1e3 * step:.1f}"
            for title, link in LINKS.items():
                parts = [scaled(step, counted[network], p, link).efficiency for p in DEVICES]
                cells = " | ".join(f"{part:.0%}" for part in parts)
                lines.append(f"| {at} | {title} | {cells} |")
    cards = sorted({card for _, card, _, _ in measured()})
    return [*lines, "", f"Steps of {SIZE} px in bfloat16 as measured on: {', '.join(cards)}."]


def main() -> None:
    """Count, or take what was counted; print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="count, and write the counts here")
    parser.add_argument("--page", action="store_true", help="write the tables into the page")
    args = parser.parse_args()
    path = args.json or RESULTS / "scaling.json"
    if args.json:
        counts = {name: count(name) for name in NETWORKS}
        links = {title: dataclasses.asdict(link) for title, link in LINKS.items()}
        write_json(path, {**machine(), "size": SIZE, "links": links, "counts": counts})
    lines = tables(json.loads(path.read_text(encoding="utf-8"))["counts"])
    print("\n".join(lines))
    if args.page:
        text = PAGE.read_text(encoding="utf-8")
        made = BLOCK.sub(lambda block: "\n".join([block[1] + lines[0], *lines[1:], block[2]]), text)
        PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
