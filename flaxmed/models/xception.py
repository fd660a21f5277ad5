"""Xception: depthwise-separable convolutions in an entry, a middle and an exit flow.

Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017,
arXiv:1610.02357: Figure 5. The network is published with two sets of conventions:
``keras.applications`` (the author's own; ``KERAS``, the default) and timm's ``legacy_xception``
(``TIMM``). They share every shape, not every value.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from flaxmed.models.checks import check_images, check_network
from flaxmed.models.initializers import (
    Initializer,
    torch_linear_init,
    variance_scaling,
    zeros,
)
from flaxmed.models.layers import (
    BatchNorm,
    BatchNormConfig,
    Classifier,
    Conv,
    ConvNorm,
    Padding,
    conv_norm,
    max_pool,
    run_block,
)

# Keras Conv2D, SeparableConv2D (depthwise and pointwise) and Dense: kernel_initializer
# "glorot_uniform". Keras counts a depthwise kernel [3, 3, C, 1] as fan_in 9C and fan_out 9, here
# [3, 3, 1, C] has them exchanged, and Glorot takes their sum.
glorot = variance_scaling(1.0, "fan_avg", "uniform")
# timm xception.py: nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu").
he_fan_out = variance_scaling(2.0, "fan_out", "normal")


@dataclass(frozen=True)
class XceptionConfig:
    """An Xception in numbers.

    Attributes:
        stem_widths: Channels of the two stem convolutions.
        entry_widths: Channels of each entry-flow block.
        middle_blocks: How many middle-flow blocks.
        exit_widths: Channels of the exit flow: of its block, and of the two convolutions after it.
        pool_padding: Of the 3x3 stride-2 max pools: "SAME", as Keras pads, or 1, as timm does.
        bn: Batch normalisation constants.
        conv_init: Draws the kernels of the convolutions.
        linear_init: Given the inputs of the classifier, the initialisers of its kernel and bias.
    """

    stem_widths: tuple[int, int]
    entry_widths: tuple[int, ...]
    middle_blocks: int
    exit_widths: tuple[int, int, int]
    pool_padding: str | int
    bn: BatchNormConfig
    conv_init: Initializer
    linear_init: Callable[[int], tuple[Initializer, Initializer]]


# keras.applications.Xception: BatchNormalization defaults (momentum 0.99, epsilon 1e-3, biased).
KERAS = XceptionConfig(
    stem_widths=(32, 64),
    entry_widths=(128, 256, 728),
    middle_blocks=8,
    exit_widths=(1024, 1536, 2048),
    pool_padding="SAME",
    bn=BatchNormConfig(momentum=0.99, epsilon=1e-3, unbiased=False),
    conv_init=glorot,
    linear_init=lambda inputs: (glorot, zeros),
)
# timm.models.xception legacy_xception: torch.nn.BatchNorm2d defaults, MaxPool2d(3, 2, 1).
TIMM = XceptionConfig(
    stem_widths=(32, 64),
    entry_widths=(128, 256, 728),
    middle_blocks=8,
    exit_widths=(1024, 1536, 2048),
    pool_padding=1,
    bn=BatchNormConfig(momentum=0.9, epsilon=1e-5, unbiased=True),
    conv_init=he_fan_out,
    linear_init=lambda inputs: (torch_linear_init(inputs), torch_linear_init(inputs)),
)


class SeparableConv(nnx.Module):
    """A 3x3 depthwise convolution and a 1x1 convolution, with nothing between them."""

    def __init__(self, in_channels: int, out_channels: int, **options: Any):
        self.depthwise = Conv(in_channels, in_channels, 3, padding=1, groups=in_channels, **options)
        self.pointwise = Conv(in_channels, out_channels, 1, padding=0, **options)


class SeparableNorm(nnx.Module):
    """A separable convolution and the batch normalisation after it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        config: XceptionConfig,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.conv = SeparableConv(
            in_channels, out_channels, kernel_init=config.conv_init, dtype=dtype, rngs=rngs
        )
        self.norm = BatchNorm(out_channels, config.bn, dtype=dtype)

    def __call__(
        self,
        x: Float[Array, "n h w c"],
        mask: Bool[Array, " n"] | None = None,
        *,
        relu: bool = False,
    ) -> Float[Array, "n h w o"]:
        x = self.conv.depthwise(x)
        return conv_norm(self.conv.pointwise, self.norm, x, mask, relu=relu)


