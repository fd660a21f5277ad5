"""Weights of other libraries: loaded under their own names, and written back.

The tables of :mod:`flaxmed.models.naming` are read in both directions, so the same rules load
published weights, write them back, and compare gradients and running statistics tensor by tensor.
Values are NumPy arrays; reading files is not done here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from flaxmed.models import naming as names
from flaxmed.models.densenet import DenseNet
from flaxmed.models.naming import Axes, Table
from flaxmed.models.resnet import ResNet
from flaxmed.models.xception import Xception
from flaxmed.types import InputError

__all__ = [
    "LoadReport",
    "Tensors",
    "flatten",
    "from_foreign",
    "load_state",
    "namings",
    "table_of",
    "to_foreign",
]

Tensors = Mapping[str, np.ndarray]

_TABLES: dict[tuple[type, str], Table] = {
    (ResNet, "torchvision"): names.TORCHVISION_RESNET,
    (ResNet, "timm"): names.TORCHVISION_RESNET,
    (ResNet, "medmnist"): names.MEDMNIST_RESNET,
    (ResNet, "kerashub"): names.KERASHUB_RESNET,
    (ResNet, "flaxmed"): names.OWN,
    (DenseNet, "torchvision"): names.TORCHVISION_DENSENET,
    (DenseNet, "keras"): names.KERAS_DENSENET,
    (DenseNet, "flaxmed"): names.OWN,
    (Xception, "timm"): names.TIMM_XCEPTION,
    (Xception, "keras"): names.KERAS_XCEPTION,
    (Xception, "flaxmed"): names.OWN,
}


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What :func:`load_state` did with every tensor.

    Attributes:
        loaded: Own paths that took a foreign tensor.
        dropped: Foreign names left out on purpose, each with its reason.
        kept: Own paths that the caller kept as they were.
        notes: What else there is to know of what was loaded.
    """

    loaded: tuple[str, ...]
    dropped: Mapping[str, str]
    kept: tuple[str, ...]
    notes: tuple[str, ...] = ()


def namings(model: nnx.Module) -> list[str]:
    """The namings known for a network.

    Example:
        >>> from flaxmed.models import ResNet18
        >>> namings(ResNet18(2, rngs=nnx.Rngs(0)))
        ['torchvision', 'timm', 'medmnist', 'kerashub', 'flaxmed']
    """
    return [naming for network, naming in _TABLES if isinstance(model, network)]


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """An ``nnx.State`` (parameters, gradients, statistics) as NumPy arrays by dotted path.

    Example:
        >>> from flaxmed.models import ResNet18
        >>> flatten(nnx.state(ResNet18(2, rngs=nnx.Rngs(0))))["stage2.0.conv1.kernel"].shape
        (3, 3, 64, 128)
    """
    return {
        _dotted(path): np.asarray(leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf)
        for path, leaf in nnx.to_flat_state(tree)
    }


def to_foreign(
    tensors: Mapping[str, np.ndarray], model: nnx.Module, naming: str
) -> dict[str, np.ndarray]:
    """Tensors by own path under the foreign names, in the foreign layout.

    Args:
        tensors: Any tensors that carry the model's paths, as :func:`flatten` gives them: the whole
            state, or its gradients alone.
        model: The network whose paths they are.
        naming: One of :func:`namings`.

    Returns:
        The same values by foreign name. Torch's ``num_batches_tracked`` has no counterpart.

    Raises:
        InputError: An unknown naming, or paths that the table does not know, all of them named.

    Example:
        >>> from flaxmed.models import ResNet18
        >>> model = ResNet18(2, rngs=nnx.Rngs(0))
        >>> to_foreign(flatten(nnx.state(model)), model, "torchvision")["fc.weight"].shape
        (2, 512)
    """
    table = table_of(model, naming)
    found = {path: table.foreign(path) for path in tensors}
    unknown = [path for path, hit in found.items() if hit is None]
    if unknown:
        raise InputError(f"{naming} names: no rule for {', '.join(unknown)}")
    return {
        name: _transpose(tensors[path], axes, inverse=True)
        for path, hit in found.items()
        if hit is not None
        for name, axes in [hit]
    }


