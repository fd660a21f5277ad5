"""Every malformed file is refused with its one line: no traceback, no hang, nothing left behind."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import malformed
import numpy as np
import pytest
from malformed import Case
from tiny_runs import fit

import flaxmed
from flaxmed.cli import main
from flaxmed.evaluation.worst import read_thumbnails
from flaxmed.training import loop, manifest
from flaxmed.training.checkpoint import Checkpoints, restore, saved_steps
from flaxmed.training.record import best_folder, sound_step
from flaxmed.types import InputError

MOST_MEMORY = 64 * 2**20  # bytes that refusing a file may take; every good one here is far smaller

THUMBNAILS = {"ids": np.array(["a"]), "images": np.zeros((1, 8, 8, 1), np.uint8)}
DATASETS = malformed.archives(malformed.layout(), "train_images") + malformed.datasets()
PREDICTIONS = malformed.archives(malformed.answers(), "logits") + malformed.predictions()
SETTINGS = malformed.json_files(settings=True)
RUN_FILES = [
    Case(f"{name}: {case.name}", (name, case.content), case.says)
    for name in ("config.json", "dataset.json", "run.json")
    for case in malformed.json_files(settings=False)
]
ROWS = [
    Case("no object", b"3\n", "line 1: expected a JSON object, got int"),
    Case("text", b"epoch 1 of 3\n", "line 1: not readable as JSON"),
    Case("a blank line", b'{"epoch": 0}\n\n{"epoch": 1}\n', "line 2: not readable as JSON"),
    Case("no epoch", b'{"step": 4}\n', "line 1: expected an object with the number 'epoch'"),
    Case("an epoch of text", b'{"epoch": "1"}\n', "line 1: expected an object with the number"),
    Case("half an epoch", b'{"epoch": 0.5}\n', "line 1: expected an object with the number"),
    Case(
        "a loss beyond all numbers",
        b'{"epoch": 0, "val_loss": ' + b"9" * 400 + b"}\n",
        "line 1: val_loss: expected a",
    ),
    Case("no epoch in the second", b'{"epoch": 0}\n{"e": 1}\n', "line 2: expected an object"),
    Case("no UTF-8", b'{"epoch": 0, "a": "\xff"}\n', "not readable as JSON"),
    Case("a deep line", b"[" * 200_000 + b"\n", "line 1: not readable as JSON"),
]


def named(cases):
    """Parameters with the names of the cases, which differ."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)
    return [pytest.param(case, id=case.name) for case in cases]


