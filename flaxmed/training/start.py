"""What a run starts from: weights of a library, of flaxmed, or of another run."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from flaxmed.models.pretrained import LoadReport
from flaxmed.models.weights import Weights, load_weights, open_weights, weights_of
from flaxmed.models.weights.load import (
    channels_for,
    preprocessing_for,
    report_lines,
    variant_for,
)
from flaxmed.training import rundir
from flaxmed.training.config import TrainConfig
from flaxmed.training.processes import first_does, from_first
from flaxmed.training.run import build_model, init_weights, load_into, load_model
from flaxmed.types import Dataset, DatasetInfo, InputError, Preprocessing, check_shape, read_json

FILE = "weights.json"
_HEAD = "classifier"


def settle(config: TrainConfig, dataset: Dataset, run_dir: Path | None = None) -> TrainConfig:
    """The settings with what was left open decided: by the weights, or else the usual.

    The weights are read, and tried on the network; but not for a run that was begun with them: its
    ``config.json`` says what they decided. Where several processes train, process 0 does so and
    tells the others what was decided; all else stays each process's own, to be compared.

    Args:
        config: the settings.
        dataset: the data.
        run_dir: of the run, whether or not it was begun.

    Raises:
        InputError: weights that cannot be had or read, or of another network, variant or stem; or
            a tensor of theirs, or of the network's, that the other has no place for.

    Example:
        >>> from flaxmed.data.phantom import load_phantom
        >>> data = load_phantom(size=16, n_train=8, n_val=8, n_test=8)
        >>> settle(TrainConfig(), data).preprocessing
        Preprocessing(mean=(0.5,), std=(0.5,))
    """
    settled = first_does(lambda: settle_here(config, dataset, run_dir).to_dict())
    found = TrainConfig.from_dict(settled)
    return _decided(config, found.stem, found.variant, found.preprocessing)


def settle_here(config: TrainConfig, dataset: Dataset, run_dir: Path | None) -> TrainConfig:
    """:func:`settle` in this process alone."""
    if config.weights is None:
        return dataclasses.replace(config, preprocessing=config.preprocessing or Preprocessing())
    if run_dir is not None and (run_dir / "config.json").exists():
        begun = rundir.read_config(run_dir)
        if begun.weights == config.weights:
            return _decided(config, begun.stem, begun.variant, begun.preprocessing)
    weights = open_start(config.weights)
    kind, channels = weights.kind, channels_for(weights, dataset.info.channels)
    if kind.network != config.model:
        raise InputError(f"{config.weights}: weights of {kind.network}, not of {config.model}")
    variant = variant_for(weights, config.variant)
    own = preprocessing_for(weights, channels)
    settled = _decided(config, kind.stem, variant, own or Preprocessing())
    size = dataset.train.images.shape[1:3]
    shapes = nnx.eval_shape(lambda: build_model(settled, dataset.info, size))
    _load(shapes, weights, dataset.info)
    return settled


def _decided(
    config: TrainConfig, stem: Any, variant: str | None, preprocessing: Preprocessing | None
) -> TrainConfig:
    return dataclasses.replace(
        config,
        stem=stem if config.stem == "auto" else config.stem,
        variant=config.variant or variant,
        preprocessing=config.preprocessing or preprocessing,
    )


def open_start(source: str) -> Weights:
    """Weights as ``flaxmed.open_weights`` takes them, or those of a run, by its directory.

    Raises:
        InputError: as ``open_weights``, or ``load_model``.
    """
    folder = Path(os.path.expanduser(source))
    if rundir.is_run(folder):
        return weights_of(load_model(folder), source=source)
    return open_weights(source)


def load_start(model: nnx.Module, config: TrainConfig, info: DatasetInfo, run_dir: Path) -> Any:
    """Give a new network the weights that its run starts from, and write down what was taken.

    Args:
        model: random; changed in place.
        config: settled.
        info: of the data: the classifier is taken only if its classes are not known to be others.
        run_dir: where :data:`FILE` goes.

    Returns:
        Lines to say of it.

    Raises:
        InputError: as :func:`settle`; or the run was begun from other weights of that name.
    """
    lines: list[str] = []

    def loaded() -> dict[str, Any]:
        weights = open_start(str(config.weights))
        report = _load(model, weights, info)
        _write_down(run_dir / FILE, describe(weights, report))
        lines.extend(report_lines(weights, report))
        network: Any = model
        own, used = preprocessing_for(weights, network.in_channels), network.preprocessing
        if own != used:
            lines.append(_other_preprocessing(own, used))
        if f"{_HEAD}.kernel" in report.loaded and not config.finetune.linear_probe:
            reason = "its classes are those of the data"
            reason = "nothing says what its classes are" if weights.info is None else reason
            lines.append(f"the classifier is taken along: {reason}")
        return init_weights(model)

    load_into(model, from_first(loaded, init_weights(model)))
    return lines


def _other_preprocessing(own: Preprocessing | None, used: Preprocessing) -> str:
    """What to say where images are normalised in another way than the weights' own."""
    if own is None:
        return (
            f"nothing says how the weights' images were normalised: {_shown(used)} are used "
            "(setting preprocessing)"
        )
    return f"images are normalised with {_shown(used)}, as set; the weights had {_shown(own)}"


def _shown(preprocessing: Preprocessing) -> str:
    each = (preprocessing.mean, preprocessing.std)
    mean, std = (", ".join(f"{v:g}" for v in values) for values in each)
    return f"mean {mean} and standard deviation {std}"


def _load(model: nnx.Module, weights: Weights, info: DatasetInfo) -> LoadReport:
    network: Any = model
    preprocessing = network.preprocessing
    report = load_weights(network, weights, keep=[] if _same_classes(weights, info) else [_HEAD])
    network.preprocessing = preprocessing  # the settings have the last word
    return report


def _same_classes(weights: Weights, info: DatasetInfo) -> bool:
    """Whether the logits of both mean the same, as far as is known."""
    own = weights.info
    return own is None or (own.classes, own.task.exclusive) == (info.classes, info.task.exclusive)


def describe(weights: Weights, report: LoadReport) -> dict[str, Any]:
    """What :data:`FILE` says: where the weights are from, their digest, and what was left out."""
    return {
        "source": weights.source,
        "local": os.path.exists(os.path.expanduser(weights.source)),
        "sha256": digest(weights.tensors),
        "network": weights.kind.network,
        "variant": weights.variant,
        "licence": weights.licence,
        "loaded": len(report.loaded),
        "left_out": dict(report.dropped),
        "new": list(report.kept),
    }


def describe_start(run_dir: Path) -> dict[str, Any]:
    """What ``run.json`` says of the weights that a run started from; nothing where there are none.

    Example:
        >>> describe_start(Path("no/such/run"))
        {}
    """

    def read() -> dict[str, Any]:
        if not (run_dir / FILE).exists():
            return {}
        return {"started_from": read_json(run_dir / FILE, wanted="what a run started from")}

    return first_does(read)


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of tensors with their names, in the order of these.

    Example:
        >>> digest({"a": np.zeros(2, np.float32)})[:8]
        'b68b839f'
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        total.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _write_down(path: Path, described: dict[str, Any]) -> None:
    if path.exists():
        before = read_json(path, wanted="what a run started from")
        check_shape(before, {"sha256": str}, str(path))
        if before.get("sha256") != described["sha256"]:
            raise InputError(f"{path}: the run was begun from other weights of that name")
    rundir.write_json(path, described)