def from_foreign(
    tensors: Mapping[str, np.ndarray], model: nnx.Module, naming: str, *, keep: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """Foreign tensors under the own paths, in the own layout; strict about every one.

    Args:
        tensors: All tensors of the foreign network, by its names.
        model: The network that they are for.
        naming: One of :func:`namings`.
        keep: Own paths, or their beginnings (``"classifier"``), that shall stay as they are;
            foreign tensors for them are left out and need not exist or fit.

    Returns:
        The tensors by own path, and what became of each.

    Raises:
        InputError: Tensors that are missing, that nothing takes, or that have another shape: one
            message lists them all.
    """
    own, report, problems = _match(tensors, model, naming, keep)
    if problems:
        raise InputError(
            f"{type(model).__name__} cannot take these {naming} weights: " + "; ".join(problems)
        )
    return own, report


def load_state(
    model: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    naming: str = "torchvision",
    *,
    keep: Sequence[str] = (),
) -> LoadReport:
    """Gives a model the weights and running statistics of another library's network.

    The values take the dtype of the model's parameters. Either every tensor is loaded or, on an
    error, none.

    Args:
        model: The network, changed in place.
        tensors: All tensors of the foreign network, by its names (a torch state dict as NumPy
            arrays; Keras variables by ``path``).
        naming: Whose names they are: one of :func:`namings`.
        keep: Own paths, or their beginnings, to leave as they are, e.g. ``["classifier"]`` for a
            new head.

    Returns:
        Which paths were loaded, which foreign tensors were left out and why, which paths were kept.

    Raises:
        InputError: Tensors that are missing, that nothing takes, or that have another shape: one
            message lists them all.

    Example:
        >>> from flaxmed.models import ResNet18
        >>> model, other = (ResNet18(2, rngs=nnx.Rngs(seed)) for seed in (0, 1))
        >>> weights = to_foreign(flatten(nnx.state(other)), other, "torchvision")
        >>> len(load_state(model, weights, "torchvision").loaded)
        102
    """
    own, report = from_foreign(tensors, model, naming, keep=keep)
    state = _variables(model)
    new = [
        (path, leaf.replace(jnp.asarray(own[_dotted(path)], leaf.dtype)))
        for path, leaf in nnx.to_flat_state(state)
        if _dotted(path) in own
    ]
    nnx.update(model, nnx.from_flat_state(new))
    return report


def _match(
    tensors: Mapping[str, np.ndarray], model: nnx.Module, naming: str, keep: Sequence[str]
) -> tuple[dict[str, np.ndarray], LoadReport, list[str]]:
    """The tensors by own path, the report, and every reason why they do not fit."""
    table = table_of(model, naming)
    tensors = table.respell(tensors)
    shapes = {_dotted(path): leaf.shape for path, leaf in nnx.to_flat_state(_variables(model))}
    kept = {path for path in shapes if any(_begins(path, start) for start in keep)}
    wrong_keep = [start for start in keep if not any(_begins(path, start) for path in shapes)]

    own: dict[str, np.ndarray] = {}
    dropped, unexpected, misshapen = {}, [], []
    for name, value in tensors.items():
        reason = names.drop_reason(name)
        path, axes = table.own(name) or ("", None)
        if reason is not None:
            dropped[name] = reason
        elif path in kept:
            dropped[name] = f"the model keeps its own {path}"
        elif path not in shapes:
            unexpected.append(name)
        elif value.shape != (fits := _foreign_shape(shapes[path], axes)):
            misshapen.append(f"{name} {_shape(value.shape)} (expected {_shape(fits)})")
        else:
            own[path] = _transpose(value, axes)
    # a tensor of the wrong shape is there, so it is not also missing
    absent = [path for path in shapes if path not in own and path not in kept]
    wanted = [(table.foreign(path) or (path, None))[0] for path in absent]
    missing = [name for name in wanted if name not in tensors]
    problems = [
        f"{kind} {len(names)}: {', '.join(names)}"
        for kind, names in {
            "missing": missing,
            "unexpected": unexpected,
            "misshapen": misshapen,
            "nothing to keep under": wrong_keep,
        }.items()
        if names
    ]
    return own, LoadReport(tuple(sorted(own)), dropped, tuple(sorted(kept))), problems


def _variables(model: nnx.Module) -> Any:
    return nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))


def _dotted(path: Iterable[Any]) -> str:
    return ".".join(map(str, path))


def _begins(path: str, start: str) -> bool:
    return path == start or path.startswith(start + ".")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _transpose(value: np.ndarray, axes: Axes, *, inverse: bool = False) -> np.ndarray:
    if axes is None:
        return value
    return np.transpose(value, np.argsort(axes) if inverse else axes)


def _foreign_shape(shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
    """The foreign shape of a tensor that has ``shape`` here."""
    return tuple(shape if axes is None else (shape[i] for i in np.argsort(axes)))


def table_of(model: nnx.Module, naming: str) -> Table:
    """The names of a network's tensors in one of its :func:`namings`.

    Raises:
        InputError: an unknown naming.
    """
    for (network, known), table in _TABLES.items():
        if known == naming and isinstance(model, network):
            return table
    raise InputError(
        f"unknown naming {naming!r} for {type(model).__name__}: "
        f"expected one of {', '.join(namings(model)) or 'none'}"
    )
