"""The forms that a GPU takes, computed on whatever is here, against XLA's own operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_layers import POOLS, TOLERANCE, normal, relative_error, value_and_gradients, x64

from flaxmed.models import gpu, operations
from flaxmed.models.layers import conv2d, max_pool
from flaxmed.models.window import ConvWindow, resolve_padding


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Every choice by backend falls on the GPU's form, where there is one."""

    def per_backend(on_cpu, default, on_gpu=None):
        return default if on_gpu is None else on_gpu

    monkeypatch.setattr(operations, "_per_backend", per_backend)


def assert_close(ours, oracle, dtype):
    for a, b in zip(ours, oracle, strict=True):
        assert a.dtype == b.dtype == jnp.dtype(dtype)
        assert relative_error(a, b) <= TOLERANCE[dtype]


DEPTHWISE = {  # height, width, channels, kernel, padding
    "3x3": (7, 5, 6, 3, 1),
    "1x1 map": (1, 1, 6, 3, "SAME"),
    "2x2 map": (2, 2, 6, 3, 1),
    "asymmetric": (6, 7, 6, 3, ((0, 2), (1, 0))),
    "VALID": (6, 7, 6, 3, "VALID"),
    "5x3 pixels, 5x5": (5, 3, 6, 5, 2),
    "33 channels": (4, 4, 33, 3, 1),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", DEPTHWISE)
def test_depthwise_convolution_equals_lax(case, dtype):
    h, w, c, k, padding = DEPTHWISE[case]
    pads = resolve_padding(padding, (h, w), (k, k), 1)
    form = gpu.conv_lowering(ConvWindow((h, w), (k, k), 1, pads, (c, c), c))
    assert None not in (form.forward, form.input_grad, form.kernel_grad)
    with x64(dtype):
        x = normal(0, (3, h, w, c), dtype)
        kernel = normal(1, (k, k, 1, c), dtype)
        ours = value_and_gradients(functools.partial(conv2d, padding=padding, groups=c), x, kernel)
        oracle = value_and_gradients(
            lambda x, kernel: lax.conv_general_dilated(
                x,
                kernel,
                (1, 1),
                pads,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=c,
            ),
            x,
            kernel,
        )
        assert_close(ours, oracle, dtype)


@pytest.mark.parametrize(
    ("channels", "groups", "stride"), [((64, 64), 64, 1), ((6, 6), 6, 2), ((6, 9), 1, 1)]
)
def test_what_cudnn_is_good_at_is_left_to_it(channels, groups, stride):
    g = ConvWindow((8, 8), (3, 3), stride, ((1, 1), (1, 1)), channels, groups)
    form = gpu.conv_lowering(g)
    assert (form.forward, form.input_grad, form.kernel_grad) == (None, None, None)


MORE_POOLS = POOLS | {
    "2x2 stride 3": (9, 8, 2, 3, "VALID"),
    "5x5 stride 2": (9, 8, 5, 2, 2),
}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", MORE_POOLS)
def test_max_pool_equals_reduce_window(case, dtype, ties):
    h, w, window, stride, padding = MORE_POOLS[case]
    pads = resolve_padding(padding, (h, w), (window, window), stride)
    with x64(dtype):
        x = normal(0, (3, h, w, 4), dtype)
        # Three values only, as after a ReLU: nearly every window has several largest ones.
        x = jnp.round(jnp.clip(x, 0, 2)) if ties else x
        ours = value_and_gradients(
            functools.partial(max_pool, window=window, stride=stride, padding=padding), x
        )
        oracle = value_and_gradients(
            lambda x: lax.reduce_window(
                x,
                -jnp.inf,
                lax.max,
                (1, window, window, 1),
                (1, stride, stride, 1),
                ((0, 0), *pads, (0, 0)),
            ),
            x,
        )
        np.testing.assert_array_equal(ours[0], oracle[0])
        assert_close(ours, oracle, dtype)


def test_max_pool_passes_nan_on():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    y, vjp = jax.vjp(lambda x: max_pool(x, window=3, stride=2, padding=1), x)
    assert jnp.isnan(y).all()
    assert vjp(jnp.ones_like(y))[0].sum() == y.size


SUMS = {  # batch, height, width, channels; whether they are taken in two steps
    "4x4 maps": ((128, 4, 4, 5), True),
    "as many rows as XLA takes in one go": ((64, 8, 8, 3), True),
    "more rows": ((128, 7, 7, 3), False),
    "an odd batch": ((27, 8, 8, 3), False),
    "few rows": ((128, 1, 1, 3), False),
    "one": ((1, 1, 1, 3), False),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", SUMS)
def test_sums_of_channels_equal_one_reduction(case, dtype):
    shape, two_steps = SUMS[case]
    with x64(dtype):
        x = normal(0, shape, dtype)
        ours = value_and_gradients(operations.channel_sums, x)
        oracle = value_and_gradients(lambda x: jnp.sum(x, (0, 1, 2)), x)
        assert_close(ours, oracle, dtype)
        text = str(jax.make_jaxpr(operations.channel_sums)(x))
        assert ("optimization_barrier" in text) == two_steps

        assert not jax.tree.leaves(jax.vjp(operations.channel_sums, x)[1])  # x is not kept

        values = normal(1, shape[-1], dtype)
        ours = value_and_gradients(lambda v: operations.over_pixels(v, shape), values)
        oracle = value_and_gradients(lambda v: jnp.broadcast_to(v, shape), values)
        assert_close(ours, oracle, dtype)
