"""The command line: parses, calls, prints.

Exit codes: 0 done; 1 the run failed; 2 the input or the arguments are wrong; 130 interrupted, 143
terminated (both with the state saved).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flaxmed import __version__
from flaxmed.cli_weights import add_weights
from flaxmed.command import Parser, add_distributed, join_job, run_command
from flaxmed.types import InputError, read_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``flaxmed ARGUMENTS``; returns the exit code.

    Example:
        >>> main(["--version"])
        Traceback (most recent call last):
        SystemExit: 0
    """
    return run_command(lambda: _dispatch(argv))


def _dispatch(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    arguments.call(arguments)


def _parser() -> Parser:
    parser = Parser(
        prog="flaxmed",
        description="Train and compare ResNet-18, DenseNet-121 and Xception on medical images.",
        epilog="Not a medical device: for research and teaching.",
    )
    parser.add_argument("--version", action="version", version=f"flaxmed {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_train(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    _add_summary(commands)
    _add_bench(commands)
    _add_datasets(commands)
    add_weights(commands)
    return parser


def _add_train(commands: Any) -> None:
    command = commands.add_parser("train", help="train one network and predict with it")
    command.add_argument("--dataset", help="a name (flaxmed datasets), FILE.npz or tfds:NAME")
    command.add_argument("--model", help="resnet18, densenet121 or xception")
    command.add_argument("--size", type=int, help="image side in pixels, where there is a choice")
    command.add_argument("--stem", help="imagenet, small or auto (small up to 64 px)")
    _add_start(command)
    command.add_argument("--recipe", help="default or medmnist")
    command.add_argument("--epochs", type=int)
    command.add_argument("--batch-size", type=int)
    command.add_argument("--learning-rate", type=float)
    command.add_argument("--seed", type=int)
    command.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="a run for each")
    command.add_argument("--dtype", help="float32, bfloat16 or float64")
    command.add_argument("--early-stopping", type=int, metavar="EPOCHS")
    command.add_argument(
        "--ema-decay", type=float, metavar="DECAY", help="evaluate and keep averaged weights"
    )
    command.add_argument("--fetch", help="resident, streamed or auto")
    command.add_argument("--steps-per-call", type=int, metavar="STEPS", help="of resident training")
    command.add_argument("--accumulate", type=int, metavar="PARTS", help="micro-batches per update")
    command.add_argument(
        "--remat", action="store_true", default=None, help="compute norms twice, to save memory"
    )
    command.add_argument(
        "--class-weights", nargs="+", metavar="W", help="balanced, or one number per class"
    )
    command.add_argument(
        "--augment",
        nargs="+",
        metavar="NAME[=VALUE]",
        help="none, or: flips rotation=DEGREES shift=FRACTION scale=FRACTION intensity=FRACTION",
    )
    command.add_argument("--config", type=Path, metavar="JSON", help="settings from a file")
    command.add_argument("--data-dir", type=Path, help="where data files lie or go")
    command.add_argument("--out", type=Path, help="run directory; with --seeds the folder of all")
    command.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with this run, with its settings but for those given",
    )
    add_distributed(command)
    command.set_defaults(call=_train)


def _add_start(command: Any) -> None:
    command.add_argument(
        "--weights", metavar="WHAT", help="to start from: a published name, a file, or a run"
    )
    command.add_argument(
        "--train-from", metavar="STAGE", help="freeze the stages before it (see flaxmed summary)"
    )
    command.add_argument("--freeze", nargs="+", metavar="PATH", help="freeze these layers, too")
    command.add_argument(
        "--layer-decay", type=float, metavar="PART", help="of a stage's learning rate, before it"
    )
    command.add_argument(
        "--unfreeze-epochs", type=int, metavar="EPOCHS", help="train a stage more every so often"
    )
    command.add_argument(
        "--linear-probe",
        action="store_true",
        default=None,
        help="fit the classifier alone, on features that are computed once",
    )


