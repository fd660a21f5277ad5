"""MedMNIST: the table against the published package, real files against their known contents."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import flaxmed
from flaxmed.data import list_datasets, load_dataset, load_npz, medmnist, npz
from flaxmed.types import InputError, Task

TASKS = {
    "multi-class": Task.MULTICLASS,
    "binary-class": Task.BINARY,
    "multi-label, binary-class": Task.MULTILABEL,
    "ordinal-regression": Task.ORDINAL,
}
# class counts of train, val and test, counted by the people who collected these copies
COUNTS = {
    "breastmnist": ((147, 399), (21, 57), (42, 114)),
    "pneumoniamnist": ((1214, 3494), (135, 389), (234, 390)),
    "retinamnist": ((486, 128, 206, 194, 66), (54, 12, 28, 20, 6), (174, 46, 92, 68, 20)),
}


@pytest.fixture(scope="module")
def published() -> dict:
    """``medmnist.INFO``, read without importing the package, which needs torch."""
    spec = importlib.util.find_spec("medmnist")
    if spec is None or spec.origin is None:
        pytest.skip("the medmnist package is not installed")
    tree = ast.parse((Path(spec.origin).parent / "info.py").read_text(encoding="utf-8"))
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "INFO"
    ]
    info = ast.literal_eval(values[0])
    return {name: entry for name, entry in info.items() if not name.endswith("3d")}


def test_table_is_complete(published):
    assert set(medmnist.SETS) == set(published)


@pytest.mark.parametrize("name", medmnist.SETS)
def test_table_equals_published(name, published):
    ours, theirs = medmnist.SETS[name], published[name]
    assert ours.info.task is TASKS[theirs["task"]]
    assert ours.info.classes == tuple(theirs["label"][str(i)] for i in range(len(theirs["label"])))
    assert ours.info.channels == theirs["n_channels"]
    assert ours.info.licence == theirs["license"]
    assert ours.splits == theirs["n_samples"]
    for size in (28, 64, 128, 224):
        suffix = "" if size == 28 else f"_{size}"
        assert ours.md5[size] == theirs[f"MD5{suffix}"]
        file = medmnist.file_name(name, size)
        assert medmnist.ADDRESS.format(file=file) == theirs[f"url{suffix}"]
    assert ours.info.description
    assert ours.info.name == name


def test_positive_class_is_the_disease():
    positive = {name: known.info.positive for name, known in medmnist.SETS.items()}
    assert {name: p for name, p in positive.items() if p is not None} == {
        "breastmnist": 0,
        "pneumoniamnist": 1,
    }
    assert medmnist.SETS["breastmnist"].info.classes[0] == "malignant"
    assert medmnist.SETS["pneumoniamnist"].info.classes[1] == "pneumonia"


def test_no_flips_where_sides_mean_something():
    for name in ("chestmnist", "pneumoniamnist", "organamnist", "organcmnist", "organsmnist"):
        assert medmnist.SETS[name].info.flips == ()


@pytest.mark.parametrize(
    ("name", "size"),
    [("breastmnist", 28), ("breastmnist", 64), ("pneumoniamnist", 28), ("retinamnist", 28)],
)
def test_real_files(name, size, real_data_dir):
    data = flaxmed.load_dataset(name, size=size, data_dir=real_data_dir, download=False)
    known = medmnist.SETS[name]
    assert data.info is known.info
    assert data.origin["md5"] == known.md5[size]
    raw = np.load(real_data_dir / medmnist.file_name(name, size))
    for i, (split, part) in enumerate(data.splits.items()):
        n = known.splits[split]
        assert part.images.shape == (n, size, size, known.info.channels)
        assert part.images.dtype == np.uint8
        assert part.labels.dtype == np.int64
        assert part.labels.shape == (n,)
        assert tuple(np.bincount(part.labels)) == COUNTS[name][i]
        np.testing.assert_array_equal(
            part.images.reshape(raw[f"{split}_images"].shape), raw[f"{split}_images"]
        )
        np.testing.assert_array_equal(part.labels, raw[f"{split}_labels"][:, 0])
        assert part.ids[0] == f"{split}/0000"
        assert part.ids[-1] == f"{split}/{n - 1:04d}"
        assert part.groups is None


def test_ids_agree_between_sizes(real_data_dir):
    small, large = (load_dataset("breastmnist", size=s, data_dir=real_data_dir) for s in (28, 64))
    for split in small.splits:
        np.testing.assert_array_equal(small.splits[split].ids, large.splits[split].ids)
        np.testing.assert_array_equal(small.splits[split].labels, large.splits[split].labels)


def test_real_file_by_path_and_under_another_name(real_data_dir, tmp_path):
    source = real_data_dir / "breastmnist_64.npz"
    by_path = load_dataset(source)
    assert by_path.info.name == "breastmnist"
    assert by_path.info.positive == 0
    other = tmp_path / "mine.npz"
    other.write_bytes(source.read_bytes())
    assert load_npz(other, size=64).info is medmnist.SETS["breastmnist"].info
    with pytest.raises(InputError, match=r"holds images of 64 x 64 px; size 28 was asked for"):
        load_dataset(other, size=28)


def write(path: Path, *, n=(4, 2, 3), size=28, channels=None, labels=None, seed=0) -> str:
    """A small file in MedMNIST's layout; its MD5."""
    rng = np.random.default_rng(seed)
    shape = (size, size) if channels is None else (size, size, channels)
    arrays = {}
    for split, count in zip(("test", "train", "val"), (n[2], n[0], n[1]), strict=True):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), np.uint8)
        values = np.arange(count)[:, None] % 2 if labels is None else labels(count)
        arrays[f"{split}_labels"] = values.astype(np.uint8)
    np.savez_compressed(path, **arrays)
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def pretend(monkeypatch):
    """Make the library believe that a small file is the published one of a set."""

    def apply(name: str, md5: str, n=(4, 2, 3), size=28) -> None:
        entry = medmnist.SETS[name]
        changed = dataclasses.replace(
            entry,
            splits=dict(zip(("train", "val", "test"), n, strict=True)),
            md5={**entry.md5, size: md5},
        )
        monkeypatch.setitem(medmnist.SETS, name, changed)

    return apply


