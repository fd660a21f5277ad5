"""What a diagram shows of a network, as plain data: stages, their blocks and the parts of these.

All of it is read from the model and from its trace: names, sizes and parameters from the layer
table, kernels and strides from the layers, pools from the traced computation.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flaxmed.models import DenseNet, ResNet, Xception
from flaxmed.models.densenet import DenseLayer
from flaxmed.models.layers import BatchNorm, Classifier, Conv, lowering
from flaxmed.models.resnet import BasicBlock
from flaxmed.models.xception import MiddleBlock, ReducingBlock
from flaxmed.summary import Layer, Shape, Summary, summarize
from flaxmed.types import InputError

TIMES = "\N{MULTIPLICATION SIGN}"
MANY = 3  # so many equal blocks in a row, or more, are drawn once
_POOLS = {"reduce_window_max": "max pool", "reduce_window_sum": "avg pool"}
# Where the networks apply their ReLU is code, not a layer, so it is said in words.
_ACTIVATION: dict[type, str] = {
    ResNet: "ReLU follows every batch normalisation but those before a sum, and every sum.",
    DenseNet: "ReLU follows every batch normalisation.",
    Xception: "In blocks ReLU precedes every separable convolution; in stem, exit2 and exit3 it "
    "follows the normalisation.",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One box of the drawing.

    Attributes:
        kind: "conv", "depthwise", "pointwise", "max pool", "avg pool", "batch norm" or "linear".
        detail: kernel, output channels and stride, as printed: ``"3×3, 64, /2"``.
        norm_before: whether a batch normalisation comes first.
        norm_after: whether one follows.
        joined: whether it makes one unit with the part before it.
    """

    kind: str
    detail: str
    norm_before: bool = False
    norm_after: bool = False
    joined: bool = False


@dataclasses.dataclass(frozen=True)
class Block:
    """Parts in a row, and what goes around them.

    Attributes:
        name: path in the model, e.g. ``"stage1.0"``.
        kind: "residual", "dense" or "plain".
        parts: in the order of the forward pass.
        projection: the 1x1 convolution of a residual block's shortcut; None for the identity.
        repeats: how many equal blocks follow each other here, this one counted.
    """

    name: str = dataclasses.field(compare=False)
    kind: str
    parts: tuple[Part, ...]
    projection: Part | None = None
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Stage:
    """A row of the drawing: a stage, or several equal ones in a row.

    Attributes:
        names: of the stages, as ``features`` and the layer table have them.
        blocks: in the order of the forward pass.
        notes: what is said of it in words, line by line.
        shape: of what leaves it, ``(h, w, c)`` or ``(classes,)``.
        parameters: trainable values in each of the stages.
    """

    names: tuple[str, ...] = dataclasses.field(compare=False)
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    shape: Shape
    parameters: int


@dataclasses.dataclass(frozen=True)
class Architecture:
    """All that a diagram shows.

    Attributes:
        summary: the layer table.
        stem: name of the network's stem.
        stages: the rows, from the stem to the classifier.
        activation: where the ReLUs are, in words.
    """

    summary: Summary
    stem: str
    stages: tuple[Stage, ...]
    activation: str


def read_architecture(model: nnx.Module, image_shape: Sequence[int]) -> Architecture:
    """What the diagram of a network shows.

    Args:
        model: a ResNet, DenseNet or Xception; it may hold shapes in place of weights.
        image_shape: ``(h, w, c)`` of one image, in pixels and channels.

    Raises:
        InputError: another model, or an image shape that it refuses.

    Example:
        >>> from flaxmed.models import ResNet18
        >>> model = nnx.eval_shape(lambda: ResNet18(2, rngs=nnx.Rngs(0)))
        >>> stage = read_architecture(model, (224, 224, 3)).stages[2]
        >>> stage.names, stage.shape, stage.blocks[0].projection.detail
        (('stage2',), (28, 28, 128), '1×1, 128, /2')
    """
    activation = next((v for kind, v in _ACTIVATION.items() if isinstance(model, kind)), None)
    if activation is None:
        raise InputError(
            f"{type(model).__name__}: only ResNet, DenseNet and Xception have a diagram"
        )
    summary = summarize(model, image_shape)
    pools = _pools(model, summary.image_shape)
    rows, entering = [], summary.image_shape
    for stage in summary.stages:
        rows.append(_stage(model, summary, stage, entering, pools))
        entering = rows[-1].shape
    return Architecture(summary, str(model.stem_name), tuple(_merge_stages(rows)), activation)  # type: ignore[attr-defined]


def _pools(model: Any, image_shape: Shape) -> dict[tuple[Shape, Shape], Part]:
    """The pools of the forward pass, which are no layers, by the shapes they make of which."""
    graph, state = nnx.split(model)

    def forward(state: Any, images: Any) -> Any:
        return nnx.merge(graph, state).features(images)

    with lowering("xla"):  # in which a pool is one operation
        traced = jax.make_jaxpr(forward)(
            state, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        )
    pools = {}
    for equation in _equations(traced.jaxpr):
        if (kind := _POOLS.get(equation.primitive.name)) is not None:
            shapes = equation.invars[0].aval.shape[1:], equation.outvars[0].aval.shape[1:]
            _, height, width, _ = equation.params["window_dimensions"]
            detail = f"{height}{TIMES}{width}{_stride(equation.params['window_strides'][1])}"
            pools[shapes] = Part(kind, detail)
    return pools


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, also those inside others, as rematerialisation nests them."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def _stride(stride: int) -> str:
    return f", /{stride}" if stride > 1 else ""


