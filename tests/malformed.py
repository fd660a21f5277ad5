"""Files that are wrong in one way each, by name, and what the one line about them says.

A case is the bytes of a file or a change to a good folder, and a part of
the line that is expected. ``test_malformed.py`` goes through them all.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """A name, what is put on disk, and what is said about it."""

    name: str
    content: Any
    says: str


# ------------------------------------------------------------------------------ archives


def npy(array: np.ndarray, **changes: Any) -> bytes:
    """The bytes of a .npy file whose header may claim something else."""
    file = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | changes
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def npy_with(header: bytes, data: bytes = b"ab") -> bytes:
    """A .npy file with this text for a header."""
    header += b" " * (max(118, len(header)) - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    """Every occurrence replaced: the local header and the central directory alike."""
    assert old in data
    return data.replace(old, new)


def flipped(data: bytes, at: float) -> bytes:
    """One byte, at this fraction of the length, inverted."""
    content = bytearray(data)
    content[int(at * (len(data) - 1))] ^= 0xFF
    return bytes(content)


def declared(data: bytes, size: int, real: int) -> bytes:
    """An archive of one member, whose size before packing is said to be another."""
    return patched(data, struct.pack("<I", real), struct.pack("<I", size))


class Payload:
    """Unpickling this leaves a trace."""

    ran = False

    def __reduce__(self) -> Any:
        return (setattr, (Payload, "ran", True))


def objects(*values: Any) -> np.ndarray:
    """An array of Python objects."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def archives(good: dict[str, np.ndarray], key: str) -> list[Case]:
    """Cases for any .npz: ``good`` arrays, of which ``key`` is one that is needed."""
    members = {f"{name}.npy": npy(array) for name, array in good.items()}
    whole = zipped(members)

    def with_member(data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
        return zipped({**members, f"{key}.npy": data}, method)

    pickled = io.BytesIO()
    np.save(pickled, objects(Payload()), allow_pickle=True)
    zeros = npy(np.zeros(200_000, np.uint8))
    bomb = with_member(zeros)
    kept = [
        Case(f"cut to {part:.0%}", whole[: int(part * len(whole))], "not an .npz archive")
        for part in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
    ]
    return [
        Case("empty", b"", "not an .npz archive"),
        Case("text", b"images,labels\n1,2\n", "not an .npz archive"),
        Case("a page of HTML", b"<!DOCTYPE html><title>404</title>", "not an .npz archive"),
        Case("a PNG", b"\x89PNG\r\n\x1a\n" + bytes(64), "not an .npz archive"),
        Case("a .npy", npy(np.arange(3)), "not an .npz archive"),
        Case("a pickle", pickle.dumps(Payload()), "not an .npz archive"),
        Case("gzip", gzip.compress(whole), "not an .npz archive"),
        Case("zeros", bytes(4096), "not an .npz archive"),
        *kept,
        Case("a zip without arrays", zipped({"readme.txt": b"hello"}), "lacks the array"),
        Case("an empty zip", zipped({}), "lacks the array"),
        Case("arrays in a folder", zipped({f"a/{n}": d for n, d in members.items()}), "lacks the"),
        Case("arrays above it", zipped({f"../{n}": d for n, d in members.items()}), "lacks the"),
        Case("arrays at the root", zipped({f"/{n}": d for n, d in members.items()}), "lacks the"),
        Case(
            "a name in no UTF-8",
            patched(whole, f"{key}.npy".encode(), b"\xff" * len(f"{key}.npy")),
            "lacks the",
        ),
        Case("a name that is not the UTF-8 it says", wrongly_encoded(whole, key), "not an .npz"),
        Case("names in capitals", zipped({n.upper(): d for n, d in members.items()}), "lacks the"),
        Case("packed by bzip2", zipped(members, zipfile.ZIP_BZIP2), "a way that numpy does not"),
        Case("packed by LZMA", zipped(members, zipfile.ZIP_LZMA), "a way that numpy does not"),
        Case("an empty member", with_member(b""), "damaged or unreadable"),
        Case("text for a member", with_member(b"not an array"), "damaged or unreadable"),
        Case("a magic alone", with_member(b"\x93NUMPY"), "damaged or unreadable"),
        Case("a version to come", with_member(b"\x93NUMPY\x09\x00"), "version (9, 0) is not"),
        Case("a header cut off", with_member(npy(np.arange(9))[:40]), "damaged or unreadable"),
        Case("data cut off", with_member(npy(np.arange(9))[:-8]), "but it has"),
        Case("data too many", with_member(npy(np.arange(9)) + b"more"), "but it has"),
        Case("Python objects", with_member(pickled.getvalue()), "never unpickled"),
        Case("a header that is no dict", with_member(npy_with(b"[]")), "damaged or unreadable"),
        Case("a header that calls", with_member(npy_with(b"exit()")), "damaged or unreadable"),
        Case(
            "no such type",
            with_member(npy_with(b"{'descr':'nonsense','fortran_order':False,'shape':(2,)}")),
            "damaged or unreadable",
        ),
        Case(
            "a key too few",
            with_member(npy_with(b"{'descr':'|u1','shape':(2,)}")),
            "damaged or unreadable",
        ),
        Case(
            "a shape that is no tuple",
            with_member(npy_with(b"{'descr':'|u1','fortran_order':False,'shape':2}")),
            "damaged or unreadable",
        ),
        Case(
            "a shape of text",
            with_member(npy_with(b"{'descr':'|u1','fortran_order':False,'shape':('a',)}")),
            "damaged or unreadable",
        ),
        Case(
            "a negative extent",
            with_member(npy_with(b"{'descr':'|u1','fortran_order':False,'shape':(-2,)}")),
            "declares the shape",
        ),
        Case(
            "extents beyond all memory",
            with_member(npy_with(b"{'descr':'|u1','fortran_order':False,'shape':(2**50,2**50)}")),
            "damaged or unreadable",
        ),
        Case(
            "a header of gigabytes",
            with_member(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + bytes(2**21)),
            "damaged or unreadable",
        ),
        Case(
            "a header deeper than a parser",
            with_member(npy_with(b"{'descr':" + b"-" * 9000 + b"1,'shape':(2,)}")),
            "damaged or unreadable",
        ),
        Case(
            "values that are arrays",
            with_member(
                npy_with(b"{'descr':('<f4',(2,)),'fortran_order':False,'shape':(1,)}", bytes(8))
            ),
            "expected an array of numbers or text",
        ),
        Case(
            "values without size",
            with_member(npy_with(b"{'descr':'|S0','fortran_order':False,'shape':(2**39,)}", b"")),
            "damaged or unreadable",
        ),
        Case(
            "text without size",
            with_member(
                npy_with(b"{'descr':'|S0','fortran_order':False,'shape':(549755813888,)}", b"")
            ),
            "expected an array of numbers or text",
        ),
        Case(
            "nothing, twice too large",
            with_member(
                npy_with(
                    b"{'descr':'|u1','fortran_order':False,'shape':(0,549755813888,549755813888)}",
                    b"",
                )
            ),
            "",
        ),
        Case("a petabyte", with_member(npy(np.arange(9), shape=(2**39, 256))), "but it has"),
        Case(
            "seventy dimensions",
            with_member(
                npy_with(b"{'descr':'|u1','fortran_order':False,'shape':(" + b"1," * 70 + b")}")
            ),
            "expected up to 32 extents",
        ),
        Case("a bomb by its declared size", declared(bomb, 2**31, len(zeros)), "can hold"),
        Case(
            "larger than it declares",
            declared(bomb, len(zeros) // 2, len(zeros)),
            "but it has",
        ),
        Case(
            "an unknown method",
            patched(whole, b"\x14\x00\x00\x00\x08\x00", b"\x14\x00\x00\x00\x63\x00"),
            "a way that numpy does not",
        ),
        Case("encrypted", encrypted(whole), "damaged or unreadable"),
        Case("a byte wrong in the data", flipped_in_member(members, key), "damaged or unreadable"),
    ]


def encrypted(whole: bytes) -> bytes:
    """The same archive with the flag that says a password is needed."""
    return whole.replace(b"PK\x03\x04\x14\x00\x00\x00", b"PK\x03\x04\x14\x00\x01\x00").replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
    )


def wrongly_encoded(whole: bytes, key: str) -> bytes:
    """The same archive with the flag for names in UTF-8, and a name that is none."""
    name = f"{key}.npy".encode()
    marked = whole.replace(b"\x14\x00\x00\x00\x08\x00", b"\x14\x00\x00\x08\x08\x00")
    return patched(marked, name, b"\xff" * len(name))


def flipped_in_member(members: dict[str, bytes], key: str) -> bytes:
    """An archive in which a byte of one array's values is another, so that its CRC is wrong."""
    stored = zipped(members, zipfile.ZIP_STORED)
    data = members[f"{key}.npy"]
    assert stored.count(data) == 1
    return stored.replace(data, data[:-1] + bytes([data[-1] ^ 0xFF]))


# ------------------------------------------------------------------------------ data sets

N = {"train": 6, "val": 2, "test": 4}


def layout(**changes: Any) -> dict[str, Any]:
    """Good arrays of a data set, some of them replaced or, with None, left out."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, n in N.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8), np.uint8)
        arrays[f"{split}_labels"] = np.arange(n, dtype=np.uint8)[:, None] % 2
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def saved(arrays: dict[str, Any]) -> bytes:
    """The arrays as ``numpy.savez`` writes them."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def datasets() -> list[Case]:
    """Cases for a data set of one's own."""
    u8, images = np.uint8, layout()["train_images"]
    changes: list[tuple[str, dict[str, Any], str]] = [
        *((f"without {key}", {key: None}, f"lacks the array '{key}'") for key in layout()),
        *(
            (f"images of {dtype}", {"train_images": images.astype(dtype)}, f"{dtype} values; exp")
            for dtype in ("float32", "float64", "int64", "int8", "uint16", "bool", "complex64")
        ),
        ("images of text", {"train_images": np.full((6, 8, 8), "a")}, "<U1 values; expected uint8"),
        ("images of objects", {"train_images": objects(*"abcdef")}, "never unpickled"),
        ("one image alone", {"train_images": images[0]}, "train_images: shape (8, 8); expected"),
        ("flat images", {"train_images": images.reshape(6, 64)}, "shape (6, 64); expected [n, h"),
        ("volumes", {"val_images": np.zeros((2, 8, 8, 8, 1), u8)}, "shape (2, 8, 8, 8, 1); exp"),
        ("no height", {"val_images": np.zeros((2, 0, 8), u8)}, "val_images: shape (2, 0, 8)"),
        ("no channel", {"val_images": np.zeros((2, 8, 8, 0), u8)}, "shape (2, 8, 8, 0); expected"),
        *(
            (
                f"no images in {split}",
                {f"{split}_images": images[:0], f"{split}_labels": np.zeros((0, 1), int)},
                f"{split}_images: no images; every split needs at least one",
            )
            for split in N
        ),
        ("channels first", {"train_images": np.zeros((6, 3, 8, 8), u8)}, "looks like [n, channel"),
        ("other sizes", {"val_images": np.zeros((2, 9, 8), u8)}, "(9, 8, 1); expected (8, 8, 1)"),
        ("colour in one", {"test_images": np.zeros((4, 8, 8, 3), u8)}, "(8, 8, 3); expected (8,"),
        ("labels of text", {"train_labels": list("abcdef")}, "<U1 values; expected whole numbers"),
        ("labels of objects", {"train_labels": objects(*"abcdef")}, "never unpickled"),
        ("complex labels", {"train_labels": np.ones(6) * 1j}, "complex128 values; expected whole"),
        ("too few labels", {"train_labels": [0, 1]}, "train_labels: shape (2,); expected (6,)"),
        ("too many labels", {"val_labels": [0, 1, 0]}, "val_labels: shape (3,); expected (2,)"),
        ("a cube of labels", {"train_labels": np.zeros((6, 1, 1))}, "shape (6, 1, 1); expected"),
        ("labels without columns", {"train_labels": np.zeros((6, 0))}, "shape (6, 0); expected"),
        ("a fraction", {"train_labels": [0, 1, 0.5, 0, 1, 0]}, "row 2 holds 0.5; expected whole"),
        ("not a number", {"test_labels": [0, 1, 1, np.nan]}, "row 3 holds nan; expected whole"),
        ("infinity", {"test_labels": [0, np.inf, 1, 0]}, "row 1 holds inf; expected whole"),
        ("beyond integers", {"test_labels": [0, 1e30, 1, 0]}, "row 1 holds 1e+30; expected whole"),
        ("negative", {"train_labels": [0, 1, -1, 0, 1, 0]}, "train_labels: row 2 holds -1"),
        ("negative in val", {"val_labels": [0, -1]}, "row 1 holds -1; expected whole numbers from"),
        ("beyond", {"test_labels": [0, 1, 2, 0]}, "test_labels: row 2 holds 2; expected whole"),
        ("from one", {"train_labels": [1, 2, 1, 2, 1, 2]}, "class 0 has no image"),
        ("one class", {"train_labels": [0] * 6}, "only class 0 occurs"),
        ("a gap", {"train_labels": [0, 1, 3, 0, 1, 3]}, "class 2 has no image"),
        (
            "2 and 3 columns",
            {"train_labels": np.eye(6, 3, dtype=int), "val_labels": np.eye(2, 2, dtype=int)},
            "val_labels: 2 labels per image",
        ),
        (
            "a two in many labels",
            {f"{s}_labels": 2 * np.eye(n, 5, dtype=int) for s, n in N.items()},
            "train_labels: row 0 holds 2; expected whole numbers from 0 to 1",
        ),
        ("unsigned beyond", {"val_labels": np.array([0, 2**64 - 1], np.uint64)}, "val_labels: h"),
        ("an unknown task", {"task": "regression"}, "task 'regression'; expected one of binary"),
        ("an empty task", {"task": ""}, "task ''; expected one of binary"),
        ("a number for a task", {"task": 3}, "task '3'; expected one of binary"),
        ("two tasks", {"task": ["binary", "ordinal"]}, "task "),
        ("three names of two", {"task": "binary", "classes": list("abc")}, "a binary task has 2"),
        ("one name", {"classes": ["a"]}, "classes: 1 class; a multiclass task has at least 2"),
        ("the same name twice", {"classes": ["a", "a"]}, "expected a list of different class nam"),
        ("names that are numbers", {"classes": [1, 2]}, "expected a list of different class names"),
        ("a table of names", {"classes": [["a", "b"]]}, "expected a list of different class names"),
        ("no names", {"classes": np.zeros(0, "U1")}, "classes: 0 class"),
        ("names in no UTF-8", {"classes": np.array([b"\xff\xfe", b"b"])}, "expected text in UTF-8"),
        ("a positive class beyond", {"positive": 2}, "positive class 2 is not among the 2 classes"),
        ("a positive class below", {"positive": -1}, "positive class -1 is not among the 2 class"),
        ("a positive class by name", {"positive": "ill"}, "expected the number of a class, 0 or 1"),
        ("two positive classes", {"positive": [0, 1]}, "expected the number of a class, 0 or 1"),
        ("half a class", {"positive": 0.5}, "positive: expected the number of a class, 0 or 1"),
        (
            "a positive class of three",
            {**{f"{s}_labels": np.arange(n) % 3 for s, n in N.items()}, "positive": 1},
            "a positive class belongs to binary tasks",
        ),
        (
            "an id twice",
            {"test_ids": list("abca")},
            "'a' is the id of test_ids row 0 and of test_i",
        ),
        ("an id in two splits", {"test_ids": list("abcd"), "val_ids": list("xa")}, "'a' is the id"),
        ("too few ids", {"test_ids": list("abc")}, "test_ids: shape (3,); expected (4,), one per"),
        ("a table of ids", {"val_ids": [["a", "b"]]}, "val_ids: shape (1, 2); expected (2,)"),
        ("ids of fractions", {"val_ids": [0.5, 1.5]}, "val_ids: float64 values; expected text"),
        ("ids in no UTF-8", {"val_ids": np.array([b"\xff", b"a"])}, "val_ids: expected text in UT"),
        ("too few groups", {"train_groups": [1, 2]}, "train_groups: shape (2,); expected (6,)"),
        ("groups of fractions", {"val_groups": [0.5, 1.5]}, "val_groups: float64 values; expected"),
        ("groups of objects", {"val_groups": objects("a", None)}, "never unpickled"),
    ]
    return [Case(name, saved(layout(**change)), says) for name, change, says in changes]


# ------------------------------------------------------------------------------ predictions


def answers(**changes: Any) -> dict[str, Any]:
    """Good arrays of predictions, some replaced or left out."""
    arrays = {
        "labels": np.array([0, 1, 0, 1]),
        "logits": np.array([[0.5, -0.5], [0.0, 1.0], [2.0, 1.0], [0.3, 0.4]]),
        "ids": np.array(list("abcd")),
        "task": np.array("binary"),
        "classes": np.array(["benign", "malignant"]),
        "positive": np.array(1),
    }
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def predictions() -> list[Case]:
    """Cases for a file of predictions."""
    logits = answers()["logits"]

    def at(row: int, *values: float) -> np.ndarray:
        changed = logits.copy()
        changed[row] = values
        return changed

    changes: list[tuple[str, dict[str, Any], str]] = [
        *(
            (f"without {key}", {key: None}, f"lacks the array '{key}'")
            for key in ("labels", "logits", "task")
        ),
        ("an unknown task", {"task": "regression"}, "'regression'; expected one of binary"),
        ("flat logits", {"logits": logits[:, 0]}, "logits must be [images, classes], got shape"),
        ("one column", {"logits": logits[:, :1]}, "logits must be [images, classes], got shape"),
        ("three columns", {"logits": np.zeros((4, 3))}, "a binary task has 2 logits per image"),
        (
            "logits of text",
            {"logits": np.full((4, 2), "a")},
            "logits must be real numbers, got <U1",
        ),
        ("complex logits", {"logits": logits * 1j}, "logits must be real numbers"),
        ("not a number", {"logits": at(1, np.nan, 0)}, "row 1 is [nan, 0.0]"),
        ("infinity", {"logits": at(2, np.inf, 0)}, "row 2 is [inf, 0.0]"),
        (
            "nothing but minus infinity",
            {"logits": at(3, -np.inf, -np.inf)},
            "row 3 is [-inf, -inf]",
        ),
        ("logits of objects", {"logits": objects(*"abcd")}, "never unpickled"),
        ("too few labels", {"labels": [0, 1]}, "labels must have shape (4,)"),
        ("a label beyond", {"labels": [0, 1, 2, 1]}, "whole numbers from 0 to 1; row 2 has 2"),
        ("a label below", {"labels": [0, -1, 0, 1]}, "whole numbers from 0 to 1; row 1 has -1"),
        ("half a label", {"labels": [0, 1, 0, 0.5]}, "whole numbers from 0 to 1; row 3 has 0.5"),
        ("labels of text", {"labels": list("0101")}, "labels must be whole numbers from 0 to 1"),
        ("a label of nothing", {"labels": [0, 1, np.nan, 1]}, "row 2 has nan"),
        ("a positive class beyond", {"positive": 2}, "the positive class must be 0 or 1, got 2"),
        ("a positive class by name", {"positive": "malignant"}, "invalid literal for int"),
        ("two positive classes", {"positive": [0, 1]}, "array"),
        (
            "a positive class of many",
            {"task": "multiclass"},
            "a positive class belongs to binary tasks, not to multiclass",
        ),
        ("three names", {"classes": list("abc")}, "2 logits per image but 3 class names"),
        ("one name", {"classes": "benign"}, "class names"),
        ("too few ids", {"ids": list("abc")}, "ids must have one entry per image (4)"),
        ("an id twice", {"ids": list("abca")}, "ids must be unique; 'a' occurs 2 times"),
        ("a table of ids", {"ids": [list("abcd")]}, "ids must have one entry per image (4)"),
        ("too few groups", {"groups": ["p", "q"]}, "groups must have one entry per image (4)"),
        ("a missing group", {"groups": ["p", "", "q", "q"]}, "groups: 1 of 4 entries are missing"),
        ("a group of nothing", {"groups": [1, np.nan, 2, 2]}, "1 of 4 entries are missing, row 1"),
        ("too few digests", {"image_sha256": ["0" * 64]}, "image_sha256 must have one entry per"),
    ]
    return [Case(name, saved(answers(**change)), says) for name, change, says in changes]


# ------------------------------------------------------------------------------ JSON


def json_files(*, settings: bool) -> list[Case]:
    """Cases for any file of one JSON object; what is right as JSON only if ``settings``."""
    unreadable = "not readable as JSON"
    cases = [
        Case("empty", b"", unreadable),
        Case("white space", b" \n\t ", unreadable),
        Case("text", b"seed = 3\n", unreadable),
        Case("an object without its end", b'{"epochs": 3', unreadable),
        Case("a comma too many", b'{"epochs": 3,}', unreadable),
        Case("single quotes", b"{'epochs': 3}", unreadable),
        Case("two objects", b'{"epochs": 3}{"epochs": 4}', unreadable),
        Case("no quotes", b"{epochs: 3}", unreadable),
        Case("a comment", b'{"epochs": 3} // three', unreadable),
        Case("UTF-16", '{"epochs": 3}'.encode("utf-16"), unreadable),
        Case("no UTF-8", b'{"epochs": "\xff"}', unreadable),
        Case("a byte order mark", b'\xef\xbb\xbf{"epochs": 3}', unreadable),
        Case("zeros", bytes(100), unreadable),
        Case("a tab in text", b'{"model": "a\tb"}', unreadable),
        Case("a deep list", b'{"model": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "too deeply"),
        Case("a deep object", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too deeply"),
        Case("digits without end", b'{"epochs": ' + b"9" * 10_000 + b"}", unreadable),
        Case("a list", b"[1, 2]", "expected a JSON object, got list"),
        Case("a number", b"3", "expected a JSON object, got int"),
        Case("text in quotes", b'"resnet18"', "expected a JSON object, got str"),
        Case("null", b"null", "expected a JSON object, got NoneType"),
        Case("true", b"true", "expected a JSON object, got bool"),
    ]
    if not settings:
        return cases
    values: list[tuple[str, Any, str]] = [
        ("an unknown setting", {"epoch": 3}, "unknown setting epoch; did you mean epochs?"),
        ("one far from all", {"zzz": 3}, "unknown setting zzz; expected dataset"),
        ("an empty name", {"": 3}, "unknown setting ; expected dataset"),
        ("unknown in a group", {"optimizer": {"lr": 1}}, "unknown setting optimizer.lr; expected"),
        ("unknown augmentation", {"augment": {"flip": True}}, "did you mean augment.flips?"),
        ("a group of text", {"optimizer": "adam"}, "setting optimizer must be an object, got"),
        ("a group of a list", {"augment": []}, "setting augment must be an object, got []"),
        ("no group", {"augment": None}, "setting augment must be an object, got None"),
        ("epochs as text", {"epochs": "3"}, "setting epochs: expected a whole number, got '3'"),
        ("half an epoch", {"epochs": 2.5}, "setting epochs: expected a whole number, got 2.5"),
        ("epochs as truth", {"epochs": True}, "setting epochs: expected a whole number, got True"),
        ("epochs in a list", {"epochs": [3]}, "setting epochs: expected a whole number, got [3]"),
        ("no epochs", {"epochs": None}, "setting epochs: expected a whole number, got None"),
        ("epochs of zero", {"epochs": 0}, "setting epochs: expected a number at least 1, got 0"),
        ("a batch of none", {"batch_size": 0}, "setting batch_size: expected a number at least 1"),
        ("a size of zero", {"size": 0}, "setting size: expected a number at least 1, got 0"),
        ("a size as text", {"size": "28"}, "setting size: expected a whole number or null"),
        ("a seed below zero", {"seed": -1}, "setting seed: expected a number at least 0"),
        ("a seed too large", {"seed": 2**32}, "setting seed: expected a number at least 0 and bel"),
        (
            "an unknown type",
            {"dtype": "float16"},
            "setting dtype: expected 'float32' or 'bfloat16'",
        ),
        ("a number for a type", {"dtype": 32}, "setting dtype: expected 'float32' or 'bfloat16'"),
        ("an unknown stem", {"stem": "tiny"}, "setting stem: expected 'auto' or 'imagenet' or"),
        ("an unknown recipe", {"recipe": "best"}, "unknown recipe 'best'; expected one of default"),
        ("an unknown fetch", {"fetch": "fast"}, "setting fetch: expected 'auto' or 'resident' or"),
        ("remat as text", {"remat": "yes"}, "setting remat: expected true or false, got 'yes'"),
        ("remat as a number", {"remat": 1}, "setting remat: expected true or false, got 1"),
        ("no micro-batch", {"accumulate": 0}, "setting accumulate: expected a number at least 1"),
        ("more parts than images", {"accumulate": 999}, "setting accumulate: expected a number at"),
        ("calls of no step", {"steps_per_call": 0}, "setting steps_per_call: expected a number at"),
        ("early stopping at 0", {"early_stopping": 0}, "setting early_stopping: expected a number"),
        (
            "averages that stay",
            {"ema_decay": 1.0},
            "setting ema_decay: expected a number above 0 and",
        ),
        (
            "averages of nothing",
            {"ema_decay": 0},
            "setting ema_decay: expected a number above 0 and",
        ),
        (
            "averages by a word",
            {"ema_decay": "slow"},
            "setting ema_decay: expected a number or null",
        ),
        ("momentum of one", {"batch_norm_momentum": 1.0}, "batch_norm_momentum: expected a number"),
        (
            "weights by a word",
            {"class_weights": "even"},
            "setting class_weights: expected 'balanced",
        ),
        (
            "a negative weight",
            {"class_weights": [1, -1]},
            "setting class_weights: expected a number",
        ),
        (
            "a weight of text",
            {"class_weights": ["a"]},
            "setting class_weights[0]: expected a number",
        ),
        (
            "an unknown optimiser",
            {"optimizer": {"name": "lion"}},
            "optimizer.name: expected 'adam'",
        ),
        (
            "an unknown schedule",
            {"optimizer": {"schedule": "up"}},
            "optimizer.schedule: expected 'c",
        ),
        (
            "a rate of zero",
            {"optimizer": {"learning_rate": 0}},
            "learning_rate: expected a number a",
        ),
        (
            "a rate as text",
            {"optimizer": {"learning_rate": "1e-3"}},
            "learning_rate: expected a num",
        ),
        (
            "a negative rise",
            {"optimizer": {"warmup_epochs": -1}},
            "warmup_epochs: expected a number",
        ),
        (
            "a negative decay",
            {"optimizer": {"weight_decay": -1}},
            "weight_decay: expected a number",
        ),
        ("a clip at zero", {"optimizer": {"clip_norm": 0}}, "clip_norm: expected a number above 0"),
        (
            "milestones after the end",
            {"optimizer": {"step_milestones": [2]}},
            "step_milestones: exp",
        ),
        (
            "decay with adam",
            {"optimizer": {"name": "adam"}},
            "optimizer.weight_decay: adam has none",
        ),
        ("a turn too far", {"augment": {"rotation": 360}}, "augment.rotation: expected a number"),
        (
            "a shift out of it",
            {"augment": {"shift": 1}},
            "augment.shift: expected a number at least",
        ),
        ("flips as a number", {"augment": {"flips": 1}}, "augment.flips: expected true or false"),
        ("a mean of text", {"preprocessing": {"mean": ["a"]}}, "preprocessing.mean[0]: expected a"),
        ("no spread", {"preprocessing": {"std": [0.0]}}, "std positive and finite"),
        ("2 means of 1 spread", {"preprocessing": {"mean": [0.5, 0.5]}}, "got 2 and 1"),
    ]
    cases += [Case(name, json.dumps(value).encode(), says) for name, value, says in values]
    cases += [
        Case(
            "a rate of NaN", b'{"optimizer": {"learning_rate": NaN}}', "learning_rate: expected a"
        ),
        Case(
            "epochs beyond all numbers",
            b'{"epochs": ' + b"9" * 400 + b"}",
            "setting epochs: expected a whole number",
        ),
        Case(
            "a rate beyond all numbers",
            b'{"optimizer": {"learning_rate": ' + b"9" * 400 + b"}}",
            "learning_rate: expected a number",
        ),
        Case(
            "a rate without end", b'{"optimizer": {"learning_rate": 1e999}}', "learning_rate: exp"
        ),
    ]
    return cases


# ------------------------------------------------------------------------------ CSV


def tables() -> list[Case]:
    """Cases for a table of subgroups."""
    return [
        Case("empty", b"", "is empty; expected a header with id and other columns"),
        Case("blank lines", b"\n\n\n", "is empty; expected a header with id and other columns"),
        Case("a header alone", b"id,sex\n", "has no line below its header"),
        Case("no id", b"name,sex\na,F\n", "column"),
        Case("id alone", b"id\na\n", "line 1"),
        Case("a column twice", b"id,sex,sex\na,F,M\n", "line 1"),
        Case("a column without a name", b"id,,sex\na,F,M\n", "line 1"),
        Case("a cell too few", b"id,sex,age\na,F\n", "line 2: 2 cells, expected 3"),
        Case("a cell too many", b"id,sex\na,F,30\n", "line 2: 3 cells, expected 2"),
        Case(
            "an id twice", b"id,sex\na,F\nb,M\na,F\n", "line 4: column 'id': 'a' stands on line 2"
        ),
        Case("no id in a row", b"id,sex\n,F\n", "line 2: column 'id' is empty"),
        Case("semicolons", b"id;sex\na;F\n", "line 1"),
        Case("a quote without end", b'id,sex\na,"F\n', "line"),
        Case("text after a quote", b'id,sex\na,"F"x\n', "line 2"),
        Case("no UTF-8", b"id,sex\na,\xff\n", "UTF-8"),
        Case("UTF-16", "id,sex\na,F\n".encode("utf-16"), "UTF-8"),
        Case("zeros", bytes(64), "line"),
    ]


def numbered(*cases: Callable[[], list[Case]]) -> int:
    """How many cases there are in all."""
    return sum(len(make()) for make in cases)
