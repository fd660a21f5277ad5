"""What a run records about its data: class counts, and images that occur more than once."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from typing import Any

import numpy as np

from flaxmed.types import Dataset, Split, Task

_BLOCK = 1024  # images read at once: bounds memory on memory maps


def describe(dataset: Dataset, *, duplicates: bool = True, examples: int = 20) -> dict[str, Any]:
    """A plain dictionary about a data set, for ``dataset.json``.

    Args:
        dataset: any data set.
        duplicates: whether to look for identical images, which reads every image once.
        examples: how many groups of duplicates to list by their ids.

    Returns:
        The fields of ``dataset.info``; ``origin`` (file, MD5); ``image_shape`` ``[h, w, c]``;
        ``splits``: for each the number of ``images``, ``class_counts`` in the order of ``classes``
        (multi-label: images that have the label) and the number of ``groups``, or None;
        ``duplicates``: see :func:`find_duplicates`, or None; ``shared_groups``: groups, such as
        patients, that occur in several splits, by the splits' names joined with ``+``.

    Example:
        >>> images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
        >>> from flaxmed.data import as_dataset
        >>> d = describe(as_dataset([(images, [0, 1, 1]), (images[:1], [0]), (images[1:2], [0])]))
        >>> d["splits"]["train"]["class_counts"], d["duplicates"]["by_splits"]
        ([1, 2], {'train+val': 1, 'train+test': 1})
    """
    return {
        **dataset.info.to_dict(),
        "origin": dict(dataset.origin),
        "image_shape": [int(v) for v in dataset.train.images.shape[1:]],
        "splits": {name: _counts(split, dataset) for name, split in dataset.splits.items()},
        "duplicates": find_duplicates(dataset, examples=examples) if duplicates else None,
        "shared_groups": _shared_groups(dataset),
    }


def class_counts(split: Split, num_classes: int, task: Task) -> list[int]:
    """Images of each class; for a multi-label task, images that have each label.

    Example:
        >>> images, ids = np.zeros((3, 1, 1, 1), np.uint8), np.array(["a", "b", "c"])
        >>> split = Split(images, np.array([0, 2, 2]), ids)
        >>> class_counts(split, 3, Task.MULTICLASS)
        [1, 0, 2]
    """
    if task is Task.MULTILABEL:
        return [int(v) for v in split.labels.sum(axis=0)]
    return [int(v) for v in np.bincount(split.labels, minlength=num_classes)]


def find_duplicates(dataset: Dataset, *, examples: int = 20) -> dict[str, Any]:
    """Groups of images that are equal in every pixel, within and across splits.

    An image that stands in the training and in the test set makes the test optimistic; equal images
    with differing labels bound what any model can achieve.

    Returns:
        ``groups``: how many groups; ``images``: how many images are in them; ``by_splits``: groups
        by the splits they touch, such as ``{"train": 16, "train+val": 8}``; ``differing_labels``:
        groups whose labels are not all equal, counted in the same way; ``examples``: ids and labels
        of the first groups, those across splits first.
    """
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, split in dataset.splits.items():
        for row, digest in enumerate(image_digests(split).tolist()):
            places[digest].append((name, row))
    groups = [group for group in places.values() if len(group) > 1]
    groups.sort(key=lambda group: len({name for name, _ in group}), reverse=True)
    labels = {name: split.labels for name, split in dataset.splits.items()}
    differ = [g for g in groups if len({np.asarray(labels[s][row]).tobytes() for s, row in g}) > 1]
    return {
        "groups": len(groups),
        "images": sum(len(group) for group in groups),
        "by_splits": _by_splits(groups),
        "differing_labels": _by_splits(differ),
        "examples": [
            [
                {"id": str(dataset.splits[s].ids[row]), "label": labels[s][row].tolist()}
                for s, row in group
            ]
            for group in groups[:examples]
        ],
    }


def image_digests(split: Split) -> np.ndarray:
    """The SHA-256 of each image's bytes, hexadecimal, str ``[n]``; reads every image once.

    Example:
        >>> split = Split(np.zeros((1, 2, 2, 1), np.uint8), np.array([0]), np.array(["a"]))
        >>> str(image_digests(split)[0])
        'df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119'
    """
    digests = []
    for start in range(0, len(split), _BLOCK):
        block = np.ascontiguousarray(split.images[start : start + _BLOCK])
        digests += [hashlib.sha256(image.data).hexdigest() for image in block]
    return np.array(digests)


def _by_splits(groups: list[list[tuple[str, int]]]) -> dict[str, int]:
    # dict.fromkeys: the names once each, in the order train, val, test
    return dict(Counter("+".join(dict.fromkeys(name for name, _ in group)) for group in groups))


def _counts(split: Split, dataset: Dataset) -> dict[str, Any]:
    return {
        "images": len(split),
        "class_counts": class_counts(split, dataset.info.num_classes, dataset.info.task),
        "groups": None if split.groups is None else len(np.unique(split.groups)),
    }


def _shared_groups(dataset: Dataset) -> dict[str, int]:
    splits: dict[str, list[str]] = defaultdict(list)
    for name, split in dataset.splits.items():
        for group in [] if split.groups is None else np.unique(split.groups).tolist():
            splits[group].append(name)
    return dict(Counter("+".join(names) for names in splits.values() if len(names) > 1))
