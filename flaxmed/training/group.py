"""What goes through one program, a run or several seeds of it, and what is done with its state."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flaxmed.data.pipeline import IndexStream
from flaxmed.data.splits import image_digests
from flaxmed.evaluation.metrics import score
from flaxmed.inference import predict_logits
from flaxmed.models.layers import lowering_on
from flaxmed.training import rundir
from flaxmed.training.augment import make_transforms
from flaxmed.training.batches import Call, fetch_kind, images_before, open_calls
from flaxmed.training.config import TrainConfig
from flaxmed.training.finetune import by_path, make_tuning
from flaxmed.training.memory import peak_memory
from flaxmed.training.optimizer import make_optimizer
from flaxmed.training.processes import first_does, is_first, known_to_all
from flaxmed.training.progress import Progress
from flaxmed.training.record import Record, epoch_row, time_row
from flaxmed.training.run import Run, build_model, init_weights, load_into
from flaxmed.training.sharding import make_mesh, on_host, padded_size, replicate, shard_batch
from flaxmed.training.stacked import make_seed_mesh, stack, stacked_step, take
from flaxmed.training.start import describe_start, load_start
from flaxmed.training.step import (
    TrainState,
    TrainStep,
    init_state,
    make_step_function,
)
from flaxmed.training.thumbnails import save_thumbnails
from flaxmed.types import Dataset, DatasetInfo, InputError, Predictions, RunError, Split, Task


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that go through one program: usually one, or several seeds of it.

    Attributes:
        dataset: the data of all.
        records: what each writes.
        models: each run's network, filled from the state where it is to evaluate.
        indices: each run's batches.
        steps: one step of all, to be compiled, by the epoch from which it is the one to take.
        state: at the start; of several runs stacked.
        done: steps done at the start.
        step_mesh: over which a batch is split, or the runs are spread.
        mesh: over which a batch is split in evaluation.
        started: lines that say what was taken from the weights to start from.
    """

    dataset: Dataset
    records: list[Record]
    models: list[nnx.Module]
    indices: list[IndexStream]
    steps: Mapping[int, TrainStep]
    state: TrainState
    done: int
    step_mesh: jax.sharding.Mesh
    mesh: jax.sharding.Mesh
    started: list[str]

    @property
    def config(self) -> TrainConfig:
        """The settings of the first, which but for the seed are everyone's."""
        return self.records[0].config

    @property
    def seeds(self) -> list[int]:
        """Of each run."""
        return [record.config.seed for record in self.records]

    @property
    def names(self) -> list[str]:
        """Of each run, for messages."""
        return [f"{self.config.model} seed {seed}" for seed in self.seeds]

    @property
    def skipped(self) -> list[str]:
        """A line for each damaged checkpoint that was passed over."""
        return [line for record in self.records for line in record.skipped]

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.indices[0].steps_per_epoch

    @property
    def stopped_early(self) -> bool:
        """Whether no run is to go on."""
        return all(record.stopped_early for record in self.records)

    def calls(self, done: int) -> Iterator[Call]:
        """The calls from a step on, until the epoch from which another step is to be taken."""
        epoch = done // self.steps_per_epoch
        now = max(first for first in self.steps if first <= epoch)
        until = min((first for first in self.steps if first > epoch), default=self.config.epochs)
        calls = open_calls(
            self.steps[now], self.config, self.dataset.train, self.indices, done, self.step_mesh
        )
        with contextlib.closing(calls):
            while done < until * self.steps_per_epoch:
                call = next(calls)
                done += call.steps
                yield call

    def progress_bar(self, show: bool) -> Progress:
        """One bar for all."""
        images, runs = len(self.dataset.train), len(self.records)
        return Progress(
            f"{self.config.model} seed{'s' * (runs > 1)} {' '.join(map(str, self.seeds))}",
            epochs=self.config.epochs,
            images=images * runs,
            done=images_before(self.done, self.indices[0], images) * runs,
            show=show and is_first(),
        )

    def of_each(self, state: TrainState) -> list[TrainState]:
        """Each run's state, whole on every device."""
        runs = len(self.records)
        if runs == 1:
            return [replicate(state, self.mesh)]
        # Through the host: to cut them out there, devices need not wait for one another.
        stacked = jax.device_get(state)
        return [replicate(take(stacked, i), self.mesh) for i in range(runs)]

    def end_epoch(self, state: TrainState, done: int, seconds: float, bar: Progress) -> None:
        """Validate every run that goes on; write down and keep what it has come to."""
        each = zip(self.records, self.names, self.models, self.of_each(state), strict=True)
        for record, name, model, own in each:
            if record.stopped_early:
                continue
            began = time.monotonic()
            load_into(model, own.weights)
            row = epoch_row(own, done, self.steps_per_epoch)
            row |= validate(model, record.config, self.dataset, self.mesh, done)
            own = dataclasses.replace(own, sums=jax.tree.map(jnp.zeros_like, own.sums))
            bar.epoch(row, record.end_epoch(own, row), name)
            evaluation = time.monotonic() - began
            self._note_time(record, done, seconds, evaluation)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """However the ``with`` block ends, nothing is being written to the folders after it."""
        try:
            yield
        except BaseException:
            for record in self.records:
                with contextlib.suppress(RunError):  # the first error is the one to tell
                    record.release()
            raise

    def stop(self, state: TrainState, done: int, seconds: float) -> None:
        """Save every run in the middle of an epoch."""
        for record, own in zip(self.records, self.of_each(state), strict=True):
            self._note_time(record, done, seconds, 0.0)
            record.stop(done, own)

    def _note_time(self, record: Record, done: int, seconds: float, evaluation: float) -> None:
        # of what all did together each gets its share
        share = seconds / len(self.records)
        record.note_time(time_row(done, self.steps_per_epoch, share, evaluation))

    def finish(self) -> list[Run]:
        """Predict with each run's best epoch, and write what is known at the end."""
        facts = {
            "device": device_name(self.step_mesh),
            "fetch": fetch_kind(self.config, self.dataset.train),
            "trained_together": self.seeds,
        }
        return [
            finish_run(record, model, self.dataset, self.mesh, facts)
            for record, model in zip(self.records, self.models, strict=True)
        ]


