"""ResNet-18: residual learning with two 3x3 convolutions per block.

He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385:
Table 1 (18-layer) and Figure 5 (left). Constants are those of torchvision's ``resnet18``. With
``stem="small"`` it is the ResNet-18 that MedMNIST v2 publishes for 28 px.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from flaxmed.models.checks import check_images, check_network
from flaxmed.models.initializers import Initializer, torch_linear_init, variance_scaling
from flaxmed.models.layers import (
    BatchNorm,
    BatchNormConfig,
    Classifier,
    Conv,
    ConvNorm,
    conv_norm,
    max_pool,
    run_block,
)

CONV_INITS = {
    # torchvision resnet.py: nn.init.kaiming_normal_(mode="fan_out", nonlinearity="relu").
    "imagenet": variance_scaling(2.0, "fan_out", "normal"),
    # MedMNIST models.py leaves torch.nn.Conv2d as drawn: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    "small": variance_scaling(1 / 3, "fan_in", "uniform"),
}


@dataclass(frozen=True)
class ResNetConfig:
    """A residual network of basic blocks in numbers.

    Attributes:
        stage_sizes: Blocks in each stage.
        widths: Channels of each stage; the stem has those of the first.
        bn: Batch normalisation constants.
    """

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    bn: BatchNormConfig


# torch.nn.BatchNorm2d defaults: momentum 0.1 (0.9 as Flax counts), eps 1e-5, unbiased variance.
RESNET18 = ResNetConfig(
    stage_sizes=(2, 2, 2, 2),
    widths=(64, 128, 256, 512),
    bn=BatchNormConfig(momentum=0.9, epsilon=1e-5, unbiased=True),
)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions beside a shortcut; the first may stride (Figure 5, left)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        bn: BatchNormConfig,
        kernel_init: Initializer,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.conv1 = Conv(in_channels, out_channels, 3, stride=stride, padding=1, **options)
        self.norm1 = BatchNorm(out_channels, bn, dtype=dtype)
        self.conv2 = Conv(out_channels, out_channels, 3, padding=1, **options)
        self.norm2 = BatchNorm(out_channels, bn, dtype=dtype)
        # Option B of the paper: a projection only where the shape changes.
        self.shortcut = (
            ConvNorm(in_channels, out_channels, 1, stride=stride, padding=0, bn=bn, **options)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def __call__(
        self, x: Float[Array, "n h w c"], mask: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n oh ow o"]:
        shortcut = x if self.shortcut is None else self.shortcut(x, mask)
        x = conv_norm(self.conv1, self.norm1, x, mask, relu=True)
        x = conv_norm(self.conv2, self.norm2, x, mask)
        return jax.nn.relu(x + shortcut)


class ResNet(nnx.Module):
    """A residual network of basic blocks.

    Called on normalised floating-point images ``[N, H, W, in_channels]`` and, in training, a mask
    ``[N]`` that is false for rows of padding, it gives logits ``[N, num_classes]`` in float32
    (float64 where ``dtype`` is). A fresh network evaluates; ``train()``, ``eval()`` and
    ``nnx.view(..., use_running_average=...)`` switch it. Compile calls: ``nnx.jit``.

    Args:
        num_classes: How many logits.
        in_channels: Channels of the images.
        stem: "imagenet", as published, or "small", for images of 28 to 64 pixels: 3x3, stride 1,
            no pool, and the initial values of MedMNIST's ResNet-18.
        dtype: Of the computation. Parameters, norms and logits stay in float32, unless float64.
        remat: Whether training computes norms a second time to save memory (``run_block``).
        config: The network in numbers.
        rngs: Source of the initial values.

    Raises:
        InputError: For an unknown stem or a count below 1; when called, for images with another
            number of channels, smaller than ``minimum_size``, or not of floating point.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        stem: str = "imagenet",
        dtype: Any = jnp.float32,
        remat: bool = False,
        config: ResNetConfig = RESNET18,
        rngs: nnx.Rngs,
    ):
        check_network(num_classes, in_channels, stem)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.stem_name = stem
        self.dtype = dtype
        self.remat = remat
        self.config = config

        options: dict[str, Any] = dict(
            bn=config.bn, kernel_init=CONV_INITS[stem], dtype=dtype, rngs=rngs
        )
        width = config.widths[0]
        kernel, stride, padding = (7, 2, 3) if stem == "imagenet" else (3, 1, 1)
        self.stem = ConvNorm(in_channels, width, kernel, stride=stride, padding=padding, **options)
        for i, (size, out_width) in enumerate(zip(config.stage_sizes, config.widths, strict=True)):
            blocks = []
            for j in range(size):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(BasicBlock(width, out_width, stride=stride, **options))
                width = out_width
            setattr(self, f"stage{i + 1}", nnx.List(blocks))
        linear_init = torch_linear_init(width)
        self.classifier = Classifier(
            width,
            num_classes,
            kernel_init=linear_init,
            bias_init=linear_init,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, images: Num[Array, "n h w c"], mask: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        return self.head(self.features(images, mask)["final"])

    @property
    def stages(self) -> list[str]:
        """Of what it consists, in the order of the computation; the beginnings of all paths."""
        numbers = range(1, len(self.config.stage_sizes) + 1)
        return ["stem", *(f"stage{i}" for i in numbers), "classifier"]

    def features(
        self, images: Num[Array, "n h w c"], mask: Bool[Array, " n"] | None = None
    ) -> dict[str, Float[Array, "n _h _w _c"]]:
        """The maps ``stem`` (after the pool), ``stage1`` to ``stage4``, and ``final``, the last.

        Args:
            images: As for a call.
            mask: As for a call.

        Returns:
            Maps by name, in the order of the computation (also when returned from ``jax.jit``,
            which sorts the keys of a plain dict).
        """
        check_images(
            images,
            network=type(self).__name__,
            stem=self.stem_name,
            in_channels=self.in_channels,
            minimum=self.minimum_size(self.stem_name, self.config),
        )
        maps: OrderedDict[str, Array] = OrderedDict()
        x = self.stem(images.astype(self.dtype), mask, relu=True)
        if self.stem_name == "imagenet":
            x = max_pool(x, window=3, stride=2, padding=1)
        maps["stem"] = x
        for i in range(len(self.config.stage_sizes)):
            for block in getattr(self, f"stage{i + 1}"):
                x = run_block(block, x, mask, remat=self.remat)
            maps[f"stage{i + 1}"] = x
        maps["final"] = x
        return maps

    def head(self, final: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        """Global average pooling and the linear classifier."""
        return self.classifier(final)

    @staticmethod
    def minimum_size(stem: str, config: ResNetConfig = RESNET18) -> int:
        """The smallest side for which no strided layer is given a 1x1 map."""
        halvings = len(config.stage_sizes) - 1 + (2 if stem == "imagenet" else 0)
        # Every strided layer maps n to ceil(n / 2): the last one sees 2 from 2**(k-1) + 1 on.
        return 2 ** (halvings - 1) + 1


class ResNet18(ResNet):
    """ResNet-18 (He et al. 2016, Table 1): :class:`ResNet` with stages of two basic blocks each.

    Floating-point images ``[N, H, W, in_channels]`` give logits ``[N, num_classes]``; arguments and
    errors are those of :class:`ResNet`. With ``stem="imagenet"`` it is torchvision's network, with
    ``stem="small"`` MedMNIST's.

    Example:
        >>> model = nnx.eval_shape(lambda: ResNet18(2, rngs=nnx.Rngs(0)))  # shapes alone
        >>> model.classifier.kernel.shape
        (512, 2)
    """
