"""Your own images: arrays in memory, or an .npz file in MedMNIST's layout."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxmed.data.npz import MAP_ABOVE, file_md5, read_arrays
from flaxmed.types import Dataset, DatasetInfo, InputError, Split, Task

SPLITS = ("train", "val", "test")
REQUIRED = tuple(f"{split}_{part}" for split in SPLITS for part in ("images", "labels"))
OPTIONAL = (
    *(f"{split}_{part}" for split in SPLITS for part in ("ids", "groups")),
    "task",
    "classes",
    "positive",
)


def as_dataset(data: Any, *, name: str = "arrays") -> Dataset:
    """Make a :class:`~flaxmed.Dataset` of what a user passes to ``train(config, data=...)``.

    Args:
        data: a Dataset, returned as it is; or a mapping with the keys ``train_images``,
            ``train_labels``, ``val_...`` and ``test_...``; or three (images, labels) pairs.
            Images are uint8 ``[n, h, w]`` or ``[n, h, w, c]``, values 0 to 255. Labels are whole
            numbers ``[n]`` or ``[n, 1]`` from 0, or ``[n, labels]`` of 0 and 1 (multi-label).
            Optional keys: ``train_ids``, ``train_groups`` (and so on), ``task``, ``classes``
            (names) and ``positive`` (the positive class of a binary task).
        name: what to call the data in messages and reports.

    Returns:
        The data set. Without ``task``: several label columns are multi-label, two classes binary,
        more multi-class. Without ``classes`` they are numbered, as many as the training labels use.

    Raises:
        InputError: one line that names the array, the row if there is one, and what was expected.

    Example:
        >>> images = np.zeros((4, 28, 28), np.uint8)
        >>> dataset = as_dataset([(images, [0, 1, 0, 1]), (images, [0] * 4), (images, [1] * 4)])
        >>> dataset.info.task, dataset.train.images.shape
        (<Task.BINARY: 'binary'>, (4, 28, 28, 1))
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, Mapping):
        for key in data:
            if key not in (*REQUIRED, *OPTIONAL):
                raise InputError(f"{name}: unknown key {key!r}; {_nearest(str(key))}")
        return from_arrays(data, name=name)
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        try:
            pairs = [(images, labels) for images, labels in data]
        except (TypeError, ValueError):
            pairs = []
        if len(pairs) == len(SPLITS):
            return from_arrays(
                {
                    f"{split}_{part}": array
                    for split, pair in zip(SPLITS, pairs, strict=True)
                    for part, array in zip(("images", "labels"), pair, strict=True)
                },
                name=name,
            )
    raise InputError(
        f"{name}: expected a Dataset, a mapping with {', '.join(REQUIRED)}, or three "
        f"(images, labels) pairs; got {type(data).__name__}"
    )


def from_arrays(
    arrays: Mapping[str, Any],
    *,
    name: str = "arrays",
    source: str = "",
    origin: Mapping[str, Any] | None = None,
    info: DatasetInfo | None = None,
) -> Dataset:
    """A data set from arrays in MedMNIST's layout; see :func:`as_dataset` for the keys.

    Args:
        arrays: the arrays by name.
        name: the data set's name.
        source: what messages name, such as the file; ``name`` if not given.
        origin: where the arrays come from, for the run's record.
        info: what is known about the data; ``task``, ``classes``, ``positive`` are then not read.

    Raises:
        InputError: as for :func:`as_dataset`.

    Example:
        >>> a = {f"{s}_images": np.zeros((2, 8, 8), np.uint8) for s in ("train", "val", "test")}
        >>> a |= {f"{s}_labels": np.array([[0], [1]]) for s in ("train", "val", "test")}
        >>> from_arrays(a, name="mine").test.ids.tolist()
        ['test/0000', 'test/0001']
    """
    where = source or name
    for key in REQUIRED:
        if key not in arrays:
            raise InputError(f"{where}: lacks the array {key!r}; expected {', '.join(REQUIRED)}")
    images = {
        split: _images(arrays[f"{split}_images"], f"{where}: {split}_images") for split in SPLITS
    }
    shapes = {split: array.shape[1:] for split, array in images.items()}
    for split in SPLITS[1:]:
        if shapes[split] != shapes["train"]:
            raise InputError(
                f"{where}: {split}_images: images of shape {shapes[split]}; expected "
                f"{shapes['train']} as in train_images"
            )
    labels = {
        split: _labels(arrays[f"{split}_labels"], len(images[split]), f"{where}: {split}_labels")
        for split in SPLITS
    }
    if info is None:
        info = _describe(arrays, labels, name, shapes["train"][-1], where)
    if shapes["train"][-1] != info.channels:
        raise InputError(
            f"{where}: train_images: {shapes['train'][-1]} channels; expected {info.channels}"
        )
    for split in SPLITS:
        check_labels(labels[split], info, f"{where}: {split}_labels")
    ids = {
        split: _ids(arrays.get(f"{split}_ids"), split, len(images[split]), where)
        for split in SPLITS
    }
    _check_unique(ids, where)
    splits = {
        split: Split(
            images[split],
            _as_stored(labels[split], info.task),
            ids[split],
            _texts(arrays.get(f"{split}_groups"), len(images[split]), f"{where}: {split}_groups"),
        )
        for split in SPLITS
    }
    return Dataset(
        splits["train"],
        splits["val"],
        splits["test"],
        info,
        origin=dict(origin or {"source": "arrays in memory"}),
    )


