"""Your own arrays: what is inferred, and one clear line for everything that does not fit."""

from __future__ import annotations

import re

import numpy as np
import pytest

from flaxmed.data import as_dataset, load_dataset, load_npz
from flaxmed.types import InputError, Task

N = {"train": 6, "val": 2, "test": 4}


def layout(**changes) -> dict:
    """Good arrays, some of them replaced or, with None, left out."""
    rng = np.random.default_rng(0)
    arrays: dict = {}
    for split, n in N.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8), np.uint8)
        arrays[f"{split}_labels"] = np.arange(n, dtype=np.uint8)[:, None] % 2
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def test_inferred_binary():
    data = as_dataset(layout())
    assert data.info.task is Task.BINARY
    assert data.info.positive == 1
    assert data.info.classes == ("0", "1")
    assert data.info.flips == ()
    assert data.info.channels == 1
    assert data.train.images.shape == (6, 8, 8, 1)
    assert data.train.labels.tolist() == [0, 1] * 3
    assert data.train.labels.dtype == np.int64
    assert data.test.ids.tolist() == [f"test/{i:04d}" for i in range(4)]
    assert as_dataset(data) is data


def test_inferred_multiclass_multilabel_and_given():
    labels = {f"{s}_labels": np.arange(n) % 3 for s, n in N.items()}
    assert as_dataset(layout(**labels)).info.task is Task.MULTICLASS
    assert as_dataset(layout(**labels, task="ordinal")).info.task is Task.ORDINAL
    many = {f"{s}_labels": np.eye(n, 5, dtype=bool) for s, n in N.items()}
    data = as_dataset(layout(**many))
    assert data.info.task is Task.MULTILABEL
    assert data.info.num_classes == 5
    np.testing.assert_array_equal(data.val.labels, np.eye(2, 5, dtype=np.int64))
    named = as_dataset(layout(classes=["ill", "well", "unsure"]))
    assert named.info.task is Task.MULTICLASS
    assert named.info.classes == ("ill", "well", "unsure")
    flipped = as_dataset(layout(classes=("ill", "well"), positive=0, task=Task.BINARY))
    assert flipped.info.positive == 0
    column = as_dataset(layout(task="multilabel", classes=["ill"]))
    assert column.info.num_classes == 1
    assert column.train.labels.shape == (6, 1)


def test_whole_floats_and_lists_are_labels():
    labels = {f"{s}_labels": [float(i % 2) for i in range(n)] for s, n in N.items()}
    assert as_dataset(layout(**labels)).train.labels.tolist() == [0, 1] * 3


def test_pairs_ids_groups_and_colour():
    colour = np.zeros((3, 5, 7, 3), np.uint8)
    data = as_dataset([(colour, [0, 1, 2]), (colour, [2, 1, 0]), (colour, [0, 0, 0])])
    assert data.info.channels == 3
    assert data.train.images.shape == (3, 5, 7, 3)
    data = as_dataset(layout(test_ids=list("wxyz"), train_groups=[7, 7, 8, 8, 9, 9]))
    assert data.test.ids.tolist() == list("wxyz")
    assert data.val.groups is None
    assert data.train.groups.tolist() == ["7", "7", "8", "8", "9", "9"]


def objects(*values) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