def test_there_are_two_hundred_cases_and_more():
    tables = (DATASETS, PREDICTIONS, SETTINGS, RUN_FILES, ROWS, TABLES, SEALS, RESEALED)
    assert sum(map(len, tables)) >= 400


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs a command, which must end with exit code 2 and one line, in little memory."""

    def run(says, *words):
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        tracemalloc.start()
        try:
            code = main([str(word) for word in words])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        err = capsys.readouterr().err
        assert code == 2, err
        assert err.startswith("flaxmed: error: ")
        assert err.count("\n") == 1
        assert says in err
        assert peak < MOST_MEMORY, peak
        assert not malformed.Payload.ran
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


@pytest.mark.parametrize("case", named(DATASETS))
def test_data_set(case, refused, tmp_path):
    (tmp_path / "mine.npz").write_bytes(case.content)
    words = ("train", "--dataset", tmp_path / "mine.npz", "--out", tmp_path / "run")
    assert "mine.npz: " in refused(case.says, *words)


@pytest.mark.parametrize("case", named(PREDICTIONS))
def test_predictions(case, refused, tmp_path):
    (tmp_path / "test.npz").write_bytes(case.content)
    assert "test.npz: " in refused(case.says, "evaluate", tmp_path / "test.npz")


@pytest.mark.parametrize("case", named(malformed.archives(THUMBNAILS, "images")))
def test_thumbnails(case, tmp_path):
    (tmp_path / "thumbnails.npz").write_bytes(case.content)
    with pytest.raises(InputError) as error:
        read_thumbnails(tmp_path / "thumbnails.npz")
    assert "thumbnails.npz: " in str(error.value)
    assert case.says in str(error.value)


@pytest.mark.parametrize("case", named(SETTINGS))
def test_settings(case, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train_group", lambda *_, **__: pytest.fail("training began"))
    (tmp_path / "mine.json").write_bytes(case.content)
    words = ("train", "--config", tmp_path / "mine.json", "--out", tmp_path / "run")
    assert "mine.json: " in refused(case.says, *words)


TABLES = malformed.tables()


@pytest.mark.parametrize("case", named(TABLES))
def test_subgroups(case, refused, tmp_path):
    (tmp_path / "test.npz").write_bytes(malformed.saved(malformed.answers()))
    (tmp_path / "mine.csv").write_bytes(case.content)
    words = ("evaluate", tmp_path / "test.npz", "--subgroups", tmp_path / "mine.csv")
    assert "mine.csv: " in refused(case.says, *words)


# ------------------------------------------------------------------------------ run folders


@pytest.fixture(scope="module")
def good_run(tmp_path_factory, data):
    """A finished run of one epoch."""
    from tiny_runs import create

    from flaxmed.training import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "create_model", create)
        return fit(data, tmp_path_factory.mktemp("good") / "run", epochs=1).dir


@pytest.fixture
def run(good_run, tmp_path):
    """A copy that can be spoilt."""
    shutil.copytree(good_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("case", named(RUN_FILES))
def test_run(case, run, refused):
    name, content = case.content
    (run / name).write_bytes(content)
    assert f"run/{name}: " in refused(case.says, "evaluate", run)


@pytest.mark.parametrize("case", named(ROWS))
def test_rows(case, run, refused):
    (run / "metrics.jsonl").write_bytes(case.content)
    assert "metrics.jsonl" in refused(case.says, "evaluate", run)


@pytest.mark.parametrize("name", ["config.json", "dataset.json", "run.json"])
def test_a_run_without_a_file(name, run, refused):
    (run / name).unlink()
    refused(f"{name}: no such file; expected", "evaluate", run)


DESCRIPTIONS = [
    ("without a task", {"task": None}, "task: expected text, got None"),
    ("an unknown task", {"task": "regression"}, "'regression'"),
    (
        "a name too many",
        {"task": "binary", "classes": ["a", "b", "c"]},
        "a binary task has 2 classes, got 3",
    ),
    ("a positive class beyond", {"positive": 7}, "positive class 7 is not among"),
    ("an unknown flip", {"flips": ["diagonal"]}, "unknown flip 'diagonal'"),
    ("a size of text", {"image_shape": "small"}, "dataset.json: "),
    ("a size of two numbers", {"image_shape": [32, 32]}, "dataset.json: "),
    ("a size of words", {"image_shape": ["a", "b", "c"]}, "dataset.json: "),
    ("no size", {"image_shape": None}, "dataset.json: "),
    ("classes in a number", {"classes": 3}, "dataset.json: "),
]


@pytest.mark.parametrize(
    ("changes", "says"), [d[1:] for d in DESCRIPTIONS], ids=[d[0] for d in DESCRIPTIONS]
)
def test_description_of_the_data(changes, says, run):
    path = run / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError) as error:
        flaxmed.load_model(run)
    assert "dataset.json: " in str(error.value)
    assert says in str(error.value)


def sealed(change):
    """A change to the seal's entries."""

    def do(checkpoint):
        path = checkpoint / manifest.NAME
        content = json.loads(path.read_text())
        content["files"] = change(content["files"])
        path.write_text(json.dumps(content))

    return do


def each(change):
    return sealed(lambda files: {name: change(entry) for name, entry in files.items()})


def spoilt(content):
    return lambda checkpoint: (checkpoint / manifest.NAME).write_bytes(content)


def a_file(checkpoint):
    return max(checkpoint.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else -1)


