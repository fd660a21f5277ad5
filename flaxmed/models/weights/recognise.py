"""Which network, and whose names: read off the names and shapes of a file's tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from flaxmed.models import naming
from flaxmed.models.naming import Table
from flaxmed.types import InputError

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a file holds.

    Attributes:
        network: a name of ``flaxmed.list_models()``.
        naming: whose names the tensors bear, see ``flaxmed.models.pretrained.namings``.
        stem: "imagenet" or "small".
        in_channels: of the images.
        num_classes: of the classifier; None where there is none.
    """

    network: str
    naming: str
    stem: str
    in_channels: int
    num_classes: int | None


@dataclasses.dataclass(frozen=True)
class _Sign:
    """By what a network in a naming is known.

    Attributes:
        network, naming: see :class:`Kind`.
        table: whose spellings count.
        stem: the kernel of the first convolution, and the axis of its input channels.
        head: the kernel of the classifier, and the axis of its outputs.
        mark: a tensor that no other network has.
    """

    network: str
    naming: str
    table: Table
    stem: tuple[str, int]
    head: tuple[str, int]
    mark: str


_SIGNS = (
    _Sign(
        "resnet18",
        "torchvision",
        naming.TORCHVISION_RESNET,
        ("conv1.weight", 1),
        ("fc.weight", 0),
        "layer4.0.downsample.0.weight",
    ),
    _Sign(
        "resnet18",
        "medmnist",
        naming.MEDMNIST_RESNET,
        ("conv1.weight", 1),
        ("linear.weight", 0),
        "layer4.0.shortcut.0.weight",
    ),
    _Sign(
        "resnet18",
        "kerashub",
        naming.KERASHUB_RESNET,
        ("conv1_conv/kernel", 2),
        ("predictions/kernel", 1),
        "stack1_block0_0_conv/kernel",
    ),
    _Sign(
        "densenet121",
        "torchvision",
        naming.TORCHVISION_DENSENET,
        ("features.conv0.weight", 1),
        ("classifier.weight", 0),
        "features.denseblock1.denselayer1.norm1.weight",
    ),
    _Sign(
        "xception",
        "timm",
        naming.TIMM_XCEPTION,
        ("conv1.weight", 1),
        ("fc.weight", 0),
        "block1.rep.0.conv1.weight",
    ),
    _Sign(
        "densenet121",
        "keras",
        naming.KERAS_DENSENET,
        ("conv1_conv/kernel", 2),
        ("predictions/kernel", 1),
        "conv2_block1_1_conv/kernel",
    ),
    _Sign(
        "xception",
        "keras",
        naming.KERAS_XCEPTION,
        ("block1_conv1/kernel", 2),
        ("predictions/kernel", 1),
        "block2_sepconv1/depthwise_kernel",
    ),
)

# A tensor that no network of ours has, and whose it is.
_FOREIGN = {
    r"layer\d\.\d+\.conv3\.weight": "a ResNet of bottleneck blocks (ResNet-50 or deeper)",
    r"(.*\.)?layer\d\.[2-9]\.conv\d\.weight": "a ResNet with more blocks than ResNet-18's",
    r"blocks\.\d+\.stack\..*": "Google's aligned Xception (xception41, 65 or 71)",
    r"features\.denseblock3\.denselayer(2[5-9]|[3-9]\d)\..*": "a deeper DenseNet than DenseNet-121",
    r"conv4_block(2[5-9]|[3-9]\d)_.*": "a deeper DenseNet than DenseNet-121",
    r"resnet\.embedder\..*": "a ResNet as the transformers library names it",
    r"(blocks|vit|encoder)\..*(attn|attention).*": "a transformer",
}


def recognise(tensors: Tensors, place: str) -> Kind:
    """The network whose tensors these are.

    Args:
        tensors: by the names of the library that wrote them, in one of the spellings that
            ``flaxmed.models.naming`` makes uniform.
        place: the file, which messages begin with.

    Raises:
        InputError: none of the three networks; the message says whose they are, where that shows.

    Example:
        >>> recognise({"vit.encoder.attn.weight": np.zeros(1)}, "a.pth")
        Traceback (most recent call last):
        flaxmed.types.InputError: a.pth: holds a transformer; expected ResNet-18, DenseNet-121 or...
    """
    for pattern, what in _FOREIGN.items():
        if any(re.fullmatch(pattern, name) for name in tensors):
            raise InputError(f"{place}: holds {what}; expected {_OURS}")
    for sign in _SIGNS:
        spelled = sign.table.respell(tensors)
        if sign.stem[0] in spelled and sign.mark in spelled:
            return _kind(sign, spelled, place)
    some = ", ".join(sorted(tensors)[:4])
    raise InputError(f"{place}: holds {len(tensors)} tensors ({some}, ...); expected {_OURS}")


_OURS = "ResNet-18, DenseNet-121 or Xception"


def _kind(sign: _Sign, tensors: Tensors, place: str) -> Kind:
    stem, head = tensors[sign.stem[0]], tensors.get(sign.head[0])
    for name, tensor, axes in ((sign.stem[0], stem, 4), (sign.head[0], head, 2)):
        if tensor is not None and tensor.ndim != axes:
            raise InputError(f"{place}: {name} has shape {tensor.shape}; expected {axes} axes")
    side = stem.shape[2 if sign.stem[1] == 1 else 0]
    return Kind(
        network=sign.network,
        naming=sign.naming,
        # Xception's two stems have the same kernels: what is published is the large one's
        stem="small" if side == 3 and sign.network != "xception" else "imagenet",
        in_channels=stem.shape[sign.stem[1]],
        num_classes=None if head is None else head.shape[sign.head[1]],
    )