def load_npz(
    path: str | os.PathLike[str], *, size: int | None = None, map_above: int = MAP_ABOVE
) -> Dataset:
    """Read an .npz file in MedMNIST's layout, with the keys of :func:`as_dataset`.

    A MedMNIST file is recognised by its MD5, whatever its name, and gets the names and the task of
    that set; a file that is called like one but is another is refused.

    Args:
        path: the file.
        size: if given, the image height and width that the file must have, in pixels.
        map_above: arrays that exceed this many bytes together are memory-mapped.

    Raises:
        InputError: as for :func:`as_dataset`; also a missing, truncated or damaged file, and arrays
            of Python objects, which are never unpickled.
    """
    from flaxmed.data import medmnist  # here: medmnist itself reads arrays

    try:
        path = Path(path).expanduser()
    except RuntimeError as error:  # ~nobody
        raise InputError(f"{path}: no such file ({error})") from None
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected an .npz archive in MedMNIST's layout")
    digest = file_md5(path)
    known = medmnist.identify(digest) or medmnist.called(path.name)
    if known is not None:
        dataset = medmnist.read(path, *known, map_above=map_above)
    else:
        dataset = _load_own(path, digest, map_above)
    if size is not None and dataset.train.images.shape[1:3] != (size, size):
        h, w = dataset.train.images.shape[1:3]
        raise InputError(f"{path}: holds images of {h} x {w} px; size {size} was asked for")
    return dataset


def _load_own(path: Path, digest: str, map_above: int) -> Dataset:
    arrays = read_arrays(path, (*REQUIRED, *OPTIONAL), map_above=map_above, digest=digest)
    return from_arrays(
        arrays, name=path.stem, source=str(path), origin={"file": path.name, "md5": digest}
    )


def numbered_ids(split: str, n: int) -> np.ndarray:
    """``split/0000`` and so on: the same at every image size of a set.

    Example:
        >>> numbered_ids("val", 2).tolist()
        ['val/0000', 'val/0001']
    """
    width = max(4, len(str(n - 1)))
    return np.char.add(f"{split}/", np.char.zfill(np.arange(n).astype(str), width))


def check_labels(labels: np.ndarray, info: DatasetInfo, where: str) -> None:
    """Refuse labels outside the classes, naming the row.

    Raises:
        InputError: a label outside 0 to K - 1 (multi-label: 0 and 1), or too few or many columns.
    """
    columns = labels.shape[1]
    expected = 1 if info.task.exclusive else info.num_classes
    if columns != expected:
        raise InputError(
            f"{where}: {columns} labels per image; a {info.task} task with {info.num_classes} "
            f"classes has {expected}"
        )
    top = info.num_classes - 1 if info.task.exclusive else 1
    bad = (labels < 0) | (labels > top)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"{where}: row {row} holds {labels[row, column]}; expected whole numbers from 0 to "
            f"{top}"
        )


def _images(array: Any, where: str) -> Any:
    """Images as ``[n, h, w, c]``: a view where possible, so that memory maps stay maps."""
    array = (
        array if hasattr(array, "shape") and hasattr(array, "dtype") else _to_array(array, where)
    )
    if array.dtype != np.uint8:
        raise InputError(
            f"{where}: {array.dtype} values; expected uint8 from 0 to 255 (scale and round first)"
        )
    if array.ndim not in (3, 4) or 0 in array.shape[1:]:
        raise InputError(f"{where}: shape {array.shape}; expected [n, h, w] or [n, h, w, channels]")
    if len(array) == 0:
        raise InputError(f"{where}: no images; every split needs at least one")
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] > 4:
        raise InputError(
            f"{where}: shape {array.shape} looks like [n, channels, h, w]; expected "
            "[n, h, w, channels]"
        )
    return array.reshape(*array.shape, 1) if array.ndim == 3 else array


