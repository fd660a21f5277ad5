"""Weight files of Keras and KerasHub, read under the names that :mod:`flaxmed.models.naming` knows.

Two layouts, both HDF5: the older one (``model.save("x.h5")``, the files of ``keras.applications``),
which lists the layers in an attribute, and Keras 3's (``x.weights.h5``), with a group per layer
named after its class. In both a tensor is known by its place, not by its name: names have changed
with every version, and Keras itself goes by places.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from flaxmed.models.naming import KERAS_XCEPTION
from flaxmed.models.weights.hdf5 import Damaged, Hdf5File, Object
from flaxmed.models.weights.keras_layers import (
    CONVOLUTION,
    NETWORKS,
    NORM,
    RESNET18,
    SEPARABLE,
    XCEPTION,
    Network,
)
from flaxmed.types import InputError

__all__ = ["read_keras", "read_keras_with_variant"]

DENSE, OTHER = "dense layer", "other layer"

# What Keras calls the tensors of a layer, in the order in which it writes them.
_VARIABLES = {
    CONVOLUTION: ("kernel",),
    SEPARABLE: ("depthwise_kernel", "pointwise_kernel"),
    NORM: ("gamma", "beta", "moving_mean", "moving_variance"),
    DENSE: ("kernel", "bias"),
}
_CLASSES = {
    "conv2d": CONVOLUTION,
    "separable_conv2d": SEPARABLE,
    "batch_normalization": NORM,
    "dense": DENSE,
    "output_dense": DENSE,  # KerasHub's name for a classifier's head
}
_MOST_TENSORS = max(map(len, _VARIABLES.values()))  # of a layer that is no network itself
_HEAD = "predictions"
# Beside the network: the optimiser's moments, running metrics, and the state of dropout's draws.
_NOT_WEIGHTS = re.compile(r"optimizer|metrics|seed_generator(?:_\d+)?")
_DEEPEST = 16  # groups within groups
# KerasHub's DenseNet, which pads its stem otherwise: what its layers and its backbone are called.
_KERASHUB = re.compile(r"stack\d+_block\d+_\d_bn|(.+/)?(dense_net_)?backbone/.+")


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A layer of the file: where it is, what it calls itself, what it is, its tensors in order."""

    place: str
    name: str
    kind: str
    tensors: tuple[np.ndarray, ...]


def _kind(tensors: Sequence[np.ndarray]) -> str:
    """What the shapes of its tensors say that a layer is."""
    shapes = [tensor.shape for tensor in tensors]
    ranks = tuple(map(len, shapes))
    if ranks == (4,):
        return CONVOLUTION
    if ranks == (4, 4) and shapes[0][2:] == (shapes[1][2], 1) and shapes[1][:2] == (1, 1):
        return SEPARABLE
    if ranks == (1, 1, 1, 1) and len(set(shapes)) == 1:
        return NORM
    return DENSE if ranks == (2, 1) and shapes[0][1:] == shapes[1] else OTHER


