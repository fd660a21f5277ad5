"""TensorFlow Datasets without TensorFlow: reading the image sets that are prepared on disk.

Sets in a format with random access (array_record) are read through ``tfds.data_source``'s sources.
Nothing here reaches the network. :mod:`flaxmed.data.tfds_medmnist` prepares MedMNIST for it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from flaxmed.data import medmnist
from flaxmed.data.arrays import SPLITS, from_arrays, numbered_ids
from flaxmed.data.npz import MAP_ABOVE
from flaxmed.data.pipeline import IndexStream
from flaxmed.types import Dataset, DatasetInfo, InputError

_NAMES = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}
_HOLD_OUT = 0.1  # of the training split, where there is no validation split


def load_tfds(
    name: str,
    *,
    size: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    memory_above: int = MAP_ABOVE,
) -> Dataset:
    """Read an image-classification set that TFDS has prepared on this machine.

    The set needs splits called train and test. Without a validation split (``validation``, ``val``
    or ``valid``) a tenth of train is held out, the same rows every time, and ``origin`` says so.

    Args:
        name: ``"NAME"``, ``"NAME/CONFIG"``, each with or without ``":VERSION"`` (else the latest).
        size: if given, the image height and width that the set must have, in pixels.
        data_dir: TFDS's data directory, by default ``TFDS_DATA_DIR`` or
            ``~/tensorflow_datasets``.
        memory_above: splits of more bytes than this are decoded image by image when asked for.

    Raises:
        InputError: not prepared here, a format or feature that needs TensorFlow, no test split, no
            image or label feature, images that differ in size.
    """
    where = f"tfds:{name}"
    folder = _find(name, tfds_dir(data_dir))
    with _one_line(where):
        builder = tfds.builder_from_directory(str(folder))
        features = builder.info.features
    image, label = _keys(builder.info, where)
    if str(getattr(builder.info.file_format, "value", "")) == "tfrecord":
        raise InputError(
            f"{where}: prepared as tfrecord, which needs TensorFlow; prepare it again with "
            "file_format='array_record'"
        )
    found = _splits(list(builder.info.splits), where)
    arrays: dict[str, Any] = {}
    for split, theirs in found.items():
        records = _Records(str(folder), theirs, image, where)
        arrays[f"{split}_labels"], ids = records.labels(label, "id" if "id" in features else None)
        arrays[f"{split}_images"] = records.in_memory(memory_above)
        arrays[f"{split}_ids"] = numbered_ids(split, len(records)) if ids is None else ids
    if "val" not in found:
        _hold_out(arrays)
    every = np.concatenate([arrays[f"{split}_ids"] for split in SPLITS])
    if len(np.unique(every)) != len(every):  # ids that are no ids: number the rows instead
        arrays |= {f"{s}_ids": numbered_ids(s, len(arrays[f"{s}_labels"])) for s in SPLITS}
    if isinstance(features[label], tfds.features.ClassLabel):
        arrays["classes"] = list(features[label].names)
    dataset = from_arrays(
        arrays,
        name=builder.info.name,
        source=where,
        origin={
            "tfds": builder.info.full_name,
            **({} if "val" in found else {"val": f"{_HOLD_OUT:.0%} of train, held out here"}),
        },
        info=_known(builder),
    )
    dataset = _with_licence(dataset, builder.info)
    if size is not None and dataset.train.images.shape[1:3] != (size, size):
        h, w = dataset.train.images.shape[1:3]
        raise InputError(f"{where}: holds images of {h} x {w} px; size {size} was asked for")
    return dataset


class _Records:
    """The images of a split, decoded when asked for: ``[n, h, w, c]`` with NumPy row indexing."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, folder: str, split: str, key: str, where: str, rows: np.ndarray | None = None
    ) -> None:
        self._folder, self._split, self._key, self._where = folder, split, key, where
        with _one_line(where):
            builder = tfds.builder_from_directory(folder)
            self._source = builder.as_data_source(split=split)
            self._undecoded = builder.as_data_source(
                split=split,
                decoders={key: tfds.decode.SkipDecoding()},
            )
            self._rows = np.arange(len(self._source)) if rows is None else rows
            if not len(self._rows):
                raise InputError(f"{where}: the split {split} is empty")
            first = self._decode(0)
        self.shape = (len(self._rows), *first.shape)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Size when decoded."""
        return int(np.prod(self.shape))

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return self._image(int(rows))
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for i, row in enumerate(rows):
            out[i] = self._image(int(row))
        return out

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def __reduce__(self) -> Any:  # a worker process opens the files itself
        return _Records, (self._folder, self._split, self._key, self._where, self._rows)

    def take(self, rows: np.ndarray) -> _Records:
        """The images of some rows."""
        return _Records(self._folder, self._split, self._key, self._where, self._rows[rows])

    def in_memory(self, limit: int) -> Any:
        """The decoded images if they are not too many, else this object."""
        return self[:] if self.nbytes <= limit else self

    def labels(self, key: str, id_key: str | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels and ids, without decoding images."""
        with _one_line(self._where):
            records = [self._undecoded[int(row)] for row in self._rows]
        labels = np.array([record[key] for record in records])
        if id_key is None:
            return labels, None
        ids = np.array([record[id_key] for record in records])
        return labels, np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids.astype(str)

    def _image(self, row: int) -> np.ndarray:
        image = self._decode(row)
        if image.shape != self.shape[1:]:
            raise InputError(
                f"{self._where}: {self._split}: image {row} has shape {image.shape}; expected "
                f"{self.shape[1:]} as the first one has"
            )
        return image

    def _decode(self, row: int) -> np.ndarray:
        with _one_line(self._where):
            image = np.asarray(self._source[int(self._rows[row])][self._key])
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise InputError(
                f"{self._where}: the feature {self._key!r} holds {image.dtype} of shape "
                f"{image.shape}; expected uint8 images [h, w, channels]"
            )
        return image if image.ndim == 3 else image[:, :, None]


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """TFDS's many ways to say that something is missing, as one line."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        module = getattr(error, "name", None) or str(error).splitlines()[0]
        what = "TensorFlow" if "tensorflow" in str(module).lower() else module
        raise InputError(
            f"{where}: reading it needs {what}, which is not installed; prepare it with plain "
            "tensors and file_format='array_record' to do without"
        ) from None
    except (ValueError, OSError, NotImplementedError, RuntimeError, AttributeError) as error:
        text = next(
            (line for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise InputError(f"{where}: TFDS cannot read it ({text.strip()})") from None


def tfds_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    """TFDS's data directory: as given, or ``TFDS_DATA_DIR``, or ``~/tensorflow_datasets``."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser()