def _to_array(values: Any, where: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: not a regular array ({error})") from None
    if array.dtype.hasobject:
        raise InputError(f"{where}: holds Python objects; expected an array of numbers")
    return array


def _labels(values: Any, n: int, where: str) -> np.ndarray:
    """Labels as int64 ``[n, columns]``."""
    array = _to_array(values, where)
    if array.ndim not in (1, 2) or len(array) != n or 0 in array.shape:
        raise InputError(
            f"{where}: shape {array.shape}; expected ({n},), ({n}, 1) or ({n}, labels) for {n} "
            "images"
        )
    if array.dtype.kind not in "buif":
        raise InputError(f"{where}: {array.dtype} values; expected whole numbers")
    array = array.reshape(n, -1)
    if array.dtype.kind == "f":
        bad = ~(np.isfinite(array) & (array == np.floor(array)) & (np.abs(array) < 2**31))
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            raise InputError(
                f"{where}: row {row} holds {array[row, column]}; expected whole numbers"
            )
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise InputError(f"{where}: holds {array.max()}; expected whole numbers of a class")
    return array.astype(np.int64)


def _as_stored(labels: np.ndarray, task: Task) -> np.ndarray:
    return labels[:, 0] if task.exclusive else labels


def _describe(
    arrays: Mapping[str, Any],
    labels: Mapping[str, np.ndarray],
    name: str,
    channels: int,
    where: str,
) -> DatasetInfo:
    """What the arrays say about themselves, the rest inferred from the training labels."""
    task = _task(arrays.get("task"), where)
    columns = labels["train"].shape[1]
    if task is None and columns > 1:
        task = Task.MULTILABEL
    classes = _classes(arrays.get("classes"), where)
    if classes is None:
        count = columns if task is Task.MULTILABEL else _count_classes(labels["train"], where)
        classes = tuple(str(i) for i in range(count))
    if task is None:
        task = Task.BINARY if len(classes) == 2 else Task.MULTICLASS
    if task.exclusive and len(classes) < 2:
        raise InputError(f"{where}: classes: {len(classes)} class; a {task} task has at least 2")
    positive = _positive(arrays.get("positive"), task, where)
    try:
        return DatasetInfo(name, task, classes, channels, positive=positive)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _task(value: Any, where: str) -> Task | None:
    if value is None:
        return None
    try:
        return Task(str(np.asarray(value).item() if not isinstance(value, str) else value))
    except (TypeError, ValueError):
        raise InputError(
            f"{where}: task {str(value)!r}; expected one of {', '.join(t.value for t in Task)}"
        ) from None


def _classes(value: Any, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    where = f"{where}: classes"
    array = _to_array(value, where)
    if array.ndim != 1 or array.dtype.kind not in "US" or len(np.unique(array)) != len(array):
        raise InputError(f"{where}: expected a list of different class names")
    return tuple(_decoded(array, where).tolist())


def _decoded(array: np.ndarray, where: str) -> np.ndarray:
    """Text from bytes, which are read as UTF-8."""
    try:
        return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: expected text in UTF-8 ({error})") from None


def _count_classes(labels: np.ndarray, where: str) -> int:
    """Classes of one column of training labels, all of which must be used."""
    where = f"{where}: train_labels"
    if labels.shape[1] > 1:
        raise InputError(f"{where}: {labels.shape[1]} labels per image; this task has one")
    if labels.min() < 0:
        row = int(np.argmin(labels))
        raise InputError(
            f"{where}: row {row} holds {labels[row, 0]}; expected whole numbers from 0"
        )
    used = np.unique(labels)
    if len(used) < 2:
        raise InputError(f"{where}: only class {used[0]} occurs; expected at least two classes")
    if used[-1] != len(used) - 1:
        missing = int(np.argmax(used != np.arange(len(used))))
        raise InputError(
            f"{where}: classes up to {used[-1]} occur but class {missing} has no image; number "
            "them from 0 without gaps, or name them all in 'classes'"
        )
    return len(used)


def _positive(value: Any, task: Task, where: str) -> int | None:
    if value is None:
        return None
    if task is not Task.BINARY:
        raise InputError(f"{where}: positive: a positive class belongs to binary tasks, not {task}")
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"{where}: positive: expected the number of a class, 0 or 1; got {value!r}"
        )
    return int(array.item())


def _texts(values: Any, n: int, where: str) -> np.ndarray | None:
    if values is None:
        return None
    array = _to_array(values, where)
    if array.shape != (n,):
        raise InputError(f"{where}: shape {array.shape}; expected ({n},), one per image")
    if array.dtype.kind not in "USiu":
        raise InputError(f"{where}: {array.dtype} values; expected text or whole numbers")
    return _decoded(array, where).astype(str)


def _ids(values: Any, split: str, n: int, where: str) -> np.ndarray:
    ids = _texts(values, n, f"{where}: {split}_ids")
    return numbered_ids(split, n) if ids is None else ids


def _check_unique(ids: Mapping[str, np.ndarray], where: str) -> None:
    """An id names one image of the data set: comparisons and leakage checks rely on it."""
    every = np.concatenate(list(ids.values()))
    unique, counts = np.unique(every, return_counts=True)
    if len(unique) == len(every):
        return
    double = str(unique[counts > 1][0])
    places = [
        f"{split}_ids row {row}"
        for split, values in ids.items()
        for row in np.flatnonzero(values == double).tolist()
    ]
    raise InputError(
        f"{where}: {double!r} is the id of {places[0]} and of {places[1]}; ids are unique"
    )


def _nearest(key: str, known: Iterable[str] = (*REQUIRED, *OPTIONAL)) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected {', '.join(known)}"
