"""A model's answers, and the file they are kept in."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxmed.types.archive import Archive
from flaxmed.types.data import Task
from flaxmed.types.errors import InputError, RunError

# what a file of predictions holds, those after the first three if they are known
_ARRAYS = ("labels", "logits", "task", "ids", "groups", "positive", "classes", "image_sha256")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float64; rows of logits may hold -inf (probability 0)."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    return weights / weights.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logistic function in float64, without overflow for large negative or positive logits."""
    # exp of a non-positive number on both sides: neither can overflow
    x = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A model's answers on one split: all that evaluation and comparison need.

    Attributes:
        labels: int64 ``[n]``; for multi-label tasks ``[n, l]`` of 0 and 1.
        logits: float ``[n, k]``: softmax (multi-label: sigmoid) makes them probabilities. -inf is a
            probability of 0; NaN is refused.
        task: a :class:`Task` or its name.
        ids: str ``[n]``, unique; the row numbers if not given.
        groups: str ``[n]`` such as patients, or None.
        positive: binary tasks: the positive class (1 if not given); else None.
        classes: class names; ``"0", "1", ...`` if not given.
        image_sha256: str ``[n]``, hexadecimal digest of each image's bytes, or None.

    Raises:
        InputError: shapes that do not fit, labels outside the classes, NaN logits, repeated ids.

    Example:
        >>> p = Predictions(labels=[0, 1], logits=[[2.0, 0.0], [0.0, 1.0]], task="binary")
        >>> p.probabilities.round(3).tolist()
        [[0.881, 0.119], [0.269, 0.731]]
    """

    # Any: lists and other frameworks' arrays are taken too, and are NumPy arrays afterwards
    labels: Any
    logits: Any
    task: Any
    ids: Any = None
    groups: Any = None
    positive: Any = None
    classes: Any = None
    image_sha256: Any = None

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 (frozen)
        try:
            task = Task(self.task)
        except ValueError:
            known = ", ".join(t.value for t in Task)
            raise InputError(f"unknown task {self.task!r}; expected one of {known}") from None
        put("task", task)
        logits = np.asarray(self.logits)
        if logits.ndim != 2 or logits.shape[1] < (2 if task.exclusive else 1):
            raise InputError(f"logits must be [images, classes], got shape {logits.shape}")
        if logits.dtype.kind not in "buif":
            raise InputError(f"logits must be real numbers, got {logits.dtype}")
        put(
            "logits",
            logits if logits.dtype in (np.float32, np.float64) else logits.astype(np.float64),
        )
        n, k = logits.shape
        put("labels", _check_labels(np.asarray(self.labels), task, n, k))
        _check_logits(self.logits, task)
        if task is Task.BINARY and k != 2:
            raise InputError(f"a binary task has 2 logits per image, got {k}")
        if task is Task.BINARY:
            given = 1 if self.positive is None else self.positive
            if given not in (0, 1):
                raise InputError(f"the positive class must be 0 or 1, got {given!r}")
            put("positive", int(given))
        elif self.positive is not None:
            raise InputError(f"a positive class belongs to binary tasks, not to {task}")
        put(
            "classes",
            tuple(str(i) for i in range(k))
            if self.classes is None
            else tuple(map(str, self.classes)),
        )
        if len(self.classes or ()) != k:
            raise InputError(f"{k} logits per image but {len(self.classes or ())} class names")
        put(
            "ids",
            np.arange(n).astype(str) if self.ids is None else np.asarray(self.ids).astype(str),
        )
        for name in ("groups", "image_sha256"):
            if getattr(self, name) is not None:
                put(name, _texts(getattr(self, name), name))
        for name in ("ids", "groups", "image_sha256"):
            value = getattr(self, name)
            if value is not None and value.shape != (n,):
                raise InputError(
                    f"{name} must have one entry per image ({n}), got shape {value.shape}"
                )
        unique, counts = np.unique(np.asarray(self.ids), return_counts=True)
        if len(unique) != n:
            raise InputError(
                f"ids must be unique; {str(unique[counts > 1][0])!r} occurs "
                f"{counts[counts > 1][0]} times"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def probabilities(self) -> Float[np.ndarray, "n k"]:
        """Softmax (multi-label: sigmoid) of the logits, float64 ``[n, k]``, in [0, 1]."""
        return softmax(self.logits) if self.task.exclusive else sigmoid(self.logits)

    @classmethod
    def from_probabilities(
        cls, probabilities: Any, *, labels: Any, task: Task | str, **rest: Any
    ) -> Predictions:
        """Predictions from probabilities of any framework.

        Args:
            probabilities: ``[n, k]`` in [0, 1]; rows sum to 1 unless the task is multi-label.
            labels, task, rest: as for :class:`Predictions`.

        Raises:
            InputError: values outside [0, 1], or rows that do not sum to 1 within 1e-3.

        Example:
            >>> p = Predictions.from_probabilities([[0.2, 0.8]], labels=[1], task="binary")
            >>> p.probabilities.round(6).tolist()
            [[0.2, 0.8]]
        """
        p = np.asarray(probabilities, np.float64)
        if p.ndim != 2:
            raise InputError(f"probabilities must be [images, classes], got shape {p.shape}")
        bad = ~((p >= 0) & (p <= 1)).all(axis=1)
        if bad.any():
            row = int(bad.argmax())
            raise InputError(f"probabilities must lie in [0, 1]; row {row} is {p[row].tolist()}")
        exclusive = str(task) != Task.MULTILABEL.value
        off = np.abs(p.sum(axis=1) - 1) > 1e-3 if exclusive else np.zeros(len(p), bool)
        if off.any():
            row = int(off.argmax())
            raise InputError(
                f"probabilities of one image must sum to 1; row {row} sums to {p[row].sum():.4g}"
            )
        with np.errstate(divide="ignore"):
            logits = np.log(p) if exclusive else np.log(p) - np.log1p(-p)
        return cls(labels=labels, logits=logits, task=Task(str(task)), **rest)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` (.npz, no pickles), whole or not at all.

        Raises:
            RunError: the disk is full or not writable.
        """
        path = Path(path)
        arrays = {
            "labels": self.labels,
            "logits": self.logits,
            "ids": self.ids,
            "task": np.array(str(self.task)),
        }
        arrays["classes"] = np.array(self.classes)
        optional = {
            "groups": self.groups,
            "image_sha256": self.image_sha256,
            "positive": self.positive,
        }
        arrays |= {name: np.asarray(value) for name, value in optional.items() if value is not None}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            os.replace(temporary, path)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictions:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: no such file, not a predictions file, or contents that do not fit.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such predictions file")
        with Archive(path) as archive:
            arrays = {name: archive.read(name) for name in _ARRAYS if name in archive.names}
        missing = [name for name in ("labels", "logits", "task") if name not in arrays]
        if missing:
            raise InputError(
                f"{path}: lacks the array {missing[0]!r}; expected labels, logits and task"
            )
        positive = arrays.get("positive")
        try:
            return cls(
                labels=arrays["labels"],
                logits=arrays["logits"],
                task=str(arrays["task"]),
                ids=arrays.get("ids"),
                groups=arrays.get("groups"),
                positive=None if positive is None else int(positive),
                classes=tuple(arrays["classes"].tolist()) if "classes" in arrays else None,
                image_sha256=arrays.get("image_sha256"),
            )
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: {error}") from None