def test_multilabel(tmp_path, pretend):
    rng = np.random.default_rng(1)
    md5 = write(tmp_path / "chestmnist.npz", labels=lambda n: rng.integers(0, 2, (n, 14)))
    pretend("chestmnist", md5)
    data = load_dataset("chestmnist", data_dir=tmp_path, download=False)
    assert data.info.task is Task.MULTILABEL
    assert data.train.labels.shape == (4, 14)
    assert data.train.labels.dtype == np.int64
    assert data.train[0]["label"].shape == (14,)


def test_lookup_order(tmp_path, monkeypatch, pretend):
    """data_dir, then FLAXMED_DATA_DIR, then ~/.cache/flaxmed."""
    folders = [tmp_path / "given", tmp_path / "variable", tmp_path / ".cache" / "flaxmed"]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLAXMED_DATA_DIR", str(folders[1]))
    for folder in reversed(folders):
        folder.mkdir(parents=True)
        md5 = write(folder / "breastmnist.npz", seed=hash(folder.name) % 1000)
        pretend("breastmnist", md5)
        data = load_dataset("breastmnist", data_dir=folders[0], download=False)
        assert data.origin["md5"] == md5
        assert medmnist.find("breastmnist.npz", folders[0]) == folder / "breastmnist.npz"
    row = {row.name: row for row in list_datasets(folders[0])}["breastmnist"]
    assert row.local == (28,)
    assert row.sizes == (28, 64, 128, 224)


def test_where_downloads_go(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLAXMED_DATA_DIR", str(tmp_path / "variable"))
    assert medmnist._target("a.npz", tmp_path / "given") == tmp_path / "given" / "a.npz"
    closed = {tmp_path / "given"}
    monkeypatch.setattr(medmnist, "is_writable", lambda folder: folder not in closed)
    assert medmnist._target("a.npz", tmp_path / "given") == tmp_path / "variable" / "a.npz"
    closed.add(tmp_path / "variable")
    cache = tmp_path / ".cache" / "flaxmed" / "a.npz"
    assert medmnist._target("a.npz", tmp_path / "given") == cache


def test_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError) as error:
        load_dataset("bloodmnist", size=64, data_dir=tmp_path / "d", download=False)
    text = str(error.value)
    assert "\n" not in text
    assert "bloodmnist_64.npz: not found" in text
    assert str(tmp_path / "d" / "bloodmnist_64.npz") in text
    assert "--dataset phantom" in text
    assert not (tmp_path / "d").exists()