SEALS = [
    Case("none", lambda c: (c / manifest.NAME).unlink(), "was not finished"),
    Case("empty", spoilt(b""), "manifest.json: cannot be read"),
    Case("text", spoilt(b"sealed"), "manifest.json: cannot be read"),
    Case("zeros", spoilt(bytes(99)), "manifest.json: cannot be read"),
    Case("a list", spoilt(b"[]"), "manifest.json: cannot be read"),
    Case("no files", spoilt(b"{}"), "manifest.json: cannot be read"),
    Case("files in a list", spoilt(b'{"files": []}'), "manifest.json: cannot be read"),
    Case("files without number", spoilt(b'{"files": {}}'), "is not in manifest.json"),
    Case("deep", spoilt(b'{"files":' * 50_000), "manifest.json: cannot be read"),
    Case("entries of text", each(lambda entry: "sound"), "manifest.json: cannot be read"),
    Case("entries without a size", each(lambda e: {"sha256": e["sha256"]}), "cannot be read"),
    Case("entries without a digest", each(lambda e: {"bytes": e["bytes"]}), "cannot be read"),
    Case("other sizes", each(lambda e: e | {"bytes": e["bytes"] + 1}), "by manifest.json"),
    Case("sizes as text", each(lambda e: e | {"bytes": str(e["bytes"])}), "by manifest.json"),
    Case("other digests", each(lambda e: e | {"sha256": "0" * 64}), "its SHA-256 is not that"),
    Case("digests as numbers", each(lambda e: e | {"sha256": 0}), "its SHA-256 is not that"),
    Case(
        "one file too few", sealed(lambda f: dict(list(f.items())[1:])), "is not in manifest.json"
    ),
    Case(
        "a file that is not there",
        sealed(lambda f: {**f, "shard": {"bytes": 0, "sha256": ""}}),
        "is missing",
    ),
    Case(
        "a file above the folder",
        sealed(lambda f: {**f, "../../../nothing": {"bytes": 0, "sha256": ""}}),
        "manifest.json: cannot be read",
    ),
    Case(
        "a name that no file has",
        sealed(lambda f: {**f, "a\0b": {"bytes": 0, "sha256": ""}}),
        "manifest.json: cannot be read",
    ),
    Case("a file gone", lambda c: a_file(c).unlink(), "is missing"),
    Case("a file empty", lambda c: a_file(c).write_bytes(b""), "has 0 bytes"),
    Case("a file more", lambda c: (c / "more").write_bytes(b"1"), "more: is not in manifest.json"),
]


@pytest.mark.parametrize("case", named(SEALS))
@pytest.mark.usefixtures("tiny_network")
def test_seal(case, run):
    (step,) = saved_steps(best_folder(run))
    case.content(best_folder(run) / str(step))
    with pytest.raises(InputError) as error:
        flaxmed.load_model(run)
    assert "\n" not in str(error.value)
    # what says that nothing was finished is no damage, and the network is not there
    assert case.says in str(error.value) or case.name == "none"
    done, reasons = sound_step(run)
    assert done == 0
    assert case.says in reasons[0]


ARRAYS = {"stem": {"kernel": np.arange(6.0).reshape(2, 3)}, "step": np.int32(4)}


@pytest.fixture(scope="module")
def good_checkpoint(tmp_path_factory):
    """A folder with one checkpoint, of step 4."""
    folder = tmp_path_factory.mktemp("checkpoints") / "last"
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(4, ARRAYS)
    checkpoints.close()
    return folder


def listed(*path, value):
    """orbax's list of the arrays with another value at a place in it."""

    def content(data):
        found = at = json.loads(data)
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = value
        return json.dumps(found).encode()

    return content


