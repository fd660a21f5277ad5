"""A training run from data to predictions: the chapters of :func:`train` read in order."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flaxmed.data import as_dataset, load_dataset
from flaxmed.data.splits import describe
from flaxmed.inference import check_channels, standardise
from flaxmed.models import native
from flaxmed.training import rundir
from flaxmed.training.batches import describe_fetch, fetch_kind, steps_per_call
from flaxmed.training.config import TrainConfig
from flaxmed.training.finetune import make_tuning
from flaxmed.training.group import Group, class_weights, prepare
from flaxmed.training.probe import check_probe, probe
from flaxmed.training.processes import check_alike, first_does, known_to_all
from flaxmed.training.progress import Interrupted, Progress, StopRequest
from flaxmed.training.record import check_finite
from flaxmed.training.run import Run, build_model, load_run
from flaxmed.training.sharding import make_mesh, padded_size
from flaxmed.training.start import settle, settle_here
from flaxmed.training.step import TrainState
from flaxmed.types import Dataset, DatasetInfo, InputError, Preprocessing

# steps that may wait for the device: enough to keep it busy, few enough for Ctrl-C to act soon
MAX_IN_FLIGHT = 4


def train(
    config: TrainConfig,
    data: Any = None,
    *,
    out: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    change: Sequence[str] = (),
) -> Run:
    """Train one network; keep the epoch of the best validation AUC; predict with it.

    A run that was begun in ``out`` with the same settings and data goes on where it stopped, to
    the bit on the same machine; one that is finished is read back.

    Where several processes train together (``flaxmed.training.join``), all of them call this with
    the same arguments. Process 0 alone reads and writes ``out``, but for a run that is finished,
    which all read.

    Args:
        config: every setting.
        data: a ``Dataset``, or arrays as ``flaxmed.data.as_dataset`` takes them; None to load
            ``config.dataset``.
        out: run directory; None for :func:`default_dir`.
        data_dir: where data files lie or go; None for ``FLAXMED_DATA_DIR`` or the cache.
        progress: whether to show a bar, or lines where there is no terminal.
        change: settings, by dotted name, in which ``config`` may differ from what the run in
            ``out`` was begun with: ``["epochs"]`` to train on, say. ``config.json`` tells of it.

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
    dataset = open_dataset(config, data, data_dir)
    run_dir = Path(out) if out is not None else default_dir(config, dataset.info)
    config = settle(config, dataset, run_dir)
    first_does(lambda: check_settled(config, dataset, out=run_dir, change=change))
    command = how_to_resume(run_dir, data_dir, own_data=data is not None)
    (run,) = train_group(
        {run_dir: config}, dataset, how_to_resume=command, progress=progress, change=change
    )
    return run


def open_dataset(
    config: TrainConfig, data: Any, data_dir: str | os.PathLike[str] | None
) -> Dataset:
    """What was given, or the configured data set."""
    if data is None:
        return load_dataset(config.dataset, size=config.size, data_dir=data_dir)
    return as_dataset(data)


def train_group(
    configs: Mapping[Path, TrainConfig],
    dataset: Dataset,
    *,
    how_to_resume: str,
    progress: bool = True,
    change: Sequence[str] = (),
) -> list[Run]:
    """Train runs that differ in nothing but their seeds, all in one program; checked before.

    Args:
        configs: settings by run directory. They are at the same step.
        dataset: the data.
        how_to_resume: what an interruption says.
        progress: whether to show a bar.
        change: settings that may have changed since.
    """
    check_alike("settings", [config.to_dict() for config in configs.values()])
    described = rundir.jsonable(describe(dataset))  # once: it reads every image
    check_alike("data", described)
    first, images = next(iter(configs.values())), dataset.train
    check_alike("memory", [fetch_kind(first, images), steps_per_call(first, images)])
    with contextlib.ExitStack() as locks:

        def claim() -> bool:
            for place in configs:
                locks.enter_context(rundir.locked(place))
            begun = [rundir.claim(place, own, described, change) for place, own in configs.items()]
            return all(begun) and all((place / "run.json").exists() for place in configs)

        if first_does(claim):
            return [load_run(place) for place in configs]
        use_compilation_cache()
        if first.finetune.linear_probe:
            return [probe(own, dataset, place, say=progress) for place, own in configs.items()]
        group = prepare(configs, dataset)
        bar = group.progress_bar(progress)
        for line in opening_lines(group):
            bar.say(line)
        with group.saving():
            asked = take_steps(group, bar, how_to_resume)
            bar.close()
            runs = group.finish()
        if asked:
            line = f"{signal.Signals(asked).name}: the run had come to its end; {how_to_resume}"
            raise known_to_all(Interrupted(line, asked))
        return runs


def opening_lines(group: Group) -> list[str]:
    """What to say before the first step."""
    config, devices = group.config, group.mesh.size
    lines = [*group.started, describe_fetch(config, group.dataset.train), *group.skipped]
    if jax.default_backend() == "cpu" and (reason := native.why_not()):
        lines.insert(0, f"convolutions in plain JAX, which are slower: {reason}")
    if jax.process_count() > 1:
        lines.insert(0, f"{jax.process_count()} processes, {devices} devices")
    if group.done:
        epoch = group.done // group.steps_per_epoch + 1
        lines.append(f"goes on from step {group.done} (epoch {epoch})")
    return lines


