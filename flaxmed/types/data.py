"""What is known about images and their labels."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxmed.types.errors import InputError
from flaxmed.types.schema import check_shape


class Task(enum.StrEnum):
    """What the labels mean, and so which loss and which metrics apply.

    * ``BINARY``, ``MULTICLASS``: one class per image, softmax over K logits (K = 2 for binary).
    * ``ORDINAL``: one of K ordered grades; trained and scored as MULTICLASS, as MedMNIST does.
    * ``MULTILABEL``: L independent yes/no labels per image, one sigmoid each.

    Example:
        >>> Task("ordinal").exclusive
        True
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
                "preprocessing: mean and std need one value per channel each, "
                f"got {len(self.mean)} and {len(self.std)}"
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


# what a description of a data set holds, as JSON
_INFO = {
    **dict.fromkeys(("name", "task", "licence", "source", "description"), str),
    "classes": [str],
    "channels": int,
    "positive": (int, None),
    "flips": [str],
    "synthetic": bool,
}


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

    Raises:
        InputError: a binary task without two classes, a positive class that is none of them, an
            unknown flip.

    Example:
        >>> DatasetInfo("mine", Task.BINARY, ("healthy", "ill"), channels=1).positive
        1
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
                f"{self.name}: positive class {self.positive} is not among "
                f"the {len(self.classes)} classes"
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
        """The inverse of :meth:`to_dict`; other keys are left alone.

        Raises:
            InputError: a key that is needed and absent, or a value of another type.
        """
        needed = ("name", "task", "classes", "channels")
        if missing := [name for name in needed if name not in values]:
            raise InputError(f"lacks the key {missing[0]!r}")
        check_shape(dict(values), _INFO, "")
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

    Example:
        >>> split = Split(np.zeros((1, 8, 8, 1), np.uint8), np.array([0]), np.array(["a"]))
        >>> info = DatasetInfo("mine", Task.BINARY, ("healthy", "ill"), channels=1)
        >>> list(Dataset(split, split, split, info).splits)
        ['train', 'val', 'test']
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
