"""MedMNIST as a TFDS builder that prepares without TensorFlow.

Nothing here reaches the network but the download of a MedMNIST file, where that is asked for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from flaxmed.data import medmnist
from flaxmed.data.tfds import tfds_dir


@dataclasses.dataclass(eq=False)
class MedmnistConfig(tfds.core.BuilderConfig):
    """One set at one size.

    Attributes:
        dataset: such as ``"breastmnist"``.
        size: 28, 64, 128 or 224 px.
    """

    dataset: str = "breastmnist"
    size: int = 28


class Medmnist(tfds.core.GeneratorBasedBuilder):
    """MedMNIST's twelve 2D sets as TFDS: ``medmnist/breastmnist_28`` and so on.

    Images are plain tensors, because ``tfds.features.Image`` needs TensorFlow to write; examples
    keep the order and the ids of the published file. Prepare with ``file_format="array_record"``,
    which needs no TensorFlow either (:func:`prepare` does all of this).
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "MedMNIST v2 as published on Zenodo, record 10519652."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS reads a class attribute)
        MedmnistConfig(
            name=f"{name}_{size}", description=known.info.description, dataset=name, size=size
        )
        for name, known in medmnist.SETS.items()
        for size in medmnist.SIZES
    ]

    def __init__(
        self,
        *,
        source_dir: str | os.PathLike[str] | None = None,
        download: bool = True,
        **kwargs: Any,
    ) -> None:
        self._source_dir, self._download = source_dir, download
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        info = medmnist.SETS[config.dataset].info
        label = (
            tfds.features.ClassLabel(names=list(info.classes))
            if info.task.exclusive
            else tfds.features.Tensor(shape=(info.num_classes,), dtype=np.uint8)
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=info.description,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(
                        shape=(config.size, config.size, info.channels), dtype=np.uint8
                    ),
                    "label": label,
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://medmnist.com",
            license=info.licence,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        data = medmnist.load(
            self.builder_config.dataset,
            self.builder_config.size,
            data_dir=self._source_dir,
            download=self._download,
        )
        return {
            tfds.Split.TRAIN: self._generate_examples(data.train),
            tfds.Split.VALIDATION: self._generate_examples(data.val),
            tfds.Split.TEST: self._generate_examples(data.test),
        }

    def _generate_examples(self, split: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for row in range(len(split)):
            label = split.labels[row]
            yield (
                row,
                {
                    "image": np.asarray(split.images[row]),
                    "label": label.astype(np.uint8) if label.ndim else int(label),
                    "id": str(split.ids[row]),
                },
            )


def prepare(
    name: str,
    size: int = 28,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    source_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> Path:
    """Prepare a MedMNIST set for TFDS, without TensorFlow and without asking any bucket for it.

    Args:
        name: such as ``"breastmnist"``.
        size: 28, 64, 128 or 224 px.
        data_dir: TFDS's data directory, by default ``TFDS_DATA_DIR`` or
            ``~/tensorflow_datasets``.
        source_dir: where to look for the .npz file, as ``load_dataset``'s ``data_dir``.
        download: False to use only what is on this machine.

    Returns:
        The folder of the prepared set, which ``load_dataset("tfds:medmnist/NAME_SIZE")`` reads.

    Raises:
        InputError: as :func:`flaxmed.data.medmnist.load`.
    """
    config = f"{name}_{size}"
    if config not in Medmnist.builder_configs:
        medmnist.load(name, size, download=False)  # says what is wrong with the name or the size
    builder = Medmnist(
        config=config,
        data_dir=str(tfds_dir(data_dir)),
        file_format="array_record",
        source_dir=source_dir,
        download=download,
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return Path(builder.data_path)
