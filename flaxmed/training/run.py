"""A run as Python sees it: its network and predictions, read back from the run directory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flaxmed.models import create_model
from flaxmed.models.layers import set_batch_norm_momentum
from flaxmed.training import manifest, rundir
from flaxmed.training.checkpoint import restore, saved_steps
from flaxmed.training.config import TrainConfig
from flaxmed.training.record import best_folder
from flaxmed.types import (
    DatasetInfo,
    InputError,
    Predictions,
    Preprocessing,
    check_shape,
    read_json,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        dir: the run directory.
        config: its settings.
        model: the network of the best epoch, in evaluation mode, with its preprocessing.
        predictions: by split name, ``val`` and ``test``.
        history: one row of metrics per epoch, as in ``metrics.jsonl``.
        summary: as in ``run.json``: parameters, training time, the best epoch.

    Example:
        >>> [field.name for field in dataclasses.fields(Run)]
        ['dir', 'config', 'model', 'predictions', 'history', 'summary']
    """

    dir: Path
    config: TrainConfig
    model: nnx.Module
    predictions: Mapping[str, Predictions]
    history: list[dict[str, Any]]
    summary: Mapping[str, Any]


def load_run(run_dir: str | os.PathLike[str], model: nnx.Module | None = None) -> Run:
    """A finished run from its directory.

    Raises:
        InputError: no finished run there.
    """
    run_dir = Path(run_dir)
    return Run(
        dir=run_dir,
        config=rundir.read_config(run_dir),
        summary=read_json(run_dir / "run.json", wanted="a finished run of flaxmed"),
        history=rundir.read_rows(run_dir / "metrics.jsonl"),
        predictions={
            name: Predictions.load(run_dir / "predictions" / f"{name}.npz")
            for name in ("val", "test")
        },
        model=load_model(run_dir) if model is None else model,
    )


def load_model(run_dir: str | os.PathLike[str]) -> nnx.Module:
    """The network of a run's best epoch, in evaluation mode, ready for ``flaxmed.predict``.

    Args:
        run_dir: a directory that ``train`` wrote; the run need not be finished.

    Returns:
        The network, with ``model.preprocessing`` and ``model.info`` (class names, task).

    Raises:
        InputError: no run, or no checkpoint, there.

    Example:
        >>> load_model("no/such/run")
        Traceback (most recent call last):
        flaxmed.types.InputError: no/such/run/config.json: no such file; expected a run of flaxmed
    """
    run_dir = Path(run_dir)
    config = rundir.read_config(run_dir)
    info, size = _read_dataset(run_dir / "dataset.json")
    model = build_model(config, info, size)
    folder = best_folder(run_dir)
    finished = [
        step for step in saved_steps(folder) if (folder / str(step) / manifest.NAME).exists()
    ]
    if not finished:
        raise InputError(f"{run_dir}: no checkpoint there yet")
    load_into(model, restore(folder, finished[0], init_weights(model)))
    return model


def _read_dataset(path: Path) -> tuple[DatasetInfo, tuple[int, int]]:
    """What a run was trained on, and the height and width of its images."""
    values = read_json(path, wanted=rundir.A_RUN)
    check_shape(values, {"image_shape": [int]}, str(path))
    shape = values.get("image_shape", [])
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"{path}: image_shape: expected [height, width, channels], got {shape}")
    try:
        return DatasetInfo.from_dict(values), (shape[0], shape[1])
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def build_model(config: TrainConfig, info: DatasetInfo, size: Sequence[int]) -> nnx.Module:
    """The configured network for a data set's images of ``size`` (height, width); it evaluates.

    Its values are random, whatever it is to start from.

    Raises:
        InputError: unknown network or variant.
    """
    x64: bool = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    if config.dtype == "float64" and not x64:
        raise InputError("setting dtype: float64 needs the environment variable JAX_ENABLE_X64=1")
    preprocessing = config.preprocessing or Preprocessing()
    # for weights whose channels are normalised apart, a grey image becomes as many
    repeated = info.channels == 1 and config.weights is not None
    model: Any = create_model(  # Any: what it carries is not part of a bare network
        config.model,
        info.num_classes,
        in_channels=len(preprocessing.mean) if repeated else info.channels,
        stem=("small" if max(size) <= 64 else "imagenet") if config.stem == "auto" else config.stem,
        variant=config.variant,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        rngs=nnx.Rngs(config.seed),
    )
    if config.batch_norm_momentum is not None:
        set_batch_norm_momentum(model, config.batch_norm_momentum)
    model.preprocessing = preprocessing
    model.info = info
    return model


def init_weights(model: nnx.Module) -> dict[str, Any]:
    """The network's parameters and statistics, as a checkpoint of the best epoch holds them."""
    _, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = (nnx.to_pure_dict(state) for state in states)
    return {"params": params, "batch_stats": batch_stats}


def load_into(model: nnx.Module, weights: Mapping[str, Any]) -> None:
    """Put parameters and statistics into ``model``."""
    for kind, tree in ((nnx.Param, weights["params"]), (nnx.BatchStat, weights["batch_stats"])):
        state = nnx.state(model, kind)
        nnx.replace_by_pure_dict(state, tree)
        nnx.update(model, state)