def _train(arguments: argparse.Namespace) -> None:
    join_job(arguments)
    from flaxmed.training import TrainConfig, train, train_seeds
    from flaxmed.training.processes import first_does
    from flaxmed.training.rundir import read_config

    change: list[str] = []
    if arguments.resume is not None:
        for name in ("config", "recipe", "seeds", "out"):
            if getattr(arguments, name) is not None:
                raise InputError(f"--{name} does not go with --resume RUN, which is a run's folder")
        begun = first_does(lambda: read_config(arguments.resume).to_dict())
        config, change = _changed(TrainConfig.from_dict(begun), arguments)
        out = arguments.resume
    else:
        config, out = _config(arguments), arguments.out
    if arguments.seeds is not None:
        if arguments.seed is not None:
            raise InputError("--seed is for one run, --seeds for several; leave one out")
        runs = train_seeds(config, arguments.seeds, out=out, data_dir=arguments.data_dir)
    else:
        runs = [train(config, out=out, data_dir=arguments.data_dir, change=change)]
    first_does(lambda: _report([run.dir for run in runs]))


def _report(run_dirs: list[Path]) -> None:
    """Evaluate finished runs, compare them if there are several, and print that."""
    from flaxmed.evaluation import compare_runs, evaluate_run

    reports = [evaluate_run(run_dir) for run_dir in run_dirs]
    print(compare_runs(run_dirs) if len(run_dirs) > 1 else reports[0])
    facts = read_json(run_dirs[-1] / "run.json", wanted="a finished run")
    peak = facts.get("peak_memory_bytes")
    print(
        f"\nwritten to {' '.join(map(str, run_dirs))}"
        + (f"; peak memory {peak / 1e9:.2f} GB" if peak else "")
    )


_SETTINGS = (
    "dataset",
    "model",
    "size",
    "stem",
    "weights",
    "epochs",
    "batch_size",
    "seed",
    "dtype",
    "early_stopping",
    "ema_decay",
    "fetch",
    "steps_per_call",
    "accumulate",
    "remat",
)


_FINETUNE = ("train_from", "freeze", "layer_decay", "unfreeze_epochs", "linear_probe")
_OF_STEPS = (
    *("epochs", "batch_size", "optimizer.learning_rate", "augment", "fetch", "steps_per_call"),
    *("accumulate", "remat"),
)


def _config(arguments: argparse.Namespace) -> Any:
    from flaxmed.training import TrainConfig

    if arguments.config is None:
        config = TrainConfig.from_recipe(arguments.recipe or "default")
    elif arguments.recipe is None:
        config = _file_config(arguments.config)
    else:
        raise InputError('--config names its recipe as "recipe"; leave out --recipe')
    return _changed(config, arguments)[0]


