"""Train ResNet-18, DenseNet-121 and Xception on one data set and compare them.

    python examples/train_medmnist.py                          # the phantom: synthetic, offline
    python examples/train_medmnist.py --dataset breastmnist    # real images, fetched once

Each network and seed gets a run directory of its own under --out, as `flaxmed train` names it; the
comparison is printed and written beside them. A command that was interrupted goes on where it
stopped when it is given again.
The README says what to expect of it, and how long it takes.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path

from flaxmed.command import Parser, add_distributed, join_job, run_command
from flaxmed.data import load_dataset
from flaxmed.evaluation import evaluate_run, write_comparison
from flaxmed.training import TrainConfig, check_run, default_dir, train_seeds
from flaxmed.training.processes import first_does
from flaxmed.types import InputError

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
    parser.add_argument(
        "--weights", nargs="+", metavar="WHAT", help="what to start from, one for each model"
    )
    parser.add_argument("--data-dir", type=Path, help="where data files lie or go")
    parser.add_argument("--out", type=Path, help="default: runs/DATASET[_SIZE]")
    add_distributed(parser)
    args = parser.parse_args()
    join_job(args)

    changes = dict(PHANTOM) if args.dataset == "phantom" and args.recipe == "default" else {}
    if args.epochs is not None:
        changes["epochs"] = args.epochs
    weights = args.weights or [None] * len(args.models)
    if len(weights) != len(args.models):
        raise InputError(f"--weights: expected one for each model, {len(args.models)} in all")
    configs = [
        TrainConfig.from_recipe(
            args.recipe, dataset=args.dataset, size=args.size, model=model, weights=start, **changes
        )
        for model, start in zip(args.models, weights, strict=True)
    ]
    dataset = load_dataset(args.dataset, size=args.size, data_dir=args.data_dir)
    out = args.out or default_dir(configs[0], dataset.info).parent
    for config in configs:  # a mistake in the last one shows before the first runs
        for seed in args.seeds:
            own = dataclasses.replace(config, seed=seed)
            run_dir = out / default_dir(own, dataset.info).name
            first_does(functools.partial(check_run, own, dataset, out=run_dir))
    run_dirs = []
    for config in configs:
        for run in train_seeds(config, args.seeds, dataset, out=out):
            first_does(functools.partial(report, run.dir))
            run_dirs.append(run.dir)
    first_does(functools.partial(compare, run_dirs, out))


def report(run_dir: Path) -> None:
    """Evaluate a run, and write its report into its folder."""
    evaluate_run(run_dir)


def compare(run_dirs: list[Path], out: Path) -> None:
    """Compare the runs; print the table, and write it beside them."""
    print(write_comparison(run_dirs, out))
    print(f"\ntable, figures and predictions: {out}")


if __name__ == "__main__":
    sys.exit(run_command(main))