_KERNEL = ("tree_metadata", "('stem/kernel',)")
_KEY = (*_KERNEL, "key_metadata", 0)
_JSON = {
    "empty": (b"", "not readable as JSON"),
    "half": (lambda data: data[: len(data) // 2], "not readable as JSON"),
    "bytes": (bytes(range(256)), "not readable as JSON"),
    "deep": (b"[" * 200_000, "nested too deeply"),
    "a list": (b"[]", "expected a JSON object, got list"),
    "a number": (b"9" * 5000, "_METADATA: "),
    "null": (b"null", "expected a JSON object, got NoneType"),
    "an empty object": (b"{}", "not a checkpoint's list of its arrays"),
    "no tree": (listed("tree_metadata", value=None), "not a checkpoint's list of its arrays"),
    "a tree of text": (listed("tree_metadata", value="x"), "not a checkpoint's list of its arr"),
    "a list of arrays": (listed("tree_metadata", value=[1]), "not a checkpoint's list of its arr"),
    "an empty tree": (listed("tree_metadata", value={}), "the checkpoint lacks 'stem/kernel'"),
    "an entry of null": (listed(*_KERNEL, value=None), "not a checkpoint's list of its arrays"),
    "an entry of a list": (listed(*_KERNEL, value=[]), "not a checkpoint's list of its arrays"),
    "keys of a number": (listed(*_KEY[:-1], value=3), "not a checkpoint's list of its arrays"),
    "keys of text": (listed(*_KEY[:-1], value="x"), "not a checkpoint's list of its arrays"),
    "a key of a number": (listed(*_KEY, "key", value=3), "not a checkpoint's list of its arrays"),
    "another key": (listed(*_KEY, "key", value="a"), "beyond what is wanted, 'a'"),
    "a key too many": (
        listed("tree_metadata", "x", value={"key_metadata": [{"key": "a\nb"}]}),
        r"the checkpoint holds, beyond what is wanted, 'a\nb'",
    ),
    "an unknown kind of key": (listed(*_KEY, "key_type", value=9), "checkpoint cannot be read: "),
    "no kind of value": (
        listed(*_KERNEL, "value_metadata", value={}),
        "checkpoint cannot be read: ",
    ),
    "a value of null": (
        listed(*_KERNEL, "value_metadata", value=None),
        "checkpoint cannot be read: ",
    ),
    "another format": (listed("use_zarr3", value=True), "checkpoint cannot be read: "),
}
_BINARY = {
    "empty": b"",
    "half": lambda data: data[: len(data) // 2],
    "text": b"[]",
    "zeros": bytes(4096),
    "a bit flipped": lambda data: malformed.flipped(data, 0.5),
}
RESEALED = [
    *(Case(f"_METADATA: {name}", ("_METADATA", *how), how[1]) for name, how in _JSON.items()),
    *(
        Case(f"{file}: {name}", (file, how), "checkpoint cannot be read: ")
        for file in ("manifest.ocdbt", "d/*")
        for name, how in _BINARY.items()
    ),
]


@pytest.mark.parametrize("case", named(RESEALED))
def test_a_checkpoint_that_was_sealed_anew(case, good_checkpoint, tmp_path):
    """As if someone had meant it: the seal says that the file is sound."""
    shutil.copytree(good_checkpoint, tmp_path / "last")
    (path,) = (tmp_path / "last" / "4" / "default").glob(case.content[0])
    change = case.content[1]
    path.write_bytes(change(path.read_bytes()) if callable(change) else change)
    manifest.seal(tmp_path / "last" / "4")
    with pytest.raises(InputError) as error:
        restore(tmp_path / "last", 4, ARRAYS)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "last" / "4"))
    assert case.says in str(error.value)


@pytest.mark.parametrize(
    ("like", "says"),
    [
        ({"step": np.int32(0)}, "holds, beyond what is wanted, 'stem/kernel'"),
        (ARRAYS | {"ema": {"kernel": np.zeros(2)}}, "the checkpoint lacks 'ema/kernel'"),
        (
            ARRAYS | {"stem": {"kernel": np.zeros((3, 2))}},
            "stem/kernel has shape (2, 3) in the checkpoint, expected (3, 2)",
        ),
        (ARRAYS | {"stem": {"kernel": np.zeros((4, 3))}}, "expected (4, 3)"),
        (ARRAYS | {"stem": {"kernel": np.zeros(6)}}, "expected (6,)"),
    ],
    ids=["an array too many", "one too few", "turned", "larger", "flat"],
)
def test_a_checkpoint_of_another_network(like, says, good_checkpoint):
    with pytest.raises(InputError) as error:
        restore(good_checkpoint, 4, like)
    assert says in str(error.value)
