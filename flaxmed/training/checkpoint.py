"""Checkpoints of a run, through orbax: ``last`` to go on from, ``best`` to use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from flaxmed.types import InputError, RunError


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
    """The checkpoints in one folder, named by step; the newest few are kept.

    Saving is asynchronous and atomic (orbax): a checkpoint is there whole or not at all.

    Args:
        folder: created when first written to.
        keep: how many to keep.
    """

    def __init__(self, folder: Path, *, keep: int = 1):
        self.folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Save ``state``, a tree of arrays, unless that step is there already.

        Raises:
            RunError: the disk is full or not writable.
        """
        if step in self._manager.all_steps():
            return
        with _disk_errors(self.folder):
            self._manager.save(step, args=ocp.args.StandardSave(flatten(state)))

    def restore(self, like: Any, *, sharding: jax.sharding.Sharding | None = None) -> Any:
        """The newest checkpoint, in the structure, shapes and types of ``like``.

        Raises:
            InputError: there is none, or it does not fit ``like``.
        """
        step = self.latest_step
        if step is None:
            raise InputError(f"{self.folder}: no checkpoint there")
        place = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shape = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
            for name, leaf in flatten(like).items()
        }
        try:
            flat = self._manager.restore(step, args=ocp.args.StandardRestore(shape))
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{self.folder / str(step)}: checkpoint cannot be read: {reason}"
            ) from error
        return unflatten(like, flat)

    def wait(self) -> None:
        """Until every save is on disk."""
        with _disk_errors(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and release the folder."""
        with _disk_errors(self.folder):
            self._manager.wait_until_finished()
            self._manager.close()


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder}: cannot save the checkpoint: {error.strerror or error}"
        ) from error


def saved_step(folder: Path) -> int:
    """Step of the newest checkpoint in ``folder``, 0 if there is none.

    Example:
        >>> saved_step(Path("no/such/folder"))
        0
    """
    if not folder.is_dir():
        return 0
    return max(map(int, ocp.path.step.checkpoint_steps(folder)), default=0)
