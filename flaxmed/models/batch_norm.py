"""Batch normalisation, and the statistics of a batch that it is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from flaxmed.models import native
from flaxmed.models.forms import wide_dtype
from flaxmed.models.operations import channel_sums, in_native_code, over_pixels
from flaxmed.types import InputError


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


class Moments(NamedTuple):
    """Mean and variance (over n) of each channel, over the rows of a batch and their pixels."""

    mean: Float[Array, " c"]
    var: Float[Array, " c"]


def side_by_side(pieces: Sequence[Moments | None]) -> Moments | None:
    """The moments of the channels of all pieces; None where those of one are not known.

    Example:
        >>> one = Moments(jnp.zeros(2), jnp.ones(2))
        >>> side_by_side([one, one]).mean.shape, side_by_side([one, None])
        ((4,), None)
    """
    known = [piece for piece in pieces if piece is not None]
    if len(known) < len(pieces):
        return None
    return Moments(*(jnp.concatenate(values) for values in zip(*known, strict=True)))


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

    A call may be given the moments of the batch, where they are known: those of several maps side
    by side are those of each.

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
        moments: Moments | None = None,
    ) -> Float[Array, "n h w c"]:
        wide = x.astype(wide_dtype(self.dtype))
        if not self.use_running_average:
            count = self._count(wide, mask)
            if in_native_code(self.dtype):
                return self._in_native_code(wide, mask, count, relu).astype(self.dtype)
            mean, var = self._moments(wide, mask, count) if moments is None else moments
            self._move(mean, var, count)
        else:
            mean, var = self.mean[...], self.var[...]
        factor = self.scale[...] * lax.rsqrt(var + self.config.epsilon)
        centred = wide - over_pixels(mean, x.shape)
        y = centred * over_pixels(factor, x.shape) + over_pixels(self.bias[...], x.shape)
        y = y.astype(self.dtype)
        return jax.nn.relu(y) if relu else y

    def moments(
        self, x: Float[Array, "n h w _c"], mask: Bool[Array, " n"] | None
    ) -> Moments | None:
        """Of ``x``, the layer's last channels, what a call in training needs to be given of them.

        None where it needs nothing: in evaluation, and where native code has a pass for all of it.
        """
        if self.use_running_average or in_native_code(self.dtype):
            return None
        x = x.astype(wide_dtype(self.dtype))
        return self._moments(x, mask, self._count(x, mask))

    def factor_and_shift(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """In evaluation the layer is ``x * factor + shift``."""
        factor = self.scale[...] * lax.rsqrt(self.var[...] + self.config.epsilon)
        return factor, self.bias[...] - self.mean[...] * factor

    def _in_native_code(
        self,
        x: Float[Array, "n h w c"],
        mask: Bool[Array, " n"] | None,
        count: Float[Array, ""],
        relu: bool,
    ) -> Float[Array, "n h w c"]:
        ones = jnp.ones(x.shape[0], x.dtype) if mask is None else mask.astype(x.dtype)
        epsilon, scale, bias = self.config.epsilon, self.scale[...], self.bias[...]
        y, mean, var = native.batch_norm(epsilon, relu, x, scale, bias, ones)
        self._move(mean, var, count)
        return y

    def _moments(
        self, x: Float[Array, "n h w _c"], mask: Bool[Array, " n"] | None, count: Float[Array, ""]
    ) -> Moments:
        """Of ``x``, the last channels, of which ``count`` values each count; 0 of none."""

        def mean_of(x: Array) -> Array:
            inside = x if mask is None else jnp.where(mask[:, None, None, None], x, 0)
            return channel_sums(inside) / jnp.maximum(count, 1)

        if self.dtype == jnp.bfloat16:
            # One pass over values that are counted from the running mean: what then cancels in
            # float32 had no digits in bfloat16.
            origin = self.mean[...][-x.shape[-1] :]
            from_origin = x - origin
            shift = mean_of(from_origin)
            var = jnp.maximum(mean_of(lax.square(from_origin)) - lax.square(shift), 0)
            return Moments(origin + shift, var)
        # Two passes: E[x^2] - E[x]^2 cancels. No gradient passes from the variance to the mean: it
        # is the sum of the centred values, which is zero.
        mean = mean_of(x)
        return Moments(mean, mean_of(lax.square(x - lax.stop_gradient(mean))))

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
