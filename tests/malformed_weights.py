"""Files of weights that are wrong in one way each, written byte by byte: neither torch nor an
unpickler is needed.

The pickles are put together from the opcodes of protocol 2, so that they may say anything.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np
from malformed import Case, Payload, encrypted, npy, patched, saved, zipped

# ------------------------------------------------------------------------------ pickles


class Name(NamedTuple):
    """A class or a function."""

    module: str
    name: str


class Call(NamedTuple):
    """What a function gives."""

    function: Any
    arguments: Any


class Build(NamedTuple):
    """An object with attributes."""

    object: Any
    state: Any


class Stored(NamedTuple):
    """A reference to what is kept outside the pickle."""

    reference: Any


class Raw(NamedTuple):
    """Opcodes as they are."""

    code: bytes


def code(value: Any) -> bytes:
    """The opcodes that make ``value``."""
    match value:
        case Raw(given):
            return given
        case Name(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return code(function) + code(arguments) + b"R"
        case Build(made, state):
            return code(made) + code(state) + b"b"
        case Stored(reference):
            return code(reference) + b"Q"
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int() if 0 <= value < 256:
            return b"K" + bytes([value])
        case int():
            packed = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(packed)]) + packed
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        case dict():
            items = b"".join(code(key) + code(item) for key, item in value.items())
            return b"}(" + items + b"u"
        case list():
            return b"](" + b"".join(map(code, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(code, value)) + b"t"
    raise TypeError(value)


def pickled(value: Any) -> bytes:
    """A whole pickle of protocol 2."""
    return b"\x80\x02" + code(value) + b"."


ORDERED = Name("collections", "OrderedDict")
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")
NOTHING = Call(ORDERED, ())


def storage(
    key: Any = "0", kind: Any = "FloatStorage", length: Any = 6, *more: Any, tag: Any = "storage"
) -> Stored:
    """A reference to a row of values."""
    return Stored((tag, Name("torch", kind), key, "cpu", length, *more))


def tensor(
    stored: Any = None, offset: Any = 0, shape: Any = (2, 3), strides: Any = (3, 1), *more: Any
) -> Call:
    """A tensor; a good one unless something else is said."""
    stored = storage() if stored is None else stored
    return Call(REBUILD, (stored, offset, shape, strides, False, NOTHING, *more))


def state_dict(**tensors: Any) -> Build:
    """What a network's ``state_dict()`` gives, metadata and all."""
    items = b"".join(code(name) + code(value) for name, value in tensors.items())
    return Build(Raw(code(NOTHING) + b"(" + items + b"u"), {"_metadata": NOTHING})


# ------------------------------------------------------------------------------ torch's formats

ROW = np.arange(6, dtype="<f4").tobytes()
GOOD = state_dict(weight=tensor())
OLD = state_dict(weight=tensor(storage("0", "FloatStorage", 6, None)))
MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}


def checkpoint() -> dict[str, Any]:
    """A checkpoint with a little of everything that is read."""
    parameter = Call(Name("torch._utils", "_rebuild_parameter"), (tensor(), True, NOTHING))
    return {
        "net": state_dict(weight=tensor(storage("0", "FloatStorage", 6, None)), bias=parameter),
        "epoch": (3, -1, 2**70, 0.5, None, True, Raw(b"U\x03abc")),
        "size": [Call(Name("torch", "Size"), ((2, 3),)), Call(Name("torch", "device"), ("cpu",))],
        "milestones": Call(Name("collections", "Counter"), ({3: 1},)),
        "old": Call(ORDERED, ([["a", 1]],)),
        "again": Raw(b"(\x8c\x01a\x94h\x00t"),
    }


def members(content: Any = GOOD, **changes: Any) -> dict[str, bytes]:
    """The members of a torch archive; a change of None leaves one out."""
    data = content if isinstance(content, bytes) else pickled(content)
    found: dict[str, Any] = {"data.pkl": data, "byteorder": b"little", "data/0": ROW}
    found |= {"version": b"3\n", **{name.replace("_", "/"): d for name, d in changes.items()}}
    return {f"archive/{name}": data for name, data in found.items() if data is not None}


def archive(content: Any = GOOD, method: int = zipfile.ZIP_STORED, **changes: Any) -> bytes:
    """What ``torch.save`` writes since torch 1.6."""
    return zipped(members(content, **changes), method)