def _find(name: str, data_dir: Path) -> Path:
    """The folder of a prepared set: ``NAME/[CONFIG/]VERSION``."""
    match = re.fullmatch(r"([\w-]+)(?:/([\w.+-]+))?(?::(\d+\.\d+\.\d+))?", name)
    if match is None:
        raise InputError(f"tfds:{name}: expected tfds:NAME, tfds:NAME/CONFIG or either with :1.2.3")
    dataset, config, version = match.groups()
    folder = data_dir / dataset
    if not folder.is_dir():
        here = (
            sorted(p.name for p in data_dir.iterdir() if _prepared(p)) if data_dir.is_dir() else []
        )
        raise InputError(
            f"tfds:{name}: not prepared in {data_dir}; found there: {', '.join(here) or 'nothing'}"
        )
    configs = sorted(p.name for p in folder.iterdir() if p.is_dir() and _versions(p))
    if config is None and not _versions(folder) and len(configs) == 1:
        config = configs[0]
    place = folder / config if config else folder
    versions = _versions(place)
    if not versions:
        raise InputError(
            f"tfds:{name}: not prepared in {folder}; found there: "
            f"{', '.join(f'{dataset}/{c}' for c in configs) or 'nothing'}"
        )
    if version is not None and version not in versions:
        raise InputError(f"tfds:{name}: not that version; {place} holds {', '.join(versions)}")
    return place / (version or versions[-1])


def _versions(folder: Path) -> list[str]:
    """Prepared versions, the latest last."""
    if not folder.is_dir():
        return []
    found = [
        path.name
        for path in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").is_file()
    ]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


def _prepared(folder: Path) -> bool:
    return folder.is_dir() and bool(
        _versions(folder) or any(_versions(path) for path in folder.iterdir())
    )


def _keys(info: Any, where: str) -> tuple[str, str]:
    """Names of the image and of the label feature."""
    features = info.features
    known = sorted(features) if hasattr(features, "keys") else []
    keys = info.supervised_keys or ("image", "label")
    if len(keys) != 2 or not all(isinstance(key, str) and key in known for key in keys):
        raise InputError(
            f"{where}: not an image-classification set: its features are {', '.join(known)}; "
            "expected an image and a label"
        )
    image, label = keys
    if not isinstance(features[image], tfds.features.Image | tfds.features.Tensor):
        raise InputError(f"{where}: the feature {image!r} is no image but {_kind(features[image])}")
    if not isinstance(features[label], tfds.features.ClassLabel | tfds.features.Tensor):
        raise InputError(f"{where}: the feature {label!r} is no class but {_kind(features[label])}")
    return str(image), str(label)


def _kind(feature: Any) -> str:
    return type(feature).__name__


def _splits(theirs: list[str], where: str) -> dict[str, str]:
    """Our split names to theirs; val may be missing."""
    found = {
        ours: next(name for name in names if name in theirs)
        for ours, names in _NAMES.items()
        if any(name in theirs for name in names)
    }
    for needed in ("train", "test"):
        if needed not in found:
            raise InputError(
                f"{where}: has no {needed} split, only {', '.join(theirs)}; expected train and test"
            )
    return found


def _hold_out(arrays: dict[str, Any]) -> None:
    """Take a tenth of the training rows, always the same, for validation."""
    n = len(arrays["train_labels"])
    order = IndexStream(n, 1).epoch_rows(0)
    count = max(1, round(n * _HOLD_OUT))
    rows = {"val": np.sort(order[:count]), "train": np.sort(order[count:])}
    for part in ("images", "labels", "ids"):
        whole = arrays[f"train_{part}"]
        for split, chosen in rows.items():
            lazy = isinstance(whole, _Records)
            arrays[f"{split}_{part}"] = whole.take(chosen) if lazy else whole[chosen]


def _known(builder: Any) -> DatasetInfo | None:
    """What is known about one of our own sets."""
    config = str(getattr(builder.builder_config, "name", ""))
    known = medmnist.SETS.get(config.rpartition("_")[0])
    return known.info if known and builder.info.name == "medmnist" else None


def _with_licence(dataset: Dataset, info: Any) -> Dataset:
    if dataset.info.licence != "unknown":
        return dataset
    text = " ".join((info.description or "").split())
    return dataclasses.replace(
        dataset,
        info=dataclasses.replace(
            dataset.info,
            licence=info.redistribution_info.license or "unknown",
            source=info.homepage or "",
            description=text.split(". ")[0],
        ),
    )
