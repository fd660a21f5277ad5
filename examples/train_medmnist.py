"""Train ResNet-18, DenseNet-121 and Xception on one data set and compare them.

    python examples/train_medmnist.py                          # the phantom: synthetic, offline
    python examples/train_medmnist.py --dataset breastmnist    # real images, fetched once

Each network and seed gets a run directory of its own under --out, as `flaxmed train` names it; the
comparison is printed and written beside them. A command that was interrupted goes on where it
stopped when it is given again.
The README says what to expect of it, and how long it takes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flaxmed.cli import Parser, run_command
from flaxmed.data import load_dataset
from flaxmed.evaluation import evaluate_run, write_comparison
from flaxmed.training import TrainConfig, check_run, default_dir, train

# The phantom shows much in little: a few epochs of the networks as published, which shrink an
# image at once, take minutes on two CPU cores (real images of 28 to 64 px get the small stem).
PHANTOM = {"epochs": 6, "stem": "imagenet"}


def main() -> None:
    """Parse, train each network with each seed, compare."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
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
    parser.add_argument("--out", type=Path, help="default: runs/DATASET[_SIZE]")
    args = parser.parse_args()

    changes = dict(PHANTOM) if args.dataset == "phantom" and args.recipe == "default" else {}
    if args.epochs is not None:
        changes["epochs"] = args.epochs
    configs = [
        TrainConfig.from_recipe(
            args.recipe, dataset=args.dataset, size=args.size, model=model, seed=seed, **changes
        )
        for model in args.models
        for seed in args.seeds
    ]
    dataset = load_dataset(args.dataset, size=args.size, data_dir=args.data_dir)
    places = [default_dir(config, dataset.info) for config in configs]
    out = args.out or places[0].parent
    runs = {out / place.name: config for place, config in zip(places, configs, strict=True)}
    for run_dir, config in runs.items():  # a mistake in the last one shows before the first runs
        check_run(config, dataset, out=run_dir)
    for run_dir, config in runs.items():
        train(config, dataset, out=run_dir)
        evaluate_run(run_dir)
    print(write_comparison(list(runs), out))
    print(f"\ntable, figures and predictions: {out}")


if __name__ == "__main__":
    sys.exit(run_command(main))