def read_keras(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of Keras's Xception or DenseNet121, or KerasHub's ResNet-18, in Keras's layout.

    Read are the older layout (``.h5``: the files of ``keras.applications``, what ``save`` and,
    before Keras 3, ``save_weights`` write) and that of Keras 3 (``.weights.h5``), also where the
    network is a part of another that adds a head to it, as in KerasHub's. The network is recognised
    from the tensors, not from the file's name. Values are neither changed nor looked at; bfloat16
    becomes float32.

    Args:
        path: The file. It is read whole; nothing that it says leads out of it.

    Returns:
        Arrays by the names that ``load_state(model, tensors, "keras")`` takes, "kerashub" for the
        ResNet:
        ``block2_sepconv1/depthwise_kernel`` [3, 3, c, 1], ``conv1_bn/moving_mean`` [c], ... A file
        without a head lacks ``predictions/kernel`` and ``predictions/bias``.

    Raises:
        InputError: The file cannot be read, is not in one of these layouts, or holds another
            network. One line names the file and the layer.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "resnet50.h5")
        >>> _ = path.write_bytes(b"404: Not Found")
        >>> try:
        ...     read_keras(path)
        ... except InputError as error:
        ...     print(str(error).split(": ", 1)[1])
        not an HDF5 file
    """
    return read_keras_with_variant(path)[0]


def read_keras_with_variant(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], str]:
    """What :func:`read_keras` gives, and the variant of the network that it was made for.

    That is ``kerashub`` for a DenseNet121 whose layers or groups bear KerasHub's names, else
    ``keras``; ``torchvision`` for the ResNet-18, which is torchvision's throughout. Where a version
    of Keras 3 noted no names, KerasHub's DenseNet, saved without its head, bears no sign, and
    counts as Keras's.

    Raises:
        InputError: As :func:`read_keras`.
    """
    try:
        file = Hdf5File(path)
    except Damaged as error:
        raise InputError(f"{path}: {error}") from None
    try:
        return _named(list(_layers(file.root)))
    except (Damaged, InputError) as error:
        line = re.sub(r"[^ -~]", "?", str(error))  # a name in the file may hold anything
        raise InputError(f"{path}: {line}") from None


# ------------------------------------------------------------------------------ the two layouts


def _layers(root: Object) -> Iterator[_Layer]:
    """The layers with weights, in the file's order."""
    for group in (root, root.get("model_weights")):
        if group is not None and (names := group.names("layer_names")) is not None:
            return _listed(group, names)
    found = [layer for layer in _walk(root) if layer.tensors]
    if not found:
        raise Damaged(
            "no weights of Keras: expected the attribute 'layer_names', or groups 'layers/.../vars'"
        )
    # the numbers of two networks' layers would mix
    parents = {layer.place.rpartition("/")[0] for layer in found if layer.kind != DENSE}
    if len(parents) > 1:
        raise Damaged(f"layers of more than one network: in {_some(sorted(parents))}")
    return iter(found)


def _listed(group: Object, names: Iterable[str]) -> Iterator[_Layer]:
    """The older layout: an attribute names the layers, one of each layer its tensors."""
    for name in names:
        layer = group.get(name)
        if layer is None:
            raise Damaged(f"lacks the layer '{name}', which 'layer_names' lists")
        listed = layer.names("weight_names")
        if listed is None:
            raise Damaged(f"layer '{name}': lacks the attribute 'weight_names'")
        if listed:
            if len(listed) > _MOST_TENSORS:
                raise Damaged(
                    f"layer '{name}' is a network of its own, with {len(listed)} tensors, which "
                    f"this layout mixes up; write Keras 3's, in Keras: {_rewrite(group)}"
                )
            tensors = tuple(_tensor(layer, name, tensor) for tensor in listed)
            yield _Layer(name, name, _kind(tensors), tensors)


def _rewrite(group: Object) -> str:
    """What makes a file that keeps the layers of an inner network apart."""
    load = "model.load_weights(FILE); model"  # a file of weights needs the model built beforehand
    if group.path == "model_weights":
        load = "keras.models.load_model(FILE)"
    return f"{load}.save_weights('OUT.weights.h5')"


def _walk(
    group: Object, name: str = "", depth: int = 0, above: frozenset[int] = frozenset()
) -> Iterator[_Layer]:
    """Keras 3's layout: wherever a group ``vars`` is, its parent is a layer."""
    if depth > _DEEPEST or group.address in above:
        raise Damaged(f"'{group.path}' lies in itself, or too deep")
    for child in sorted(group.children(), key=_by_number):
        below = None if _NOT_WEIGHTS.fullmatch(child) else group.get(child)
        if below is None or not below.is_group:
            continue
        if child == "vars":
            yield _numbered(below, name)
        else:
            yield from _walk(below, child, depth + 1, above | {group.address})


def _numbered(group: Object, name: str) -> _Layer:
    """A group ``vars``, whose tensors are called 0, 1, ..., of a layer named after its class."""
    place = group.path.removesuffix("vars").rstrip("/") or "/"
    tensors = tuple(_tensor(group, place, str(i)) for i in range(len(group.children())))
    kind = _kind(tensors)
    if _CLASSES.get(re.sub(r"_\d+$", "", name)) != kind:
        kind = OTHER
    # newer versions of Keras also note the layer's own name
    said = group.names("name") or [""]
    return _Layer(place, said[0], kind, tensors)