def _changed(config: Any, arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """The settings with those on the command line in place of some, and the names of these."""
    import dataclasses

    from flaxmed.training import TrainConfig, parse_augment

    values = config.to_dict()
    given = [name for name in _SETTINGS if getattr(arguments, name) is not None]
    values |= {name: getattr(arguments, name) for name in given}
    inside = {"optimizer": ("learning_rate",), "finetune": _FINETUNE}
    for part, names in inside.items():
        for name in names:
            if getattr(arguments, name) is not None:
                values[part][name] = getattr(arguments, name)
                given.append(f"{part}.{name}")
    if arguments.augment is not None:
        values["augment"] = dataclasses.asdict(parse_augment(arguments.augment))
        given.append("augment")
    if arguments.class_weights is not None:
        values["class_weights"] = _class_weights(arguments.class_weights)
        given.append("class_weights")
    if values["finetune"]["linear_probe"] and (idle := [n for n in given if n in _OF_STEPS]):
        option = idle[0].rpartition(".")[2].replace("_", "-")
        raise InputError(f"--{option} does not go with a linear probe, which takes no steps")
    return TrainConfig.from_dict(values), given


def _file_config(path: Path) -> Any:
    """The settings of a file; what it leaves out is its recipe's."""
    from flaxmed.training import TrainConfig

    values = read_json(path, wanted="an object of settings")
    try:
        for name in ("versions", "changed"):  # the config.json of a run has them
            values.pop(name, None)
        return TrainConfig.from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _class_weights(words: list[str]) -> Any:
    if words == ["balanced"]:
        return "balanced"
    try:
        return tuple(float(word) for word in words)
    except ValueError:
        raise InputError(
            f"--class-weights: expected balanced or numbers, got {' '.join(words)}"
        ) from None


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="metrics, figures and report of a finished run")
    command.add_argument("run", type=Path, help="run directory, or a predictions .npz: prints only")
    command.add_argument(
        "--subgroups", type=Path, metavar="CSV", help="columns to part the images by, with their id"
    )
    command.add_argument("--level", type=float, default=0.95, help="coverage of the intervals")
    command.add_argument(
        "--sensitivity", type=float, default=0.9, help="wanted of a threshold chosen on validation"
    )
    command.add_argument("--specificity", type=float, default=0.9, help="likewise")
    command.add_argument(
        "--val", type=Path, metavar="FILE.npz", help="for a predictions .npz: those on validation"
    )
    command.set_defaults(call=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from flaxmed.evaluation import evaluate, evaluate_run
    from flaxmed.types import Predictions

    for name in ("level", "sensitivity", "specificity"):
        if not 0 < (value := getattr(arguments, name)) < 1:
            raise InputError(f"--{name}: expected a number between 0 and 1, got {value:g}")
    wanted = {name: getattr(arguments, name) for name in ("sensitivity", "specificity")}
    if arguments.run.is_dir():
        if arguments.val is not None:
            raise InputError("--val goes with a predictions .npz; a run directory has its own")
        report = evaluate_run(
            arguments.run, subgroups=arguments.subgroups, level=arguments.level, **wanted
        )
        print(report)
        print(f"\nwritten to {arguments.run}; read {arguments.run / 'report.html'}")
        return
    p = Predictions.load(arguments.run)
    val = None if arguments.val is None else Predictions.load(arguments.val)
    print(evaluate(p, val=val, subgroups=arguments.subgroups, level=arguments.level, **wanted))


def _add_compare(commands: Any) -> None:
    command = commands.add_parser("compare", help="runs side by side, a column per network")
    command.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directories, or predictions .npz"
    )
    command.add_argument("--metric", default="auc", help="the primary metric; auc if not given")
    command.add_argument(
        "--difference", type=float, default=0.02, help="in it, the smallest that would matter"
    )
    command.add_argument("--power", type=float, default=0.8, help="wanted chance of finding it")
    command.add_argument("--level", type=float, default=0.95, help="coverage of the intervals")
    command.add_argument("--out", type=Path, help="also write report and figures to this folder")
    command.set_defaults(call=_compare)


def _compare(arguments: argparse.Namespace) -> None:
    from flaxmed.evaluation import compare_runs, save_comparison, write_comparison

    plan = {name: getattr(arguments, name) for name in ("metric", "difference", "power", "level")}
    files = [path for path in arguments.runs if path.suffix == ".npz"]
    if len(files) not in (0, len(arguments.runs)):
        raise InputError(f"{files[0]}: expected run directories alone, or predictions alone")
    if files:
        comparison = _compare_files(files, plan)
        if arguments.out is not None:
            save_comparison(comparison, arguments.out)
    elif arguments.out is not None:
        comparison = write_comparison(arguments.runs, arguments.out, **plan)
    else:
        comparison = compare_runs(arguments.runs, **plan)
    print(comparison)
    if arguments.out is not None:
        print(f"\nwritten to {arguments.out}; read {arguments.out / 'report.html'}")


def _compare_files(paths: list[Path], plan: dict[str, Any]) -> Any:
    """Predictions from anywhere, a column each, named by their files."""
    from flaxmed.evaluation import compare
    from flaxmed.types import Predictions

    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else list(map(str, paths))
    if len(set(names)) < len(names):
        raise InputError(f"{max(names, key=names.count)}: given twice")
    given = {n: Predictions.load(path) for n, path in zip(names, paths, strict=True)}
    return compare(given, **plan)


