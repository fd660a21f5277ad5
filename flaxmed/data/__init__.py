"""Data sets: MedMNIST, the phantom, your own arrays, TensorFlow Datasets. Imports no jax."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from flaxmed.data import medmnist
from flaxmed.data.arrays import as_dataset, from_arrays, load_npz
from flaxmed.types import Dataset, DatasetInfo, InputError

__all__ = [
    "DatasetRow",
    "as_dataset",
    "from_arrays",
    "list_datasets",
    "load_dataset",
    "load_npz",
]


@dataclasses.dataclass(frozen=True)
class DatasetRow:
    """One line of :func:`list_datasets`.

    Attributes:
        info: names, task, licence.
        sizes: image sizes in pixels; empty where any size can be had.
        splits: number of images by split; empty where it can be chosen.
        local: sizes for which a file is on this machine.
    """

    info: DatasetInfo
    sizes: tuple[int, ...] = ()
    splits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    local: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What :func:`load_dataset` takes."""
        return self.info.name


def load_dataset(
    name: str | os.PathLike[str],
    *,
    size: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> Dataset:
    """Load a data set by name or from a file.

    Args:
        name: one of :func:`list_datasets`, such as ``"breastmnist"`` or ``"phantom"``; a path that
            ends in ``.npz`` (MedMNIST's layout, see :func:`as_dataset`); or ``"tfds:NAME"`` for a
            set that TensorFlow Datasets has prepared on this machine.
        size: height and width in pixels. MedMNIST: 28 (default), 64, 128 or 224.
        data_dir: where to look for files first, and where downloads go if it is writable; then
            ``FLAXMED_DATA_DIR`` and ``~/.cache/flaxmed``. For ``tfds:`` its data directory.
        download: False to use only what is on this machine.

    Returns:
        The data set: ``.train``, ``.val``, ``.test`` with ``.images`` (uint8 ``[n, h, w, c]``),
        ``.labels`` (int64), ``.ids``, ``.groups``; and ``.info``.

    Raises:
        InputError: an unknown name or size, a file that is missing, damaged or not the published
            one, or no network.

    Example:
        >>> load_dataset("brestmnist")
        Traceback (most recent call last):
        flaxmed.types.InputError: unknown dataset 'brestmnist'; did you mean 'breastmnist'?
    """
    name = str(name)
    if size is not None and size < 1:
        raise InputError(f"{name}: size must be a number of pixels from 1, got {size}")
    if data_dir is not None and Path(data_dir).exists() and not Path(data_dir).is_dir():
        raise InputError(f"{data_dir}: is a file; expected the folder that data files lie in")
    if name.endswith(".npz"):
        return load_npz(name, size=size)
    if name.startswith("tfds:"):
        from flaxmed.data.tfds import load_tfds

        return load_tfds(name.removeprefix("tfds:"), size=size, data_dir=data_dir)
    if name.startswith("phantom"):
        from flaxmed.data.phantom import load_phantom

        return load_phantom(size, config=name)
    if name in medmnist.SETS:
        return medmnist.load(name, size or 28, data_dir=data_dir, download=download)
    known = [*medmnist.SETS, "phantom"]
    close = difflib.get_close_matches(name.lower(), known, n=1)
    raise InputError(
        f"unknown dataset {name!r}; "
        + (
            f"did you mean {close[0]!r}?"
            if close
            else f"expected {', '.join(known)}, a path to an .npz file, or tfds:NAME"
        )
    )


def list_datasets(data_dir: str | os.PathLike[str] | None = None) -> list[DatasetRow]:
    """The data sets that :func:`load_dataset` knows by name, and which of them are on this machine.

    Example:
        >>> {row.name: row.splits.get("train") for row in list_datasets()}["breastmnist"]
        546
    """
    rows = [
        DatasetRow(
            known.info,
            tuple(known.md5),
            known.splits,
            tuple(s for s in known.md5 if medmnist.find(medmnist.file_name(name, s), data_dir)),
        )
        for name, known in medmnist.SETS.items()
    ]
    from flaxmed.data.phantom import FAMILIES, _info

    return [*(DatasetRow(_info(config)) for config in FAMILIES.values()), *rows]