IMAGES = layout()["train_images"]
SIX = "shape (6, 8, 8)"
BAD = {
    "missing": ({"val_labels": None}, "lacks the array 'val_labels'; expected train_images"),
    "float": ({"train_images": IMAGES / 255}, "train_images: float64 values; expected uint8"),
    "int64": (
        {"test_images": np.zeros((4, 8, 8), int)},
        "test_images: int64 values; expected uint8",
    ),
    "flat": (
        {"train_images": IMAGES.reshape(6, 64)},
        "train_images: shape (6, 64); expected [n, h",
    ),
    "volume": (
        {"val_images": np.zeros((2, 8, 8, 8, 1), np.uint8)},
        "val_images: shape (2, 8, 8, 8, 1); expected [n, h, w]",
    ),
    "no pixels": (
        {"val_images": np.zeros((2, 0, 8), np.uint8)},
        "val_images: shape (2, 0, 8); expected",
    ),
    "empty": (
        {"val_images": IMAGES[:0], "val_labels": np.zeros((0, 1), int)},
        "val_images: no images; every split needs at least one",
    ),
    "channels first": (
        {"train_images": np.zeros((6, 3, 8, 8), np.uint8)},
        "train_images: shape (6, 3, 8, 8) looks like [n, channels, h, w]",
    ),
    "sizes": (
        {"val_images": np.zeros((2, 9, 8), np.uint8)},
        "val_images: images of shape (9, 8, 1); expected (8, 8, 1) as in train_images",
    ),
    "colour in one": (
        {"test_images": np.zeros((4, 8, 8, 3), np.uint8)},
        "test_images: images of shape (8, 8, 3); expected (8, 8, 1)",
    ),
    "objects": ({"train_labels": objects(*"abcdef")}, "train_labels: holds Python objects"),
    "text": ({"train_labels": list("abcdef")}, "train_labels: <U1 values; expected whole numbers"),
    "too few": ({"train_labels": [0, 1]}, "train_labels: shape (2,); expected (6,), (6, 1) or"),
    "cube": ({"train_labels": np.zeros((6, 1, 1))}, "train_labels: shape (6, 1, 1); expected"),
    "fraction": (
        {"train_labels": [0, 1, 0.5, 0, 1, 0]},
        "train_labels: row 2 holds 0.5; expected whole numbers",
    ),
    "nan": ({"test_labels": [0, 1, 1, np.nan]}, "test_labels: row 3 holds nan; expected whole"),
    "negative": ({"train_labels": [0, 1, -1, 0, 1, 0]}, "train_labels: row 2 holds -1"),
    "negative in val": (
        {"val_labels": [0, -1]},
        "val_labels: row 1 holds -1; expected whole numbers from 0 to 1",
    ),
    "beyond": (
        {"test_labels": [0, 1, 2, 0]},
        "test_labels: row 2 holds 2; expected whole numbers from 0 to 1",
    ),
    "beyond the names": (
        {"classes": ["a", "b"], "train_labels": [0, 1, 2, 0, 1, 0]},
        "train_labels: row 2 holds 2; expected whole numbers from 0 to 1",
    ),
    "from one": (
        {"train_labels": [1, 2, 1, 2, 1, 2]},
        "train_labels: classes up to 2 occur but class 0 has no image",
    ),
    "one class": ({"train_labels": [0] * 6}, "train_labels: only class 0 occurs"),
    "huge": ({"train_labels": np.array([2**63] * 6, np.uint64)}, "train_labels: holds 9223372036"),
    "not 0 or 1": (
        {f"{s}_labels": np.full((n, 3), 2) for s, n in N.items()},
        "train_labels: row 0 holds 2; expected whole numbers from 0 to 1",
    ),
    "columns": (
        {"val_labels": np.zeros((2, 3), int)},
        "val_labels: 3 labels per image; a binary task with 2 classes has 1",
    ),
    "several labels, one task": (
        {"train_labels": np.zeros((6, 3), int), "task": "multiclass"},
        "train_labels: 3 labels per image; this task has one",
    ),
    "task": ({"task": "regression"}, "task 'regression'; expected one of binary, multiclass"),
    "classes": ({"classes": ["a", "a"]}, "classes: expected a list of different class names"),
    "one name": ({"classes": ["a"]}, "classes: 1 class; a multiclass task has at least 2"),
    "binary of three": (
        {"classes": ["a", "b", "c"], "task": "binary"},
        "a binary task has 2 classes, got 3",
    ),
    "positive": ({"positive": 2}, "positive class 2 is not among the 2 classes"),
    "positive name": ({"positive": "ill"}, "positive: expected the number of a class"),
    "positive of many": (
        {"positive": 1, "classes": list("abc")},
        "positive: a positive class belongs to binary tasks, not multiclass",
    ),
    "ids": ({"train_ids": ["a", "b"]}, "train_ids: shape (2,); expected (6,), one per image"),
    "float ids": ({"val_ids": [0.5, 1.5]}, "val_ids: float64 values; expected text or whole"),
    "same ids": (
        {"val_ids": ["a", "b"], "test_ids": ["c", "d", "b", "e"]},
        "'b' is the id of val_ids row 1 and of test_ids row 2; ids are unique",
    ),
    "groups": ({"test_groups": ["a"]}, "test_groups: shape (1,); expected (4,)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(case):
    changes, message = BAD[case]
    with pytest.raises(InputError, match=re.escape(message)) as error:
        as_dataset(layout(**changes), name="mine")
    assert str(error.value).startswith("mine: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", BAD)
def test_bad_files(case, tmp_path):
    """The same from a file, which the message then names."""
    changes, message = BAD[case]
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, **layout(**changes))
    with pytest.raises(InputError) as error:
        load_dataset(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert message in text or "never unpickled" in text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (layout(train_image=IMAGES), "unknown key 'train_image'; did you mean 'train_images'?"),
        ({**layout(), "qq": 1}, "unknown key 'qq'; expected train_images"),
        (np.zeros(3), "expected a Dataset, a mapping with train_images"),
        ([1, 2, 3], "expected a Dataset"),
        ([(IMAGES, [0] * 6)] * 2, "expected a Dataset"),
        ("breastmnist", "got str"),
        (None, "got NoneType"),
    ],
)
def test_other_things(data, message):
    with pytest.raises(InputError, match=re.escape(message)):
        as_dataset(data)


def test_ragged():
    with pytest.raises(InputError, match="train_images: not a regular array"):
        as_dataset(layout(train_images=[[1, 2], [3]]))


@pytest.mark.parametrize("map_above", [10**9, 0])
def test_file_round_trip(map_above, tmp_path):
    extras = {
        "classes": np.array(["ill", "well"]),
        "task": np.array("binary"),
        "positive": np.array(0),
        "test_ids": np.array(list("wxyz")),
        "train_groups": np.array([b"p1", b"p1", b"p2", b"p2", b"p3", b"p3"]),
    }
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, **layout(**extras), unrelated=np.arange(3))
    data, memory = load_npz(path, map_above=map_above), as_dataset(layout(**extras))
    assert data.info.name == "mine"
    assert data.info.positive == 0
    assert data.info.classes == ("ill", "well")
    assert data.origin["file"] == "mine.npz"
    for split, part in data.splits.items():
        assert isinstance(part.images, np.memmap) == (map_above == 0)
        np.testing.assert_array_equal(part.images, memory.splits[split].images)
        np.testing.assert_array_equal(part.labels, memory.splits[split].labels)
        np.testing.assert_array_equal(part.ids, memory.splits[split].ids)
    assert data.train.groups.tolist() == ["p1", "p1", "p2", "p2", "p3", "p3"]


def test_misspelt_array_in_a_file(tmp_path):
    arrays = layout()
    arrays["val_label"] = arrays.pop("val_labels")
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(InputError, match="lacks the array 'val_labels'"):
        load_npz(tmp_path / "mine.npz")