def _tensor(layer: Object, place: str, name: str) -> np.ndarray:
    found = layer.get(name)
    if found is None:
        raise Damaged(f"layer '{place}': lacks its tensor '{name}'")
    return found.values()


def _by_number(name: str) -> tuple[str, int]:
    """``conv2d_10`` after ``conv2d_9``, and ``conv2d`` before ``conv2d_1``."""
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if stem and re.fullmatch(r"[0-9]{1,9}", number) else (name, 0)


# ------------------------------------------------------------------------------ which is which


def _named(layers: Sequence[_Layer]) -> tuple[dict[str, np.ndarray], str]:
    """All tensors by Keras's names, and the network's variant."""
    by_kind: dict[str, list[_Layer]] = collections.defaultdict(list)
    for layer in layers:
        by_kind[layer.kind].append(layer)
    network = _recognise(by_kind)
    tensors: dict[str, np.ndarray] = {}
    for kind in network.counts():
        for name, layer in _places(network, kind, by_kind[kind]).items():
            tensors |= _variables(name, layer)
    for layer in by_kind[DENSE]:
        tensors |= _variables(_HEAD, layer)
    # the shortcuts' numbers were given by their order; their widths, which differ, decide
    if network is XCEPTION:
        return dict(KERAS_XCEPTION.respell(tensors)), "keras"
    if network is RESNET18:
        return tensors, "torchvision"
    hub = any(_KERASHUB.fullmatch(said) for layer in layers for said in (layer.name, layer.place))
    return tensors, "kerashub" if hub else "keras"


def _recognise(by_kind: Mapping[str, list[_Layer]]) -> Network:
    """The network that has as many layers of each kind; of dense ones a file has one or none."""
    found = {
        kind: len(by_kind.get(kind, ())) for kind in (CONVOLUTION, SEPARABLE, NORM, DENSE, OTHER)
    }
    for network in NETWORKS:
        if {**found, **network.counts(), OTHER: 0} != found:
            continue
        if found[DENSE] > 1:
            places = _some(layer.place for layer in by_kind[DENSE])
            raise Damaged(f"{network.name} with more than one dense layer: {places}")
        return network
    if set(by_kind) == {DENSE}:
        raise Damaged(
            "a classifier without its network, as KerasHub's task.weights.h5 is; expected the "
            "model.weights.h5 beside it"
        )
    others = _some(layer.place for layer in by_kind.get(OTHER, ()))
    known = " or ".join(f"{network.name} ({_listing(network.counts())})" for network in NETWORKS)
    raise Damaged(
        f"another network: {_listing(found)}{others and f' ({others})'}; expected {known}"
    )


def _places(network: Network, kind: str, layers: Iterable[_Layer]) -> dict[str, _Layer]:
    """Which layer of the file is which of the network.

    A layer that bears a name of the network is that one. The others (all of them in files of
    Keras 1, most in KerasHub's of DenseNet) fill the places that are left, in their order.
    """
    places = network.of_kind(kind)
    known = set(places) - network.numbered
    named: dict[str, _Layer] = {}
    others: list[_Layer] = []
    for layer in layers:
        if layer.name in named:
            raise Damaged(f"two layers are called '{layer.name}'")
        if layer.name in known:
            named[layer.name] = layer
        else:
            others.append(layer)
    left = iter(others)
    return {name: named[name] if name in named else next(left) for name in places}


def _variables(name: str, layer: _Layer) -> dict[str, np.ndarray]:
    names = (f"{name}/{variable}" for variable in _VARIABLES[layer.kind])
    return dict(zip(names, layer.tensors, strict=True))


def _listing(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {kind}{'s' * (n != 1)}" for kind, n in counts.items() if n) or "no layer"


def _some(places: Iterable[str], most: int = 3) -> str:
    listed = list(places)
    return ", ".join(f"'{place}'" for place in listed[:most]) + ", ..." * (len(listed) > most)