def _texts(values: Any, name: str) -> np.ndarray:
    """Values as text; a missing one would make all images without it one group."""
    given = np.asarray(values)
    flat = given.ravel().tolist()
    missing = [v is None or v != v or str(v) == "" for v in flat]
    if any(missing):
        raise InputError(
            f"{name}: {sum(missing)} of {len(missing)} entries are missing, row "
            f"{missing.index(True)} the first; give every image one, or none at all"
        )
    return given.astype(str)


def _check_labels(labels: np.ndarray, task: Task, n: int, k: int) -> np.ndarray:
    """Labels as int64 ``[n]`` (multi-label ``[n, k]``), or an InputError that names the row."""
    if task.exclusive and labels.shape == (n, 1):
        labels = labels[:, 0]
    expected = (n,) if task.exclusive else (n, k)
    if labels.shape != expected:
        raise InputError(
            f"labels must have shape {expected} to go with the logits, got {labels.shape}"
        )
    numbers = (
        np.asarray(labels, np.float64) if labels.dtype.kind in "buif" else np.full(expected, np.nan)
    )
    top = k - 1 if task.exclusive else 1
    bad = ~((numbers >= 0) & (numbers <= top) & (numbers == np.floor(numbers)))
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise InputError(
            f"labels must be whole numbers from 0 to {top}; row {row} has {labels[row]}"
        )
    return numbers.astype(np.int64)


def _check_logits(logits: np.ndarray, task: Task) -> None:
    bad = np.isnan(logits).any(axis=1)
    if task.exclusive:  # softmax of +inf, or of nothing but -inf, is undefined
        bad |= np.isposinf(logits).any(axis=1) | np.isneginf(logits).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"logits must be numbers that define probabilities; row {row} is {logits[row].tolist()}"
        )