def test_wrong_md5_names_both_and_keeps_the_file(tmp_path):
    path = tmp_path / "breastmnist.npz"
    md5 = write(path)
    for load in (lambda: load_dataset("breastmnist", data_dir=tmp_path), lambda: load_npz(path)):
        with pytest.raises(InputError) as error:
            load()
        assert md5 in str(error.value)
        assert medmnist.SETS["breastmnist"].md5[28] in str(error.value)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    assert path.is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": (5, 2, 3)}, r"train_images: 5 images of 28 x 28 px; expected 4 of 28 x 28 px"),
        ({"size": 27}, r"train_images: 4 images of 27 x 27 px; expected 4 of 28 x 28 px"),
        ({"channels": 3}, r"train_images: 3 channels; expected 1"),
        (
            {"labels": lambda n: np.full((n, 1), 2)},
            r"train_labels: row 0 holds 2; expected whole numbers from 0 to 1",
        ),
        ({"labels": lambda n: np.zeros((n, 2))}, r"train_labels: 2 labels per image"),
    ],
)
def test_contents_are_checked(change, message, tmp_path, pretend):
    """Even a file with the expected digest must hold what the table says."""
    pretend("breastmnist", write(tmp_path / "breastmnist.npz", **change))
    with pytest.raises(InputError, match=message):
        load_dataset("breastmnist", data_dir=tmp_path, download=False)


def test_mapped_equals_in_memory(tmp_path, pretend):
    pretend("retinamnist", write(tmp_path / "retinamnist.npz", channels=3))
    memory = medmnist.load("retinamnist", data_dir=tmp_path)
    mapped = medmnist.load("retinamnist", data_dir=tmp_path, map_above=1000)
    for split in memory.splits:
        assert isinstance(mapped.splits[split].images, np.memmap)
        assert not isinstance(memory.splits[split].images, np.memmap)
        assert not mapped.splits[split].images.flags.writeable
        np.testing.assert_array_equal(mapped.splits[split].images, memory.splits[split].images)
        np.testing.assert_array_equal(mapped.splits[split].labels, memory.splits[split].labels)


def test_maps_go_to_the_cache_when_the_folder_is_read_only(tmp_path, monkeypatch, pretend):
    home, data = tmp_path / "home", tmp_path / "data"
    data.mkdir()
    pretend("breastmnist", write(data / "breastmnist.npz"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(npz, "is_writable", lambda folder: folder != data.resolve())
    mapped = medmnist.load("breastmnist", data_dir=data, map_above=1000)
    assert Path(mapped.train.images.filename).is_relative_to(home / ".cache" / "flaxmed")
    assert [path.name for path in data.iterdir()] == ["breastmnist.npz"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("brestmnist", {}, r"unknown dataset 'brestmnist'; did you mean 'breastmnist'\?"),
        ("BreastMNIST", {}, r"did you mean 'breastmnist'\?"),
        ("qqqq", {}, r"unknown dataset 'qqqq'; expected pathmnist, .*phantom.*\.npz.*tfds:NAME"),
        ("breastmnist", {"size": 32}, r"breastmnist: no size 32; MedMNIST has 28, 64, 128, 224 px"),
        ("breastmnist", {"size": 0}, r"breastmnist: size must be .* from 1, got 0"),
        ("phantom-x", {}, r"unknown phantom 'phantom-x'"),
        ("nowhere/x.npz", {}, r"nowhere/x.npz: no such file"),
    ],
)
def test_unknown(name, options, message):
    with pytest.raises(InputError, match=message) as error:
        load_dataset(name, **options)
    assert "\n" not in str(error.value)


def test_phantom_by_name():
    data = load_dataset("phantom", size=16)
    assert data.train.images.shape[1:] == (16, 16, 1)
    rows = {row.name: row for row in list_datasets()}
    assert set(medmnist.SETS) < set(rows)
    assert "phantom" in rows
    assert rows["phantom"].info == data.info
    assert data.info.synthetic


def test_no_jax_is_imported(real_data_dir):
    """Reading data, describing it and walking over it loads no jax."""
    code = f"""
        import sys
        from flaxmed.data import load_dataset, list_datasets
        from flaxmed.data import arrays, medmnist, npz, phantom, pipeline, splits, tfds
        from flaxmed.data import tfds_medmnist
        from flaxmed import files
        data = load_dataset("breastmnist", data_dir={str(real_data_dir)!r})
        splits.describe(data)
        list_datasets()
        pipeline.gather(data.train, pipeline.IndexStream(len(data.train), 8)[3])
        sum(batch.mask.sum() for batch in pipeline.eval_batches(10, 4))
        loaded = {{"jax", "jaxlib", "flax", "torch", "tensorflow"}} & set(sys.modules)
        assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(code)], check=True)
