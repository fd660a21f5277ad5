"""The layers that the three networks are built of, and what all three check."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from flaxmed.models import native
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
from flaxmed.types import InputError

__all__ = [
    "BatchNorm",
    "BatchNormConfig",
    "Classifier",
    "Conv",
    "ConvNorm",
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


@dataclass(frozen=True)
class BatchNormConfig:
    """The constants of a batch normalisation.

    Attributes:
        momentum: What a step keeps of the running value (torch's momentum is 1 minus this).
        epsilon: Added to the variance.
        unbiased: Whether the running variance is the one over n - 1, as torch stores it; Keras
            stores the one over n. The normalisation itself always uses the one over n.

    Example:
        >>> BatchNormConfig(momentum=0.9, epsilon=1e-5, unbiased=True).momentum
        0.9
    """

    momentum: float
    epsilon: float
    unbiased: bool


class BatchNorm(nnx.Module):
    """Batch normalisation over rows and pixels (Ioffe & Szegedy 2015, arXiv:1502.03167).

    Called with ``relu=True`` it is followed by a ReLU, in one pass where there is a form for both.

    A fresh layer evaluates: it uses its running values. ``train()``, ``eval()`` and
    ``nnx.view(..., use_running_average=...)`` switch it. In training it uses, and moves the running
    values towards, the statistics of the whole batch, wherever its rows lie; of rows outside
    ``mask`` nothing enters. Statistics and arithmetic are in float32, or float64 where the compute
    dtype is; the output has the compute dtype.

    Under a mask, one single value per channel counts as its own variance, 0, and a batch of padding
    alone moves nothing. Without one, training on one value per channel is refused, as in torch.

    Args:
        channels: Channels of the input.
        config: Its constants.
        dtype: Of the output.

    Raises:
        InputError: When called, in training, on one value per channel.

    Example:
        >>> norm = BatchNorm(4, BatchNormConfig(momentum=0.9, epsilon=1e-5, unbiased=True))
        >>> norm.train()
        >>> y = norm(5 + jnp.arange(8.0).reshape(2, 1, 1, 4))
        >>> [round(float(mean), 3) for mean in norm.mean[...]]  # a tenth of 7, 8, 9 and 10
        [0.7, 0.8, 0.9, 1.0]
    """

    def __init__(self, channels: int, config: BatchNormConfig, *, dtype: Any = jnp.float32):
        wide = wide_dtype(dtype)
        zeros, ones = np.zeros(channels, wide), np.ones(channels, wide)  # nothing to compile
        self.scale = nnx.Param(jnp.asarray(ones))
        self.bias = nnx.Param(jnp.asarray(zeros))
        self.mean = nnx.BatchStat(jnp.asarray(zeros))
        self.var = nnx.BatchStat(jnp.asarray(ones))
        self.config = config
        self.dtype = dtype
        self.use_running_average = True

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Called by ``nnx.view``."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(
        self,
        x: Float[Array, "n h w c"],
        mask: Bool[Array, " n"] | None = None,
        *,
        relu: bool = False,
    ) -> Float[Array, "n h w c"]:
        wide = x.astype(wide_dtype(self.dtype))
        if not self.use_running_average:
            if in_native_code(self.dtype):
                return self._in_native_code(wide, mask, relu).astype(self.dtype)
            mean, var = self._batch_statistics(wide, mask)
        else:
            mean, var = self.mean[...], self.var[...]
        factor = self.scale[...] * lax.rsqrt(var + self.config.epsilon)
        y = ((wide - mean) * factor + self.bias[...]).astype(self.dtype)
        return jax.nn.relu(y) if relu else y

    def factor_and_shift(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """In evaluation the layer is ``x * factor + shift``."""
        factor = self.scale[...] * lax.rsqrt(self.var[...] + self.config.epsilon)
        return factor, self.bias[...] - self.mean[...] * factor

    def _in_native_code(
        self, x: Float[Array, "n h w c"], mask: Bool[Array, " n"] | None, relu: bool
    ) -> Float[Array, "n h w c"]:
        count = self._count(x, mask)
        ones = jnp.ones(x.shape[0], x.dtype) if mask is None else mask.astype(x.dtype)
        epsilon, scale, bias = self.config.epsilon, self.scale[...], self.bias[...]
        y, mean, var = native.batch_norm(epsilon, relu, x, scale, bias, ones)
        self._move(mean, var, count)
        return y

    def _batch_statistics(
        self, x: Float[Array, "n h w c"], mask: Bool[Array, " n"] | None
    ) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Mean and variance of the batch, over n; moves the running values towards them."""
        count = self._count(x, mask)
        mean_of = functools.partial(_mean, count=count, mask=mask)
        if self.dtype == jnp.bfloat16:
            # One pass over values that are counted from the running mean: what then cancels in
            # float32 had no digits in bfloat16.
            origin = self.mean[...]
            from_origin = x - origin
            shift = mean_of(from_origin)
            mean = origin + shift
            var = jnp.maximum(mean_of(lax.square(from_origin)) - lax.square(shift), 0)
        else:
            # Two passes: E[x^2] - E[x]^2 cancels. No gradient passes from the variance to the mean:
            # it is the sum of the centred values, which is zero.
            mean = mean_of(x)
            var = mean_of(lax.square(x - lax.stop_gradient(mean)))
        self._move(mean, var, count)
        return mean, var

    def _count(
        self, x: Float[Array, "n h w c"], mask: Bool[Array, " n"] | None
    ) -> Float[Array, ""]:
        """How many values of each channel the statistics are of."""
        n, h, w, _ = x.shape
        if n * h * w == 1:
            raise InputError(
                "batch normalisation cannot train on one value per channel: "
                "give it more images per batch, or larger ones"
            )
        if mask is None:
            return jnp.asarray(n * h * w, x.dtype)
        return mask.sum(dtype=x.dtype) * (h * w)

    def _move(
        self, mean: Float[Array, " c"], var: Float[Array, " c"], count: Float[Array, ""]
    ) -> None:
        """Moves the running values towards those of a batch."""
        stored = var * (count / jnp.maximum(count - 1, 1)) if self.config.unbiased else var
        step = jnp.where(count > 0, 1 - self.config.momentum, 0).astype(mean.dtype)
        # Not `self.mean[...] += `: under jit that compares shardings, which a traced array has not,
        # and jax walks the whole trace to say so (half of DenseNet-121's tracing time).
        for running, now in ((self.mean, mean), (self.var, stored)):
            old = running[...]
            running.set_value(old + lax.stop_gradient(step * (now - old)))


def _mean(
    x: Float[Array, "n h w c"], *, count: Float[Array, ""], mask: Bool[Array, " n"] | None
) -> Float[Array, " c"]:
    """Of each channel, over rows inside ``mask`` and pixels, ``count`` values; 0 of none."""
    rows = None if mask is None else mask[:, None, None, None]
    return jnp.sum(x, (0, 1, 2), where=rows) / jnp.maximum(count, 1)


def set_batch_norm_momentum(model: nnx.Module, momentum: float) -> None:
    """Every batch normalisation of ``model`` keeps this part of its running values in a step.

    Args:
        model: Any network; changed in place.
        momentum: From 0 to 1, as ``BatchNormConfig`` counts it.

    Example:
        >>> norm = BatchNorm(4, BatchNormConfig(momentum=0.99, epsilon=1e-3, unbiased=False))
        >>> set_batch_norm_momentum(norm, 0.9)
        >>> norm.config
        BatchNormConfig(momentum=0.9, epsilon=0.001, unbiased=False)
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.config = replace(module.config, momentum=momentum)


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
) -> Float[Array, "n h w o"]:
    """BN-ReLU-1x1-BN-ReLU of the channels of ``features``; in evaluation one operation, on a CPU.

    Args:
        before: The normalisation of the features.
        conv: A 1x1 convolution.
        after: The normalisation of its output.
        features: Images, whose channels are put side by side.
        mask: As for the norms.

    Example:
        >>> bn = BatchNormConfig(momentum=0.9, epsilon=0.0, unbiased=True)
        >>> conv = Conv(2, 8, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
        >>> before, after, x = BatchNorm(2, bn), BatchNorm(8, bn), jnp.ones((1, 1, 1, 1))
        >>> float(norm_conv_norm(before, conv, after, [x, x], None)[0, 0, 0, 0])
        2.0
    """
    evaluates = before.use_running_average and after.use_running_average
    if not evaluates or not in_native_code(conv.dtype):
        x = before(jnp.concatenate(features, axis=-1), mask, relu=True)
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