def finish_run(
    record: Record,
    model: nnx.Module,
    dataset: Dataset,
    mesh: jax.sharding.Mesh,
    facts: Mapping[str, Any],
) -> Run:
    """Predict with a run's best epoch, and write what is known at the end, ``facts`` with it."""
    record.close()
    weights = record.best_weights(init_weights(model))
    load_into(model, replicate(weights, mesh))
    predictions = {
        name: predictions_of(
            logits_of(model, record.config, split, mesh), split, dataset.info, digests=True
        )
        for name, split in dataset.splits.items()
        if name != "train"
    }
    load_into(model, weights)  # from here on it is this process's own
    summary = {
        "parameters": tree_size(nnx.state(model, nnx.Param)),
        "trained_parameters": trained_size(model, record.config),
        **record.summary(),
        **facts,
        "peak_memory_bytes": peak_memory(),
        **describe_start(record.run_dir),
    }
    summary = rundir.jsonable(summary)

    def write() -> None:
        save_predictions(record.run_dir / "predictions", predictions, dataset.ideal)
        save_thumbnails(record.run_dir / "thumbnails.npz", predictions["test"], dataset.test)
        rundir.write_json(record.run_dir / "run.json", summary)

    first_does(write)
    return Run(record.run_dir, record.config, model, predictions, record.metrics, summary)


