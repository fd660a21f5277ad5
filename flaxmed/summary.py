"""What a network is made of: the shape, parameters and multiply-adds of every layer.

Nothing is computed: the network is traced on shapes alone (``jax.eval_shape``), so its weights may
be shapes too, and a table for 299 px costs no forward pass.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flaxmed.models.layers import lowering
from flaxmed.types import InputError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One row of the table: a layer, or a stage as the sum of its layers.

    Attributes:
        name: path in the model, e.g. ``"stage1.0.conv1"`` for ``model.stage1[0].conv1``.
        kind: class name, e.g. ``"Conv"``; ``"stage"`` for a stage.
        output_shape: for one image, without the batch axis: ``(h, w, c)`` or ``(classes,)``; None
            for a layer that the forward pass does not call.
        parameters: number of trainable values.
        statistics: number of running values that are not trained (batch normalisation).
        multiply_adds: for one image, by the convention of :func:`summarize`.
    """

    name: str
    kind: str
    output_shape: Shape | None
    parameters: int
    statistics: int
    multiply_adds: int

    @property
    def stage(self) -> str:
        """The first part of the name: the attribute of the model that the layer belongs to."""
        return self.name.split(".")[0]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The table that :func:`summarize` makes; ``str()`` aligns it as text.

    Attributes:
        network: class name of the model.
        image_shape: ``(h, w, c)`` of one input image.
        layers: one row per layer, in the order of the forward pass.
        stages: one row per stage, the sums of its layers; the shape is what leaves the stage.
    """

    network: str
    image_shape: Shape
    layers: tuple[Layer, ...]
    stages: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """Number of trainable values in the whole network."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def statistics(self) -> int:
        """Number of running values in the whole network that are not trained."""
        return sum(layer.statistics for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the whole network for one image."""
        return sum(layer.multiply_adds for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The same numbers as a plain dictionary that JSON can hold."""
        return {
            "network": self.network,
            "image_shape": list(self.image_shape),
            "parameters": self.parameters,
            "statistics": self.statistics,
            "multiply_adds": self.multiply_adds,
            "stages": [_row_to_dict(row) for row in self.stages],
            "layers": [_row_to_dict(row) for row in self.layers],
        }

    def to_text(self, *, layers: bool = True) -> str:
        """The table as aligned text.

        Args:
            layers: False leaves only the stages.
        """
        rows = [("name", "kind", "output", "parameters", "multiply-adds")]
        for stage in self.stages:
            rows.append(_cells(stage, stage.name))
            # A stage that is itself a layer, such as a classifier, needs no second row.
            inside = [row for row in self.layers if row.stage == stage.name != row.name]
            if layers:
                rows += [_cells(row, f"  {row.name}") for row in inside]
        rows.append(("total", "", "", f"{self.parameters:,}", _millions(self.multiply_adds)))

        height, width, channels = self.image_shape
        lines = [f"{self.network}, one image of {height}x{width}x{channels}", *_align(rows), ""]
        lines.append(
            f"{self.parameters:,} trainable parameters, {self.statistics:,} running statistics, "
            f"{self.multiply_adds / 1e9:.3f} G multiply-adds (convolutions and linear layers)"
        )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()


def summarize(model: nnx.Module, image_shape: Sequence[int]) -> Summary:
    """Counts parameters and multiply-adds of each layer, and finds its output shape.

    A multiply-add is one multiplication with its addition in a convolution or linear layer: kernel
    size x input channels (of the group) x output channels x output positions. Biases, batch
    normalisation, activations and pools are not counted. torchvision's published figures follow the
    same convention; those of timm also count two per batch-normalised value and one per value that
    global pooling averages, which is 0.3 to 1.1 % more. Of what is computed by a cheaper rewriting
    of the same convolution, the convolution is counted.

    Args:
        model: a network on images ``[n, h, w, c]``. A layer is a module that holds variables of its
            own; one with a ``kernel`` is a convolution or linear layer. The model is not changed,
            and may hold shapes in place of weights (``nnx.eval_shape``). Its ``features`` and
            ``head``, where it has them, give the shapes that leave the stages.
        image_shape: ``(h, w, c)`` of one image.

    Returns:
        One row per layer, per stage, and the totals.

    Raises:
        InputError: an image shape that is not three positive whole numbers, or that the network
            refuses (too small, or with another number of channels).

    Example:
        >>> from flaxmed.models import ResNet18
        >>> model = nnx.eval_shape(lambda: ResNet18(1000, rngs=nnx.Rngs(0)))
        >>> table = summarize(model, (224, 224, 3))
        >>> table.parameters, table.statistics, table.multiply_adds
        (11689512, 9600, 1814073344)
        >>> print(table.to_text(layers=False))  # doctest: +ELLIPSIS
        ResNet18, one image of 224x224x3
        name        kind        output     parameters  multiply-adds
        stem        stage       56x56x64        9,536        118.0 M
        ...
    """
    shape = _check_shape(image_shape)
    graph, state = nnx.split(model)
    layers: dict[str, Layer] = {}
    maps: dict[str, Shape] = {}

    def trace(state: Any, images: Any) -> None:
        copy = nnx.merge(graph, state)
        copy.eval()
        uncalled = _watch_layers(copy, layers)
        with lowering("xla"):  # in which no layer is computed as a part of another
            maps.update(_stage_shapes(copy, images))
        for name, layer in uncalled.items():
            layers.setdefault(name, layer)

    jax.eval_shape(trace, state, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    rows = tuple(layers.values())
    return Summary(type(model).__name__, shape, rows, _stages(rows, maps))


def _check_shape(image_shape: Sequence[int]) -> Shape:
    try:
        values = tuple(operator.index(v) for v in image_shape)
    except TypeError:
        values = ()
    if len(values) != 3 or min(values) < 1:
        raise InputError(
            f"image_shape must be (height, width, channels), each at least 1, got {image_shape!r}"
        )
    return values


def _watch_layers(model: nnx.Module, called: dict[str, Layer]) -> dict[str, Layer]:
    """Makes every layer of ``model`` enter itself in ``called`` when it is called.

    Returns:
        What each layer holds, by name; nothing is known yet about its output.
    """
    found: dict[str, Layer] = {}
    for path, module in nnx.iter_modules(model):
        variables = [v for v in vars(module).values() if isinstance(v, nnx.Variable)]
        name = ".".join(map(str, path))
        if not name or not any(isinstance(v, nnx.Param | nnx.BatchStat) for v in variables):
            continue
        sizes = {
            kind: sum(v.get_value().size for v in variables if isinstance(v, kind))
            for kind in (nnx.Param, nnx.BatchStat)
        }
        kind = type(module).__name__
        found[name] = Layer(name, kind, None, sizes[nnx.Param], sizes[nnx.BatchStat], 0)
        # The class carries the hook because Python looks __call__ up there; what to do is the
        # instance's, so that neither other models nor other threads notice.
        module.__class__ = _watched(type(module))
        vars(module)["_on_call"] = functools.partial(_enter, called, found[name])
    return found


@functools.cache
def _watched(kind: type[nnx.Module]) -> type[nnx.Module]:
    """A subclass whose calls are reported to ``_on_call`` of the instance."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = kind.__call__(self, *args, **kwargs)
        vars(self)["_on_call"](self, outputs)
        return outputs

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": __name__})


def _enter(called: dict[str, Layer], layer: Layer, module: Any, outputs: Any) -> None:
    """Adds one call to the table: a layer called twice works twice, with the same parameters."""
    shape = tuple(jnp.shape(outputs))
    kernel = vars(module).get("kernel")
    work = 0
    if isinstance(kernel, nnx.Param):
        # [..., in of the group, out] and [n, positions..., out]: each position uses it all once.
        work = math.prod(shape[1:-1]) * kernel.get_value().size
    before = called.get(layer.name, layer).multiply_adds
    called[layer.name] = dataclasses.replace(
        layer, output_shape=shape[1:], multiply_adds=before + work
    )


def _stage_shapes(model: Any, images: Any) -> dict[str, Shape]:
    """Runs the whole network once; returns the shapes of its named maps, if it names any."""
    forward: Callable[[Any], Any] | None = getattr(model, "features", None)
    if forward is None or not hasattr(model, "head"):
        model(images)
        return {}
    maps = forward(images)
    model.head(maps["final"])
    return {name: tuple(jnp.shape(value))[1:] for name, value in maps.items()}


def _stages(layers: Sequence[Layer], maps: dict[str, Shape]) -> tuple[Layer, ...]:
    """Sums per stage, in the order in which the stages begin."""
    order = {layer.stage: i for i, layer in reversed(list(enumerate(layers)))}
    ordered = sorted(layers, key=lambda layer: order[layer.stage])
    stages = []
    for name, group in itertools.groupby(ordered, key=lambda layer: layer.stage):
        rows = list(group)
        shapes = [row.output_shape for row in rows if row.output_shape is not None]
        stages.append(
            Layer(
                name=name,
                kind=rows[0].kind if rows[0].name == name else "stage",
                output_shape=maps.get(name, shapes[-1] if shapes else None),
                parameters=sum(row.parameters for row in rows),
                statistics=sum(row.statistics for row in rows),
                multiply_adds=sum(row.multiply_adds for row in rows),
            )
        )
    return tuple(stages)


def _row_to_dict(row: Layer) -> dict[str, Any]:
    shape = None if row.output_shape is None else list(row.output_shape)
    return {**dataclasses.asdict(row), "output_shape": shape}


def _cells(row: Layer, name: str) -> tuple[str, str, str, str, str]:
    shape = "not called" if row.output_shape is None else "x".join(map(str, row.output_shape))
    return name, row.kind, shape, f"{row.parameters:,}", _millions(row.multiply_adds)


def _millions(multiply_adds: int) -> str:
    return f"{multiply_adds / 1e6:,.1f} M" if multiply_adds else "-"


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Words to the left, numbers (the last two columns) to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        words = [cell.ljust(width) for cell, width in zip(row[:-2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[-2:], widths[-2:], strict=True)]
        lines.append("  ".join(words + numbers).rstrip())
    return lines
