"""Does bfloat16 give what float32 gives? The test AUC of both, on one data set after another.

    python benchmarks/dtypes.py --datasets breastmnist retinamnist pneumoniamnist \\
        --json benchmarks/results/dtypes_cpu.json

A network is trained with several seeds in either type of computation; the two are compared as two
networks are: the difference in AUC, paired by image, with an interval that has the images' share
and the seeds' (from three seeds on). They agree within sampling error where it includes zero.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from timed_training import machine

from flaxmed.data import load_dataset
from flaxmed.evaluation.metrics import score
from flaxmed.evaluation.paired import auc_difference
from flaxmed.training import TrainConfig, train_seeds
from flaxmed.training.rundir import write_json

DTYPES = ("float32", "bfloat16")


def agreement(args: argparse.Namespace, dataset_name: str) -> dict[str, Any]:
    """AUC with either type on one data set, and the difference between them."""
    dataset = load_dataset(dataset_name, size=args.size)
    predictions, seconds = {}, {}
    for dtype in DTYPES:
        config = TrainConfig(
            dataset=dataset_name,
            size=args.size,
            model=args.model,
            stem=args.stem,
            epochs=args.epochs,
            dtype=dtype,
        )
        out = args.out / dataset_name / dtype
        runs = train_seeds(config, args.seeds, dataset, out=out, progress=False)
        predictions[dtype] = [run.predictions["test"] for run in runs]
        seconds[dtype] = [run.summary["train_seconds"] for run in runs]
    difference = auc_difference(predictions["bfloat16"], predictions["float32"])
    return {
        "dataset": dataset_name,
        "test_images": len(dataset.test),
        "auc": {
            dtype: [round(score(p)["auc"], 4) for p in made] for dtype, made in predictions.items()
        },
        "difference": difference.to_dict(),
        "train_seconds": seconds,
    }


def main() -> None:
    """Train, compare, print a line for each data set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["breastmnist"])
    parser.add_argument("--size", type=int)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--stem", default="imagenet", help="imagenet: a few minutes at 28 px")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/dtypes"))
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    rows = []
    for name in args.datasets:
        rows.append(row := agreement(args, name))
        low, high = (row["difference"][end] for end in ("low", "high"))
        verdict = "agree" if low <= 0 <= high else "differ"
        mean = {dtype: sum(values) / len(values) for dtype, values in row["auc"].items()}
        print(
            f"{name}: AUC float32 {mean['float32']:.4f}, bfloat16 {mean['bfloat16']:.4f}; "
            f"difference {row['difference']['value']:+.4f} ({low:+.4f} to {high:+.4f}): {verdict}",
            flush=True,
        )
        if args.json:
            keys = ("model", "stem", "size", "epochs", "seeds")
            settings = {key: getattr(args, key) for key in keys}
            write_json(args.json, {**machine(), **settings, "rows": rows})


if __name__ == "__main__":
    main()
