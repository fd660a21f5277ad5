"""Checkpoints of a run, through orbax: ``last`` to go on from, ``best`` to use."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from flaxmed.training import manifest
from flaxmed.types import InputError, RunError, read_json

_METADATA = 2**20  # bytes, amply, of what orbax writes about some hundred arrays
_ITEM = "default"  # orbax's name for the one thing that a checkpoint of ours holds
_LIST = "_METADATA"  # and for the list of the arrays in it


def flatten(tree: Any) -> dict[str, Any]:
    """A tree of arrays as one flat dictionary with readable names.

    Example:
        >>> flatten({"stage1": {0: {"kernel": 1.0}}, "step": 2})
        {'stage1/0/kernel': 1.0, 'step': 2}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(like: Any, flat: dict[str, Any]) -> Any:
    """The inverse of :func:`flatten`, in the structure of ``like``."""
    names = list(flatten(like))
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in names])


class Checkpoints:
    """The checkpoints that a run writes to one folder, named by step; the newest few are kept.

    Saving goes on in the background. A checkpoint is there whole, with its seal
    (:mod:`flaxmed.training.manifest`), or it does not count.

    Args:
        folder: made if need be; what an interrupted process left half-written there
            is removed.
        keep: how many to keep.
    """

    def __init__(self, folder: Path, *, keep: int):
        self.folder = folder
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            cleanup_tmp_directories=True,
            # the background is ours: orbax's own gives up when the system's clock jumps
            enable_async_checkpointing=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(**_alone()),
        )
        _say_errors_once()
        with _disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self._background = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        self._closed = False

    def save(self, step: int, state: Any) -> None:
        """Save ``state``, arrays that each device has whole, unless that step is there already.

        Raises:
            RunError: the disk is full or not writable.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        with _disk_errors(self.folder):
            _check_space(self.folder, state)
        # Copies on the host: the arrays may be given away to the next step, and orbax takes none
        # that several processes share from one of them.
        own = {name: np.array(array) for name, array in flatten(state).items()}
        self._saving = self._background.submit(self._save, step, own)

    def _save(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        self._manager.save(step, args=ocp.args.StandardSave(arrays))
        manifest.seal(self.folder / str(step))

    def wait(self) -> None:
        """Until every save is on disk, sealed."""
        with _disk_errors(self.folder):
            saving, self._saving = self._saving, None
            if saving is not None:
                saving.result()

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps, which will be computed again."""
        with _disk_errors(self.folder):
            for later in [saved for saved in self._manager.all_steps() if saved > step]:
                self._manager.delete(later)

    def close(self) -> None:
        """Wait, and release the folder; once."""
        if self._closed:
            return
        self._closed = True
        try:
            self.wait()
        finally:
            self._background.shutdown()
            with _disk_errors(self.folder):
                self._manager.close()


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in ``folder``, sound or not, newest first.

    Example:
        >>> saved_steps(Path("no/such/folder"))
        []
    """
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def restore(folder: Path, step: int, like: Any) -> Any:
    """The checkpoint of ``step`` in ``folder``, in the structure, shapes and types of ``like``.

    Args:
        folder: where it lies.
        step: one of ``saved_steps(folder)``.
        like: a tree of arrays, or of their shapes.

    Returns:
        Its arrays, on this process's first device.

    Raises:
        InputError: it is damaged, or does not fit ``like``.
    """
    path = folder / str(step)
    if (reason := manifest.damage(path)) is not None:
        raise InputError(f"{reason}: the checkpoint is damaged")
    wanted, held = flatten(like).keys(), stored_names(path / _ITEM / _LIST)
    if wanted != held:
        some = min(wanted ^ held)
        relation = "lacks" if some in wanted else "holds, beyond what is wanted,"
        raise InputError(f"{path}: the checkpoint {relation} {some!r}")
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shape = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        for name, leaf in flatten(like).items()
    }
    _say_errors_once()
    try:
        alone = ocp.options.MultiprocessingOptions(**_alone())
        with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
            stored = checkpointer.metadata((path / _ITEM).absolute()).item_metadata.tree
            _check_shapes(stored, shape, path)
            flat = checkpointer.restore((path / _ITEM).absolute(), shape)
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{path}: checkpoint cannot be read: {reason}") from error
    return unflatten(like, flat)


def _check_shapes(stored: Any, wanted: dict[str, Any], path: Path) -> None:
    for name, leaf in wanted.items():
        if stored[name].shape != leaf.shape:
            raise InputError(
                f"{path}: {name} has shape {stored[name].shape} in the checkpoint, "
                f"expected {leaf.shape}"
            )


def stored_names(path: Path) -> set[str]:
    """The arrays that a checkpoint holds, by its own list of them.

    Args:
        path: orbax's ``_METADATA``.

    Raises:
        InputError: no such list.
    """
    found = read_json(path, wanted="a checkpoint's list of its arrays")
    try:
        entries = found["tree_metadata"].values()
        return {"/".join(part["key"] for part in entry["key_metadata"]) for entry in entries}
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: not a checkpoint's list of its arrays") from None


def _alone() -> dict[str, Any]:
    """For orbax: of a job's processes this one alone reads or writes, and waits for no other."""
    index = jax.process_index()
    return {"primary_host": index, "active_processes": {index}}


def _check_space(folder: Path, state: Any) -> None:
    """Raises RunError where the disk has no room for ``state``; orbax would write what fits."""
    needed = _METADATA + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"{folder}: cannot save the checkpoint: it takes {needed / 1e6:.1f} MB, "
            f"{free / 1e6:.1f} MB are free"
        )


@functools.cache
def _say_errors_once() -> None:
    """Keep quiet what is printed, piece by piece, of an error that orbax raises as well.

    When a write fails, its thread logs it, and each other write that fails finds nobody waiting
    any more: asyncio logs it, at whatever moment its task is collected, or tensorstore prints a
    traceback. Reads that fail after the first are logged, too.
    """
    print_unraisable = sys.unraisablehook

    def print_unless_abandoned(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            print_unraisable(unraisable)

    sys.unraisablehook = print_unless_abandoned
    known = {
        "asyncio": ("orbax", "tensorstore"),  # any task of theirs that was left alone
        "absl": (
            "_SignalingThread.run() raised",
            "/_CHECKPOINT_METADATA",  # which is beside the folder that is read, and not needed
        ),
    }
    for name, texts in known.items():
        logging.getLogger(name).addFilter(functools.partial(_none_of, texts))


def _none_of(texts: Sequence[str], record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in texts)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
        return
    except (OSError, ValueError) as error:  # tensorstore's are ValueErrors
        text = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        reason = getattr(error, "strerror", None) or text
        if "RESOURCE_EXHAUSTED" in text:
            reason = "no space left on the disk"
    raise RunError(f"{folder}: cannot save the checkpoint: {reason}")
