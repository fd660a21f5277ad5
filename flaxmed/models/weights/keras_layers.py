"""In which order Keras lists the layers of its Xception and DenseNet121, KerasHub of its ResNet-18.

Keras tells layers apart by their place: in the older files by the place in the list of all layers,
in Keras 3's by the place among the layers of one class. So the order of ``model.layers`` is a part
of both formats. It is written down here; KerasHub's Xception and DenseNet have the same one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

CONVOLUTION, SEPARABLE, NORM = "convolution", "separable convolution", "norm"


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of ``keras.applications``, or one that KerasHub alone has.

    Attributes:
        name: As Keras spells it, or the paper.
        layers: Kind and name of every layer with weights but the head, in the order of
            ``model.layers``.
        numbered: Those whose name Keras makes up from a counter of the process; the name here is
            that of a fresh process.
    """

    name: str
    layers: tuple[tuple[str, str], ...]
    numbered: frozenset[str] = frozenset()

    def of_kind(self, kind: str) -> list[str]:
        """Names of the layers of one kind, in order.

        Example:
            >>> DENSENET121.of_kind(NORM)[:4]
            ['conv1_bn', 'conv2_block1_0_bn', 'conv2_block1_1_bn', 'conv2_block2_0_bn']
        """
        return [name for found, name in self.layers if found == kind]

    def counts(self) -> dict[str, int]:
        """How many layers of each kind there are: by this a network is recognised.

        Example:
            >>> XCEPTION.counts()
            {'convolution': 6, 'separable convolution': 34, 'norm': 40}
        """
        return {kind: len(self.of_kind(kind)) for kind in (CONVOLUTION, SEPARABLE, NORM)}


def _xception() -> Iterator[tuple[str, str]]:
    for name in ("block1_conv1", "block1_conv2"):
        yield CONVOLUTION, name
        yield NORM, f"{name}_bn"
    separable = {2: 2, 3: 2, 4: 2, **dict.fromkeys(range(5, 13), 3), 13: 2, 14: 2}
    shortcuts = {2: "", 3: "_1", 4: "_2", 13: "_3"}
    for block, count in separable.items():
        for i in range(1, count + 1):
            yield SEPARABLE, f"block{block}_sepconv{i}"
            yield NORM, f"block{block}_sepconv{i}_bn"
        # the shortcut, beside the block, is listed at its end
        if block in shortcuts:
            yield CONVOLUTION, f"conv2d{shortcuts[block]}"
            yield NORM, f"batch_normalization{shortcuts[block]}"


def _densenet121() -> Iterator[tuple[str, str]]:
    yield CONVOLUTION, "conv1_conv"
    yield NORM, "conv1_bn"
    for stage, count in {2: 6, 3: 12, 4: 24, 5: 16}.items():
        for i in range(1, count + 1):
            block = f"conv{stage}_block{i}"
            yield NORM, f"{block}_0_bn"
            yield CONVOLUTION, f"{block}_1_conv"
            yield NORM, f"{block}_1_bn"
            yield CONVOLUTION, f"{block}_2_conv"
        if stage < 5:
            yield NORM, f"pool{stage}_bn"
            yield CONVOLUTION, f"pool{stage}_conv"
    yield NORM, "bn"


def _resnet18() -> Iterator[tuple[str, str]]:
    yield CONVOLUTION, "conv1_conv"
    yield NORM, "conv1_bn"
    for stack in range(4):
        for block in range(2):
            name = f"stack{stack}_block{block}"
            yield CONVOLUTION, f"{name}_1_conv"
            yield NORM, f"{name}_1_bn"
            # the shortcut lies beside the second convolution
            if stack > 0 and block == 0:
                yield CONVOLUTION, f"{name}_0_conv"
                yield CONVOLUTION, f"{name}_2_conv"
                yield NORM, f"{name}_0_bn"
            else:
                yield CONVOLUTION, f"{name}_2_conv"
            yield NORM, f"{name}_2_bn"


XCEPTION = Network(
    "Xception",
    tuple(_xception()),
    frozenset(
        f"{kind}{i}" for kind in ("conv2d", "batch_normalization") for i in ("", "_1", "_2", "_3")
    ),
)
DENSENET121 = Network("DenseNet121", tuple(_densenet121()))
RESNET18 = Network("ResNet-18", tuple(_resnet18()))
NETWORKS = (XCEPTION, DENSENET121, RESNET18)