def take_steps(group: Group, bar: Progress, how_to_resume: str) -> int:
    """The steps, from where the runs stopped; at the end of each epoch a score and a checkpoint.

    Returns:
        The signal that came too late to stop them, or 0.
    """
    config, state, done = group.config, group.state, group.done
    last_step, per_epoch = config.epochs * group.steps_per_epoch, group.steps_per_epoch
    calls, mesh = group.calls(done), group.step_mesh
    in_flight: deque[jax.Array] = deque()
    clock = time.monotonic()
    with StopRequest().listening() as stop:
        while done < last_step and not group.stopped_early:
            if (call := next(calls, None)) is None:  # from here on more is trained
                calls = group.calls(done)
                continue
            state, losses = call.run(state)
            done += call.steps
            bar.advance(call.images)
            in_flight.append(losses)
            waiting = MAX_IN_FLIGHT if call.steps == 1 else 1
            if len(in_flight) > waiting and not np.isfinite(in_flight.popleft()).all():
                check_finite(state, group.names)
            if bar.due():
                bar.loss(mean_loss(state))

            if done % per_epoch == 0:
                check_finite(state, group.names)
                group.end_epoch(state, done, time.monotonic() - clock, bar)
                state = dataclasses.replace(state, sums=jax.tree.map(jnp.zeros_like, state.sums))
                clock = time.monotonic()
            asked = stop.asked(mesh)
            if asked and done < last_step:
                check_finite(state, group.names)
                group.stop(state, done, time.monotonic() - clock)
                bar.close()
                name = signal.Signals(asked).name
                line = f"{name} at step {done}: state saved; {how_to_resume}"
                raise known_to_all(Interrupted(line, asked))
        return stop.last_asked()


def mean_loss(state: TrainState) -> float:
    """Over the images of this epoch so far, and over all runs."""
    total, weight = (np.asarray(state.sums[name]).sum() for name in ("loss", "weight"))
    return float(total / weight)


def check_run(
    config: TrainConfig,
    dataset: Dataset,
    *,
    out: str | os.PathLike[str] | None = None,
    change: Sequence[str] = (),
) -> None:
    """Raise what :func:`train` would raise before its first step; writes nothing, draws no weight.

    Args:
        config: every setting.
        dataset: the data.
        out: run directory; None: no folder is looked at.
        change: as for ``train``.

    Raises:
        InputError: an unknown network; weights or frozen layers that do not fit; images that are
            too small for it, or too few values per batch to normalise; preprocessing or class
            weights that do not fit; a folder that cannot be written or holds something else.

    Example:
        >>> from flaxmed.data.phantom import load_phantom
        >>> data = load_phantom(size=16, n_train=8, n_val=8, n_test=8)
        >>> check_run(TrainConfig(stem="imagenet"), data)
        Traceback (most recent call last):
        flaxmed.types.InputError: phantom: ResNet18 with stem "imagenet" needs images ...
    """
    settled = settle_here(config, dataset, None if out is None else Path(out))
    check_settled(settled, dataset, out=out, change=change)


def check_settled(
    config: TrainConfig,
    dataset: Dataset,
    *,
    out: str | os.PathLike[str] | None = None,
    change: Sequence[str] = (),
) -> None:
    """:func:`check_run` of settings that leave nothing open."""
    class_weights(config, dataset)
    size = dataset.train.images.shape[1:3]
    model = nnx.eval_shape(lambda: build_model(config, dataset.info, size))
    if config.finetune.linear_probe:
        check_probe(config)
    else:
        make_tuning(model, config.finetune, epochs=config.epochs)
    preprocessing = config.preprocessing or Preprocessing()
    batch = padded_size(config.batch_size, make_mesh(), parts=config.accumulate)
    batch //= config.accumulate  # what is normalised together
    images = jax.ShapeDtypeStruct((batch, *size, dataset.info.channels), jnp.float32)

    def trained(model: Any, images: jax.Array) -> jax.Array:
        check_channels(model, preprocessing)
        network = nnx.view(model, use_running_average=False)
        return network(standardise(images, preprocessing))

    try:
        nnx.eval_shape(trained, model, images)
    except InputError as error:
        raise InputError(f"{dataset.info.name}: {error}") from None
    if out is not None:
        rundir.begun(Path(out), config, describe(dataset), change)


def default_dir(config: TrainConfig, info: DatasetInfo) -> Path:
    """``runs/DATASET[_SIZE]/MODEL[-RECIPE][-START]-seedN``.

    The recipe where it is not ``default``; START is ``probe`` or, from weights, ``finetuned``.
    """
    size = "" if config.size is None else f"_{config.size}"
    recipe = "" if config.recipe == "default" else f"-{config.recipe}"
    start = "" if config.weights is None else "-finetuned"
    start = "-probe" if config.finetune.linear_probe else start
    return Path("runs") / f"{info.name}{size}" / f"{config.model}{recipe}{start}-seed{config.seed}"


def how_to_resume(run_dir: Path, data_dir: str | os.PathLike[str] | None, *, own_data: bool) -> str:
    """What to do after an interruption: a command to paste, or for ``data=...`` the same call."""
    if own_data:
        return f"go on with the same call, out={str(run_dir)!r}"
    if jax.process_count() > 1:
        return "go on with the same command in every process"
    words = ["flaxmed", "train", "--resume", str(run_dir)]
    words += [] if data_dir is None else ["--data-dir", str(data_dir)]
    return f"go on with: {shlex.join(words)}"


def use_compilation_cache() -> None:
    """Keep compiled programs in ``~/.cache/flaxmed/xla``, unless a place was set already."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "flaxmed" / "xla"))
