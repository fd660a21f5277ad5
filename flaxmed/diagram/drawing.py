"""The drawing of a network: a row per stage, beside it what leaves the stage and its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flax import nnx

from flaxmed.diagram.parts import TIMES, Architecture, Block, Part, Stage, read_architecture
from flaxmed.diagram.shapes import (
    ARC,
    BODY,
    HALF,
    MUTED,
    NAME,
    SMALL,
    SOURCES,
    STRIP,
    TITLE,
    Canvas,
    Point,
    style,
    text_width,
)

if TYPE_CHECKING:
    import matplotlib.figure

# All in inches.
MARGIN, GAP, STEP = 0.2, 0.13, 0.18  # around the figure, between bands, of an arrow between parts
PAD = 0.12  # beside text, in bands
RADIUS = 0.085  # of the signs
BELOW = 0.3  # from the lower edge of a band to the line on which the parts stand
IDENTITY, PROJECTED = 0.42, 0.5  # from that line to the top of a shortcut's arc
PROJECTION_HALF = 0.17  # half the height of the box on it
FRAME = 0.07  # between what is repeated and its frame
LEFT_OUT = 0.72  # the place of dense layers that are not drawn
FEW_LAYERS, FIRST_LAYERS = 4, 2  # a dense block of so many layers is drawn whole; of more, these


def draw(model: nnx.Module, image_shape: Sequence[int]) -> matplotlib.figure.Figure:
    """The diagram of a network: a row per stage, named as ``features`` and the layer table name it.

    The shortcut of a residual block is an arc over it, with its projection where it has one; in a
    dense block each layer is fed by all before it; a separable convolution is a box in two parts.
    Equal blocks and stages that follow each other are drawn once, with their number.

    Args:
        model: a ResNet, DenseNet or Xception of any configuration. It is not changed, and may hold
            shapes in place of weights (``nnx.eval_shape``).
        image_shape: ``(h, w, c)`` of one image, in pixels and channels.

    Returns:
        A figure of its own, measured in inches: no pyplot, no window.

    Raises:
        InputError: another model, or an image shape that it refuses.

    Example:
        >>> from flaxmed.models import ResNet18
        >>> model = nnx.eval_shape(lambda: ResNet18(2, stem="small", rngs=nnx.Rngs(0)))
        >>> figure = draw(model, (28, 28, 3))
        >>> [text.get_text() for text in figure.axes[0].texts if "stage" in text.get_text()]
        ['stage', 'stage1', 'stage2', 'stage3', 'stage4']
    """
    architecture = read_architecture(model, image_shape)
    with style():
        return _Drawing(architecture).figure


class _Drawing:
    """One diagram, drawn from top to bottom when it is made."""

    def __init__(self, architecture: Architecture):
        self.stages = architecture.stages
        self.blocks = [block for stage in self.stages for block in stage.blocks]
        # Boxes of one width stand below each other; those of dense layers are narrower.
        self.part = {
            dense: max([_part_width(p) for b in self.blocks for p in b.parts if _dense(b) == dense])
            for dense in {_dense(block) for block in self.blocks}
        }
        self._columns(architecture)
        legend = self._legend()
        bottom = 0.46 + 0.24 * len(legend)
        top = 0.98
        rows = [2 * BELOW, *(self._height(stage) for stage in self.stages)]
        height = top + sum(rows) + GAP * (len(rows) - 1) + bottom

        self.canvas = Canvas(self.width, height)
        self.figure = self.canvas.figure
        self._head(architecture, height)
        self._flow(architecture, height - top, rows)
        self._foot(architecture, legend)

    # ------------------------------------------------------------------------------- where it goes

    def _columns(self, architecture: Architecture) -> None:
        """Names, drawing, shapes and parameters stand in columns as wide as what they hold."""
        names = [text_width(_name(stage), NAME, "bold") for stage in self.stages]
        notes = [text_width(note, SMALL) for stage in self.stages for note in stage.notes]
        self.left = MARGIN + PAD + max(*names, *notes, 0.6) + 0.42
        flow = max(self._width(stage) for stage in self.stages)
        shapes = [*(stage.shape for stage in self.stages), architecture.summary.image_shape]
        widest = max(text_width(_shape(shape), BODY) for shape in shapes)
        widest = max(widest, text_width(_SHAPE_HEAD, SMALL))
        self.shape_at = self.left + flow + 0.3 + widest
        counts = [text_width(_parameters(stage), BODY) for stage in self.stages]
        counts.append(text_width("parameters", SMALL))
        self.count_at = self.shape_at + 0.28 + max(counts)
        head = max(text_width(line, BODY) for line in _head_lines(architecture))
        self.width = max(self.count_at + PAD + MARGIN, head + 2 * MARGIN)

    def _width(self, stage: Stage) -> float:
        if _dense(stage.blocks[0]):
            slots = _slots(stage.blocks)
            return sum(self._slot(block) for block in slots) + 2 * RADIUS + 2 * STEP
        return sum(self._block_width(block) for block in stage.blocks) + STEP * len(stage.blocks)

    def _block_width(self, block: Block) -> float:
        pieces = sum(not part.joined for part in block.parts)
        width = self.part[False] * len(block.parts) + STEP * (pieces - 1)
        if block.kind == "residual":
            width += 2 * STEP + 2 * RADIUS
        return width + (4 * FRAME if block.repeats > 1 else 0)

    def _slot(self, block: Block | None) -> float:
        """A dense layer with the sign before it and the lines around; or those left out."""
        if block is None:
            return LEFT_OUT
        return self.part[True] * len(block.parts) + 2 * RADIUS + 2 * STEP

    def _height(self, stage: Stage) -> float:
        if _dense(stage.blocks[0]):
            return BELOW + _rise(len(_slots(stage.blocks)) + 1) + PAD
        if stage.blocks[0].kind == "plain":
            return max(2 * BELOW, 0.3 + 0.16 * len(stage.notes))
        over = max(
            PROJECTED + PROJECTION_HALF if block.projection else IDENTITY for block in stage.blocks
        )
        framed = any(block.repeats > 1 for block in stage.blocks)
        return BELOW + over + 0.1 + (0.19 if framed else 0)

    # ------------------------------------------------------------------------------------- the rows

    def _head(self, architecture: Architecture, height: float) -> None:
        title, facts = _head_lines(architecture)
        self.canvas.text(MARGIN, height - 0.28, title, TITLE, bold=True)
        self.canvas.text(MARGIN, height - 0.53, facts, BODY, color=MUTED)
        y = height - 0.84
        self.canvas.text(MARGIN + PAD, y, "stage", SMALL, color=MUTED)
        self.canvas.text(self.shape_at, y, _SHAPE_HEAD, SMALL, color=MUTED, align="right")
        self.canvas.text(self.count_at, y, "parameters", SMALL, color=MUTED, align="right")

    def _flow(self, architecture: Architecture, top: float, heights: Sequence[float]) -> None:
        """The rows, each joined to the next by a line that returns to the left."""
        end = self._image(architecture, top, heights[0])
        top -= heights[0] + GAP
        for stage, height in zip(self.stages, heights[1:], strict=True):
            # the line of the parts: low where an arc needs the room above it
            y = top - height + (height / 2 if stage.blocks[0].kind == "plain" else BELOW)
            self._labels(stage, top, height)
            head = stage.blocks[0].kind == "plain"  # elsewhere the line forks there
            self._return(end, (self.left, y), top + GAP / 2, head)
            end = self._row(stage, y), y
            top -= height + GAP

    def _image(self, architecture: Architecture, top: float, height: float) -> Point:
        y = top - height / 2
        self.canvas.band(MARGIN, self.width - MARGIN, top - height, top)
        self.canvas.text(MARGIN + PAD, y, "image", NAME)
        shape = _shape(architecture.summary.image_shape)
        self.canvas.text(self.shape_at, y, shape, align="right")
        channels = architecture.summary.image_shape[-1]
        lines = ["image", f"{channels} channel{'s' if channels > 1 else ''}"]
        width = max(self.part[False], *(text_width(line, SMALL) + PAD for line in lines))
        self.canvas.box(self.left, y, width, "image", lines, gid="part:image")
        return self.left + width, y

    def _labels(self, stage: Stage, top: float, height: float) -> None:
        canvas, y = self.canvas, top - height / 2
        canvas.band(MARGIN, self.width - MARGIN, top - height, top)
        lines = len(stage.notes)
        canvas.text(MARGIN + PAD, y + 0.08 * lines, _name(stage), NAME, bold=True)
        for i, note in enumerate(stage.notes):
            at = y + 0.08 * lines - 0.17 - 0.15 * i
            canvas.text(MARGIN + PAD, at, note, SMALL, color=MUTED)
        canvas.text(self.shape_at, y, _shape(stage.shape), align="right")
        canvas.text(self.count_at, y, _parameters(stage), align="right")

    def _return(self, start: Point, end: Point, between: float, head: bool) -> None:
        """From the end of a row, through the gap below its band, to the start of the next."""
        (x0, y0), (x1, y1) = start, end
        out, back = x0 + 0.13, x1 - 0.2
        corners = [(out, y0), (out, between), (back, between), (back, y1)]
        self.canvas.line([start, *corners, end], radius=0.06, color=MUTED, head=head)

    def _row(self, stage: Stage, y: float) -> float:
        """The blocks of a stage; returns where its line ends."""
        if _dense(stage.blocks[0]):
            return self._layers(stage, y)
        x = self.left
        for i, block in enumerate(stage.blocks):
            if i:
                self.canvas.line([(x, y), (x + STEP, y)], color=MUTED, head=block.kind == "plain")
                x += STEP
            x = self._block(block, x, y)
        return x

    # ----------------------------------------------------------------------------------- the blocks

    def _block(self, block: Block, x: float, y: float) -> float:
        framed, start = block.repeats > 1, x
        if framed:
            self.canvas.line([(x, y), (x + 2 * FRAME, y)], color=MUTED, head=False)
            x += 2 * FRAME
        x = self._residual(block, x, y) if block.kind == "residual" else self._chain(block, x, y)
        if framed:
            over = PROJECTED + PROJECTION_HALF if block.projection else IDENTITY
            low, high = y - HALF - FRAME, y + over + 0.22
            self.canvas.band(start + FRAME, x + FRAME, low, high, dashed=True)
            times = f"{TIMES} {block.repeats}"
            self.canvas.text(x, high - 0.11, times, NAME, bold=True, align="right")
            self.canvas.line([(x, y), (x + 2 * FRAME, y)], color=MUTED, head=False)
            x += 2 * FRAME
        return x

    def _chain(self, block: Block, x: float, y: float) -> float:
        for i, part in enumerate(block.parts):
            if i and not part.joined:
                self.canvas.line([(x, y), (x + STEP, y)], color=MUTED)
                x += STEP
            norms = part.norm_before, part.norm_after
            gid = f"part:{block.name}.{i}"
            lines, width = [part.kind, part.detail], self.part[_dense(block)]
            self.canvas.box(x, y, width, part.kind, lines, norms=norms, gid=gid)
            x += width
        return x

    def _residual(self, block: Block, x: float, y: float) -> float:
        """The parts, and over them the shortcut, from where the line forks to the sum."""
        canvas, fork = self.canvas, x
        canvas.line([(x, y), (x + STEP, y)], color=MUTED)
        x = self._chain(block, x + STEP, y)
        canvas.line([(x, y), (x + STEP, y)], color=MUTED)
        x += STEP + RADIUS
        top = y + (PROJECTED if block.projection else IDENTITY)
        points = [(fork, y), (fork, top), (x, top), (x, y + RADIUS)]
        canvas.line(points, radius=0.3, color=ARC, width=1.8, gid=f"residual:{block.name}")
        canvas.dot(fork, y)
        canvas.sign(x, y, "+", RADIUS)
        if (projection := block.projection) is not None:
            self._projection(projection, (fork + x) / 2, top, block.name)
        return x + RADIUS

    def _projection(self, part: Part, middle: float, y: float, name: str) -> None:
        lines, norms = ["projection", part.detail], (part.norm_before, part.norm_after)
        width = max(text_width(line, SMALL) for line in lines) + PAD + 2 * STRIP
        self.canvas.box(
            middle - width / 2,
            y,
            width,
            "projection",
            lines,
            norms=norms,
            half=PROJECTION_HALF,
            gid=f"projection:{name}",
        )

    def _layers(self, stage: Stage, y: float) -> float:
        """Dense layers: each takes the concatenation of what the stage began with and of all the
        layers before it, and so does what follows the stage."""
        canvas, x, slots = self.canvas, self.left, _slots(stage.blocks)
        nodes = [((x, y), SOURCES[0])]
        for block in slots:
            after = x + self._slot(block)
            if block is None:
                count = f"{len(stage.blocks) - len(slots) + 1} more"
                canvas.line([(x, y), (after, y)], color=MUTED, dashed=True, head=False)
                canvas.text((x + after) / 2, y - 0.12, count, SMALL, color=MUTED, align="center")
                nodes.append(((after, y), MUTED))
            else:
                self._layer(block, nodes, after)
                nodes.append(((after, y), SOURCES[len(nodes) % len(SOURCES)]))
            x = after
        for (at, _), color in nodes:
            canvas.dot(at, y, color)
        x += STEP + RADIUS
        self._gather(nodes, (x, y), stage.names[0])
        return x + RADIUS

    def _layer(self, block: Block, nodes: Sequence[tuple[Point, str]], after: float) -> None:
        """A dense layer between the last node and the next, which is at ``after``."""
        ((_, y), _), canvas = nodes[-1], self.canvas
        right = after - STEP
        left = right - self.part[True] * len(block.parts)
        self._gather(nodes, (left - RADIUS, y), block.name)
        self._chain(block, left, y)
        canvas.line([(right, y), (after, y)], color=MUTED, head=False)

    def _gather(self, nodes: Sequence[tuple[Point, str]], at: Point, name: str) -> None:
        """The connections from every node into a concatenation: the nearest straight."""
        x, y = at
        for i, (start, color) in enumerate(nodes[:-1]):
            look: dict[str, Any] = {"color": color, "dashed": color == MUTED}
            rise = _rise(len(nodes) - i)
            self.canvas.bow(start, (x, y + RADIUS), rise, gid=f"dense:{i}:{name}", **look)
        start, color = nodes[-1]
        alone = len(nodes) == 1  # nothing to put side by side
        end, gid = x + (RADIUS if alone else -RADIUS), f"dense:{len(nodes) - 1}:{name}"
        self.canvas.line([start, (end, y)], color=color, dashed=color == MUTED, gid=gid)
        if not alone:
            self.canvas.sign(x, y, "c", RADIUS)

    # --------------------------------------------------------------------------------- the legend

    def _legend(self) -> list[list[tuple[str, str]]]:
        """Sign and meaning of what occurs, in lines that fit the width."""
        parts = [part for block in self.blocks for part in block.parts]
        items = []
        if any(block.kind == "residual" for block in self.blocks):
            items += [("arc", "shortcut: the identity, or a projection"), ("+", "sum")]
        if any(_dense(block) for block in self.blocks):
            items.append(("c", "concatenation of what arrives"))
        if any(part.norm_before or part.norm_after for part in parts):
            items.append(("strip", "batch normalisation"))
        strides = {part.detail.partition("/")[2] for part in parts} - {""}
        items += [(f"/{stride}", f"stride {stride}") for stride in sorted(strides)]
        lines: list[list[tuple[str, str]]] = [[]]
        for item in items:
            used = sum(0.6 + text_width(words, SMALL) for _, words in [*lines[-1], item])
            if used > self.width - 2 * MARGIN and lines[-1]:
                lines.append([])
            lines[-1].append(item)
        return lines

    def _foot(self, architecture: Architecture, legend: list[list[tuple[str, str]]]) -> None:
        y = 0.46 + 0.24 * (len(legend) - 1) - 0.02
        for line in legend:
            x = MARGIN + PAD
            for sign, words in line:
                self._key(sign, x, y)
                self.canvas.text(x + 0.36, y, words, SMALL)
                x += 0.6 + text_width(words, SMALL)
            y -= 0.24
        self.canvas.text(MARGIN + PAD, 0.2, architecture.activation, SMALL, color=MUTED)

    def _key(self, sign: str, x: float, y: float) -> None:
        middle = x + 0.15
        if sign == "arc":
            ends = [(x, y - 0.07), (x, y + 0.07), (x + 0.28, y + 0.07), (x + 0.28, y - 0.07)]
            self.canvas.line(ends, radius=0.12, color=ARC, width=1.8)
        elif sign == "strip":
            self.canvas.line([(middle, y - 0.08), (middle, y + 0.08)], width=72 * STRIP, head=False)
        elif sign.startswith("/"):
            self.canvas.text(middle, y, sign, SMALL, align="center")
        else:
            self.canvas.sign(middle, y, sign, RADIUS)


_SHAPE_HEAD = f"output, h {TIMES} w {TIMES} c"


def _dense(block: Block) -> bool:
    return block.kind == "dense"


def _part_width(part: Part) -> float:
    return max(text_width(part.kind, SMALL), text_width(part.detail, SMALL)) + PAD + STRIP


def _slots(blocks: Sequence[Block]) -> list[Block | None]:
    """The dense layers that are drawn; None stands for those left out."""
    if len(blocks) <= FEW_LAYERS:
        return list(blocks)
    return [*blocks[:FIRST_LAYERS], None, blocks[-1]]


def _rise(span: int) -> float:
    """How far a dense connection over ``span`` places rises above the line."""
    return 0.2 + 0.105 * span


def _name(stage: Stage) -> str:
    first, *_, last = (*stage.names, stage.names[-1])
    return first if len(stage.names) == 1 else f"{first} \N{EN DASH} {last}"


def _shape(shape: Sequence[int]) -> str:
    return f" {TIMES} ".join(map(str, shape))


def _parameters(stage: Stage) -> str:
    each = f"{stage.parameters:,}"
    return each if len(stage.names) == 1 else f"{len(stage.names)} {TIMES} {each}"


def _head_lines(architecture: Architecture) -> tuple[str, str]:
    summary = architecture.summary
    facts = (
        f"one image of {_shape(summary.image_shape)}; "
        f"{summary.parameters:,} parameters; {summary.multiply_adds / 1e9:.3f} G multiply-adds"
    )
    return f"{summary.network}, {architecture.stem} stem", facts