def legacy(
    content: Any = OLD,
    *,
    protocol: Any = 1001,
    system: Any = SYSTEM,
    keys: Any = ("0",),
    rows: bytes = struct.pack("<q", 6) + ROW,
) -> bytes:
    """What it wrote before."""
    listed = list(keys) if isinstance(keys, tuple) else keys
    parts = (MAGIC, protocol, system, content, listed)
    return b"".join(p if isinstance(p, bytes) else pickled(p) for p in parts) + rows


def twice() -> bytes:
    """An archive with two members of one name, which ``zipfile`` writes with a warning."""
    data = zipped(members(data_1=ROW), zipfile.ZIP_STORED)
    return patched(data, b"archive/data/1", b"archive/data/0")


def flipped_row(data: bytes) -> bytes:
    """The same file with one bit of the values changed."""
    at = data.index(ROW)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def overlapping() -> bytes:
    """The directory places one member where another lies."""
    content = state_dict(a=tensor(), b=tensor(storage("1")))
    data = archive(content, data_1=ROW)
    first = data.index(b"archive/data/0") - 30
    at = data.rindex(b"archive/data/1") - 4
    return data[:at] + struct.pack("<I", first) + data[at + 4 :]


def expensive_calls() -> Raw:
    """Five thousand numbers, of which a size is made again and again."""
    sizes = code(Name("torch", "Size")) + b"q\x01" + code((1,) * 5000) + b"\x85q\x02R"
    return Raw(b"](" + sizes + b"h\x01h\x02R" * 400 + b"e")


def entangled() -> Raw:
    """Lists of ten of the one before, twenty deep: 10**20 elements to whoever counts them."""
    made = b"]q\x00"
    for level in range(20):
        made += b"](" + bytes([ord("h"), level]) * 10 + b"e" + bytes([ord("q"), level + 1])
    return Raw(b"(" + made + b"t")


def torch_cases() -> list[Case]:
    """Cases in either format of torch's."""
    return [*_containers(), *_pickles(), *_foreign(), *_tensors(), *_mappings(), *_legacy()]


def _containers() -> list[Case]:
    whole = archive()
    cut = [
        Case(f"an archive cut to {part:.0%}", whole[: int(part * len(whole))], "truncated or dam")
        for part in (0.1, 0.5, 0.9, 0.99)
    ]
    return [
        *cut,
        Case("two pickles", zipped({**members(), "b/data.pkl": b"."}), "with 2 files data.pkl"),
        Case("a pickle too deep", zipped({"a/b/data.pkl": b"."}), "with 0 files data.pkl"),
        Case("TorchScript", archive(constants=None, **{"constants.pkl": b"."}), "a TorchScript pr"),
        Case("compressed", archive(method=zipfile.ZIP_DEFLATED), "is compressed, which torch does"),
        Case("packed by LZMA", archive(method=zipfile.ZIP_LZMA), "is compressed, which torch does"),
        Case("encrypted", encrypted(whole), "is encrypted; expected a file that torch"),
        Case("a name twice", twice(), "two files of the name archive/data/0"),
        Case("a member over another", overlapping(), "damaged or unreadable (File name in dir"),
        Case("big-endian", archive(byteorder=b"big"), "byteorder says 'big'; expected 'little'"),
        Case("no byte order", archive(byteorder=b"\n\xff"), "expected 'little'"),
        Case("a long byte order", archive(byteorder=b"little" * 99), "expected at most 64"),
        Case("a byte wrong in the values", flipped_row(whole), "Bad CRC-32"),
        Case("values missing", archive(data_0=None), "truncated: lacks archive/data/0"),
        Case("values too few", archive(data_0=ROW[:-1]), "storage 0 has 23 bytes; expected 24"),
        Case("values too many", archive(data_0=ROW + b"a"), "storage 0 has 25 bytes; expected 24"),
        Case(
            "values beyond the file",
            patched(whole, struct.pack("<II", 24, 24), struct.pack("<II", 2**31, 2**31)),
            "storage 0 has 2147483648 bytes; expected 24",
        ),
        Case(
            "a storage as large as is said",
            patched(
                archive(state_dict(weight=tensor(storage(length=2**29)))),
                struct.pack("<II", 24, 24),
                struct.pack("<II", 2**31, 2**31),
            ),
            "declare more bytes together than the file has",
        ),
        Case(
            "a pickle as large as is said",
            patched(
                whole,
                struct.pack("<II", *2 * [len(pickled(GOOD))]),
                struct.pack("<II", 2**31, 2**31),
            ),
            "data.pkl has 2147483648 bytes; expected at most",
        ),
    ]


