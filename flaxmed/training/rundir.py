"""The run directory: what is written there, and how a run that was begun is recognised."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flaxmed.training.config import TrainConfig
from flaxmed.types import InputError, RunError

# how images are fetched, how many are evaluated at once and what is computed twice to save memory
# decide the speed, not the result
FREE_SETTINGS = ("fetch", "eval_batch_size", "steps_per_call", "remat")
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


def read_json(path: Path) -> Any:
    """JSON from a run directory.

    Raises:
        InputError: no such file, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a run of flaxmed") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None


def read_config(run_dir: Path) -> TrainConfig:
    """The settings of a run that was begun in ``run_dir``.

    Raises:
        InputError: no run there, or a config.json with unknown settings.
    """
    path = run_dir / "config.json"
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected an object of settings")
    try:
        return TrainConfig.from_dict({k: v for k, v in values.items() if k != "versions"})
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
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def claim(run_dir: Path, config: TrainConfig, dataset: Mapping[str, Any]) -> bool:
    """Make ``run_dir`` this run's own; True if the same run was begun there before.

    Raises:
        InputError: the folder cannot be written, is not empty and no run, or holds another run.
    """
    if begun(run_dir, config, dataset):
        return True
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{run_dir}: cannot be used as output folder: {error.strerror}") from None
    write_json(run_dir / "dataset.json", dataset)
    write_json(run_dir / "config.json", {**config.to_dict(), "versions": versions()})
    return False


def begun(run_dir: Path, config: TrainConfig, dataset: Mapping[str, Any]) -> bool:
    """Whether this run was begun in ``run_dir``; False where the folder is free for it.

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
    differing = differences(read_config(run_dir), config)
    if differing:
        raise InputError(f"{run_dir}: holds another run, which differs in {'; '.join(differing)}")
    if read_json(run_dir / "dataset.json") != jsonable(dataset):
        raise InputError(f"{run_dir}: holds a run on other data (dataset.json differs)")
    return True


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """The settings that differ and matter, as ``name: old, now new``.

    Example:
        >>> differences(TrainConfig(seed=1), TrainConfig(seed=2))
        ['seed: 1, now 2']
    """
    return _differences(old.to_dict(), new.to_dict(), "")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> list[str]:
    found = []
    for key in old:
        if isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            found += _differences(old[key], new[key], f"{path}{key}.")
        elif old[key] != new[key] and path + key not in FREE_SETTINGS:
            found.append(f"{path}{key}: {old[key]}, now {new[key]}")
    return found


class JsonLines:
    """A file of one JSON object per line that is appended to as the run goes on.

    Args:
        path: the file; need not exist.
        until_step: lines of later steps are cut off: they will be computed again.
    """

    def __init__(self, path: Path, *, until_step: int):
        self.path = path
        self.rows = [row for row in read_rows(path) if row["step"] <= until_step]
        write_text(path, "".join(self._line(row) for row in self.rows))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line, on disk before this returns."""
        self.rows.append(jsonable(row))
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self._line(row))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from error

    @staticmethod
    def _line(row: Mapping[str, Any]) -> str:
        return json.dumps(jsonable(row), ensure_ascii=False) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line that was cut off mid-way does not count."""
    if not path.exists():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):  # a whole line ends with a newline
        try:
            row = json.loads(line)
        except ValueError:
            raise InputError(f"{path}, line {number}: not readable as JSON") from None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise InputError(f"{path}, line {number}: expected an object with the number 'step'")
        rows.append(row)
    return rows
