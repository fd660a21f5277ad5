"""TensorFlow Datasets without TensorFlow and without the network."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from flaxmed.data import load_dataset, medmnist
from flaxmed.data.pipeline import IndexStream, gather, stream
from flaxmed.data.tfds import load_tfds
from flaxmed.data.tfds_medmnist import Medmnist, prepare
from flaxmed.types import InputError, Task

# A process in which TensorFlow cannot be imported, nor looked for, and no connection be made.
ALONE = """
    import importlib.machinery, socket, sys

    class Finder(importlib.machinery.PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            if name.split(".")[0] == "tensorflow":
                return None
            return super().find_spec(name, path, target)

    sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder

    def refuse(*args, **kwargs):
        print("network:", args, file=sys.stderr)
        raise SystemExit(3)

    socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
"""


def test_prepare_and_read_breastmnist_without_tensorflow(tmp_path, real_data_dir):
    code = (
        textwrap.dedent(ALONE)
        + f"""
import importlib.util
from flaxmed.data import load_dataset
from flaxmed.data.tfds_medmnist import prepare
assert importlib.util.find_spec("tensorflow") is None
folder = prepare("breastmnist", data_dir={str(tmp_path)!r}, source_dir={str(real_data_dir)!r})
data = load_dataset("tfds:medmnist/breastmnist_28", data_dir={str(tmp_path)!r})
assert folder.is_dir() and len(data.test) == 156
assert not {{"tensorflow", "jax", "torch"}} & set(sys.modules), "heavy imports"
"""
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, timeout=120
    )
    ours = load_dataset("breastmnist", data_dir=real_data_dir)
    for limit in (10**9, 0):  # decoded at once, and image by image
        theirs = load_tfds("medmnist", data_dir=tmp_path, memory_above=limit)
        assert theirs.info == ours.info
        assert theirs.origin == {"tfds": "medmnist/breastmnist_28/1.0.0"}
        for split, part in theirs.splits.items():
            assert isinstance(part.images, np.ndarray) == (limit > 0)
            np.testing.assert_array_equal(np.asarray(part.images), ours.splits[split].images)
            np.testing.assert_array_equal(part.labels, ours.splits[split].labels)
            np.testing.assert_array_equal(part.ids, ours.splits[split].ids)
    rows = IndexStream(156, 50, seed=1)
    for step, batch in enumerate(stream(theirs.test, rows, 0, 5)):  # decoded in grain's threads
        np.testing.assert_array_equal(batch["images"], gather(ours.test, rows[step])["images"])


def test_builder_offers_every_set_at_every_size():
    assert set(Medmnist.builder_configs) == {
        f"{n}_{s}" for n in medmnist.SETS for s in medmnist.SIZES
    }


@pytest.mark.parametrize("name", medmnist.SETS)
def test_builder_describes_every_set(name, tmp_path):
    info = Medmnist(config=f"{name}_64", data_dir=str(tmp_path), file_format="array_record").info
    known = medmnist.SETS[name].info
    assert info.features["image"].shape == (64, 64, known.channels)
    if known.task is Task.MULTILABEL:
        assert info.features["label"].shape == (14,)
    else:
        assert tuple(info.features["label"].names) == known.classes


def test_prepare_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, size, message in (
        ("brestmnist", 28, "unknown MedMNIST set 'brestmnist'"),
        ("breastmnist", 32, "breastmnist: no size 32"),
        ("breastmnist", 28, "breastmnist.npz: not found"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            prepare(name, size, data_dir=tmp_path / "tfds", download=False)


class Toy(tfds.core.GeneratorBasedBuilder):
    """A set made for one test: features and examples come from outside."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, features: dict, splits: dict, keys: tuple | None, **kwargs: object):
        self.toy = features, splits, keys
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features, _, keys = self.toy
        return tfds.core.DatasetInfo(
            builder=self,
            description="A toy. It has two sentences.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=keys,
            disable_shuffling=True,
        )

    def _split_generators(self, _: object) -> dict:
        return {name: self._generate_examples(rows) for name, rows in self.toy[1].items()}

    def _generate_examples(self, rows: list):  # type: ignore[no-untyped-def]
        yield from enumerate(rows)


def make_toy(
    folder: Path,
    features: dict,
    splits: dict,
    *,
    keys=("image", "label"),
    file_format="array_record",
) -> None:
    builder = Toy(
        features=features, splits=splits, keys=keys, data_dir=str(folder), file_format=file_format
    )
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)


