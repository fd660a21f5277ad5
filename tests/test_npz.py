"""Reading .npz archives: damage of every kind is one clear line, large arrays take no memory."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from flaxmed.data import npz
from flaxmed.data.npz import Archive, file_md5, read_arrays
from flaxmed.types import InputError, RunError


def npy(array: np.ndarray, **changes) -> bytes:
    """The bytes of a .npy file whose header may claim something else."""
    file = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | changes
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
        np.array(["a", "bcd"]),
        np.array(3),
        np.zeros((0, 4), np.uint8),
        np.arange(3, dtype=">i4"),
    ],
    ids=["c", "fortran", "text", "scalar", "empty", "big-endian"],
)
def test_reads_what_numpy_wrote(save, array, tmp_path):
    save(tmp_path / "a.npz", x=array, other=np.arange(2))
    with Archive(tmp_path / "a.npz") as file:
        assert sorted(file.names) == ["other", "x"]
        read = file.read("x")
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype
    assert read.flags.c_contiguous


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (2, }",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (0, 4611686018427387904)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': " + b"(" + b"1, " * 70 + b")}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-2, 3)}",
        b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (2,)}",
        b"[]",
    ],
)
def test_a_broken_header_is_one_line(header, tmp_path):
    header += b" " * (245 - len(header)) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    archive(tmp_path / "a.npz", x=data + b"ab")
    with Archive(tmp_path / "a.npz") as file, pytest.raises(InputError, match=r"a\.npz: x: ") as e:
        file.read("x")
    assert "\n" not in str(e.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.npz: cannot be read: No such file"):
        file_md5(tmp_path / "gone.npz")


class Payload:
    """Unpickling this leaves a trace."""

    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


def test_objects_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([Payload()], object))
    assert not Payload.ran
    with Archive(tmp_path / "a.npz") as file, pytest.raises(InputError, match="never unpickled"):
        file.read("x")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(InputError, match=r"not an \.npz archive"):
        Archive(tmp_path / "b.npz")
    assert not Payload.ran


IMAGES = np.random.default_rng(0).integers(0, 256, (50, 8, 8), np.uint8)
HUGE = {"shape": (10**9, 10**6)}


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy(IMAGES, shape=(49, 8, 8)), r"declares 3264 bytes .* but it has 3328"),
        (npy(IMAGES, shape=(51, 8, 8)), r"declares 3392 bytes .* but it has 3328"),
        (npy(IMAGES, **HUGE), r"declares 10{12}128 bytes"),
        (npy(IMAGES, shape=(-50, -8, 8)), r"declares"),
        (b"", r"damaged or unreadable"),
        (b"not an array", r"damaged or unreadable"),
        (b"\x93NUMPY\x09\x00", r"\.npy version \(9, 0\) is not supported"),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_members_that_lie(member, message, mapped, tmp_path):
    path = archive(tmp_path / "a.npz", x=member)
    with pytest.raises(InputError, match=message) as error:
        read_arrays(path, ["x"], map_above=0 if mapped else 10**9)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.rglob("*.npy")) == []


@pytest.mark.parametrize("mapped", [False, True])
def test_flipped_bits(mapped, tmp_path):
    path = archive(tmp_path / "a.npz", x=npy(IMAGES))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"a\.npz: x: damaged or unreadable"):
        read_arrays(path, ["x"], map_above=0 if mapped else 10**9)
    assert not list(tmp_path.rglob("*.npy"))
    assert not list(tmp_path.rglob("*.part"))


def test_flipped_bits_in_a_stored_member(tmp_path):
    """Uncompressed data decode whatever they hold: only the checksum tells."""
    np.savez(tmp_path / "a.npz", x=IMAGES)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"damaged or unreadable.*CRC"):
        read_arrays(tmp_path / "a.npz", ["x"])


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_truncated(keep, tmp_path):
    path = archive(tmp_path / "a.npz", x=npy(IMAGES))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.npz: not an \.npz archive, or a truncated one"):
        Archive(path)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "no.npz", tmp_path):
        with pytest.raises(InputError, match="no such file"):
            Archive(path)


def test_fortran_order_is_refused_for_maps(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.asfortranarray(IMAGES))
    with pytest.raises(InputError, match=r"x: stored in Fortran order.*ascontiguousarray"):
        read_arrays(tmp_path / "a.npz", ["x"], map_above=0)


def test_maps_are_made_once(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=IMAGES, y=np.arange(50))
    first = read_arrays(tmp_path / "a.npz", ["x", "y", "absent"], map_above=100)
    assert set(first) == {"x", "y"}
    assert isinstance(first["x"], np.memmap)
    assert not isinstance(first["y"], np.memmap)
    np.testing.assert_array_equal(first["x"], IMAGES)
    file = Path(first["x"].filename)
    before = file.stat().st_mtime_ns, file.stat().st_ino
    second = read_arrays(tmp_path / "a.npz", ["x"], map_above=100)
    assert Path(second["x"].filename) == file
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before
    file.write_bytes(file.read_bytes()[:-1])  # half a map, as after a crash of the file system
    third = read_arrays(tmp_path / "a.npz", ["x"], map_above=100)
    np.testing.assert_array_equal(third["x"], IMAGES)


def test_another_file_of_the_same_name_gets_other_maps(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=IMAGES)
    first = read_arrays(tmp_path / "a.npz", ["x"], map_above=0)["x"]
    np.savez_compressed(tmp_path / "a.npz", x=255 - IMAGES)
    second = read_arrays(tmp_path / "a.npz", ["x"], map_above=0)["x"]
    np.testing.assert_array_equal(first, IMAGES)
    np.testing.assert_array_equal(second, 255 - IMAGES)


def test_unpacking_takes_constant_memory(tmp_path):
    """64 MB of pixels pass through a megabyte or two."""
    block = np.zeros((64, 256, 256), np.uint8)
    path = tmp_path / "a.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("x.npy", "w") as member,
    ):
        head = {"descr": "|u1", "fortran_order": False, "shape": (1024, 256, 256)}
        np.lib.format.write_array_header_1_0(member, head)
        for i in range(16):
            member.write((block + i).data)
    tracemalloc.start()
    try:
        mapped = read_arrays(path, ["x"], map_above=2**20)["x"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert mapped.shape == (1024, 256, 256)
    assert peak < 8 * 2**20
    assert mapped[::64, 0, 0].tolist() == list(range(16))


def test_no_room(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=IMAGES)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(npz.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RunError, match="unpacking needs"):
        read_arrays(tmp_path / "a.npz", ["x"], map_above=0)


def test_large_files_are_hashed_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(npz, "_ALWAYS_HASH", 1000)
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 5000)
    expected = hashlib.md5(b"x" * 5000).hexdigest()
    assert file_md5(path) == expected
    assert "verifying a.bin" in capsys.readouterr().err
    assert file_md5(path) == expected
    assert capsys.readouterr().err == ""  # remembered
    path.write_bytes(b"y" * 5000)  # same size, another time
    assert file_md5(path) == hashlib.md5(b"y" * 5000).hexdigest()
    (note,) = (tmp_path / ".flaxmed").glob("*.json")
    for damage in ("", "[]", "{", json.dumps({"size": 5000})):
        note.write_text(damage)
        assert file_md5(path) == hashlib.md5(b"y" * 5000).hexdigest()
