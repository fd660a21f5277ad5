"""Every format of weights, loaded by flaxmed: its logits beside those of the library they are from.

    python benchmarks/weights.py --json benchmarks/results/weights.json

Each library writes a file of its own network, with random weights and running statistics, and runs
it; flaxmed loads the file and runs the same images, in float32 (``weight_sources.py``). MONAI,
torchxrayvision, KerasHub and segmentation-models-pytorch have rows where they are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from timed_training import machine
from weight_sources import CLASSES, SOURCES, Source

from flaxmed.models import create_model, list_models
from flaxmed.models.weights import load_weights, open_weights
from flaxmed.training.rundir import write_json
from flaxmed.verify.verification import TOLERANCE

NAMES = {"resnet18": "ResNet-18", "densenet121": "DenseNet-121", "xception": "Xception"}
USUAL = {"resnet18": 224, "densenet121": 224, "xception": 299}
PACKAGES = ("torch", "torchvision", "timm", "keras", "keras_hub", "monai", "torchxrayvision")
PACKAGES += ("segmentation_models_pytorch", "safetensors", "h5py")


def installed(package: str) -> str | None:
    """The version of a package; None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@nnx.jit
def outputs(model: Any, images: Any) -> Any:
    """Logits, and the maps that the head takes."""
    final = model.features(images)["final"]
    return model.head(final), final


def measure(source: Source, *, images: int, size: int | None) -> dict[str, Any]:
    """One row: what was loaded, what was left out and why, how far the logits are apart."""
    side = source.size or size or USUAL[source.network]
    with tempfile.TemporaryDirectory() as folder:
        path, library = source.write(Path(folder), side)
        weights = open_weights(path)
        kind = weights.kind
        model: Any = create_model(
            kind.network,
            kind.num_classes or CLASSES,
            in_channels=kind.in_channels,
            stem=kind.stem,
            variant=weights.variant,
            rngs=nnx.Rngs(0),
        )
        report = load_weights(model, weights)
    shape = (images, side, side, source.channels)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    theirs = library(x)
    ours = np.asarray(outputs(model, jnp.asarray(x))[0 if source.head else 1])
    dropped: dict[str, list[str]] = {}
    for name, reason in report.dropped.items():
        dropped.setdefault(reason, []).append(name)
    return {
        "format": source.format,
        "network": kind.network,
        "library": source.packages[0],
        "variant": weights.variant,
        "size": side,
        "channels": source.channels,
        "compared": "logits" if source.head else "last maps",
        "tensors_loaded": len(report.loaded),
        "left_out": dropped,
        "new": list(report.kept),
        "largest": float(np.abs(theirs).max()),
        "worst_difference": float(np.abs(ours - theirs).max()),
    }


def measure_all(
    sources: Iterable[Source], **options: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and a line for each source whose library is not installed."""
    rows, absent = [], []
    for source in sources:
        missing = [package for package in source.packages if installed(package) is None]
        if missing:
            absent.append(f"{source.format}, {source.network}: {missing[0]} is not installed")
            continue
        with contextlib.redirect_stderr(io.StringIO()):  # what is said of each load
            rows.append(measure(source, **options))
        print(line(rows[-1]), flush=True)
    return rows, absent


def line(row: Mapping[str, Any]) -> str:
    """What is printed of a row."""
    left = ", ".join(f"{len(names)} {_last(names)}" for names in row["left_out"].values())
    return (
        f"{row['format']}, {row['network']}: {row['tensors_loaded']} tensors loaded, left out "
        f"{left or 'none'}; {row['compared']} up to {row['largest']:.3g}, worst difference "
        f"{row['worst_difference']:.1e}"
    )


def _last(names: Sequence[str]) -> str:
    return names[0].rpartition(".")[2]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each format, a column for each network, in Markdown; and what was left out."""
    found = {(row["format"], row["network"]): row for row in rows}
    lines = [f"| {' | '.join(['worst difference (largest value)', *NAMES.values()])} |"]
    lines.append("|---|" + "---:|" * len(NAMES))
    for name in dict.fromkeys(row["format"] for row in rows):
        cells = [_cell(found.get((name, network))) for network in NAMES]
        lines.append(f"| {' | '.join([name, *cells])} |")
    left: dict[str, list[str]] = {}
    for row in rows:
        for reason, names in row["left_out"].items():
            shown = f"{len(names)} of {NAMES[row['network']]}"
            left.setdefault(f"`{_last(names)}` ({reason})", []).append(shown)
    lines += ["", "Left out by name:"]
    return lines + [f"- {what}: {', '.join(dict.fromkeys(of))}" for what, of in left.items()]


def _cell(row: Mapping[str, Any] | None) -> str:
    return f"{row['worst_difference']:.0e} ({row['largest']:.2g})" if row else "–"


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table; 1 if any row is beyond the tolerance of ``verify-weights``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list_models(), default=list_models())
    parser.add_argument("--formats", nargs="+", help="only formats that begin so")
    parser.add_argument("--size", type=int, help="side of the images; the network's usual")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(argv)
    begins = tuple(args.formats or [""])
    wanted = [s for s in SOURCES if s.network in args.networks and s.format.startswith(begins)]
    rows, absent = measure_all(wanted, images=args.images, size=args.size)
    print("\n".join([*absent, "", *table(rows)]))
    if args.json:
        about = machine()
        about["versions"] |= {name: found for name in PACKAGES if (found := installed(name))}
        facts = {"images": args.images, "tolerance": TOLERANCE, "not_measured": absent}
        write_json(args.json, {**about, **facts, "rows": rows})
    # NaN is not within
    return int(not all(row["worst_difference"] <= TOLERANCE * row["largest"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
