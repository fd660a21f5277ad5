"""Files of Keras weights that are wrong in one way each. Built with h5py, which the tests need.

``toy`` is Xception with one value in every tensor: as many layers of each kind, and small.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
from malformed import Case, patched, zipped

from flaxmed.models.weights.keras_layers import CONVOLUTION, NORM, SEPARABLE, XCEPTION

SHAPES: dict[str, list[tuple[int, ...]]] = {
    CONVOLUTION: [(1, 1, 1, 1)],
    SEPARABLE: [(1, 1, 1, 1), (1, 1, 1, 1)],
    NORM: [(1,), (1,), (1,), (1,)],
    "dense": [(1, 2), (2,)],
}
CLASSES = {
    CONVOLUTION: "conv2d",
    SEPARABLE: "separable_conv2d",
    NORM: "batch_normalization",
    "dense": "dense",
}
LAYERS = [*XCEPTION.layers, ("dense", "predictions")]
Change = Callable[[Any], Any]


@functools.cache
def toy(layout: str) -> bytes:
    """A good file in the older layout ("listed") or in Keras 3's ("numbered").

    Tensor k of layer n has the value n + k / 10.
    """
    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        _listed(root) if layout == "listed" else _numbered(root)
    return file.getvalue()


def _listed(root: Any) -> None:
    root.attrs["layer_names"] = [b"input_1", *(name.encode() for _, name in LAYERS)]
    root.create_group("input_1").attrs["weight_names"] = []
    for n, (kind, name) in enumerate(LAYERS):
        group = root.create_group(name)
        group.attrs["weight_names"] = [f"{name}/{k}:0".encode() for k in range(len(SHAPES[kind]))]
        for k, shape in enumerate(SHAPES[kind]):
            group[f"{name}/{k}:0"] = np.full(shape, n + k / 10, np.float32)


def _numbered(root: Any) -> None:
    counts: dict[str, int] = {}
    for n, (kind, name) in enumerate(LAYERS):
        number = counts[kind] = counts.get(kind, -1) + 1
        group = root.create_group(f"layers/{CLASSES[kind]}{f'_{number}' if number else ''}/vars")
        group.attrs["name"] = name
        for k, shape in enumerate(SHAPES[kind]):
            group[str(k)] = np.full(shape, n + k / 10, np.float32)


def changed(layout: str, change: Change) -> bytes:
    """The toy after a change to the open file."""
    file = io.BytesIO(toy(layout))
    with h5py.File(file, "r+") as root:
        change(root)
    return file.getvalue()


def made(make: Change, **options: Any) -> bytes:
    """A new file."""
    file = io.BytesIO()
    with h5py.File(file, "w", **options) as root:
        make(root)
    return file.getvalue()


TWICE = [*(name for _, name in LAYERS if name != "block1_conv2"), "block1_conv1"]
FIRST = "block1_conv1/block1_conv1/0:0"  # the first tensor of the older layout
STORED = "layers/conv2d/vars/0"  # and of the newer one


def tensor(value: Any, **options: Any) -> Change:
    """Another dataset in the place of the first tensor."""

    def change(root: Any) -> None:
        del root[STORED]
        root.create_dataset(STORED, data=value, **options)

    return change


def names(path: str, attribute: str, value: Any) -> Change:
    """Another value for an attribute, or none."""

    def change(root: Any) -> None:
        del root[path].attrs[attribute]
        if value is not None:
            root[path].attrs[attribute] = value

    return change


def link(path: str, to: Any) -> Change:
    """Another link in the place of one."""

    def change(root: Any) -> None:
        del root[path]
        root[path] = to

    return change


def hard(path: str, to: str) -> Change:
    """One more name for an object."""
    return lambda root: root.__setitem__(path, root[to])


def external_values(root: Any) -> None:
    """The values of a tensor are in another file."""
    del root[STORED]
    root.create_dataset(STORED, (1, 1, 1, 1), "f4", external=[("/etc/passwd", 0, 4)])


def virtual(root: Any) -> None:
    """A tensor is a view of arrays in other files."""
    del root[STORED]
    layout = h5py.VirtualLayout((1, 1, 1, 1), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (1, 1, 1, 1))
    root.create_virtual_dataset(STORED, layout)


def references(root: Any) -> None:
    """A tensor of references to objects."""
    del root[STORED]
    root.create_dataset(STORED, data=np.array([root.ref], h5py.ref_dtype))


def renumbered(root: Any) -> None:
    """A tensor with another number."""
    root.move(STORED, STORED[:-1] + "7")


def never_written(shape: tuple[int, ...]) -> Change:
    """A tensor with a shape, and no values."""

    def change(root: Any) -> None:
        del root[STORED]
        root.create_dataset(STORED, shape, "f4")

    return change


def bomb(root: Any) -> None:
    """Four gigabytes of zeros, packed."""
    del root[STORED]
    root.create_dataset(
        STORED, (1, 1, 2**15, 2**15), "f4", chunks=(1, 1, 2**10, 2**10), compression="gzip"
    )


def compact(root: Any) -> None:
    """A tensor whose values are in its header."""
    del root[STORED]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((1, 1, 1, 1))
    h5py.h5d.create(root["layers/conv2d/vars"].id, b"0", h5py.h5t.IEEE_F32LE, space, plist).write(
        h5py.h5s.ALL, h5py.h5s.ALL, np.ones((1, 1, 1, 1), np.float32)
    )


def committed(root: Any) -> None:
    """A tensor whose type is kept elsewhere in the file."""
    root["type"] = np.dtype("f4")
    del root[STORED]
    root.create_dataset(STORED, (1, 1, 1, 1), root["type"])


def many(count: int) -> Change:
    """This many groups beside the layers."""

    def change(root: Any) -> None:
        for i in range(count):
            root.create_group(f"layers/g{i}")

    return change


def chain(root: Any) -> None:
    """Groups within groups."""
    root.create_group("layers/" + "/".join("abcdefghijklmnopqrstuvwxyz") + "/vars")


def nested(root: Any) -> None:
    """A part of another network in a group of its own."""
    root["layers/functional/layers/conv2d/vars/0"] = np.ones((1, 1, 1, 1), np.float32)


def extra(path: str, *shapes: tuple[int, ...]) -> Change:
    """One more layer with tensors of these shapes."""

    def change(root: Any) -> None:
        for k, shape in enumerate(shapes):
            root[f"{path}/vars/{k}"] = np.ones(shape, np.float32)

    return change


def bias(root: Any) -> None:
    """A convolution with one."""
    root["layers/conv2d/vars/1"] = np.ones(1, np.float32)


def drop(path: str) -> Change:
    """Without this."""
    return lambda root: root.__delitem__(path)


def group_for(path: str) -> Change:
    """A group in the place of an array."""

    def change(root: Any) -> None:
        del root[path]
        root.create_group(path)

    return change


def with_bytes(data: bytes, at: int, new: bytes) -> bytes:
    """Other bytes at a place."""
    return data[:at] + new + data[at + len(new) :]


def looped_heap() -> bytes:
    """Text in whose heap an object is as long as a number can say."""
    data = toy("listed")
    return with_bytes(data, data.index(b"GCOL") + 24, b"\xff" * 8)


def looped_tree() -> bytes:
    """A tree of links whose first branch is the tree itself."""
    data = changed("numbered", many(300))
    at = data.index(b"TREE\x00\x01")
    return with_bytes(data, at + 32, struct.pack("<Q", at))


def keras_files() -> list[Case]:
    """Cases for a file of Keras weights."""
    listed, numbered = toy("listed"), toy("numbered")
    f4 = np.float32
    return [
        Case("empty", b"", "not an HDF5 file"),
        Case("text", b"404: Not Found\n", "not an HDF5 file"),
        Case("a page of HTML", b"<!DOCTYPE html><title>404</title>", "not an HDF5 file"),
        Case("a PNG", b"\x89PNG\r\n\x1a\n" + bytes(64), "not an HDF5 file"),
        Case("a .keras archive", zipped({"model.weights.h5": numbered}), "not an HDF5 file"),
        Case("zeros", bytes(4096), "not an HDF5 file"),
        Case("a signature alone", numbered[:8], "in the form that Keras writes"),
        *(
            Case(
                f"cut to {part:.1%}", numbered[: int(part * len(numbered))], "cut off: it declares"
            )
            for part in (0.01, 0.1, 0.5, 0.9, 0.999)
        ),
        Case("newer HDF5", made(many(1), libver="latest"), "h5repack --low=0 --high=0"),
        Case("after a block of the user's", made(many(1), userblock_size=512), "not an HDF5 file"),
        Case("a base", with_bytes(numbered, 24, b"\x08"), "it begins later"),
        Case(
            "a root beyond the end",
            with_bytes(numbered, 64, b"\xff" * 8),
            "beyond the end of the file",
        ),
        Case("no tree", patched(numbered, b"TREE", b"TREX"), "no TREE where the root refers"),
        Case("no heap", patched(numbered, b"HEAP", b"HEAX"), "no HEAP where the root refers"),
        Case("no leaves", patched(numbered, b"SNOD", b"SNOX"), "no SNOD where the root refers"),
        Case("no heap for text", patched(listed, b"GCOL", b"GCOX"), "no GCOL where the attribute"),
        Case("a heap that does not end", looped_heap(), "beyond the end of its heap"),
        Case("a tree in itself", looped_tree(), "damaged: the list of links of layers"),
        Case(
            "nothing in it", made(lambda root: None), "no weights of Keras: expected the attribute"
        ),
        Case(
            "an array in it",
            made(lambda r: r.create_dataset("x", data=[1.0])),
            "no weights of Keras",
        ),
        Case("groups alone", made(many(9)), "no weights of Keras"),
        Case(
            "a head alone",
            made(extra("layers/dense", (1, 2), (2,))),
            "a classifier without its network, as KerasHub's task.weights.h5 is",
        ),
        # the older layout
        Case("no names", changed("listed", names("/", "layer_names", None)), "no weights of Keras"),
        Case("numbers for names", changed("listed", names("/", "layer_names", [1, 2])), "no text"),
        Case(
            "no layer", changed("listed", drop("block4_sepconv2")), "lacks the layer 'block4_sepc"
        ),
        Case(
            "no list of tensors",
            changed("listed", names("block1_conv1", "weight_names", None)),
            "layer 'block1_conv1': lacks the attribute 'weight_names'",
        ),
        Case(
            "no tensor", changed("listed", drop(FIRST)), "'block1_conv1': lacks its tensor 'block1"
        ),
        Case(
            "a group for it", changed("listed", group_for(FIRST)), "is a group; expected an array"
        ),
        Case(
            "an array for a layer",
            changed("listed", link("conv2d", [1.0])),
            "layer 'conv2d': lacks",
        ),
        Case(
            "names in no UTF-8",
            changed("listed", names("/", "layer_names", np.array([b"\xff\xfe"]))),
            "not text in UTF-8",
        ),
        Case(
            "a name of two lines",
            changed("listed", names("/", "layer_names", [b"a\nb"])),
            "lacks the layer 'a?b'",
        ),
        Case(
            "a layer twice",
            changed("listed", names("/", "layer_names", [b"conv2d", b"conv2d"])),
            "another network: 2 convolutions; expected Xception (6 convolutions, 34 separable",
        ),
        Case(
            "a name twice",
            changed("listed", names("/", "layer_names", [n.encode() for n in TWICE])),
            "two layers are called 'block1_conv1'",
        ),
        Case(
            "a soft link",
            changed("listed", link(FIRST, h5py.SoftLink("/conv2d"))),
            "is a soft link",
        ),
        Case(
            "a link to another file",
            changed("listed", link(FIRST, h5py.ExternalLink("/etc/passwd", "/x"))),
            "'block1_conv1/block1_conv1' keeps its links, perhaps to other files",
        ),
        # that of Keras 3
        Case("values elsewhere", changed("numbered", external_values), "has its values in other"),
        Case("a view", changed("numbered", virtual), "or as a view of other arrays"),
        Case(
            "a soft link to a layer",
            changed("numbered", link("layers/conv2d", h5py.SoftLink("/"))),
            "'layers/conv2d' is a soft link",
        ),
        Case(
            "another file's layer",
            changed("numbered", link("layers/conv2d", h5py.ExternalLink("x.h5", "/"))),
            "'layers' keeps its links",
        ),
        Case("a bomb", changed("numbered", bomb), "is stored in chunks, packed"),
        Case(
            "packed",
            changed("numbered", tensor(np.ones((1, 1, 1, 9), f4), compression="gzip")),
            "is stored in chunks, packed",
        ),
        Case(
            "packed by a plugin",
            changed("numbered", tensor(np.ones((1, 1, 1, 9), f4), compression="lzf")),
            "is stored in chunks, packed",
        ),
        Case("in its header", changed("numbered", compact), "expected it in one piece"),
        Case(
            "never written",
            changed("numbered", never_written((1, 1, 1, 1))),
            "has a shape but no values",
        ),
        Case(
            "a terabyte",
            changed("numbered", never_written((1, 1, 2**19, 2**19))),
            "declares the shape",
        ),
        Case(
            "whole numbers",
            changed("numbered", tensor(np.ones((1, 1, 1, 1), np.int32))),
            "whole-number values; expected floating",
        ),
        Case(
            "text for numbers",
            changed("numbered", tensor(np.array([b"ab"]))),
            "text values; expected floating",
        ),
        Case(
            "text of any length",
            changed("numbered", tensor(["ab", "c"])),
            "variable-length values; expected",
        ),
        Case(
            "records",
            changed("numbered", tensor(np.zeros(1, "f4,f4"))),
            "compound values; expected",
        ),
        Case("references", changed("numbered", references), "reference values; expected"),
        Case(
            "long doubles",
            changed("numbered", tensor(np.ones(1, np.longdouble))),
            "of an unknown form",
        ),
        Case("a type kept elsewhere", changed("numbered", committed), "its header is not Keras's"),
        Case(
            "an older group in itself",
            changed("numbered", hard("layers/conv2d/self", "layers")),
            "lies in itself, or too deep",
        ),
        Case("too deep", changed("numbered", chain), "lies in itself, or too deep"),
        Case(
            "groups in another form",
            made(many(9), track_order=True),
            "in a form that Keras does not write",
        ),
        Case(
            "another number",
            changed("numbered", renumbered),
            "layer 'layers/conv2d': lacks its tensor '0'",
        ),
        Case(
            "a layer too few",
            changed("numbered", drop("layers/conv2d_3")),
            "another network: 5 convolutions, 34 separable",
        ),
        Case(
            "a layer too many",
            changed("numbered", extra("layers/conv2d_9", (1, 1, 1, 1))),
            "another network: 7 convolutions",
        ),
        Case("a bias", changed("numbered", bias), "1 other layer ('layers/conv2d'); expected Xcep"),
        Case(
            "another class",
            changed("numbered", extra("layers/depthwise_conv2d", (3, 3, 1, 1))),
            "1 other layer ('layers/depthwise_conv2d')",
        ),
        Case(
            "two networks",
            changed("numbered", nested),
            "layers of more than one network: in 'layers', 'layers/functional/layers'",
        ),
        Case(
            "two heads",
            changed("numbered", extra("layers/dense_1", (1, 2), (2,))),
            "Xception with more than one dense layer: 'layers/dense', 'layers/dense_1'",
        ),
        Case(
            "one name for two layers",
            changed("numbered", names("layers/conv2d_2/vars", "name", "block1_conv1")),
            "two layers are called 'block1_conv1'",
        ),
        Case(
            "an attribute of numbers",
            changed("numbered", names("layers/conv2d/vars", "name", 3)),
            "holds no text; expected names",
        ),
    ]
