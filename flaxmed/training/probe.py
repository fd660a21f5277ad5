"""The linear probe: a classifier fitted to its optimum on features that do not change.

The network is frozen, so that what its classifier sees of an image, the mean over each of the last
maps, is computed once and kept. On these features logistic regression is a convex problem, which
scikit-learn solves; the penalty is the one of the lowest validation loss. (Alain & Bengio 2016,
arXiv:1610.01644; Kornblith et al. 2019, arXiv:1805.08974, appendix A.4, choose it so, too.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flaxmed.evaluation.metrics import score
from flaxmed.files import cache_dir, make_dir, written_whole
from flaxmed.inference import pooled_features
from flaxmed.models.pretrained import flatten
from flaxmed.training.config import TrainConfig
from flaxmed.training.group import class_weights, device_name, finish_run, predictions_of
from flaxmed.training.linear import LinearFit, fit_linear
from flaxmed.training.record import Record, time_row
from flaxmed.training.run import Run, build_model, init_weights
from flaxmed.training.sharding import make_mesh, on_host, padded_size, shard_batch
from flaxmed.training.start import digest, load_start
from flaxmed.training.step import example_weights
from flaxmed.types import Archive, Dataset, InputError, RunError, Split

# inverse strengths of the penalty, as scikit-learn counts them, on standardised features
PENALTIES = tuple(10.0**power for power in range(-6, 3))
_SCORES = ("loss", "accuracy", "auc")
_BLOCK = 1024  # images read at once: bounds memory on memory maps


def check_probe(config: TrainConfig) -> None:
    """Raises InputError where a linear probe makes no sense."""
    if config.weights is None:
        raise InputError("setting finetune.linear_probe: needs weights to take features from")
    if config.ema_decay is not None or config.early_stopping is not None:
        raise InputError(
            "setting finetune.linear_probe: there are no epochs, so no ema_decay and no "
            "early_stopping"
        )
    if jax.process_count() > 1:
        raise InputError("setting finetune.linear_probe: a probe is for one process")


def probe(config: TrainConfig, dataset: Dataset, run_dir: Path, *, say: bool = True) -> Run:
    """Fit a classifier on the features of a frozen network; the run is written as any other.

    Args:
        config: settled; of its settings those that are about steps do not matter.
        dataset: the data.
        run_dir: claimed for this run.
        say: whether to tell on stderr what goes on.
    """
    mesh, size = make_mesh(), dataset.train.images.shape[1:3]
    model: Any = build_model(config, dataset.info, size)
    record = Record(config, run_dir)
    record.start_over()
    lines = load_start(model, config, dataset.info, run_dir)
    began = time.monotonic()
    fitted_on = {"train": dataset.train, "val": dataset.val}
    features, found = features_of(model, config, fitted_on, mesh)
    lines.append(f"features {len(features['train'])} x {features['train'].shape[1]}: {found}")
    seconds, began = time.monotonic() - began, time.monotonic()
    fit, row, tried = choose_fit(features, dataset, config)
    fit_seconds = time.monotonic() - began
    lines.append(f"fitted in {fit_seconds:.1f} s, features in {seconds:.1f} s")
    if say:
        print(*(f"{config.model} probe  {line}" for line in lines), sep="\n", file=sys.stderr)
    for variable, values in (
        (model.classifier.kernel, fit.kernel),
        (model.classifier.bias, fit.bias),
    ):
        variable.set_value(jnp.asarray(values, variable.get_value().dtype))
    record.end_at_once(init_weights(model), {"epoch": 0, "step": 1, **row})
    record.note_time(time_row(1, 1, seconds + fit_seconds, 0.0))
    facts = {
        "device": device_name(mesh),
        "linear_probe": {
            "features_seconds": round(seconds, 3),
            "fit_seconds": round(fit_seconds, 3),
            "tried": tried,
        },
    }
    return finish_run(record, model, dataset, mesh, facts)


# ------------------------------------------------------------------------------------- features


def features_of(
    model: nnx.Module, config: TrainConfig, splits: Mapping[str, Split], mesh: jax.sharding.Mesh
) -> tuple[dict[str, np.ndarray], str]:
    """Of every split ``[n, d]``, computed or, where the same were before, read; and where they are.

    They are kept in ``~/.cache/flaxmed/features``, in a file whose name is the digest of all that
    they depend on; where nothing can be written there, they are computed each time.

    Raises:
        RunError: values that are not finite.
    """
    folder, features = cache_dir() / "features", {}
    key, made, kept = _key_of_network(model), False, True
    for name, split in splits.items():
        path = folder / f"{_digest_of_images(split.images, f'{key} {config.dtype}')}.npz"
        found = _read(path, len(split))
        if found is None:
            made = True
            found = pooled_features(
                model,
                split.images,
                batch_size=padded_size(config.eval_batch_size, mesh),
                put=lambda batch: shard_batch(batch, mesh),
                get=on_host,
            )
            if not np.isfinite(found).all():
                raise RunError(f"the network's features of the {name} images are not finite")
            kept = _keep(path, found) and kept
        features[name] = found
    said = f"computed, and kept in {folder}" if kept else "computed"
    return features, said if made else f"read from {folder}"


def _digest_of_images(images: np.ndarray, key: str) -> str:
    """Of uint8 images, which may be a memory map, together with a text."""
    total = hashlib.sha256(f"{key} {images.shape}".encode())
    for start in range(0, len(images), _BLOCK):
        total.update(np.ascontiguousarray(images[start : start + _BLOCK]).data)
    return total.hexdigest()


def _key_of_network(model: Any) -> str:
    """The digest of all of a network that decides its features: everything but the classifier."""
    values = flatten(nnx.state(model))
    body = {name: v for name, v in values.items() if not name.startswith("classifier.")}
    return f"1 {_built(model)} {digest(body)}"  # the number changes when what is computed does


def _built(model: Any) -> str:
    """The same text in every process for networks that are built alike.

    What draws initial values decides no feature, and is a function, which has no lasting name.
    """
    fields = dataclasses.fields(model.config)
    values = {field.name: getattr(model.config, field.name) for field in fields}
    config = {name: value for name, value in values.items() if not callable(value)}
    return f"{type(model).__name__} {model.stem_name} {config} {model.preprocessing}"


def _read(path: Path, rows: int) -> np.ndarray | None:
    """Features that were kept, or None where there are none, or no whole ones."""
    try:
        with Archive(path) as archive:
            found = archive.read("features")
    except (InputError, KeyError, OSError):
        return None
    whole = found.ndim == 2 and len(found) == rows and found.dtype.kind == "f"
    return found if whole else None


def _keep(path: Path, features: np.ndarray) -> bool:
    """Write features down for the next time; whether that could be done."""
    try:
        make_dir(path.parent)
        with written_whole(path) as file:
            np.savez(file, features=features)
    except (InputError, RunError):
        return False
    return True


# ------------------------------------------------------------------------------------------ fit


def choose_fit(
    features: Mapping[str, np.ndarray], dataset: Dataset, config: TrainConfig
) -> tuple[LinearFit, dict[str, float], list[dict[str, float]]]:
    """The fit with the penalty of the lowest validation loss, its scores, and those of all tried.

    Raises:
        InputError: class weights that do not fit.
    """
    info, train = dataset.info, dataset.train
    given = class_weights(config, dataset)
    everyone, labels = jnp.ones(len(train), bool), jnp.asarray(train.labels)
    weights = np.asarray(example_weights(labels, everyone, given, info.task), np.float64)
    best: tuple[LinearFit, dict[str, float]] | None = None
    tried = []
    for strength in PENALTIES:
        fit = fit_linear(
            features["train"], train.labels, info.task, info.num_classes, strength, weights
        )
        row: dict[str, float] = {}
        for name, title in (("train", "train"), ("val", "val")):
            split = dataset.splits[name]
            scores = score(predictions_of(fit.logits(features[name]), split, info))
            row |= {f"{title}_{metric}": float(scores[metric]) for metric in _SCORES}
        del row["train_auc"]
        tried.append({"C": strength, **row})
        if best is None or row["val_loss"] < best[1]["val_loss"]:
            best = fit, row
    assert best is not None
    return *best, tried