TENSOR = tfds.features.Tensor(shape=(8, 8, 3), dtype=np.uint8)
TWO = tfds.features.ClassLabel(names=["ill", "well"])
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 8, 8, 3), np.uint8)


def rows(n: int, **more) -> list[dict]:
    return [{"image": PIXELS[i], "label": i % 2} | more for i in range(n)]


def png(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    file.seek(0)
    return file


def test_png_images_need_no_tensorflow_to_read(tmp_path):
    images = [{"image": png(PIXELS[i]), "label": i % 2} for i in range(12)]
    features = {"image": tfds.features.Image(encoding_format="png"), "label": TWO}
    make_toy(
        tmp_path, features, {"train": images[:6], "validation": images[6:9], "test": images[9:]}
    )
    data = load_dataset("tfds:toy", data_dir=tmp_path, size=8)
    assert data.info.classes == ("ill", "well")
    assert data.info.task is Task.BINARY
    assert data.info.description == "A toy"
    for part, expected in zip(data.splits.values(), np.split(PIXELS[:12], [6, 9]), strict=True):
        np.testing.assert_array_equal(part.images, expected)
    with pytest.raises(InputError, match="holds images of 8 x 8 px; size 28 was asked for"):
        load_dataset("tfds:toy", data_dir=tmp_path, size=28)


def test_without_validation_a_tenth_of_train_is_held_out(tmp_path):
    make_toy(tmp_path, {"image": TENSOR, "label": TWO}, {"train": rows(40), "test": rows(3)})
    eager = load_tfds("toy:1.0.0", data_dir=tmp_path)
    lazy = load_tfds("toy", data_dir=tmp_path, memory_above=0)
    assert eager.origin["val"] == "10% of train, held out here"
    assert (len(eager.train), len(eager.val), len(eager.test)) == (36, 4, 3)
    assert len({*eager.train.ids, *eager.val.ids}) == 40
    assert eager.val.ids.tolist() == [f"train/{row:04d}" for row in [3, 11, 13, 20]]  # always these
    for split, part in eager.splits.items():
        np.testing.assert_array_equal(part.images, np.asarray(lazy.splits[split].images))
        np.testing.assert_array_equal(part.ids, lazy.splits[split].ids)
        for i, name in enumerate(part.ids):  # an id still names the row of the original split
            row = int(name.split("/")[1])
            np.testing.assert_array_equal(part.images[i], PIXELS[row])
            assert part.labels[i] == row % 2


def test_lazy_images_index_like_arrays(tmp_path):
    make_toy(tmp_path, {"image": TENSOR, "label": TWO}, {"train": rows(20), "test": rows(3)})
    images = load_tfds("toy", data_dir=tmp_path, memory_above=0).test.images
    array = PIXELS[:3]
    assert (images.shape, images.dtype, len(images)) == (array.shape, array.dtype, 3)
    for index in (0, -1, slice(1, None), [2, 0, 0], np.array([True, False, True]), slice(0, 0)):
        np.testing.assert_array_equal(images[index], array[index])
    with pytest.raises(IndexError):
        images[3]


def test_multilabel_and_ids_that_repeat(tmp_path):
    label = tfds.features.Tensor(shape=(3,), dtype=np.uint8)
    examples = [
        {"image": PIXELS[i], "label": np.array([i % 2, 1, 0], np.uint8), "id": "same"}
        for i in range(4)
    ]
    make_toy(
        tmp_path,
        {"image": TENSOR, "label": label, "id": tfds.features.Text()},
        {"train": examples, "val": examples, "test": examples},
    )
    data = load_tfds("toy", data_dir=tmp_path)
    assert data.info.task is Task.MULTILABEL
    assert data.train.labels.tolist() == [[0, 1, 0], [1, 1, 0]] * 2
    assert data.test.ids.tolist() == [f"test/{i:04d}" for i in range(4)]


def varying() -> list[dict]:
    return [{"image": png(PIXELS[0, : 8 - i]), "label": i % 2} for i in range(4)]


FREE = tfds.features.Image(encoding_format="png")
BAD = {
    "no test": (
        {"image": TENSOR, "label": TWO},
        {"train": rows(4)},
        {},
        "has no test split, only train; expected train and test",
    ),
    "no label": (
        {"image": TENSOR, "kind": TWO},
        {"train": [{"image": PIXELS[0], "kind": 0}]},
        {"keys": None},
        "not an image-classification set: its features are image, kind",
    ),
    "label is text": (
        {"image": TENSOR, "label": tfds.features.FeaturesDict({"a": TWO})},
        {"train": [{"image": PIXELS[0], "label": {"a": 0}}]},
        {},
        "the feature 'label' is no class",
    ),
    "sizes": (
        {"image": FREE, "label": TWO},
        {"train": varying(), "test": varying()},
        {},
        "train: image 1 has shape (7, 8, 3); expected (8, 8, 3) as the first one has",
    ),
    "floats": (
        {"image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.float32), "label": TWO},
        {s: [{"image": np.zeros((8, 8, 1), np.float32), "label": 0}] for s in ("train", "test")},
        {},
        "the feature 'image' holds float32 of shape (8, 8, 1); expected uint8 images",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_sets_that_do_not_fit(case, tmp_path):
    features, splits, options, message = BAD[case]
    make_toy(tmp_path, features, splits, **options)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        load_tfds("toy", data_dir=tmp_path)
    assert str(error.value).startswith("tfds:toy: ")
    assert "\n" not in str(error.value)


def test_a_format_that_needs_tensorflow(tmp_path):
    """What TFDS writes by default, with TensorFlow, is tfrecord: it has no random access."""
    make_toy(tmp_path, {"image": TENSOR, "label": TWO}, {"train": rows(4), "test": rows(2)})
    (note,) = tmp_path.glob("toy/1.0.0/dataset_info.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match="tfds:toy: prepared as tfrecord, which needs TensorFlow"):
        load_tfds("toy", data_dir=tmp_path)


def test_damaged(tmp_path):
    make_toy(tmp_path, {"image": TENSOR, "label": TWO}, {"train": rows(4), "test": rows(2)})
    folder = tmp_path / "toy" / "1.0.0"
    (folder / "toy-test.array_record-00000-of-00001").unlink()
    with pytest.raises(InputError, match="tfds:toy: TFDS cannot read it") as error:
        load_tfds("toy", data_dir=tmp_path)
    assert "\n" not in str(error.value)
    (folder / "features.json").write_text("{")
    with pytest.raises(InputError, match="tfds:toy: TFDS cannot read it") as error:
        load_tfds("toy", data_dir=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "tfds:nothing: not prepared in {dir}; found there: toy"),
        ("toy/big", "tfds:toy/big: not prepared in {dir}/toy; found there: nothing"),
        ("toy:2.0.0", "tfds:toy:2.0.0: not that version; {dir}/toy holds 1.0.0"),
        ("a b", "tfds:a b: expected tfds:NAME, tfds:NAME/CONFIG"),
        ("../toy", "tfds:../toy: expected tfds:NAME"),
        ("", "tfds:: expected tfds:NAME"),
    ],
)
def test_not_prepared(name, message, tmp_path):
    folder = tmp_path / "toy" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(InputError, match=re.escape(message.format(dir=tmp_path))):
        load_tfds(name, data_dir=tmp_path)


def test_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "variable"))
    with pytest.raises(InputError, match=re.escape(f"not prepared in {tmp_path / 'variable'};")):
        load_dataset("tfds:toy")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'tensorflow_datasets'}; found")):
        load_dataset("tfds:toy")
