"""Compare training recipes on validation splits: how `default` was chosen, and whether it holds.

    python benchmarks/recipes.py --datasets breastmnist pneumoniamnist retinamnist --seeds 0 1 2

`benchmarks/results/recipes_breastmnist.json` holds what the choice rests on so far: six candidates,
two seeds each, on one data set of 78 validation images, where seeds differ by 0.02 in AUC.
`recipes_retinamnist.json` sets it beside the published recipe on another (120 images, one seed).

Test splits are never looked at. Each line is the mean over seeds of the best epoch's validation
AUC, with its range; the JSON holds every run's curve. The imagenet stem at 28 px makes a run take a
minute or two on two CPU cores, where the small stem takes ten; --stem small repeats it there.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import flaxmed
from flaxmed.data import load_dataset
from flaxmed.training import AugmentConfig, OptimizerConfig, TrainConfig, train
from flaxmed.training.rundir import versions, write_json

ADAMW = OptimizerConfig()
MILD = AugmentConfig(flips=True, rotation=10, shift=0.1, scale=0.1, intensity=0.1)

# name -> the recipe it starts from, and what differs from it
CANDIDATES: dict[str, tuple[str, dict[str, Any]]] = {
    "medmnist": ("medmnist", {}),
    "default": ("default", {}),
    "no augmentation": ("default", {"augment": AugmentConfig()}),
    "mild augmentation": ("default", {"augment": MILD}),
    "stronger augmentation": (
        "default",
        {"augment": AugmentConfig(flips=True, rotation=20, shift=0.15, scale=0.2, intensity=0.2)},
    ),
    "mild, batch 32": ("default", {"augment": MILD, "batch_size": 32}),
    "rate 3e-4": ("default", {"optimizer": dataclasses.replace(ADAMW, learning_rate=3e-4)}),
    "rate 3e-3": ("default", {"optimizer": dataclasses.replace(ADAMW, learning_rate=3e-3)}),
    "SGD rate 0.05": (
        "default",
        {
            "optimizer": dataclasses.replace(
                ADAMW, name="sgd", learning_rate=0.05, weight_decay=5e-4
            )
        },
    ),
    "own momentum": ("default", {"batch_norm_momentum": None}),
}


def main() -> None:
    """Train every candidate on every data set with every seed, then print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["breastmnist"])
    parser.add_argument("--recipes", nargs="+", default=list(CANDIDATES), choices=CANDIDATES)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--stem", default="imagenet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()

    rows = []
    for dataset_name in args.datasets:
        dataset = load_dataset(dataset_name)
        for recipe in args.recipes:
            for seed in args.seeds:
                base, changes = CANDIDATES[recipe]
                config = TrainConfig.from_recipe(
                    base,
                    dataset=dataset_name,
                    model=args.model,
                    stem=args.stem,
                    seed=seed,
                    **changes,
                )
                slug = f"{args.model}-{recipe.replace(' ', '_')}-seed{seed}"
                out = args.out / dataset_name / args.stem / slug
                run = train(config, dataset, out=out, progress=False)
                rows.append(
                    {
                        "dataset": dataset_name,
                        "model": args.model,
                        "stem": args.stem,
                        "recipe": recipe,
                        "seed": seed,
                        "epochs": config.epochs,
                        "train_seconds": run.summary["train_seconds"],
                        "val_auc": [row["val_auc"] for row in run.history],
                        "val_loss": [row["val_loss"] for row in run.history],
                    }
                )
            print(line(rows[-len(args.seeds) :]), flush=True)
    if args.json:
        write_json(
            args.json,
            {
                "command": shlex.join(["python", *sys.argv]),
                "date": time.strftime("%Y-%m-%d"),
                "machine": f"{platform.machine()}, CPU",
                "flaxmed": flaxmed.__version__,
                "versions": versions(),
                "rows": rows,
            },
        )


def line(rows: list[dict]) -> str:
    """One candidate on one data set: best validation AUC and mean AUC of the last five epochs."""
    best = [max(row["val_auc"]) for row in rows]
    late = [float(np.mean(row["val_auc"][-5:])) for row in rows]
    loss = [min(row["val_loss"]) for row in rows]
    seconds = np.mean([row["train_seconds"] for row in rows])
    return (
        f"{rows[0]['dataset']:<16}{rows[0]['recipe']:<23}"
        f"best AUC {np.mean(best):.4f} ({min(best):.4f} to {max(best):.4f})  "
        f"last five {np.mean(late):.4f}  lowest loss {np.mean(loss):.4f}  {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
