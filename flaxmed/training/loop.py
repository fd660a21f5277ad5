"""A training run from data to predictions: the chapters of :func:`train` read in order."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import time
from collections import deque
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flaxmed.data import as_dataset, load_dataset
from flaxmed.data.pipeline import IndexStream
from flaxmed.data.splits import describe, image_digests
from flaxmed.evaluation.metrics import score
from flaxmed.inference import predict_logits, standardise
from flaxmed.models import native
from flaxmed.models.layers import lowering_on
from flaxmed.training import rundir
from flaxmed.training.augment import make_transforms
from flaxmed.training.batches import fetch_kind, images_before, open_batches
from flaxmed.training.checkpoint import Checkpoints
from flaxmed.training.config import TrainConfig
from flaxmed.training.optimizer import make_optimizer
from flaxmed.training.progress import Interrupted, Progress, StopRequest
from flaxmed.training.run import Run, build_model, init_weights, load_into, load_run
from flaxmed.training.sharding import make_mesh, padded_size, replicate, shard_batch
from flaxmed.training.step import TrainState, init_state, make_train_step, zero_sums
from flaxmed.training.thumbnails import save_thumbnails
from flaxmed.types import Dataset, DatasetInfo, InputError, Predictions, RunError, Split, Task

# steps that may wait for the device: enough to keep it busy, few enough for Ctrl-C to act soon
MAX_IN_FLIGHT = 4


def train(
    config: TrainConfig,
    data: Any = None,
    *,
    out: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Run:
    """Train one network; keep the epoch of the best validation AUC; predict with it.

    A run that was begun in ``out`` with the same settings and data goes on where it stopped, to
    the bit on the same machine; one that is finished is read back.

    Args:
        config: every setting.
        data: a ``Dataset``, or arrays as ``flaxmed.data.as_dataset`` takes them; None to load
            ``config.dataset``.
        out: run directory; None for ``runs/DATASET[_SIZE]/MODEL[-RECIPE]-seedN``.
        data_dir: where data files lie or go; None for ``FLAXMED_DATA_DIR`` or the cache.
        progress: whether to show a bar, or lines where there is no terminal.

    Returns:
        The finished run.

    Raises:
        InputError: settings, data or folder that do not fit.
        RunError: the loss stopped being finite, or the disk is full.
        Interrupted: SIGINT or SIGTERM came; the state was saved first.

    Example:
        >>> import flaxmed, tempfile
        >>> from flaxmed.data.phantom import load_phantom
        >>> data = load_phantom(size=32, n_train=16, n_val=16, n_test=16)
        >>> config = flaxmed.TrainConfig(stem="imagenet", epochs=1, batch_size=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = flaxmed.train(config, data, out=folder, progress=False)
        >>> run.predictions["test"].logits.shape[0]
        16
    """
    # The data and the network, checked against each other before anything is written.
    use_compilation_cache()
    if data is None:
        dataset = load_dataset(config.dataset, size=config.size, data_dir=data_dir)
    else:
        dataset = as_dataset(data)
    run_dir = Path(out) if out is not None else default_dir(config, dataset.info)
    check_run(config, dataset, out=run_dir)
    model = build_model(config, dataset.info, dataset.train.images.shape[1:3])

    # The folder: new, or this run's own.
    begun = rundir.claim(run_dir, config, describe(dataset))
    if begun and (run_dir / "run.json").exists():
        return load_run(run_dir)

    # The step, and the state: resumed from the last checkpoint, or the model's fresh one.
    mesh = make_mesh()
    indices = IndexStream(
        len(dataset.train),
        config.batch_size,
        seed=config.seed,
        width=padded_size(config.batch_size, mesh),
    )
    optimizer = make_optimizer(
        config.optimizer, epochs=config.epochs, steps_per_epoch=indices.steps_per_epoch
    )
    dtype = jnp.float64 if config.dtype == "float64" else jnp.float32
    step = make_train_step(
        model,
        optimizer,
        task=dataset.info.task,
        preprocessing=config.preprocessing,
        transforms=make_transforms(config.augment, dataset.info.flips),
        seed=config.seed,
        class_weights=class_weights(config, dataset),
        dtype=dtype,
        lowering=lowering_on(mesh.size),
    )
    state = init_state(model, optimizer, dtype=dtype)
    last = Checkpoints(run_dir / "checkpoints" / "last")
    best = Checkpoints(run_dir / "checkpoints" / "best")
    if last.latest_step is not None:
        state = last.restore(state)
    state = replicate(state, mesh)

    # The loop: steps, and at the end of each epoch a score and a checkpoint.
    done = int(state.step)
    metrics = rundir.JsonLines(run_dir / "metrics.jsonl", until_step=done)
    timing = rundir.JsonLines(run_dir / "timing.jsonl", until_step=done)
    per_epoch = indices.steps_per_epoch
    bar = Progress(
        f"{config.model} seed {config.seed}",
        epochs=config.epochs,
        images=len(dataset.train),
        done=images_before(done, indices, len(dataset.train)),
        show=progress,
    )
    if jax.default_backend() == "cpu" and (reason := native.why_not()):
        bar.say(f"convolutions in plain JAX, which are slower: {reason}")
    if done:
        bar.say(f"goes on from step {done} (epoch {done // per_epoch + 1})")
    batches = open_batches(config, dataset.train, indices, done, mesh)
    in_flight: deque[jax.Array] = deque()
    clock = time.monotonic()
    with StopRequest().listening() as stop:
        while done < config.epochs * per_epoch and not stops_early(config, metrics.rows):
            batch, count = next(batches)
            state, loss = step(state, batch)
            done += 1
            bar.advance(count)
            in_flight.append(loss)
            if len(in_flight) > MAX_IN_FLIGHT and not np.isfinite(in_flight.popleft()):
                check_finite(state)
            if bar.due():
                check_finite(state)
                bar.loss(float(state.sums["loss"] / state.sums["weight"]))
            if done % per_epoch == 0:
                row = epoch_row(state, done, per_epoch)
                trained = time.monotonic()
                load_into(model, state)
                row |= validate(model, config, dataset, mesh, done)
                metrics.append(row)
                is_best = best_row(metrics.rows) is metrics.rows[-1]
                bar.epoch(row, is_best)
                state = dataclasses.replace(state, sums=replicate(zero_sums(dtype), mesh))
                if is_best:
                    best.save(done, {"params": state.params, "batch_stats": state.batch_stats})
                last.save(done, state)
                now = time.monotonic()
                timing.append(time_row(done, per_epoch, trained - clock, now - trained))
                clock = now
            if stop.signal is not None and done < config.epochs * per_epoch:
                check_finite(state)
                last.save(done, state)
                last.close()
                timing.append(time_row(done, per_epoch, time.monotonic() - clock, 0.0))
                bar.close()
                name = signal.Signals(stop.signal).name
                raise Interrupted(
                    f"{name} at step {done}: state saved; "
                    f"{how_to_resume(run_dir, data_dir, own_data=data is not None)}",
                    stop.signal,
                )

    # The best epoch's network, and what it says of images it never saw.
    bar.close()
    last.close()
    best.close()
    load_into(model, replicate(best.restore(init_weights(model)), mesh))
    for name in ("val", "test"):
        save_predictions(run_dir, name, model, config, dataset, mesh)
    chosen = best_row(metrics.rows)
    rundir.write_json(
        run_dir / "run.json",
        {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
            "train_seconds": round(sum(row["seconds"] for row in timing.rows), 3),
            "evaluation_seconds": round(sum(row["evaluation_seconds"] for row in timing.rows), 3),
            "epochs": len(metrics.rows),
            "best_epoch": chosen["epoch"],
            "best_val_auc": chosen["val_auc"],
            "device": device_name(mesh),
            "fetch": fetch_kind(config, dataset.train),
        },
    )
    return load_run(run_dir, model)


def check_run(
    config: TrainConfig, dataset: Dataset, *, out: str | os.PathLike[str] | None = None
) -> None:
    """Raise what :func:`train` would raise before its first step; writes nothing, draws no weight.

    Args:
        config: every setting.
        dataset: the data.
        out: run directory; None: no folder is looked at.

    Raises:
        InputError: an unknown network; images that are too small for it, or too few values per
            batch to normalise; preprocessing or class weights that do not fit; a folder that
            cannot be written or holds something else.

    Example:
        >>> from flaxmed.data.phantom import load_phantom
        >>> data = load_phantom(size=16, n_train=8, n_val=8, n_test=8)
        >>> check_run(TrainConfig(stem="imagenet"), data)
        Traceback (most recent call last):
        flaxmed.types.InputError: phantom: ResNet18 with stem "imagenet" needs images ...
    """
    class_weights(config, dataset)
    size = dataset.train.images.shape[1:3]
    model = nnx.eval_shape(lambda: build_model(config, dataset.info, size))
    batch = padded_size(config.batch_size, make_mesh())
    images = jax.ShapeDtypeStruct((batch, *size, dataset.info.channels), jnp.float32)

    def trained(model: Any, images: jax.Array) -> jax.Array:
        network = nnx.view(model, use_running_average=False)
        return network(standardise(images, config.preprocessing))

    try:
        nnx.eval_shape(trained, model, images)
    except InputError as error:
        raise InputError(f"{dataset.info.name}: {error}") from None
    if out is not None:
        rundir.begun(Path(out), config, describe(dataset))


def default_dir(config: TrainConfig, info: DatasetInfo) -> Path:
    """``runs/DATASET[_SIZE]/MODEL[-RECIPE]-seedN``; the recipe where it is not ``default``."""
    size = "" if config.size is None else f"_{config.size}"
    recipe = "" if config.recipe == "default" else f"-{config.recipe}"
    return Path("runs") / f"{info.name}{size}" / f"{config.model}{recipe}-seed{config.seed}"


def how_to_resume(run_dir: Path, data_dir: str | os.PathLike[str] | None, *, own_data: bool) -> str:
    """What to do after an interruption: a command to paste, or for ``data=...`` the same call."""
    if own_data:
        return f"go on with the same call, out={str(run_dir)!r}"
    words = ["flaxmed", "train", "--resume", str(run_dir)]
    words += [] if data_dir is None else ["--data-dir", str(data_dir)]
    return f"go on with: {shlex.join(words)}"


def use_compilation_cache() -> None:
    """Keep compiled programs in ``~/.cache/flaxmed/xla``, unless a place was set already."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "flaxmed" / "xla"))


def class_weights(config: TrainConfig, dataset: Dataset) -> jax.Array | None:
    """One weight per class, or None; ``balanced`` is inverse to the training counts, mean 1.

    Raises:
        InputError: another number of weights than classes, or a class without training images.
    """
    info = dataset.info
    if config.class_weights is None:
        return None
    if config.class_weights != "balanced":
        if len(config.class_weights) != info.num_classes:
            raise InputError(
                f"setting class_weights: expected {info.num_classes} numbers, one per class, "
                f"got {len(config.class_weights)}"
            )
        return jnp.asarray(config.class_weights, jnp.float32)
    labels = dataset.train.labels
    if info.task is Task.MULTILABEL:
        counts = labels.sum(axis=0)
    else:
        counts = np.bincount(labels, minlength=info.num_classes)
    if (counts == 0).any():
        missing = info.classes[int((counts == 0).argmax())]
        raise InputError(f"setting class_weights: class {missing!r} has no training image")
    weights = counts.sum() / (info.num_classes * counts)
    return jnp.asarray(weights / weights.mean(), jnp.float32)


def check_finite(state: TrainState) -> None:
    """Raises RunError with the step at which the loss stopped being finite, if it did."""
    if (step := int(state.bad_step)) >= 0:
        # counted from 1, as the steps done are everywhere
        raise RunError(
            f"the training loss is not finite at step {step + 1}; try a lower learning rate"
        )


def epoch_row(state: TrainState, done: int, per_epoch: int) -> dict[str, Any]:
    """The training half of an epoch's metrics: means over the epoch, as it went."""
    check_finite(state)
    sums = {name: float(value) for name, value in state.sums.items()}
    return {
        "epoch": done // per_epoch - 1,
        "step": done,
        "train_loss": sums["loss"] / sums["weight"],
        "train_accuracy": sums["correct"] / sums["count"],
    }


def time_row(done: int, per_epoch: int, seconds: float, evaluation: float) -> dict[str, Any]:
    """One line of ``timing.jsonl``; seconds include compilation where there was some."""
    return {
        "epoch": (done - 1) // per_epoch,
        "step": done,
        "seconds": round(seconds, 4),
        "evaluation_seconds": round(evaluation, 4),
        "clock": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def validate(
    model: nnx.Module, config: TrainConfig, dataset: Dataset, mesh: jax.sharding.Mesh, step: int
) -> dict[str, Any]:
    """Loss, accuracy and AUC on the validation split.

    Raises:
        RunError: the logits are not finite.
    """
    logits = logits_of(model, config, dataset.val, mesh)
    if not np.isfinite(logits).all():
        raise RunError(
            f"the validation logits are not finite at step {step}; try a lower learning rate"
        )
    scores = score(predictions_of(logits, dataset.val, dataset.info))
    return {f"val_{name}": scores[name] for name in ("loss", "accuracy", "auc")}


def logits_of(
    model: nnx.Module, config: TrainConfig, split: Split, mesh: jax.sharding.Mesh
) -> np.ndarray:
    """Logits for a whole split, every image once."""
    size = padded_size(config.eval_batch_size, mesh)
    return predict_logits(
        model, split.images, batch_size=size, put=lambda batch: shard_batch(batch, mesh)
    )


def predictions_of(
    logits: np.ndarray, split: Split, info: DatasetInfo, *, digests: bool = False
) -> Predictions:
    """Predictions on a split from its logits, with the split's ids, groups and class names."""
    return Predictions(
        labels=split.labels,
        logits=logits,
        task=info.task,
        ids=split.ids,
        groups=split.groups,
        positive=info.positive,
        classes=info.classes,
        image_sha256=image_digests(split) if digests else None,
    )


def best_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The first row of the highest validation AUC; where that is undefined, the lowest loss."""
    if all(row["val_auc"] is None for row in rows):
        return min(rows, key=lambda row: row["val_loss"])
    return max((row for row in rows if row["val_auc"] is not None), key=lambda row: row["val_auc"])


def stops_early(config: TrainConfig, rows: list[dict[str, Any]]) -> bool:
    """Whether the best epoch lies ``early_stopping`` epochs back."""
    if config.early_stopping is None or not rows:
        return False
    return rows[-1]["epoch"] - best_row(rows)["epoch"] >= config.early_stopping


def save_predictions(
    run_dir: Path,
    name: str,
    model: nnx.Module,
    config: TrainConfig,
    dataset: Dataset,
    mesh: jax.sharding.Mesh,
) -> None:
    """``predictions/NAME.npz``, and ``ideal_NAME.npz`` where the ideal observer is known; of the
    test images also ``thumbnails.npz``."""
    folder = run_dir / "predictions"
    folder.mkdir(exist_ok=True)
    split, info = dataset.splits[name], dataset.info
    logits = logits_of(model, config, split, mesh)
    made = predictions_of(logits, split, info, digests=True)
    made.save(folder / f"{name}.npz")
    if name == "test":
        save_thumbnails(run_dir / "thumbnails.npz", made, split)
    if dataset.ideal is not None:
        with np.errstate(divide="ignore"):
            ideal = dataclasses.replace(made, logits=np.log(dataset.ideal[name]))
        ideal.save(folder / f"ideal_{name}.npz")


def device_name(mesh: jax.sharding.Mesh) -> str:
    """Such as ``2 x cpu``."""
    devices = mesh.devices.ravel()
    return f"{len(devices)} x {devices[0].device_kind}"