def _pickles() -> list[Case]:
    def case(name: str, data: bytes, says: str) -> Case:
        return Case(name, archive(data), says)

    good = pickled(GOOD)
    return [
        case("an empty pickle", b"", "truncated: its pickle ends too early"),
        case("half a pickle", good[: len(good) // 2], "truncated: its pickle"),
        case("a name cut off", b"\x80\x02ccollections\nOrd", "truncated: its pickle ends too"),
        case("a pickle without its end", good[:-1], "truncated: its pickle ends too early"),
        case("text for a pickle", b"weights", "has the instruction"),
        case("no instruction", b"\x80\x02\xff.", "has the instruction 0xff"),
        case("protocol 0", pickle.dumps({"a": 1}, 0), "has the instruction"),
        case("protocol 99", b"\x80\x63N.", "pickle protocol 99; expected 2 to 5"),
        case("an extension", b"\x80\x02\x82\x01.", "has the instruction EXT1"),
        case("an instance", b"\x80\x02(cos\nsystem\no.", "refers to os.system"),
        case("an instance by name", b"\x80\x02(ios\nsystem\n.", "has the instruction INST"),
        case("a new object", b"\x80\x02ccollections\nOrderedDict\n)\x81.", "instruction NEWOBJ"),
        case("a reference as text", b"\x80\x02P0\n.", "has the instruction PERSID"),
        case("nothing on the stack", b"\x80\x02.", "objects that are not finished"),
        case("two objects", b"\x80\x02NN.", "objects that are not finished"),
        case("a mark left open", b"\x80\x02(N.", "objects that are not finished"),
        case("a tuple of nothing", b"\x80\x02\x86.", "takes from an empty stack"),
        case("no mark", b"\x80\x02Nt.", "takes from an empty stack"),
        case("a call of nothing", b"\x80\x02R.", "takes from an empty stack"),
        case("a mark remembered", b"\x80\x02(q\x00.", "takes from an empty stack"),
        case("an object not remembered", b"\x80\x02h\x07.", "refers to object 7, which is not"),
        case("appended to text", pickled(Raw(code("a") + b"Na")), "appends to what is no list"),
        case("items of a list", pickled(Raw(b"]NNs")), "sets items of what is no mapping"),
        case("half an item", pickled(Raw(b"}(Nu")), "sets items of what is no mapping"),
        case("a list for a key", pickled(Raw(b"}]Ns")), "a key of type list; expected text"),
        case("a tuple for a key", pickled(Raw(b"})Ns")), "a key of type tuple; expected text"),
        case("a huge key", pickled({2**61 - 1: 1}), "a key of type int; expected text"),
        case("text cut off", b"\x80\x02X\xff\xff\xff\x7fabc.", "its pickle cannot be read"),
        case("long text cut off", b"\x80\x02\x8d" + b"\xff" * 8 + b"a.", "its pickle cannot be"),
        case(
            "text in no UTF-8", b"\x80\x02X\x02\x00\x00\x00\xff\xff.", "its pickle cannot be read"
        ),
        case("old text in no UTF-8", b"\x80\x02U\x02\xff\xff.", "its pickle cannot be read"),
        case("a name in no UTF-8", b"\x80\x02c\xff\n\xff\n.", "its pickle cannot be read"),
        case("a name of no text", b"\x80\x04NN\x93.", "names something by what is no text"),
        case("a number cut off", b"\x80\x02\x8a\xff\x01", "its pickle cannot be read"),
        case("too deep", b"\x80\x02" + b"(" * 1000 + b".", "nested more than 100 deep"),
        case("laughs by calls", pickled(expensive_calls()), "more than 2000000 instructions"),
        case("attributes of a dict", pickled(Build({}, {})), "gives attributes to something else"),
        case("attributes of text", pickled(Build("a", {})), "gives attributes to something else"),
        case("no attributes", pickled(Build(NOTHING, "a")), "gives attributes to something else"),
    ]


def _foreign() -> list[Case]:
    def case(name: str, module: str, attribute: str, says: str) -> Case:
        content = {"net": GOOD, "x": Call(Name(module, attribute), ("touch /tmp/ran",))}
        return Case(name, archive(content), says)

    trusted = "torch.save(torch.load(FILE, weights_only=False).state_dict(), OUT)"
    payload = pickle.dumps(Payload(), 2)
    return [
        Case("a payload", archive(payload), "refers to __builtin__.setattr, which is neither"),
        Case("a payload in the old format", legacy(payload), "refers to __builtin__.setattr"),
        Case("a payload for the magic", payload + legacy(), "a Python pickle that torch.save did"),
        Case("a payload after it", legacy(protocol=payload), "refers to __builtin__.setattr"),
        Case("a payload for the keys", legacy(keys=payload), "refers to __builtin__.setattr"),
        Case("a payload of protocol 4", archive(pickle.dumps(Payload(), 4)), "builtins.setattr"),
        case("a command", "os", "system", "refers to os.system, which is neither a tensor"),
        case("another command", "posix", "system", "nothing of it was run"),
        case("a command's process", "subprocess", "Popen", "Expected a state dict alone"),
        case("eval", "builtins", "eval", "refers to builtins.eval"),
        case("eval of Python 2", "__builtin__", "eval", "refers to __builtin__.eval"),
        case("an attribute", "operator", "attrgetter", "refers to operator.attrgetter"),
        case("a numpy scalar", "numpy.core.multiarray", "scalar", "which is neither a tensor"),
        case("settings", "argparse", "Namespace", "refers to argparse.Namespace, which is"),
        case("torch's own loader", "torch", "load", "refers to torch.load, which is neither"),
        case("torch's hub", "torch.hub", "load", "refers to torch.hub.load, which is neither"),
        case("a sparse tensor", "torch._utils", "_rebuild_sparse_tensor", "which is neither"),
        case("a module", "torch.nn.modules.linear", "Linear", trusted),
        case("somebody's module", "torchxrayvision.models", "DenseNet", trusted),
        case("a name with spaces", "collections OrderedDict", "x", "refers to collections Order"),
        case("an empty name", "", "", "refers to ., which is neither"),
        case("a name without end", "a" * 10_000, "b", "aaa ..."),
        case("an escape", "collections", "Ordered\\x44ict", "refers to collections.Ordered"),
        case("a name on two lines", "a\rb", "c", "refers to a b.c"),
    ]


def _tensors() -> list[Case]:
    def case(name: str, value: Any, says: str) -> Case:
        return Case(name, archive(state_dict(weight=value)), says)

    beyond, form = "need more values than its storage has, 6", "has not the form of torch's"
    shared = {f"w{i}": tensor(storage(length=1500), 0, (1500,), (1,)) for i in range(50)}
    return [
        case("an offset beyond", tensor(None, 1), beyond),
        case("a stride beyond", tensor(None, 0, (2, 3), (4, 1)), beyond),
        case("a shape beyond", tensor(None, 0, (3, 3), (3, 1)), beyond),
        case("an expanded tensor", tensor(None, 0, (7,), (0,)), beyond),
        case("an expanded scalar", tensor(None, 0, (2**20, 2**20), (0, 0)), beyond),
        case("extents beyond all memory", tensor(None, 0, (2**50,), (1,)), "expected at most"),
        case("extents beyond 64 bits", tensor(None, 0, (2**40, 2**40), (0, 0)), "expected at most"),
        case("nothing, too large", tensor(None, 0, (0, 2**40, 2**40), (0, 0, 0)), "expected at m"),
        case("an extent beyond 64 bits", tensor(None, 0, (2**64,), (1,)), "a huge number"),
        case("a negative extent", tensor(None, 0, (-2, 3)), "shape is (-2, 3); expected whole"),
        case("a negative stride", tensor(None, 5, (6,), (-1,)), "strides are (-1); expected whole"),
        case("a negative offset", tensor(None, -1), "offset is (-1); expected whole numbers"),
        case("half an extent", tensor(None, 0, (2.5,), (1,)), "shape is (float); expected whole"),
        case("a shape of text", tensor(None, 0, "23"), "shape is of type str; expected whole"),
        case("a shape of truth", tensor(None, 0, (True,), (1,)), "shape is (bool); expected"),
        case("strides too few", tensor(None, 0, (2, 3), (3,)), "expected as many of these"),
        case("forty dimensions", tensor(None, 0, (1,) * 40, (1,) * 40), "32 at most"),
        case("no storage", tensor("0"), "a tensor in str; expected a storage"),
        case("metadata", tensor(None, 0, (2, 3), (3, 1), {"neg": True}), "a tensor has metadata"),
        case("too few arguments", Call(REBUILD, (storage(), 0)), "with 2 arguments"),
        case("too many arguments", Call(REBUILD, (0,) * 9), "in a way that torch does not"),
        case("arguments in a list", Call(REBUILD, [1]), "in a way that torch does not"),
        case("a type called", Call(Name("torch", "FloatStorage"), ()), "that state dicts do not c"),
        case("text called", Call("eval", ("1",)), "that state dicts do not call"),
        case(
            "a parameter of text",
            Call(Name("torch._utils", "_rebuild_parameter"), ("a", True, NOTHING)),
            "a parameter of str; expected a tensor",
        ),
        case("a size of text", Call(Name("torch", "Size"), ("ab",)), "made of numbers of type str"),
        case("a reference of text", tensor(Stored("0")), form),
        case("a reference of a number", tensor(Stored(0)), form),
        case("a reference in a list", tensor(Stored(["storage", "x", "0", "cpu", 6])), form),
        case("a reference too short", tensor(Stored(("storage", "0"))), form),
        case("a reference too long", tensor(storage("0", "FloatStorage", 6, None, None)), form),
        case("a reference to a module", tensor(storage(tag="module")), form),
        case("a type of text", tensor(Stored(("storage", "Float", "0", "cpu", 6))), form),
        case("a key of a number", tensor(storage(0)), form),
        case("a type that is none", tensor(storage("0", "float32")), "torch.float32 for the type"),
        case("a type that is unknown", tensor(storage("0", "QInt8Storage")), "torch.QInt8Storage"),
        case("a negative length", tensor(storage("0", "FloatStorage", -6)), "has the length (-6)"),
        case("a length of text", tensor(storage("0", "FloatStorage", "6")), "length (str); exp"),
        case("an absurd length", tensor(storage("0", "FloatStorage", 2**60)), "has 24 bytes; exp"),
        case("a key with a path", tensor(storage("../../x")), "lacks archive/data/../../x"),
        case("a key of two lines", tensor(storage("a\nb")), "lacks archive/data/a b"),
        case("another type", tensor(storage("0", "DoubleStorage")), "has 24 bytes; expected 48"),
        Case(
            "one storage of two types",
            archive(state_dict(a=tensor(), b=tensor(storage("0", "IntStorage")))),
            "storage 0 is declared in two ways",
        ),
        Case(
            "one storage of two lengths",
            archive(state_dict(a=tensor(), b=tensor(storage(length=7)))),
            "storage 0 is declared in two ways",
        ),
        Case(
            "values shared fifty times",
            archive(state_dict(**shared), data_0=bytes(6000)),
            "cannot hold, even shared 16 times",
        ),
        case("a part of text", tensor(storage("0", "FloatStorage", 6, "a")), "has not the form"),
        case(
            "a part beyond",
            tensor(storage("0", "FloatStorage", 6, ("1", 4, 3)), 0, (3,), (1,)),
            "a part of storage 0 reaches beyond its end",
        ),
        case(
            "beyond a part",
            tensor(storage("0", "FloatStorage", 6, ("1", 4, 2)), 0, (3,), (1,)),
            "need more values than its storage has, 2",
        ),
    ]


def _mappings() -> list[Case]:
    def case(name: str, value: Any, says: str) -> Case:
        return Case(name, archive(value), says)

    return [
        case("a tensor alone", tensor(), "holds one tensor without a name; expected a state dict"),
        case("a list of tensors", [tensor()], "holds one object of type list; expected a state"),
        case("one text", "weights", "holds one object of type str"),
        case("nothing", None, "holds one object of type NoneType"),
        case("an empty mapping", {}, "no mapping of tensors: it holds nothing"),
        case("numbers by name", {"epoch": 3, "acc": 0.5}, "no mapping of tensors: it holds epoch,"),
        case("tensors by number", {0: tensor()}, "no mapping of tensors: it holds 0; expected"),
        case("tensors too deep", {"a": {"b": {"c": tensor()}}}, "it holds a; expected a state"),
        case("an unknown place", {"weights": GOOD}, "it holds weights; expected a state dict, alo"),
        case("no tensors there", {"net": {"epoch": 3}}, "no mapping of tensors: it holds net"),
        case("two networks", {"model": GOOD, "net": GOOD}, "lie under net and model; expected one"),
        case("laughs by reference", {"x": entangled()}, "no mapping of tensors: it holds x"),
        case("pairs that are none", Call(ORDERED, ([1, 2],)), "made of what are no pairs"),
        case("a mapping of text", Call(ORDERED, ("ab",)), "made of str; expected a list"),
        case("pairs with a list", Call(ORDERED, ([[[], 1]],)), "a key of type list"),
    ]


def _legacy() -> list[Case]:
    whole, count = legacy(), struct.pack("<q", 6)
    two = state_dict(a=tensor(), b=tensor(storage("1")))
    return [
        *(
            Case(f"old, cut to {part:.0%}", whole[: int(part * len(whole))], "truncated")
            for part in (0.1, 0.3, 0.6, 0.99)
        ),
        Case("an old magic deeper", b"\x80\x02" + code([MAGIC]) + b".", "expected a file that tor"),
        Case("another protocol", legacy(protocol=1002), "torch's format 1002; expected 1001"),
        Case("a protocol of text", legacy(protocol="a\nb"), "torch's format a b; expected 1001"),
        Case("old and big-endian", legacy(system={"little_endian": False}), "a big-endian machine"),
        Case("a system of text", legacy(system="Linux"), "written on a big-endian machine"),
        Case("keys of numbers", legacy(keys=[0]), "expected the list of the storages"),
        Case("keys of text", legacy(keys="0"), "expected the list of the storages"),
        Case("a key too few", legacy(two), "truncated: lacks storage 1"),
        Case("a key too many", legacy(keys=("0", "1")), "storage 1 is listed twice, or needlessly"),
        Case("a key twice", legacy(keys=("0", "0")), "storage 0 is listed twice, or needlessly"),
        Case("no number of values", legacy(rows=count[:7]), "truncated: ends before storage 0"),
        Case("no values", legacy(rows=count), "truncated: ends in storage 0"),
        Case("values cut off", legacy(rows=count + ROW[:-1]), "truncated: ends in storage 0"),
        Case("another number", legacy(rows=struct.pack("<q", 7) + ROW), "0 has 7 values; expect"),
        Case("a negative number", legacy(rows=struct.pack("<q", -6) + ROW), "0 has -6 values; exp"),
        Case(
            "an absurd number",
            legacy(
                state_dict(a=tensor(storage(length=2**60))), rows=struct.pack("<q", 2**60) + ROW
            ),
            "truncated: ends in storage 0",
        ),
        Case("old text of gigabytes", legacy(b"\x80\x02X\xff\xff\xff\x7fabc"), "cannot be read"),
        Case("an old module", legacy(Call(Name("torch.nn", "Linear"), ())), "torch.nn.Linear, so"),
    ]


# ------------------------------------------------------------------------------ safetensors


def entry(dtype: str = "F32", shape: Any = (2, 3), at: Any = (0, 24)) -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": at}


def safe(header: Any, data: bytes = ROW, length: int | None = None) -> bytes:
    """A safetensors file; ``length`` is what it says of its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


SAFE = {"__metadata__": {"from": "a test"}, "weight": entry()}


def safetensors_cases() -> list[Case]:
    """Cases for the reader of safetensors."""
    damaged = "damaged or truncated ("

    def case(name: str, says: str = damaged, data: bytes = ROW, **tensors: Any) -> Case:
        return Case(f"safetensors: {name}", safe(tensors or {"weight": entry()}, data), says)

    return [
        Case("a header beyond the file", safe(SAFE, length=10_000), "a header of 10000 bytes, has"),
        Case("a header of all bytes", safe(SAFE, length=2**64 - 1), "declares a header of 1844674"),
        Case("a header cut off", safe(SAFE)[:40], "truncated: declares a header of"),
        Case("a header too short", safe(SAFE, length=20), damaged),
        Case("a header too long", safe(SAFE, length=len(json.dumps(SAFE)) + 8), damaged),
        Case("no JSON", safe(b"{weight: 1}"), damaged),
        Case("JSON cut off", safe(b'{"weight": '), damaged),
        Case("no UTF-8", safe(b'{"\xff": 1}'), damaged),
        Case("a deep header", safe(b'{"a":' * 10_000), damaged),
        case("text for a tensor", weight="F32"),
        case("no type", weight={"shape": [6], "data_offsets": [0, 24]}),
        case("an unknown type", weight=entry("F33")),
        case("a type beyond NumPy's", "weight: values of type F8", weight=entry("F8_E4M3", [24])),
        case("complex values", weight=entry("C64", [3]), says=""),
        case("a negative extent", weight=entry(shape=[-2, -3])),
        case("extents beyond memory", weight=entry(shape=[2**40, 2**40])),
        case("nothing, too large", data=b"", weight=entry(shape=[0, 2**40, 2**40], at=[0, 0])),
        case("forty dimensions", "expected up to 32", weight=entry(shape=[1] * 38 + [2, 3])),
        case("another size", weight=entry(shape=[2, 4])),
        case("values cut off", data=ROW[:-1]),
        case("values too many", data=ROW + b"a"),
        case("offsets beyond", weight=entry(at=[8, 32])),
        case("offsets turned", weight=entry(at=[24, 0])),
        case("negative offsets", weight=entry(at=[-24, 0])),
        case("one offset", weight=entry(at=[0])),
        case("offsets that overlap", a=entry(), b=entry()),
        case("a hole", data=ROW + ROW + ROW, a=entry(), b=entry(at=[48, 72])),
        case("metadata of numbers", __metadata__={"epoch": 3}, weight=entry()),
        case("metadata of text", __metadata__="a", weight=entry()),
    ]


# ------------------------------------------------------------------------------ neither


def other_files() -> list[Case]:
    """Files that hold no weights, and what is said they are."""
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 45000000\n"
    tar = io.BytesIO(bytes(257) + b"ustar\x0000" + bytes(1000)).getvalue()
    page = b"\n<!DOCTYPE html><html><title>404</title></html>"
    whole_model = {"model.weights.h5": b"", "config.json": b"{}", "metadata.json": b"{}"}
    return [
        Case("empty", b"", "an empty file; expected weights"),
        Case("one byte", b"\x00", "not a known format, it begins with the bytes 00"),
        Case("zeros", bytes(4096), "not a known format, it begins with the bytes 00 00"),
        Case("a page of HTML", page, "a web page, as a download that failed leaves it"),
        Case("XML", b"<?xml version='1.0'?><Error/>", "a web page, as a download that failed"),
        Case("a pointer of git-lfs", lfs, "a git-lfs pointer, not the file it stands for"),
        Case("text", b"Not Found", "a text file, which begins 'Not Found'"),
        Case("JSON", b'{"a": 1, "b": {}}', "a text file, which begins"),
        Case("text with a brace", b"weights {", "a text file, which begins 'weights {'"),
        Case("an .npz", saved({"a": np.zeros(3)}), "an .npz archive of arrays; expected weights"),
        Case("a .npy", npy(np.arange(3)), "a .npy file of one array"),
        Case("a zip", zipped({"readme.txt": b"hello"}), "a zip archive that torch did not write"),
        Case("an empty zip", zipped({}), "an empty zip archive"),
        Case("a whole model of Keras", zipped(whole_model), "a Keras archive of a whole model"),
        Case("gzip", gzip.compress(archive()), "a gzip archive: unpack it first"),
        Case("a tar", tar, "a tar archive (torch before 0.1.10"),
        Case("a pickle", pickle.dumps({"a": 1}), "a Python pickle that torch.save did not write"),
        Case("a pickled payload", pickle.dumps(Payload()), "which is never unpickled"),
        Case("a PNG", b"\x89PNG\r\n\x1a\n" + bytes(64), "a PNG image"),
    ]
