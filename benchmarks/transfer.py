"""What does it cost to start from weights, and what does it bring? Beside training from scratch.

    python benchmarks/transfer.py --dataset breastmnist --size 64 \\
        --json benchmarks/results/transfer_breastmnist.json

A network is trained on a phantom of the other's size, and from there in every way that there is:
all of it, its last stages alone, its classifier alone (the linear probe, twice: features are
computed the first time, read the second). Weights of ImageNet would say more of real images; the
times are the same. AUC is that of the test split, the difference paired by image.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from timed_training import machine

from flaxmed import evaluate
from flaxmed.data import load_dataset
from flaxmed.data.phantom import load_phantom
from flaxmed.evaluation.paired import auc_difference
from flaxmed.training import FineTuneConfig, Run, TrainConfig, probe, train
from flaxmed.training.rundir import write_json
from flaxmed.types import Dataset

# the last tenth or so of each network's depth, and about half of its parameters
LAST_STAGES = {"resnet18": "stage4", "densenet121": "stage4", "xception": "exit1"}


def with_few(dataset: Dataset, images: int | None) -> Dataset:
    """The data with so many training images, drawn at random; None: with all."""
    if images is None:
        return dataset
    rows = np.random.default_rng(0).permutation(len(dataset.train))[:images]
    split = dataset.train
    few = dataclasses.replace(
        split,
        images=split.images[rows],
        labels=split.labels[rows],
        ids=split.ids[rows],
        groups=None if split.groups is None else split.groups[rows],
    )
    return dataclasses.replace(dataset, train=few)


def ways(model: str, start: str) -> dict[str, dict[str, Any]]:
    """By name what of the settings makes the way."""
    last, head = FineTuneConfig(train_from=LAST_STAGES[model]), FineTuneConfig(linear_probe=True)
    return {
        "from scratch": {"stem": "imagenet"},
        "fine-tuned": {"weights": start},
        f"from {last.train_from} on": {"weights": start, "finetune": last},
        "linear probe": {"weights": start, "finetune": head},
        "linear probe again": {"weights": start, "finetune": head},
    }


def without_kept_features(folder: Path) -> None:
    """Keep features in a folder of this measurement's own, empty at first."""
    shutil.rmtree(folder, ignore_errors=True)
    probe.cache_dir = lambda: folder


def timed(config: TrainConfig, data: Dataset, out: Path) -> tuple[Run, float]:
    """The run, and the seconds that it took, evaluation and compilation included."""
    began = time.perf_counter()
    run = train(config, data, out=out, progress=False)
    return run, time.perf_counter() - began


def measure(model: str, args: argparse.Namespace, data: Dataset) -> list[dict[str, Any]]:
    """A row for every way to train one network."""
    size = data.train.images.shape[1]
    first = load_phantom(size, n_train=args.pretrain_images, config=args.pretrain)
    settings = TrainConfig(model=model, stem="imagenet", epochs=args.pretrain_epochs)
    place = args.out / model
    start, seconds = timed(settings, first, place / "pretrained")
    print(f"{model}: pretrained on {args.pretrain} in {seconds:.0f} s", flush=True)
    without_kept_features(place / "cache")
    rows: list[dict[str, Any]] = []
    scratch = None
    for name, changes in ways(model, str(start.dir)).items():
        config = TrainConfig(model=model, epochs=args.epochs, batch_size=args.batch_size, **changes)
        run_dir = place / name.replace(" ", "-")
        if args.ways and name in args.ways:
            shutil.rmtree(run_dir, ignore_errors=True)
        run, seconds = timed(config, data, run_dir)
        made = run.predictions["test"]
        auc = evaluate(made)["auc"]
        row = {
            "model": model,
            "way": name,
            "seconds": round(seconds, 2),
            "train_seconds": run.summary["train_seconds"],
            "linear_probe": {
                key: value
                for key, value in run.summary.get("linear_probe", {}).items()
                if key != "tried"
            },
            "auc": [auc.value, auc.low, auc.high],
        }
        line = f"{seconds:.1f} s, AUC {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})"
        if scratch is None:
            scratch = made
        else:
            gained = auc_difference([made], [scratch])
            low, high = gained.interval.low, gained.interval.high
            row["gained"] = [gained.value, low, high]
            line += f", gained {gained.value:+.3f} ({low:+.3f} to {high:+.3f})"
        if args.ways and name not in args.ways:
            continue  # finished before, and read back
        rows.append(row)
        print(f"{model}, {name}: {line}", flush=True)
    return rows


def main() -> None:
    """Train in every way, print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", default="breastmnist")
    parser.add_argument("--size", type=int)
    parser.add_argument("--images", type=int, help="train on so many only")
    parser.add_argument("--models", nargs="+", default=list(LAST_STAGES))
    parser.add_argument("--pretrain", default="phantom-ring", help="the phantom to begin with")
    parser.add_argument("--pretrain-images", type=int, default=1024)
    parser.add_argument("--pretrain-epochs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--ways", nargs="+", help="only these again; the others are in --out")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    if args.ways is None and args.out.exists():
        parser.error(f"--out: {args.out} is there; finished runs would be read back, not timed")
    data = with_few(load_dataset(args.dataset, size=args.size), args.images)
    rows = [] if args.ways is None else json.loads(args.json.read_text())["rows"]
    for model in args.models:
        new = {(row["model"], row["way"]): row for row in measure(model, args, data)}
        rows = [new.pop((row["model"], row["way"]), row) for row in rows] + list(new.values())
        if args.json:
            settings = {k: v for k, v in vars(args).items() if k not in ("out", "json", "ways")}
            write_json(args.json, {**machine(), **settings, "rows": rows})


if __name__ == "__main__":
    main()
