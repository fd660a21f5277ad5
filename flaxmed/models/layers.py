"""The layers that the three networks are built of, and what all three check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from flaxmed.models.batch_norm import (
    BatchNorm,
    BatchNormConfig,
    Moments,
    set_batch_norm_momentum,
    side_by_side,
)
from flaxmed.models.forms import wide_dtype
from flaxmed.models.initializers import Initializer
from flaxmed.models.operations import (
    avg_pool,
    bottleneck,
    conv2d,
    in_native_code,
    lowering,
    lowering_on,
    max_pool,
    scaled_conv2d,
)
from flaxmed.models.window import Padding

__all__ = [
    "BatchNorm",
    "BatchNormConfig",
    "Classifier",
    "Conv",
    "ConvNorm",
    "Moments",
    "Padding",
    "avg_pool",
    "conv2d",
    "conv_norm",
    "lowering",
    "lowering_on",
    "max_pool",
    "norm_conv_norm",
    "run_block",
    "set_batch_norm_momentum",
    "side_by_side",
]

_KEPT = "convolution"  # what rematerialisation keeps


class Conv(nnx.Module):
    """Convolution without bias.

    Parameters are float32, or float64 where the compute dtype is.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel, in pixels.
        stride: Step of the window.
        padding: As in ``conv2d``.
        groups: 1; or ``in_channels``, for a depthwise convolution.
        kernel_init: Draws ``kernel``, ``[kh, kw, in_channels / groups, out_channels]``.
        dtype: Of the computation and the output.
        rngs: Source of the initial values.

    Example:
        >>> conv = Conv(3, 8, 3, stride=2, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 4, 4, 3))).shape
        (1, 2, 2, 8)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: Padding = "SAME",
        groups: int = 1,
        kernel_init: Initializer,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, in_channels // groups, out_channels)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, wide_dtype(dtype)))
        self.stride = stride
        self.padding = padding
        self.groups = groups
        self.dtype = dtype

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow o"]:
        y = conv2d(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
        )
        return checkpoint_name(y, _KEPT)


def conv_norm(
    conv: Conv,
    norm: BatchNorm,
    x: Float[Array, "n h w c"],
    mask: Bool[Array, " n"] | None = None,
    *,
    relu: bool = False,
) -> Float[Array, "n oh ow o"]:
    """``norm(conv(x), mask)``, and a ReLU where asked; in evaluation one operation, on a CPU.

    Args:
        conv: A convolution.
        norm: The normalisation of its output.
        x: Images.
        mask: As for ``norm``.
        relu: Whether a ReLU follows.

    Example:
        >>> bn = BatchNormConfig(momentum=0.9, epsilon=0.0, unbiased=True)
        >>> init = nnx.initializers.ones
        >>> conv, norm = Conv(3, 8, 1, kernel_init=init, rngs=nnx.Rngs(0)), BatchNorm(8, bn)
        >>> float(conv_norm(conv, norm, jnp.ones((1, 1, 1, 3)))[0, 0, 0, 0])
        3.0
    """
    if not norm.use_running_average or conv.groups > 1 or not in_native_code(conv.dtype):
        return norm(conv(x), mask, relu=relu)
    return scaled_conv2d(
        x.astype(conv.dtype),
        conv.kernel[...].astype(conv.dtype),
        *norm.factor_and_shift(),
        relu=relu,
        stride=conv.stride,
        padding=conv.padding,
        groups=conv.groups,
    )


