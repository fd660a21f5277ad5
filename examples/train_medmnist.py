"""Train ResNet-18, DenseNet-121 and Xception on one data set and compare them.

    python examples/train_medmnist.py                          # the phantom: synthetic, offline
    python examples/train_medmnist.py --dataset breastmnist    # real images, fetched once

Each network and seed gets a run directory of its own under --out; the comparison is printed and
written beside them. A command that was interrupted goes on where it stopped when it is given again.
The README says what to expect of it, and how long it takes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flaxmed.cli import run_command
from flaxmed.data import load_dataset
from flaxmed.evaluation import evaluate_run, write_comparison
from flaxmed.training import AugmentConfig, TrainConfig, train

# The phantom shows much in little: a few epochs of the networks as published, which shrink an
# image at once, take minutes on two CPU cores (real images of 28 to 64 px get the small stem). Its
# classes differ in size and shape, so of all augmentations only flips leave them what they are.
PHANTOM = {"epochs": 6, "stem": "imagenet", "augment": AugmentConfig(flips=True)}


def main() -> None:
    """Parse, train each network with each seed, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--dataset", default="phantom", help="a name (flaxmed datasets lists them) or FILE.npz"
    )
    parser.add_argument(
        "--models", nargs="+", default=["resnet18", "densenet121", "xception"], metavar="MODEL"
    )
    parser.add_argument("--size", type=int, help="image side in pixels, where there is a choice")
    parser.add_argument("--recipe", default="default", help="default or medmnist")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument("--data-dir", type=Path, help="where data files lie or go")
    parser.add_argument("--out", type=Path, help="default: runs/DATASET[-SIZE]")
    args = parser.parse_args()

    changes = dict(PHANTOM) if args.dataset == "phantom" and args.recipe == "default" else {}
    if args.epochs is not None:
        changes["epochs"] = args.epochs
    name = Path(args.dataset).stem.replace(":", "-") + (f"-{args.size}" if args.size else "")
    out = args.out or Path("runs") / name

    configs = [
        TrainConfig.from_recipe(
            args.recipe, dataset=args.dataset, size=args.size, model=model, seed=seed, **changes
        )
        for model in args.models
        for seed in args.seeds
    ]
    dataset = load_dataset(args.dataset, size=args.size, data_dir=args.data_dir)
    run_dirs = []
    for config in configs:
        run = train(config, dataset, out=out / f"{config.model}-seed{config.seed}")
        evaluate_run(run.dir)
        run_dirs.append(run.dir)
    print(write_comparison(run_dirs, out))
    print(f"\ntable, figures and predictions: {out}")


if __name__ == "__main__":
    sys.exit(run_command(main))
