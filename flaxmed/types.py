"""The vocabulary that every part of flaxmed shares. NumPy only: importing this loads no jax."""

from __future__ import annotations

import dataclasses
import enum
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped


class InputError(ValueError):
    """Bad input from outside: a file, an option, an array.

    The message is one line that names the file, row, option or key and says what was expected.
    The command line prints it and exits with code 2.
    """


class RunError(RuntimeError):
    """A run that failed although its input was good: a non-finite loss, a full disk.

    The command line prints the message, one line, and exits with code 1.
    """


class Task(enum.StrEnum):
    """What the labels mean, and so which loss and which metrics apply.

    * ``BINARY``, ``MULTICLASS``: one class per image, softmax over K logits (K = 2 for binary).
    * ``ORDINAL``: one of K ordered grades; trained and scored as MULTICLASS, as MedMNIST does.
    * ``MULTILABEL``: L independent yes/no labels per image, one sigmoid each.
    """

    BINARY = "binary"
    MULTICLASS = "multiclass"
    MULTILABEL = "multilabel"
    ORDINAL = "ordinal"

    @property
    def exclusive(self) -> bool:
        """Whether each image has exactly one class (softmax) rather than any number (sigmoid)."""
        return self is not Task.MULTILABEL


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How uint8 images become network input: ``(x / 255 - mean) / std``, per channel.

    Attributes:
        mean: one value per channel, or a single one for all, in units of [0, 1].
        std: likewise, positive.

    Example:
        >>> Preprocessing(mean=(0.5,), std=(0.5,)).to_dict()
        {'mean': [0.5], 'std': [0.5]}
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if not self.mean or len(self.mean) != len(self.std):
            raise InputError(
                f"preprocessing: mean and std need one value per channel each, got {len(self.mean)} and {len(self.std)}"
            )
        if not np.all(np.isfinite(self.mean)) or not all(0 < v < np.inf for v in self.std):
            raise InputError("preprocessing: mean must be finite and std positive and finite")

    def to_dict(self) -> dict[str, list[float]]:
        """A plain dictionary that JSON can hold; :meth:`from_dict` is its inverse."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> Preprocessing:
        """The inverse of :meth:`to_dict`."""
        return cls(tuple(values["mean"]), tuple(values["std"]))


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known about a data set besides its pixels.

    Attributes:
        name: short name, as ``flaxmed.load_dataset`` takes it, e.g. ``"breastmnist"``.
        task: what the labels mean.
        classes: class (or label) names, in the order of the label numbers.
        channels: 1 for grey, 3 for RGB.
        positive: for binary tasks the class whose presence is "positive" (disease), else None.
        flips: mirror images that are as plausible as the original: a subset of
            ``("horizontal", "vertical")``. Empty where left and right mean something.
        licence: the licence of the images, e.g. ``"CC BY 4.0"``.
        source: a DOI or address where the data come from.
        description: one sentence.
        synthetic: True for simulated images; reports say so.
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    channels: int
    positive: int | None = None
    flips: tuple[str, ...] = ()
    licence: str = "unknown"
    source: str = ""
    description: str = ""
    synthetic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", Task(self.task))
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "flips", tuple(self.flips))
        if self.task is Task.BINARY and len(self.classes) != 2:
            raise InputError(f"{self.name}: a binary task has 2 classes, got {len(self.classes)}")
        if self.task is Task.BINARY and self.positive is None:
            object.__setattr__(self, "positive", 1)
        if self.positive is not None and not 0 <= self.positive < len(self.classes):
            raise InputError(
                f"{self.name}: positive class {self.positive} is not among the {len(self.classes)} classes"
            )
        unknown = set(self.flips) - {"horizontal", "vertical"}
        if unknown:
            raise InputError(
                f"{self.name}: unknown flip {sorted(unknown)[0]!r}; expected horizontal or vertical"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes, or of labels for a multi-label task: the width of the logits."""
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold; :meth:`from_dict` is its inverse."""
        values = dataclasses.asdict(self)
        return {
            **values,
            "task": str(self.task),
            "classes": list(self.classes),
            "flips": list(self.flips),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetInfo:
        """The inverse of :meth:`to_dict`; other keys are left alone."""
        known = {field.name for field in dataclasses.fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        exact = {"task": Task(kept["task"]), "classes": tuple(kept["classes"])}
        return cls(**{**kept, **exact, "flips": tuple(kept.get("flips", ()))})


@dataclasses.dataclass(frozen=True)
class Split:
    """One of train, validation and test: images and labels with random access.

    Attributes:
        images: uint8 ``[n, h, w, c]``; an array in memory, a memory map, or anything that has
            ``shape``, ``dtype`` and NumPy row indexing.
        labels: int64, ``[n]``; for multi-label tasks ``[n, labels]`` of 0 and 1.
        ids: str ``[n]``, unique; comparisons between models pair on them.
        groups: str ``[n]`` (the patient, say), or None where it is not known.

    Example:
        >>> split = Split(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]), np.array(["a", "b"]))
        >>> len(split), split[1]["label"], split[1]["id"]
        (2, 1, 'b')
    """

    images: Any
    labels: np.ndarray
    ids: np.ndarray
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.images)
        if (
            len(self.labels) != n
            or len(self.ids) != n
            or (self.groups is not None and len(self.groups) != n)
        ):
            raise InputError(f"images, labels, ids and groups must have one entry per image ({n})")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        label = self.labels[i]
        return {
            "image": np.asarray(self.images[i]),
            "label": label if label.ndim else int(label),
            "id": str(self.ids[i]),
            "group": None if self.groups is None else str(self.groups[i]),
        }


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three splits and what is known about them.

    Attributes:
        train, val, test: the splits.
        info: names, task, licence.
        ideal: for data whose generating model is known, the ideal observer's posterior
            probabilities, float64 ``[n, classes]`` by split name; else None.
        origin: where this copy was read from and its digest, for the run's record, e.g.
            ``{"file": "breastmnist.npz", "md5": "7506..."}``.
    """

    train: Split
    val: Split
    test: Split
    info: DatasetInfo
    ideal: Mapping[str, np.ndarray] | None = None
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name, in the order train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}


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
            put("positive", 1 if self.positive is None else int(self.positive))
            if self.positive not in (0, 1):
                raise InputError(f"the positive class must be 0 or 1, got {self.positive}")
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
                put(name, np.asarray(getattr(self, name)).astype(str))
        for name in ("ids", "groups", "image_sha256"):
            value = getattr(self, name)
            if value is not None and value.shape != (n,):
                raise InputError(
                    f"{name} must have one entry per image ({n}), got shape {value.shape}"
                )
        unique, counts = np.unique(np.asarray(self.ids), return_counts=True)
        if len(unique) != n:
            raise InputError(
                f"ids must be unique; {unique[counts > 1][0]!r} occurs {counts.max()} times"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def probabilities(self) -> Float[np.ndarray, "n k"]:
        """Softmax (multi-label: sigmoid) of the logits, float64 ``[n, k]``, in [0, 1]."""
        return softmax(self.logits) if self.task.exclusive else sigmoid(self.logits)

    @classmethod
    def from_probabilities(
        cls, probabilities: Shaped[Any, "..."], *, labels: Any, task: Task | str, **rest: Any
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
            raise InputError(
                f"probabilities must lie in [0, 1]; row {int(bad.argmax())} is {p[bad.argmax()].tolist()}"
            )
        exclusive = str(task) != Task.MULTILABEL.value
        off = np.abs(p.sum(axis=1) - 1) > 1e-3 if exclusive else np.zeros(len(p), bool)
        if off.any():
            raise InputError(
                f"probabilities of one image must sum to 1; row {int(off.argmax())} sums to {p[off.argmax()].sum():.4g}"
            )
        with np.errstate(divide="ignore"):
            logits = np.log(p) if exclusive else np.log(p) - np.log1p(-p)
        return cls(labels=labels, logits=logits, task=Task(str(task)), **rest)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` (.npz, no pickles), whole or not at all."""
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
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
            raise InputError(f"{path}: not a readable predictions file (.npz): {error}") from None
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
                task=Task(str(arrays["task"])),
                ids=arrays.get("ids"),
                groups=arrays.get("groups"),
                positive=None if positive is None else int(positive),
                classes=tuple(arrays["classes"].tolist()) if "classes" in arrays else None,
                image_sha256=arrays.get("image_sha256"),
            )
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: {error}") from None


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
