"""Everything that reads a file from outside: how to call it, and files that it takes.

``test_fuzz.py`` changes them at random; ``fuzz_readers.py`` lets a fuzzer look for more.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import malformed
import malformed_weights
import numpy as np
import safetensors.numpy

from flaxmed.cli import _file_config
from flaxmed.data import load_npz
from flaxmed.evaluation.runs import _read_history
from flaxmed.evaluation.subgroups import read_subgroups
from flaxmed.evaluation.worst import read_thumbnails
from flaxmed.models.weights import metadata, open_weights
from flaxmed.models.weights.keras_files import read_keras
from flaxmed.models.weights.safetensors_files import read_safetensors
from flaxmed.models.weights.torch_files import read_torch
from flaxmed.training import manifest
from flaxmed.training.checkpoint import stored_names
from flaxmed.training.config import TrainConfig
from flaxmed.training.run import _read_dataset
from flaxmed.training.rundir import read_rows
from flaxmed.types import DatasetInfo, Predictions, Preprocessing, Task


class Reader(NamedTuple):
    """A file's name, what reads it, and good examples."""

    file: str
    read: Callable[[Path], Any]
    good: tuple[bytes, ...]


def _text(value: Any) -> bytes:
    return json.dumps(value).encode()


_DESCRIPTION = {
    "name": "mine",
    "task": "binary",
    "classes": ["benign", "malignant"],
    "channels": 1,
    "positive": 1,
    "flips": ["horizontal"],
    "image_shape": [8, 8, 1],
}
_ROW = {
    "epoch": 0,
    "step": 4,
    "train_loss": 0.5,
    "train_accuracy": 0.5,
    "val_loss": 0.5,
    "val_accuracy": 0.5,
    "val_auc": None,
}
_SEAL = {"files": {"default/values": {"bytes": 4, "sha256": "0" * 64}}}
_LIST = {"tree_metadata": {"('a/b',)": {"key_metadata": [{"key": "a/b", "key_type": 2}]}}}
_THUMBNAILS = {"ids": np.array(["a"]), "images": np.zeros((1, 8, 8, 1), np.uint8)}


def _own_weights() -> bytes:
    said = metadata.describe(
        network="resnet18",
        variant="torchvision",
        stem="small",
        in_channels=1,
        num_classes=2,
        preprocessing=Preprocessing(),
        info=DatasetInfo("mine", Task.BINARY, ("a", "b"), channels=1),
    )
    return safetensors.numpy.save({"classifier.bias": np.zeros(2, np.float32)}, said)


def _published_weights() -> bytes:
    shapes = {
        "conv1.weight": (4, 3, 3, 3),
        "layer4.0.downsample.0.weight": (4, 4, 1, 1),
        "fc.weight": (2, 4),
    }
    return safetensors.numpy.save({name: np.zeros(s, np.float32) for name, s in shapes.items()})


READERS = {
    "data set": Reader(
        "mine.npz",
        load_npz,
        (malformed.saved(malformed.layout()), malformed.saved(malformed.layout(task="ordinal"))),
    ),
    "predictions": Reader("test.npz", Predictions.load, (malformed.saved(malformed.answers()),)),
    "thumbnails": Reader("thumbnails.npz", read_thumbnails, (malformed.saved(_THUMBNAILS),)),
    "settings": Reader("config.json", _file_config, (_text(TrainConfig().to_dict()), b"{}")),
    "description": Reader("dataset.json", _read_dataset, (_text(_DESCRIPTION),)),
    "rows": Reader("metrics.jsonl", read_rows, (2 * (_text(_ROW) + b"\n"),)),
    "history": Reader(
        "metrics.jsonl", lambda path: _read_history(path, 0), (2 * (_text(_ROW) + b"\n"),)
    ),
    "seal": Reader(manifest.NAME, lambda path: manifest.damage(path.parent), (_text(_SEAL),)),
    "arrays": Reader("_METADATA", stored_names, (_text(_LIST),)),
    "torch weights": Reader(
        "weights.pth",
        read_torch,
        (
            malformed_weights.legacy(),
            malformed_weights.archive(),
            malformed_weights.legacy(malformed_weights.checkpoint()),
        ),
    ),
    "safetensors": Reader(
        "weights.safetensors",
        read_safetensors,
        (malformed_weights.safe(malformed_weights.SAFE),),
    ),
    # whichever format, and whose network it is
    "weights": Reader("weights.bin", open_weights, (_own_weights(), _published_weights())),
    "subgroups": Reader("sex.csv", read_subgroups, (b"id,sex\na,F\nb,M\nc,\n",)),
}
if importlib.util.find_spec("h5py"):  # which writes the examples
    from malformed_keras import toy

    READERS["keras weights"] = Reader("x.weights.h5", read_keras, (toy("listed"), toy("numbered")))
