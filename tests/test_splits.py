"""What a run records about its data, against counts made by others."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flaxmed.data import as_dataset, load_dataset
from flaxmed.data.splits import describe, find_duplicates

# the duplicates in the published files, found by the people who collected these copies
DUPLICATES = {
    "breastmnist": (1, {"train+test": 1}, {"train+test": 1}),
    "pneumoniamnist": (27, {"train": 16, "train+val": 8, "test": 3}, {}),
    "retinamnist": (0, {}, {}),
}


@pytest.mark.parametrize("name", DUPLICATES)
def test_real_duplicates(name, real_data_dir):
    groups, by_splits, differing = DUPLICATES[name]
    found = find_duplicates(load_dataset(name, data_dir=real_data_dir))
    assert found["groups"] == groups
    assert found["by_splits"] == by_splits
    assert found["differing_labels"] == differing


def test_real_description(real_data_dir):
    data = load_dataset("breastmnist", data_dir=real_data_dir)
    record = json.loads(json.dumps(describe(data)))
    assert record["origin"]["md5"] == "750601b1f35ba3300ea97c75c52ff8f6"
    assert record["name"] == "breastmnist"
    assert record["licence"] == "CC BY 4.0"
    assert record["image_shape"] == [28, 28, 1]
    assert record["positive"] == 0
    assert record["splits"]["test"] == {"images": 156, "class_counts": [42, 114], "groups": None}
    (pair,) = record["duplicates"]["examples"]
    assert {entry["id"].split("/")[0] for entry in pair} == {"train", "test"}
    assert pair[0]["label"] != pair[1]["label"]
    rows = [(entry["id"].split("/")[0], int(entry["id"].split("/")[1])) for entry in pair]
    first, second = (data.splits[split].images[row] for split, row in rows)
    np.testing.assert_array_equal(first, second)


def test_groups_across_splits_and_multilabel():
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1)
    data = as_dataset(
        {
            "train_images": images[:3],
            "train_labels": [[1, 0], [1, 1], [0, 0]],
            "val_images": images[3:5],
            "val_labels": [[0, 0], [0, 1]],
            "test_images": images[5:],
            "test_labels": [[1, 1]],
            "train_groups": ["p1", "p1", "p2"],
            "val_groups": ["p3", "p1"],
            "test_groups": ["p1"],
        }
    )
    record = describe(data, duplicates=False)
    assert record["splits"]["train"] == {"images": 3, "class_counts": [2, 1], "groups": 2}
    assert record["shared_groups"] == {"train+val+test": 1}
    assert record["duplicates"] is None


def test_a_triple_with_one_other_label():
    image = np.full((1, 2, 2), 9, np.uint8)
    other = np.zeros((2, 2, 2), np.uint8) + np.arange(2, dtype=np.uint8)[:, None, None]
    train = np.concatenate([image, image, other])
    data = as_dataset([(train, [0, 0, 0, 1]), (other[:1] + 5, [0]), (image, [1])])
    found = find_duplicates(data)
    assert (found["groups"], found["images"]) == (1, 3)
    assert found["by_splits"] == found["differing_labels"] == {"train+test": 1}
    assert [entry["id"] for entry in found["examples"][0]] == [
        "train/0000",
        "train/0001",
        "test/0000",
    ]