def _add_summary(commands: Any) -> None:
    command = commands.add_parser("summary", help="layers, parameters and multiply-adds")
    command.add_argument("model", help="resnet18, densenet121 or xception")
    command.add_argument("--size", type=int, default=224)
    command.add_argument("--channels", type=int, default=3)
    command.add_argument("--classes", type=int, default=1000)
    command.add_argument("--stem", default="imagenet", help="imagenet or small")
    command.add_argument("--stages", action="store_true", help="only the rows of the stages")
    command.add_argument(
        "--diagram", metavar="FILE", help="also draw it: FILE.svg, FILE.png, or both without suffix"
    )
    command.set_defaults(call=_summary)


def _summary(arguments: argparse.Namespace) -> None:
    from flax import nnx

    from flaxmed.models import create_model
    from flaxmed.summary import summarize

    # shapes alone are wanted: no weight is drawn
    model = nnx.eval_shape(
        lambda: create_model(
            arguments.model,
            arguments.classes,
            in_channels=arguments.channels,
            stem=arguments.stem,
            rngs=nnx.Rngs(0),
        )
    )
    image_shape = (arguments.size, arguments.size, arguments.channels)
    summary = summarize(model, image_shape)
    drawn = []
    if arguments.diagram is not None:
        from flaxmed.diagram import draw, save_diagram

        drawn = save_diagram(draw(model, image_shape), arguments.diagram)
    print(summary.to_text(layers=not arguments.stages))
    if drawn:
        print(f"\nwritten to {' '.join(map(str, drawn))}")


def _add_bench(commands: Any) -> None:
    command = commands.add_parser("bench", help="speed, memory and compile time of the networks")
    command.add_argument("--models", nargs="+", metavar="MODEL", help="all three if not given")
    command.add_argument("--size", type=int, default=28)
    command.add_argument("--stem", default="small", help="imagenet or small")
    command.add_argument("--channels", type=int, default=3)
    command.add_argument("--classes", type=int, default=8)
    command.add_argument("--batch", type=int, default=64)
    command.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    command.add_argument("--remat", action="store_true", help="compute norms twice, to save memory")
    command.add_argument("--rounds", type=int, default=5, help="timings of each kind")
    command.add_argument(
        "--pytorch", nargs="+", default=[], metavar="WAY", help="beside PyTorch: eager, compile"
    )
    command.add_argument("--json", type=Path, help="also write the results here")
    command.set_defaults(call=_bench)


def _bench(arguments: argparse.Namespace) -> None:
    import shlex

    from flaxmed.benchmark.command import bench
    from flaxmed.benchmark.setting import Setting
    from flaxmed.models import list_models

    names = ("size", "stem", "channels", "classes", "batch", "dtype", "remat", "rounds")
    setting = Setting(
        **{name: getattr(arguments, name) for name in names}, pytorch=tuple(arguments.pytorch)
    )
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise InputError(f"--json: {arguments.json.parent}: no such folder")
    command = shlex.join(["flaxmed", *sys.argv[1:]])
    bench(arguments.models or list_models(), setting, command=command, json_path=arguments.json)


def _add_datasets(commands: Any) -> None:
    command = commands.add_parser("datasets", help="the data sets that --dataset knows by name")
    command.add_argument("--data-dir", type=Path, help="where to look for files first")
    command.set_defaults(call=_datasets)


def _datasets(arguments: argparse.Namespace) -> None:
    from flaxmed.data import list_datasets

    header = ("name", "task", "classes", "channels", "train/val/test", "sizes", "here", "licence")
    table: list[tuple[str, ...]] = [header]
    for row in list_datasets(arguments.data_dir):
        info = row.info
        counts = "/".join(str(row.splits[name]) for name in ("train", "val", "test") if row.splits)
        sizes = " ".join(map(str, row.sizes)) or "any"
        here = " ".join(map(str, row.local)) or ("made on the spot" if info.synthetic else "-")
        counts = counts or "as asked"
        facts = (info.name, info.task, info.num_classes, info.channels, counts, sizes, here)
        table.append((*map(str, facts), info.licence))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
    print("\nalso: FILE.npz in MedMNIST's layout, and tfds:NAME for a set that TFDS has prepared")


if __name__ == "__main__":
    sys.exit(main())