class Stem(nnx.Module):
    """Two 3x3 convolutions."""

    def __init__(
        self, in_channels: int, *, stem: str, config: XceptionConfig, dtype: Any, rngs: nnx.Rngs
    ):
        first, second = config.stem_widths
        options: dict[str, Any] = dict(kernel_init=config.conv_init, dtype=dtype, rngs=rngs)
        # Published: stride 2, then 1, both without padding. Small: neither strides nor crops, so
        # that 28 px enters the flow as 28x28 and leaves it as 2x2.
        stride, padding = (2, "VALID") if stem == "imagenet" else (1, "SAME")
        self.conv1 = Conv(in_channels, first, 3, stride=stride, padding=padding, **options)
        self.norm1 = BatchNorm(first, config.bn, dtype=dtype)
        self.conv2 = Conv(first, second, 3, padding=padding, **options)
        self.norm2 = BatchNorm(second, config.bn, dtype=dtype)

    def __call__(
        self, x: Float[Array, "n h w c"], mask: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n oh ow o"]:
        x = conv_norm(self.conv1, self.norm1, x, mask, relu=True)
        return conv_norm(self.conv2, self.norm2, x, mask, relu=True)


class ReducingBlock(nnx.Module):
    """Two separable convolutions and a pool beside a strided shortcut (entry flow, first of exit).

    The first entry block has no leading ReLU: the stem has just applied one.
    """

    def __init__(
        self,
        in_channels: int,
        middle_channels: int,
        out_channels: int,
        *,
        leading_relu: bool,
        config: XceptionConfig,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.sep1 = SeparableNorm(in_channels, middle_channels, config=config, **options)
        self.sep2 = SeparableNorm(middle_channels, out_channels, config=config, **options)
        # SAME pads nothing here: both conventions take every second pixel from the first on.
        self.shortcut = ConvNorm(
            in_channels,
            out_channels,
            1,
            stride=2,
            padding=0,
            bn=config.bn,
            kernel_init=config.conv_init,
            **options,
        )
        self.leading_relu = leading_relu
        self.pool_padding: Padding = config.pool_padding

    def __call__(
        self, x: Float[Array, "n h w c"], mask: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n oh ow o"]:
        shortcut = self.shortcut(x, mask)
        x = jax.nn.relu(x) if self.leading_relu else x
        x = self.sep1(x, mask, relu=True)
        x = self.sep2(x, mask)
        x = max_pool(x, window=3, stride=2, padding=self.pool_padding)
        return x + shortcut


class MiddleBlock(nnx.Module):
    """Three times ReLU and separable convolution, beside the identity."""

    def __init__(self, channels: int, **options: Any):
        self.sep1 = SeparableNorm(channels, channels, **options)
        self.sep2 = SeparableNorm(channels, channels, **options)
        self.sep3 = SeparableNorm(channels, channels, **options)

    def __call__(
        self, x: Float[Array, "n h w c"], mask: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n h w c"]:
        shortcut = x
        x = self.sep1(jax.nn.relu(x), mask, relu=True)
        x = self.sep2(x, mask, relu=True)
        x = self.sep3(x, mask)
        return x + shortcut


class Xception(nnx.Module):
    """Xception.

    Called on normalised floating-point images ``[N, H, W, in_channels]`` and, in training, a mask
    ``[N]`` that is false for rows of padding, it gives logits ``[N, num_classes]`` in float32
    (float64 where ``dtype`` is). A fresh network evaluates; ``train()``, ``eval()`` and
    ``nnx.view(..., use_running_average=...)`` switch it. Compile calls: ``nnx.jit``.

    Args:
        num_classes: How many logits.
        in_channels: Channels of the images.
        stem: "imagenet", as published, or "small", for images of 28 to 64 pixels: both convolutions
            with stride 1 and SAME padding.
        dtype: Of the computation. Parameters, norms and logits stay in float32, unless float64.
        remat: Whether training computes norms a second time to save memory (``run_block``).
        config: The network in numbers.
        rngs: Source of the initial values.

    Raises:
        InputError: For an unknown stem or a count below 1; when called, for images with another
            number of channels, smaller than ``minimum_size``, or not of floating point.

    Example:
        >>> model = nnx.eval_shape(lambda: Xception(2, rngs=nnx.Rngs(0)))  # shapes alone
        >>> model.classifier.kernel.shape
        (2048, 2)
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        stem: str = "imagenet",
        dtype: Any = jnp.float32,
        remat: bool = False,
        config: XceptionConfig = KERAS,
        rngs: nnx.Rngs,
    ):
        check_network(num_classes, in_channels, stem)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.stem_name = stem
        self.dtype = dtype
        self.remat = remat
        self.config = config

        options: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.stem = Stem(in_channels, stem=stem, config=config, **options)
        width = config.stem_widths[1]
        for i, out_width in enumerate(config.entry_widths, start=1):
            block = ReducingBlock(
                width, out_width, out_width, leading_relu=i > 1, config=config, **options
            )
            setattr(self, f"entry{i}", block)
            width = out_width
        for i in range(1, config.middle_blocks + 1):
            setattr(self, f"middle{i}", MiddleBlock(width, config=config, **options))
        first, second, third = config.exit_widths
        self.exit1 = ReducingBlock(width, width, first, leading_relu=True, config=config, **options)
        self.exit2 = SeparableNorm(first, second, config=config, **options)
        self.exit3 = SeparableNorm(second, third, config=config, **options)
        kernel_init, bias_init = config.linear_init(third)
        self.classifier = Classifier(
            third, num_classes, kernel_init=kernel_init, bias_init=bias_init, **options
        )

    def __call__(
        self, images: Num[Array, "n h w c"], mask: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        return self.head(self.features(images, mask)["final"])

    @property
    def stages(self) -> list[str]:
        """Of what it consists, in the order of the computation; the beginnings of all paths."""
        entry = range(1, len(self.config.entry_widths) + 1)
        middle = range(1, self.config.middle_blocks + 1)
        within = [*(f"entry{i}" for i in entry), *(f"middle{i}" for i in middle)]
        return ["stem", *within, "exit1", "exit2", "exit3", "classifier"]

    def features(
        self, images: Num[Array, "n h w c"], mask: Bool[Array, " n"] | None = None
    ) -> dict[str, Float[Array, "n _h _w _c"]]:
        """The maps ``stem``, ``entry1`` to 3, ``middle1`` to 8, ``exit1`` to 3 and ``final``.

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
        x = maps["stem"] = self.stem(images.astype(self.dtype), mask)
        for i in range(1, len(self.config.entry_widths) + 1):
            x = run_block(getattr(self, f"entry{i}"), x, mask, remat=self.remat)
            maps[f"entry{i}"] = x
        for i in range(1, self.config.middle_blocks + 1):
            x = run_block(getattr(self, f"middle{i}"), x, mask, remat=self.remat)
            maps[f"middle{i}"] = x
        x = maps["exit1"] = run_block(self.exit1, x, mask, remat=self.remat)
        x = maps["exit2"] = self.exit2(x, mask, relu=True)
        x = maps["exit3"] = self.exit3(x, mask, relu=True)
        maps["final"] = x
        return maps

    def head(self, final: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        """Global average pooling and the linear classifier."""
        return self.classifier(final)

    @staticmethod
    def minimum_size(stem: str, config: XceptionConfig = KERAS) -> int:
        """The smallest side for which no pool is given a 1x1 map."""
        # Every pool maps n to ceil(n / 2), so the last one (exit flow) sees 2 from 2**(k-1) + 1 on.
        first_map = 2 ** len(config.entry_widths) + 1
        # The published stem maps n to floor((n - 3) / 2) + 1 - 2.
        return 2 * (first_map + 1) + 3 if stem == "imagenet" else first_map