def prepare(configs: Mapping[Path, TrainConfig], dataset: Dataset) -> Group:
    """The networks, their state and the program of a step; resumed from the last checkpoints."""
    config, seeds = next(iter(configs.values())), [config.seed for config in configs.values()]
    mesh, images = make_mesh(), dataset.train.images
    width = padded_size(config.batch_size, mesh, parts=config.accumulate)
    indices = [IndexStream(len(images), config.batch_size, seed=s, width=width) for s in seeds]
    models: list[Any] = [
        build_model(own, dataset.info, images.shape[1:3]) for own in configs.values()
    ]
    tuning = make_tuning(models[0], config.finetune, epochs=config.epochs)
    optimizer = make_optimizer(
        config.optimizer,
        epochs=config.epochs,
        steps_per_epoch=indices[0].steps_per_epoch,
        tuning=tuning,
    )
    dtype = jnp.float64 if config.dtype == "float64" else jnp.float32
    settings: dict[str, Any] = dict(
        task=dataset.info.task,
        preprocessing=models[0].preprocessing,
        transforms=make_transforms(config.augment, dataset.info.flips),
        class_weights=class_weights(config, dataset),
        dtype=dtype,
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
    )
    records = [Record(own, place) for place, own in configs.items()]
    fresh = functools.partial(
        init_state, optimizer=optimizer, dtype=dtype, averaged=config.ema_decay is not None
    )
    states, started = [], list[str]()
    for record, model in zip(records, models, strict=True):
        record.whole_from = 0 if tuning is None else tuning.phases[-1]
        state = record.resume(fresh(model))
        if config.weights is not None and int(state.step) == 0:
            started = load_start(model, record.config, dataset.info, record.run_dir)
            state = fresh(model)
        states.append(state)
    if config.weights is None and tuning is not None and tuning.frozen:
        started.append("frozen layers keep the values that they began with at random: no weights")
    one = len(seeds) == 1
    step_mesh = mesh if one else make_seed_mesh(len(seeds))
    settings["lowering"] = lowering_on(mesh.size) if one else "jax"

    def step_from(epoch: int) -> TrainStep:
        frozen = frozenset() if tuning is None else tuning.frozen_at(epoch, states[0].params)
        function = make_step_function(models[0], optimizer, frozen=frozen, **settings)
        if one:
            return functools.partial(function, seed=config.seed)
        return stacked_step(function, seeds, step_mesh)

    steps = {epoch: step_from(epoch) for epoch in ([0] if tuning is None else tuning.phases)}
    done = int(states[0].step)
    state = replicate(states[0], mesh) if one else shard_batch(stack(states), step_mesh)
    return Group(dataset, records, models, indices, steps, state, done, step_mesh, mesh, started)


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


def validate(
    model: nnx.Module, config: TrainConfig, dataset: Dataset, mesh: jax.sharding.Mesh, step: int
) -> dict[str, Any]:
    """Loss, accuracy and AUC on the validation split.

    Raises:
        RunError: the logits are not finite.
    """
    logits = logits_of(model, config, dataset.val, mesh)
    if not np.isfinite(logits).all():
        line = f"the validation logits are not finite at step {step}"
        raise known_to_all(RunError(f"{line}; try a lower learning rate"))
    scores = score(predictions_of(logits, dataset.val, dataset.info))
    return {f"val_{name}": scores[name] for name in ("loss", "accuracy", "auc")}


def logits_of(
    model: nnx.Module, config: TrainConfig, split: Split, mesh: jax.sharding.Mesh
) -> np.ndarray:
    """Logits for a whole split, every image once."""
    size = padded_size(config.eval_batch_size, mesh)
    return predict_logits(
        model,
        split.images,
        batch_size=size,
        put=lambda batch: shard_batch(batch, mesh),
        get=on_host,
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


def save_predictions(
    folder: Path, predictions: Mapping[str, Predictions], ideal: Mapping[str, np.ndarray] | None
) -> None:
    """``NAME.npz``, and ``ideal_NAME.npz`` where the ideal observer is known."""
    folder.mkdir(exist_ok=True)
    for name, made in predictions.items():
        made.save(folder / f"{name}.npz")
        if ideal is not None:
            with np.errstate(divide="ignore"):
                best = dataclasses.replace(made, logits=np.log(ideal[name]))
            best.save(folder / f"ideal_{name}.npz")


def trained_size(model: nnx.Module, config: TrainConfig) -> int:
    """How many parameters a run trains: all but those that are frozen throughout."""
    params = by_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    if config.finetune.linear_probe:
        return sum(leaf.size for name, leaf in params.items() if name.startswith("classifier."))
    tuning = make_tuning(model, config.finetune, epochs=config.epochs)
    frozen = frozenset() if tuning is None else tuning.frozen
    return sum(leaf.size for name, leaf in params.items() if name not in frozen)


def tree_size(tree: Any) -> int:
    """How many values the arrays of a tree hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def device_name(mesh: jax.sharding.Mesh) -> str:
    """Such as ``2 x cpu``."""
    devices = mesh.devices.ravel()
    return f"{len(devices)} x {devices[0].device_kind}"
