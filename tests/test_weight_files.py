"""Files of weights: torch's own, in both of its formats, and safetensors, beside torch and bit for
bit; and two hundred that are wrong, which are refused with one line."""

from __future__ import annotations

import collections
import dataclasses
import errno
import os
import tracemalloc

import malformed
import malformed_weights
import ml_dtypes
import numpy as np
import pytest
from malformed_weights import (
    NOTHING,
    OLD,
    ORDERED,
    ROW,
    Call,
    Name,
    Raw,
    archive,
    checkpoint,
    entangled,
    legacy,
    state_dict,
    storage,
    tensor,
)
from oracles.compare import require

from flaxmed.models.weights.files import read_weights
from flaxmed.models.weights.safetensors_files import TYPES, read_safetensors, write_safetensors
from flaxmed.models.weights.torch_files import read_torch
from flaxmed.types import InputError, RunError

MOST_MEMORY = 32 * 2**20  # bytes that refusing a file may take; every good one here is far smaller
MOST_LINE = 600  # characters of a message, without the file's name
NETWORKS = ("resnet18", "densenet121", "legacy_xception")
FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


# ------------------------------------------------------------------------ beside torch


@pytest.fixture(scope="session")
def torch():
    require("torchvision")
    from oracles.torch_reference import import_packages

    return import_packages()[0]


@pytest.fixture(scope="session")
def state_dicts(torch):
    """State dicts of the three networks, every tensor of them random."""
    from oracles.torch_reference import import_packages

    _, torchvision, timm = import_packages()
    torch.manual_seed(0)
    found = {}
    for name in NETWORKS:
        build = getattr(torchvision.models, name, None)
        model = build(weights=None) if build else timm.create_model(name)
        for value in (*model.parameters(), *model.buffers()):
            value.data = torch.randn(value.shape).mul(100).to(value.dtype)
        found[name] = model.state_dict()
    return found


def as_bytes(torch, value):
    """Type, shape and bytes of a tensor of torch's."""
    value = value.detach().contiguous()
    name = str(value.dtype).removeprefix("torch.")
    plain = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
    return name, tuple(value.shape), plain.numpy().tobytes()