def _stage(
    model: Any, summary: Summary, stage: Layer, entering: Shape, pools: dict[Any, Part]
) -> Stage:
    module = getattr(model, stage.name)
    listed = isinstance(module, nnx.List)
    paths = [f"{stage.name}.{i}" for i in range(len(module))] if listed else [stage.name]
    shape = stage.output_shape or ()
    blocks = [_block(model, path, summary.layers) for path in paths]
    if not isinstance(module, nnx.List | Classifier):
        last = _main_path(summary.layers, stage.name)[-1].output_shape
        if last != shape:  # only a pool comes after the last layer
            parts = (*blocks[0].parts, pools[last, shape])
            blocks = [dataclasses.replace(blocks[0], parts=parts)]
    notes = _notes(blocks, entering, shape)
    return Stage((stage.name,), tuple(_merge_blocks(blocks)), notes, shape, stage.parameters)


def _main_path(layers: Sequence[Layer], path: str) -> list[Layer]:
    """The layers in ``path`` that are called, less those of a shortcut."""
    inside = [row for row in layers if row.name == path or row.name.startswith(f"{path}.")]
    shortcut = f"{path}.shortcut."
    return [row for row in inside if row.output_shape and not row.name.startswith(shortcut)]


def _block(model: Any, path: str, layers: Sequence[Layer]) -> Block:
    module = _at(model, path)
    parts = _parts(model, _main_path(layers, path))
    if isinstance(module, DenseLayer):
        joined = [dataclasses.replace(part, joined=i > 0) for i, part in enumerate(parts)]
        return Block(path, "dense", tuple(joined))
    if not isinstance(module, BasicBlock | ReducingBlock | MiddleBlock):
        return Block(path, "plain", tuple(parts))
    shortcut = _parts(model, [row for row in layers if row.name.startswith(f"{path}.shortcut.")])
    return Block(path, "residual", tuple(parts), shortcut[0] if shortcut else None)


def _at(model: Any, path: str) -> Any:
    for step in path.split("."):
        model = model[int(step)] if step.isdecimal() else getattr(model, step)
    return model


def _parts(model: Any, rows: Sequence[Layer]) -> list[Part]:
    """A box per convolution; normalisation is drawn at its side."""
    parts: list[Part] = []
    norm = False  # one that waits for its convolution
    for row in rows:
        module = _at(model, row.name)
        if isinstance(module, BatchNorm) and parts:
            parts[-1] = dataclasses.replace(parts[-1], norm_after=True)
        elif isinstance(module, BatchNorm):
            norm = True
        elif isinstance(module, Conv):
            after = parts[-1] if parts else None
            parts.append(dataclasses.replace(_convolution(module, after), norm_before=norm))
            norm = False
        elif isinstance(module, Classifier):
            classes = module.kernel.get_value().shape[1]
            parts += [Part("avg pool", "global"), Part("linear", str(classes))]
    if norm:
        parts.append(Part("batch norm", str((rows[-1].output_shape or ("",))[-1])))
    return parts


def _convolution(conv: Conv, after: Part | None) -> Part:
    height, width, _, channels = conv.kernel.get_value().shape
    detail = f"{height}{TIMES}{width}, {channels}{_stride(conv.stride)}"
    if conv.groups > 1:
        return Part("depthwise", detail)
    if after is not None and after.kind == "depthwise" and not after.norm_after:
        return Part("pointwise", detail, joined=True)  # the second half of a separable convolution
    return Part("conv", detail)


def _notes(blocks: Sequence[Block], entering: Shape, leaving: Shape) -> tuple[str, ...]:
    count, kind = len(blocks), blocks[0].kind
    if kind == "plain":
        separable = any(part.kind == "depthwise" for part in blocks[0].parts)
        return ("separable convolution",) if separable else ()
    if kind == "residual":
        return (f"{count} residual blocks" if count > 1 else "residual block",)
    growth = (leaving[-1] - entering[-1]) // count
    return (
        f"{count} dense layer{'s' if count > 1 else ''}",
        f"{entering[-1]} + {count} {TIMES} {growth} channels",
    )


def _merge_blocks(blocks: Sequence[Block]) -> Iterator[Block]:
    """Long runs of equal residual blocks become one; dense layers differ in their inputs."""
    for block, run in itertools.groupby(blocks):
        same = list(run)
        if len(same) >= MANY and block.kind == "residual":
            yield dataclasses.replace(same[0], repeats=len(same))
        else:
            yield from same


def _merge_stages(stages: Sequence[Stage]) -> Iterator[Stage]:
    """Long runs of equal stages become one row."""
    for _, run in itertools.groupby(stages):
        same = list(run)
        if len(same) < MANY or len(same[0].blocks) > 1:
            yield from same
            continue
        (block,) = same[0].blocks
        yield dataclasses.replace(
            same[0],
            names=tuple(stage.names[0] for stage in same),
            blocks=(dataclasses.replace(block, repeats=len(same)),),
            notes=(f"{len(same)} {block.kind} blocks",),
        )
