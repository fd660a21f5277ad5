"""The run directory: what is written there, and how a run that was begun is recognised."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxmed.training.config import TrainConfig
from flaxmed.types import InputError, RunError, is_number, read_json, read_json_lines

# how images are fetched, how many are evaluated at once and what is computed twice to save memory
# decide the speed, not the result
FREE_SETTINGS = ("fetch", "eval_batch_size", "steps_per_call", "remat")
# with another of these a run can go on, when asked to
_CHANGEABLE = (
    "epochs",
    "early_stopping",
    "class_weights",
    "batch_norm_momentum",
    "augment",
    "optimizer",
)
_FIXED = ("optimizer.name", "optimizer.clip_norm")  # but these decide what its state consists of
A_RUN = "a run of flaxmed"
_NUMBERS = {  # what the rows of a file must hold
    "metrics.jsonl": ("step", "epoch", "val_loss", "val_auc"),
    "timing.jsonl": ("step", "seconds", "evaluation_seconds"),
}
_NOT_SETTINGS = ("versions", "changed")  # what config.json says besides
PACKAGES = ("flaxmed", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_text(path: Path, text: str) -> None:
    """Replace the file whole: a reader sees the old text or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, whole; NaN becomes null, which JSON can say."""
    write_text(path, json.dumps(jsonable(value), indent=2, ensure_ascii=False) + "\n")


def jsonable(value: Any) -> Any:
    """``value`` with non-finite floats as None, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, begun or finished, whatever else was put into it.

    Example:
        >>> is_run(Path("no/such/run"))
        False
    """
    return all((path / name).is_file() for name in ("config.json", "dataset.json"))


def read_config(run_dir: Path) -> TrainConfig:
    """The settings of a run that was begun in ``run_dir``.

    Raises:
        InputError: no run there, or a config.json with unknown settings.
    """
    path = run_dir / "config.json"
    values = read_json(path, wanted=A_RUN)
    try:
        return TrainConfig.from_dict({k: v for k, v in values.items() if k not in _NOT_SETTINGS})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keeps other processes from training in ``run_dir``, which is made if need be.

    The lock is the kernel's: however this process ends, it goes with it. Where the system or the
    file system has none, nothing is kept out.

    Raises:
        InputError: another process has it, or the folder cannot be written.
    """
    path = run_dir / ".lock"
    with contextlib.ExitStack() as opened:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(open(path, "a+", encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"{run_dir}: cannot be used as output folder: {error.strerror}"
            ) from None
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read(200).strip() or "unknown"
                raise InputError(f"{run_dir}: another process trains there ({owner})") from None
        with contextlib.suppress(OSError):  # on a full disk it has no name
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        yield


def claim(
    run_dir: Path, config: TrainConfig, dataset: Mapping[str, Any], change: Sequence[str] = ()
) -> bool:
    """Make ``run_dir`` this run's own; True if the same run was begun there before.

    Raises:
        InputError: the folder cannot be written, is not empty and no run, or holds another run.
    """
    if begun(run_dir, config, dataset, change):
        if (old := read_config(run_dir)) != config:
            _note_changes(run_dir, config, differences(old, config))
        return True
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{run_dir}: cannot be used as output folder: {error.strerror}") from None
    write_json(run_dir / "dataset.json", dataset)
    write_json(run_dir / "config.json", {**config.to_dict(), "versions": versions()})
    return False


def _note_changes(run_dir: Path, config: TrainConfig, changes: dict[str, str]) -> None:
    """``config.json`` gets the new settings; of those that matter it says what changed and when,
    and the run is no longer finished."""
    old = read_json(run_dir / "config.json", wanted=A_RUN)
    values = {**config.to_dict(), "versions": versions(), "changed": old.get("changed", [])}
    if changes:
        done = len(read_rows(run_dir / "metrics.jsonl"))
        if config.epochs < done:
            raise InputError(f"{run_dir}: {done} epochs are done; expected as many or more")
        values["changed"] = [*values["changed"], {"epochs_done": done, "settings": changes}]
        (run_dir / "run.json").unlink(missing_ok=True)
    write_json(run_dir / "config.json", values)


def begun(
    run_dir: Path, config: TrainConfig, dataset: Mapping[str, Any], change: Sequence[str] = ()
) -> bool:
    """Whether this run was begun in ``run_dir``; False where the folder is free for it.

    Args:
        run_dir: the folder.
        config, dataset: of the run.
        change: settings, by dotted name, that may differ from those it was begun with.

    Raises:
        InputError: as :func:`claim`; nothing is written.
    """
    there = run_dir
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise InputError(f"{run_dir}: cannot be used as output folder: {there} is a file")
    if not os.access(there, os.W_OK):
        raise InputError(f"{run_dir}: the output folder cannot be written")
    if there != run_dir:
        return False
    entries = [entry.name for entry in run_dir.iterdir() if not entry.name.startswith(".")]
    if not entries:
        return False
    if "config.json" not in entries:
        raise InputError(f"{run_dir}: the output folder is not empty and holds no run")
    _check_changes(run_dir, read_config(run_dir), config, change)
    if read_json(run_dir / "dataset.json", wanted=A_RUN) != jsonable(dataset):
        raise InputError(f"{run_dir}: holds a run on other data (dataset.json differs)")
    return True


def _check_changes(
    run_dir: Path, old: TrainConfig, new: TrainConfig, change: Sequence[str]
) -> None:
    def listed(names: Sequence[str]) -> str:
        return "; ".join(f"{name}: {differing[name]}" for name in names)

    differing = differences(old, new)
    if unnamed := [name for name in differing if not _is_one_of(name, change)]:
        raise InputError(f"{run_dir}: holds another run, which differs in {listed(unnamed)}")
    if fixed := [name for name in differing if name in _FIXED or not _is_one_of(name, _CHANGEABLE)]:
        raise InputError(f"{run_dir}: cannot go on, these do not change in a run: {listed(fixed)}")


def _is_one_of(name: str, settings: Sequence[str]) -> bool:
    """Whether a dotted name, or what it is part of, is among those settings."""
    return any(name == setting or name.startswith(f"{setting}.") for setting in settings)


def differences(old: TrainConfig, new: TrainConfig) -> dict[str, str]:
    """The settings that differ and matter, by dotted name: the old value, and the new.

    Example:
        >>> differences(TrainConfig(seed=1), TrainConfig(seed=2))
        {'seed': '1, now 2'}
    """
    return _differences(old.to_dict(), new.to_dict(), "")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in old:
        if isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            found |= _differences(old[key], new[key], f"{path}{key}.")
        elif old[key] != new[key] and path + key not in FREE_SETTINGS:
            found[path + key] = f"{old[key]}, now {new[key]}"
    return found


def cut_rows(path: Path, *, until_step: int) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file up to a step; later ones, to be computed again, are cut off."""
    rows = [row for row in read_rows(path) if row["step"] <= until_step]
    write_text(path, "".join(_line(row) for row in rows))
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line to a JSON-lines file, on disk before this returns.

    Raises:
        RunError: the disk is full or not writable.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(jsonable(row), ensure_ascii=False) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line that was cut off mid-way does not count.

    Raises:
        InputError: a file that is no such one; the line is named.
    """
    if not path.exists():
        return []
    rows = []
    for place, row in read_json_lines(path, wanted="what a run wrote as it went on"):
        for name in _NUMBERS[path.name]:
            value = row.get(name, ...)
            if value is None and name == "val_auc":  # undefined where one class is absent
                continue
            if not is_number(value):
                raise InputError(f"{place}: expected an object with the number {name!r}")
        rows.append(row)
    return rows