def norm_conv_norm(
    before: BatchNorm,
    conv: Conv,
    after: BatchNorm,
    features: Sequence[Float[Array, "n h w _"]],
    mask: Bool[Array, " n"] | None,
    moments: Sequence[Moments | None] = (),
) -> Float[Array, "n h w o"]:
    """BN-ReLU-1x1-BN-ReLU of the channels of ``features``; in evaluation one operation, on a CPU.

    Args:
        before: The normalisation of the features.
        conv: A 1x1 convolution.
        after: The normalisation of its output.
        features: Images, whose channels are put side by side.
        mask: As for the norms.
        moments: Of each map, in training.

    Example:
        >>> bn = BatchNormConfig(momentum=0.9, epsilon=0.0, unbiased=True)
        >>> conv = Conv(2, 8, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
        >>> before, after, x = BatchNorm(2, bn), BatchNorm(8, bn), jnp.ones((1, 1, 1, 1))
        >>> float(norm_conv_norm(before, conv, after, [x, x], None)[0, 0, 0, 0])
        2.0
    """
    evaluates = before.use_running_average and after.use_running_average
    if not evaluates or not in_native_code(conv.dtype):
        known = side_by_side(moments) if moments else None
        x = before(jnp.concatenate(features, axis=-1), mask, relu=True, moments=known)
        return conv_norm(conv, after, x, mask, relu=True)
    kernel = conv.kernel[...].astype(conv.dtype)
    return bottleneck(features, *before.factor_and_shift(), kernel, *after.factor_and_shift())


class ConvNorm(nnx.Module):
    """A convolution, ``conv``, and the batch normalisation after it, ``norm``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel, in pixels.
        bn: Constants of the normalisation.
        dtype: Of the computation and the output.
        **conv: What else ``Conv`` takes.

    Example:
        >>> bn = BatchNormConfig(momentum=0.9, epsilon=1e-5, unbiased=True)
        >>> init = nnx.initializers.he_normal()
        >>> layer = ConvNorm(3, 8, 1, bn=bn, kernel_init=init, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((1, 4, 4, 3))).shape
        (1, 4, 4, 8)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        bn: BatchNormConfig,
        dtype: Any = jnp.float32,
        **conv: Any,
    ):
        self.conv = Conv(in_channels, out_channels, kernel_size, dtype=dtype, **conv)
        self.norm = BatchNorm(out_channels, bn, dtype=dtype)

    def __call__(
        self,
        x: Float[Array, "n h w c"],
        mask: Bool[Array, " n"] | None = None,
        *,
        relu: bool = False,
    ) -> Float[Array, "n oh ow o"]:
        return conv_norm(self.conv, self.norm, x, mask, relu=relu)


def run_block(
    block: Any, x: Any, mask: Bool[Array, " n"] | None, *, remat: bool
) -> Float[Array, "n oh ow o"]:
    """``block(x, mask)``; with ``remat`` its norms are computed anew for the backward pass.

    Kept are then the block's input and what its convolutions gave. The rest (what norms, ReLUs and
    concatenations give) costs little time and most of the memory (Pleiss et al. 2017,
    arXiv:1707.06990). The results are the same to rounding.

    Example:
        >>> bn = BatchNormConfig(momentum=0.9, epsilon=1e-5, unbiased=True)
        >>> block = ConvNorm(3, 8, 1, bn=bn, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
        >>> run_block(block, jnp.ones((1, 4, 4, 3)), None, remat=True).shape
        (1, 4, 4, 8)
    """
    return _rematerialised(block, x, mask) if remat else block(x, mask)


@nnx.remat(policy=jax.checkpoint_policies.save_only_these_names(_KEPT))
def _rematerialised(block: Any, x: Any, mask: Bool[Array, " n"] | None) -> Float[Array, "n h w c"]:
    return block(x, mask)


class Classifier(nnx.Module):
    """Global average pooling and a linear layer, in float32 or wider.

    Args:
        in_channels: Channels of the maps.
        num_classes: How many logits.
        kernel_init: Draws ``kernel``, ``[in_channels, num_classes]``.
        bias_init: Draws ``bias``, ``[num_classes]``.
        dtype: The network's compute dtype; float64 makes this layer float64.
        rngs: Source of the initial values.

    Example:
        >>> init = nnx.initializers.ones
        >>> head = Classifier(8, 2, kernel_init=init, bias_init=init, rngs=nnx.Rngs(0))
        >>> head(jnp.ones((3, 4, 4, 8), jnp.bfloat16)).dtype
        dtype('float32')
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        kernel_init: Initializer,
        bias_init: Initializer,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        wide = wide_dtype(dtype)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_channels, num_classes), wide))
        self.bias = nnx.Param(bias_init(rngs.params(), (num_classes,), wide))

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        wide = x.astype(self.kernel[...].dtype)
        return wide.mean((1, 2)) @ self.kernel[...] + self.bias[...]