def assert_same(torch, ours, theirs):
    """The same names in the same order, and the same types, shapes and bits."""
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        array = ours[name]
        assert (array.dtype.name, array.shape, array.tobytes()) == as_bytes(torch, value), name
        assert array.flags.c_contiguous


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_as_torch_saves_it(torch, state_dicts, network, kind, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(state_dicts[network], path, **FORMATS[kind])
    theirs = torch.load(path, weights_only=True)
    file = read_weights(path)
    assert file.format == "torch"
    assert len(theirs) == {"resnet18": 122, "densenet121": 727, "legacy_xception": 276}[network]
    assert_same(torch, file.tensors, theirs)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_as_safetensors(torch, state_dicts, network, tmp_path):
    import safetensors.torch

    path = tmp_path / "weights.bin"
    state = {name: value.contiguous() for name, value in state_dicts[network].items()}
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    file = read_weights(path)
    assert file.format == "safetensors"
    assert file.metadata == {"format": "pt"}
    theirs = safetensors.torch.load_file(path)
    assert_same(torch, dict(sorted(file.tensors.items())), dict(sorted(theirs.items())))


@pytest.mark.parametrize("network", NETWORKS)
def test_torch_reads_what_is_written(torch, state_dicts, network, tmp_path):
    import safetensors.torch

    torch.save(state_dicts[network], tmp_path / "a.pth")
    ours = read_torch(tmp_path / "a.pth")
    write_safetensors(tmp_path / "a.safetensors", ours, {"source": network})
    theirs = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert_same(torch, dict(sorted(ours.items())), dict(sorted(theirs.items())))


def unusual(torch):
    """Tensors of every kind that a state dict may hold."""
    base = torch.arange(48.0).reshape(6, 8)
    types = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8")
    return collections.OrderedDict(
        {
            "scalar": torch.tensor(3),
            "empty": torch.zeros(0, 4),
            "empty within": base[6:, 2:],
            "turned": base.T,
            "rows": base[1:5:2],
            "columns": base[:, 1::3],
            "inside": base[2:4, 3:7],
            "permuted": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
            "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "overlapping": torch.arange(6.0).unfold(0, 2, 1)[:3],
            "one of one": torch.ones(1).expand(1, 1),
            "parameter": torch.nn.Parameter(torch.randn(3)),
            "fixed": torch.nn.Parameter(torch.randn(3), requires_grad=False),
            "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
            "truth": torch.tensor([True, False]),
            "bytes": torch.arange(5, dtype=torch.uint8),
            **{name: torch.arange(-2, 5).to(getattr(torch, name)) for name in types},
        }
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", FORMATS)
def test_tensors_of_every_kind(torch, kind, protocol, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(unusual(torch), path, pickle_protocol=protocol, **FORMATS[kind])
    # torch's own restricted loader knows protocol 2 alone
    theirs = torch.load(path, weights_only=protocol == 2)
    ours = read_torch(path)
    assert_same(torch, ours, theirs)
    assert np.shares_memory(ours["turned"], ours["rows"]) is False  # copied, being out of order


@pytest.mark.parametrize("kind", FORMATS)
def test_values_that_tensors_share(torch, kind, tmp_path):
    """Tied weights are in the file once, and in memory once."""
    path = tmp_path / "weights.pth"
    table = torch.randn(50, 20)
    torch.save({"encoder": table, "decoder": table, "row": table[3]}, path, **FORMATS[kind])
    ours = read_torch(path)
    assert_same(torch, ours, torch.load(path, weights_only=True))
    assert np.shares_memory(ours["encoder"], ours["decoder"])
    assert np.shares_memory(ours["encoder"][3], ours["row"])


def checkpoints(torch, state):
    """Mappings that hold a state dict, as they are met."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    steps = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD(model.parameters(), 0.1), [3, 5])
    return {
        "MedMNIST": {"net": state},
        "a checkpoint": {
            "epoch": 90,
            "arch": "resnet18",
            "state_dict": state,
            "best_acc1": torch.tensor(0.7),
            "optimizer": optimizer.state_dict(),
            "scheduler": steps.state_dict(),
        },
        "a model": {"model": state, "lr": 1e-3, "sizes": [torch.Size([2, 3])], "amp": None},
        "a training": {
            "model_state_dict": state,
            "rng": torch.get_rng_state(),
            "device": torch.device("cpu"),
            "dtype": torch.float32,
            "huge": 2**100,
            "done": (True, -1),
        },
        "DataParallel": collections.OrderedDict((f"module.{n}", v) for n, v in state.items()),
        "DataParallel in a checkpoint": {"net": {f"module.{n}": v for n, v in state.items()}},
        "a plain dict": dict(state),
        "extra state": {**state, "_extra_state": None, "version": 3},
    }


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "name",
    [
        *("MedMNIST", "a checkpoint", "a model", "a training", "DataParallel"),
        *("DataParallel in a checkpoint", "a plain dict", "extra state"),
    ],
)
def test_the_state_dict_of_a_checkpoint(torch, name, kind, tmp_path):
    path = tmp_path / "weights.pth"
    state = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()
    torch.save(checkpoints(torch, state)[name], path, **FORMATS[kind])
    assert_same(torch, read_torch(path), state)


def test_names_that_begin_alike_in_part(torch, tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "a.pth")
    assert list(read_torch(tmp_path / "a.pth")) == ["module.a", "b"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch: source of the module
def test_a_whole_module(torch, kind, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt", **FORMATS[kind])
    with pytest.raises(InputError, match=r"refers to torch\.nn\.modules\.linear\.Linear") as error:
        read_weights(tmp_path / "a.pt")
    assert "torch.save(torch.load(FILE, weights_only=False).state_dict(), OUT)" in str(error.value)


def test_torch_reads_the_files_of_these_tests(torch, tmp_path):
    """What is written here byte by byte is what torch itself takes."""
    for content in (archive(), legacy()):
        (tmp_path / "a.pth").write_bytes(content)
        theirs = torch.load(tmp_path / "a.pth", weights_only=True)
        assert_same(torch, read_torch(tmp_path / "a.pth"), theirs)
        np.testing.assert_array_equal(theirs["weight"].numpy(), VALUES)


# ------------------------------------------------------------------------ good files, without torch


def given(tmp_path, content):
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    return read_weights(path)


GOOD = {
    "zip": archive(),
    "legacy": legacy(),
    "safetensors": malformed_weights.safe(malformed_weights.SAFE),
    "no byte order": archive(byteorder=None),
    "a part of a storage": legacy(
        state_dict(weight=tensor(storage("0", "FloatStorage", 12, ("1", 6, 6)))),
        rows=b"\x0c" + bytes(7) + bytes(24) + ROW,
    ),
    "Python 2": legacy(
        Call(ORDERED, ([[Raw(b"U\x06weight"), tensor()], [Raw(b"U\x01n"), 2**40]],))
    ),
    "the rebuilding before": archive(
        {"weight": Call(Name("torch._utils", "_rebuild_tensor"), (storage(), 0, [2, 3], [3, 1]))}
    ),
    "a counter": archive(
        {"net": {"weight": tensor()}, "x": Call(Name("collections", "Counter"), ())}
    ),
    "laughs by reference": archive({"net": {"weight": tensor()}, "x": entangled()}),
    "a list within itself": archive({"net": {"weight": tensor()}, "x": Raw(b"]q\x05h\x05a")}),
    "hooks": archive({"weight": tensor(None, 0, (2, 3), (3, 1), None), "x": NOTHING}),
    "more after it": legacy() + b"more",
    "a checkpoint": legacy({**checkpoint(), "net": OLD}),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file(name, tmp_path):
    file = given(tmp_path, GOOD[name])
    assert list(file.tensors) == ["weight"]
    np.testing.assert_array_equal(file.tensors["weight"], VALUES)
    assert file.tensors["weight"].dtype == np.float32
    assert file.format == ("safetensors" if name == "safetensors" else "torch")
    assert file.metadata == ({"from": "a test"} if name == "safetensors" else {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        file.format = "keras"


def test_no_storage_is_read_that_is_not_wanted(tmp_path):
    """The state of an optimiser may be twice the weights."""
    content = {"net": state_dict(weight=tensor()), "optimizer": {0: tensor(storage("1"))}}
    assert list(given(tmp_path, archive(content)).tensors) == ["weight"]


# ------------------------------------------------------------------------ files that are wrong


def named(cases):
    """Parameters with the names of the cases, which differ."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)
    return [pytest.param(case, id=case.name) for case in cases]


TORCH = malformed_weights.torch_cases()
SAFETENSORS = malformed_weights.safetensors_cases()
OTHERS = malformed_weights.other_files()


def test_there_are_two_hundred_cases_and_more():
    assert len(TORCH) + len(SAFETENSORS) + len(OTHERS) >= 200


def refusal(read, path):
    """The line with which a file is refused, in little memory and without running any of it."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert len(line) < MOST_LINE + len(str(path))
    assert peak < MOST_MEMORY, peak
    assert not malformed.Payload.ran
    return line


@pytest.mark.parametrize("case", named(TORCH + SAFETENSORS + OTHERS))
def test_a_file_that_is_wrong(case, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(case.content)
    assert case.says in refusal(read_weights, path)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.bin"]


@pytest.mark.parametrize("case", named(OTHERS))
@pytest.mark.parametrize("read", [read_torch, read_safetensors])
def test_a_file_for_another_reader(case, read, tmp_path):
    (tmp_path / "weights.bin").write_bytes(case.content)
    assert refusal(read, tmp_path / "weights.bin")


@pytest.mark.parametrize("read", [read_torch, read_safetensors, read_weights])
def test_no_file_at_all(read, tmp_path):
    assert "no such file; expected" in refusal(read, tmp_path / "none.pth")
    assert "a folder; expected" in refusal(read, tmp_path)
    assert "cannot be read: File name too long" in refusal(read, tmp_path / ("a" * 300))
    os.mkfifo(tmp_path / "pipe")
    assert "not a file; expected" in refusal(read, tmp_path / "pipe")


def test_a_payload_would_run_elsewhere():
    """The cases with one prove something only if an unpickler would run it."""
    import pickle

    payload = next(case for case in TORCH if case.name == "a payload")
    at = payload.content.index(b"\x80\x02c")
    try:
        pickle.loads(payload.content[at:])
        assert malformed.Payload.ran
    finally:
        malformed.Payload.ran = False


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_values_that_are_not_finite(dtype, tmp_path):
    tensors = {f"layer{i}.weight": np.ones((2, 2), dtype) for i in range(9)}
    path = tmp_path / "weights.bin"
    write_safetensors(path, tensors)
    assert len(read_weights(path).tensors) == 9
    tensors["layer3.weight"][1, 1] = np.nan
    write_safetensors(path, tensors)
    assert refusal(read_weights, path).endswith("values that are not finite in layer3.weight")
    for i in range(1, 8):
        tensors[f"layer{i}.weight"][0, 1] = -np.inf
    write_safetensors(path, tensors)
    line = refusal(read_weights, path)
    assert "layer1.weight, layer2.weight" in line
    assert line.endswith("layer5.weight and 2 more")


def test_not_finite_in_a_torch_file(tmp_path):
    row = np.array([0, 1, 2, 3, np.nan, 5], "<f4").tobytes()
    path = tmp_path / "weights.bin"
    path.write_bytes(archive(data_0=row))
    assert "values that are not finite in weight" in refusal(read_weights, path)


# ------------------------------------------------------------------------ what is written


def test_every_type_there_and_back(tmp_path):
    tensors = {
        **{f"1 {name}": np.arange(6).reshape(2, 3).astype(name) for name in TYPES.values()},
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "turned": np.arange(6.0).reshape(2, 3).T,
        "every second": np.arange(10)[::2],
        "big-endian": np.arange(3, dtype=">f4"),
    }
    write_safetensors(tmp_path / "a", tensors, {"é\n": "ü"})
    back, metadata = read_safetensors(tmp_path / "a")
    assert metadata == {"é\n": "ü"}
    assert set(back) == set(tensors)
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(back[name], array)
    assert back["1 bfloat16"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array(["a"]), "a: x: values of type <U1; expected float64, float32"),
        (malformed.objects(1), "a: x: values of type object; expected"),
        (np.zeros(2, complex), "a: x: values of type complex128; expected"),
    ],
    ids=["text", "objects", "complex"],
)
def test_what_cannot_be_written(array, says, tmp_path):
    with pytest.raises(InputError) as error:
        write_safetensors(tmp_path / "a", {"good": np.zeros(2), "x": array})
    assert says in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    metadata = {name: name for name in "bcad"}
    for n in range(6):  # the library leaves the order of the metadata to chance
        write_safetensors(tmp_path / str(n), {"y": np.ones(3), "x": np.zeros(2, "u1")}, metadata)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    tensors, said = read_safetensors(tmp_path / "0")
    assert said == metadata
    assert tensors["y"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk(step, tmp_path, monkeypatch):
    """The file that was there stays, and nothing else is left."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"x": np.zeros(3)})
    monkeypatch.setattr(os, step, full)
    with pytest.raises(
        RunError, match=r"a\.safetensors: could not be written: No space left"
    ) as error:
        write_safetensors(path, {"x": np.ones(3)})
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    np.testing.assert_array_equal(read_safetensors(path)[0]["x"], np.zeros(3))


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    for path in (tmp_path / "none" / "b", tmp_path / "a" / "b"):
        with pytest.raises(InputError, match="cannot write here: N"):
            write_safetensors(path, {"x": np.zeros(3)})
