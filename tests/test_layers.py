"""Every lowering against XLA's own operation, and BatchNorm against Flax's and PyTorch's."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from flaxmed.models import cpu, layers, native, operations
from flaxmed.models.layers import BatchNorm, BatchNormConfig, avg_pool, conv2d, max_pool
from flaxmed.models.window import ConvWindow, resolve_padding
from flaxmed.types import InputError

# Relative L2 error. bfloat16 keeps 8 bits, and XLA rounds some of its own sums to it.
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 1e-2}

TORCH = BatchNormConfig(momentum=0.9, epsilon=1e-5, unbiased=True)
KERAS = BatchNormConfig(momentum=0.99, epsilon=1e-3, unbiased=False)


def x64(dtype: str):
    """The context in which ``dtype`` exists."""
    return jax.enable_x64(dtype == "float64")


def normal(seed: int, shape, dtype) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def relative_error(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def value_and_gradients(f, *args):
    """f(*args) and its gradients for a fixed random cotangent, compiled."""

    def run(*args):
        y, vjp = jax.vjp(f, *args)
        return y, *vjp(normal(99, y.shape, y.dtype))

    # float32 is compiled as users compile it; the others in a third of the time.
    quick = None if args[0].dtype == jnp.float32 else {"xla_backend_optimization_level": 0}
    return jax.jit(run, compiler_options=quick)(*args)


# One row per lowering and its borders: height, width, in, out, kernel, stride, padding, groups.
CONVOLUTIONS = {
    "pointwise": (7, 7, 6, 10, 1, 1, 0, 1),
    "pointwise, stride 2, odd": (7, 5, 6, 10, 1, 2, 0, 1),
    "pointwise, stride 2, even, SAME": (6, 4, 6, 10, 1, 2, "SAME", 1),
    "pointwise, 1x1 map": (1, 1, 6, 10, 1, 1, "VALID", 1),
    "pointwise, padded": (5, 5, 4, 6, 1, 1, 1, 1),
    "depthwise": (7, 7, 6, 6, 3, 1, 1, 6),
    "depthwise, 1x1 map": (1, 1, 6, 6, 3, 1, "SAME", 6),
    "depthwise, 2x2 map": (2, 2, 6, 6, 3, 1, 1, 6),
    "depthwise, stride 2, SAME, even": (8, 6, 6, 6, 3, 2, "SAME", 6),
    "depthwise, stride 2, odd, VALID": (9, 7, 6, 6, 3, 2, "VALID", 6),
    "depthwise, asymmetric": (6, 7, 6, 6, 3, 1, ((0, 2), (1, 0)), 6),
    "dense, 1x1 map": (1, 1, 6, 10, 3, 1, 1, 1),
    "dense, 2x2 map": (2, 2, 6, 10, 3, 1, 1, 1),
    "dense, 2x2 to 1x1": (2, 2, 6, 10, 3, 2, 1, 1),
    "dense, 4x4 to 2x2": (4, 4, 6, 10, 3, 2, 1, 1),
    "dense, 4x4 to 2x2, SAME": (4, 4, 6, 10, 3, 2, "SAME", 1),
    "dense, 7x7 to 4x4": (7, 7, 40, 70, 3, 2, 1, 1),
    "dense, 7x7": (7, 7, 40, 40, 3, 1, 1, 1),
    "dense, small, VALID": (5, 6, 6, 10, 3, 1, "VALID", 1),
    "dense, small, asymmetric": (5, 4, 40, 40, 3, 1, ((2, 0), (0, 1)), 1),
    "dense, small, wide pads": (3, 3, 6, 10, 3, 1, 3, 1),
    "dense, small, narrowing": (4, 4, 24, 8, 3, 1, 1, 1),
    "dense, narrowing": (14, 14, 24, 8, 3, 1, 1, 1),
    "dense, narrowing, VALID": (14, 13, 24, 8, 3, 1, "VALID", 1),
    "dense, narrowing, asymmetric": (13, 14, 24, 8, 3, 1, ((0, 2), (3, 0)), 1),
    "dense, narrowing, stride 2": (19, 18, 40, 8, 3, 2, 1, 1),
    "dense, wide": (14, 14, 40, 40, 3, 1, 1, 1),
    "dense, wide, stride 2, even": (18, 20, 40, 70, 3, 2, 1, 1),
    "dense, wide, stride 2, SAME": (18, 19, 40, 70, 3, 2, "SAME", 1),
    "small stem": (28, 28, 3, 8, 3, 1, 1, 1),
    "small stem, grey": (28, 28, 1, 8, 3, 1, "SAME", 1),
    "imagenet stem": (32, 30, 3, 8, 7, 2, 3, 1),
    "imagenet stem, odd": (33, 29, 1, 8, 7, 2, 3, 1),
    "imagenet stem, small map": (16, 15, 3, 8, 7, 2, "SAME", 1),
    "Xception stem": (29, 28, 3, 8, 3, 2, "VALID", 1),
    "grouped, two groups": (8, 8, 6, 4, 3, 1, 1, 2),
    "depthwise, multiplier 2": (8, 8, 6, 12, 3, 1, 1, 6),
}


# float64 proves the arithmetic everywhere; the other dtypes see each lowering once.
ONE_OF_EACH = (
    "pointwise, stride 2, odd",
    "depthwise",
    "dense, 4x4 to 2x2",
    "dense, narrowing",
    "dense, wide, stride 2, even",
    "imagenet stem",
)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, "float64") for case in CONVOLUTIONS]
    + [(case, dtype) for case in ONE_OF_EACH for dtype in ("float32", "bfloat16")],
)
def test_convolution_equals_lax(case, dtype):
    h, w, c, o, k, stride, padding, groups = CONVOLUTIONS[case]
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    with x64(dtype):
        x, kernel = normal(0, (4, h, w, c), dtype), normal(1, (k, k, c // groups, o), dtype)
        ours = value_and_gradients(
            lambda x, k: conv2d(x, k, stride=stride, padding=padding, groups=groups), x, kernel
        )
        oracle = value_and_gradients(
            lambda x, k: lax.conv_general_dilated(
                x,
                k,
                (stride, stride),
                pads,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            ),
            x,
            kernel,
        )
        for a, b in zip(ours, oracle, strict=True):
            assert a.dtype == b.dtype == jnp.dtype(dtype)
            assert relative_error(a, b) < TOLERANCE[dtype]


@pytest.mark.parametrize("n", [1, 4, 6, 7])
@pytest.mark.parametrize("case", ["dense, narrowing, asymmetric", "dense, wide, stride 2, SAME"])
def test_blocks_of_images_add_up(monkeypatch, case, n):
    # Room for two images at most: 7 is then taken one by one, and 1 not divided.
    h, w, c, o, k, stride, padding, _ = CONVOLUTIONS[case]
    pads = resolve_padding(padding, (h, w), (k, k), stride)
    g = ConvWindow((h, w), (k, k), stride, pads, (c, o), 1)
    with x64("float64"):
        x, dy = normal(0, (n, h, w, c), "float64"), normal(1, (n, *g.out, o), "float64")
        kernel = jnp.zeros((k, k, c, o))
        kernel_grad = cpu.conv_lowering(g).kernel_grad
        whole = kernel_grad(dy, x, kernel)
        per_image = math.prod(g.size if o < c else g.out) * k * k * min(c, o)
        monkeypatch.setattr(cpu, "_PATCHES_IN_CACHE", 3 * per_image - 1)
        assert "scan" not in str(jax.make_jaxpr(kernel_grad)(dy[:1], x[:1], kernel))
        assert ("scan" in str(jax.make_jaxpr(kernel_grad)(dy, x, kernel))) == (n > 1)
        assert relative_error(kernel_grad(dy, x, kernel), whole) < 1e-13


def test_the_grid_reaches_every_lowering():
    reached = set()
    for h, w, c, o, k, stride, padding, groups in CONVOLUTIONS.values():
        pads = resolve_padding(padding, (h, w), (k, k), stride)
        g = ConvWindow((h, w), (k, k), stride, pads, (c, o), groups)
        row = cpu.conv_lowering(g)
        reached |= {f and f.func for f in (row.forward, row.input_grad, row.kernel_grad)}
    functions = {
        f
        for name, f in vars(cpu).items()
        if name.startswith(("_depthwise", "_pointwise", "_products", "_kernel_grad"))
    }
    assert reached == functions | {None}


POOLS = {
    "3x3 stride 2, even": (8, 6, 3, 2, 1),
    "3x3 stride 2, odd": (7, 5, 3, 2, 1),
    "3x3 stride 2, SAME, even": (8, 6, 3, 2, "SAME"),
    "3x3 stride 2, SAME, odd": (7, 5, 3, 2, "SAME"),
    "3x3 stride 2, VALID": (9, 8, 3, 2, "VALID"),
    "3x3 stride 1": (5, 5, 3, 1, 1),
    "2x2 stride 2": (7, 6, 2, 2, "VALID"),
    "1x1 map": (1, 1, 3, 2, 1),
    "asymmetric": (6, 6, 3, 2, ((0, 1), (2, 0))),
}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, "float64") for case in POOLS]
    + [("3x3 stride 2, SAME, even", dtype) for dtype in ("float32", "bfloat16")],
)
def test_max_pool_equals_reduce_window(case, ties, dtype):
    h, w, window, stride, padding = POOLS[case]
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    pads = pads if isinstance(pads, str) else [(0, 0), *pads, (0, 0)]
    with x64(dtype):
        x = normal(0, (3, h, w, 4), dtype)
        # Three values only, as after a ReLU: nearly every window has several largest ones.
        x = jnp.round(jnp.clip(x, 0, 2)) if ties else x
        ours = value_and_gradients(
            lambda x: max_pool(x, window=window, stride=stride, padding=padding), x
        )
        oracle = value_and_gradients(
            lambda x: lax.reduce_window(
                x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads
            ),
            x,
        )
        np.testing.assert_array_equal(ours[0], oracle[0])
        assert ours[1].dtype == oracle[1].dtype
        assert relative_error(ours[1], oracle[1]) < TOLERANCE[dtype]


def test_max_pool_passes_nan_on():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    assert jnp.isnan(max_pool(x, window=3, stride=2, padding=1)).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [(4, 4), (7, 5), (2, 3)])
def test_avg_pool_equals_reduce_window(size, dtype):
    with x64(dtype):
        x = normal(0, (3, *size, 4), dtype)
        ours = value_and_gradients(lambda x: avg_pool(x, window=2), x)
        oracle = value_and_gradients(
            lambda x: (
                lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
            ).astype(x.dtype),
            x,
        )
        for a, b in zip(ours, oracle, strict=True):
            assert a.dtype == b.dtype
            assert relative_error(a, b) < TOLERANCE[dtype]


def test_lowering_is_chosen_when_traced():
    x, kernel = jnp.ones((1, 4, 4, 3)), jnp.ones((1, 1, 3, 5))

    def compiled_text() -> str:
        return jax.jit(lambda x, k: conv2d(x, k)).lower(x, kernel).as_text()

    with layers.lowering("xla"):
        assert "stablehlo.convolution" in compiled_text()
        with layers.lowering("auto"):
            on_default_backend = "stablehlo.convolution" in compiled_text()
        assert "stablehlo.convolution" in compiled_text()
    assert on_default_backend == (jax.default_backend() != "cpu")


def test_lowering_is_restored_after_an_error():
    with pytest.raises(RuntimeError), layers.lowering("xla"):
        raise RuntimeError
    assert operations._lowering == "auto"
    fast = layers.lowering("fast")
    with (
        pytest.raises(InputError, match="lowering must be one of auto, jax, xla, got 'fast'"),
        fast,
    ):
        pass


def test_operations_map_and_compile_alike():
    x, kernel = normal(0, (2, 3, 6, 6, 4), "float32"), normal(1, (2, 3, 3, 4, 4), "float32")

    def f(x, kernel):
        return max_pool(conv2d(x, kernel), window=3, stride=2, padding=1).sum()

    gradient = jax.grad(f, argnums=1)
    mapped = jax.jit(jax.vmap(gradient))(x, kernel)
    for i in range(2):
        np.testing.assert_allclose(mapped[i], gradient(x[i], kernel[i]), rtol=1e-4, atol=1e-4)


def two_devices() -> jax.sharding.NamedSharding:
    if jax.device_count() < 2:
        pytest.skip("one device")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


def test_operations_on_a_sharded_batch():
    def f(x, wide, depthwise, pointwise, narrow):
        x = conv2d(x, wide, padding=1)
        x = max_pool(x, window=3, stride=2, padding="SAME")
        x = conv2d(x, depthwise, padding=1, groups=40)
        x = avg_pool(conv2d(x, pointwise), window=2)
        return conv2d(x, narrow, stride=2, padding=1)

    with x64("float64"):
        shapes = (3, 3, 3, 40), (3, 3, 1, 40), (1, 1, 40, 24), (3, 3, 24, 8)
        kernels = [normal(i, shape, "float64") for i, shape in enumerate(shapes)]
        x = normal(9, (4, 20, 20, 3), "float64")
        sharded = jax.device_put(x, two_devices())
        for a, b in zip(
            value_and_gradients(f, sharded, *kernels),
            value_and_gradients(f, x, *kernels),
            strict=True,
        ):
            assert relative_error(a, b) < 1e-12


# --- BatchNorm ------------------------------------------------------------------------------------


def random_norm(config: BatchNormConfig, channels: int = 5, dtype="float32") -> BatchNorm:
    norm = BatchNorm(channels, config, dtype=jnp.dtype(dtype))
    wide = norm.scale[...].dtype
    norm.scale[...] = normal(1, channels, wide)
    norm.bias[...] = normal(2, channels, wide)
    norm.mean[...] = normal(3, channels, wide)
    norm.var[...] = jnp.abs(normal(4, channels, wide)) + 0.5
    return norm


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_equals_flax(training):
    with x64("float64"):
        ours = random_norm(KERAS, dtype="float64")
        flax = nnx.BatchNorm(
            5,
            momentum=KERAS.momentum,
            epsilon=KERAS.epsilon,
            use_running_average=not training,
            use_fast_variance=False,
            param_dtype=jnp.float64,
            rngs=nnx.Rngs(0),
        )
        for name in ("scale", "bias", "mean", "var"):
            setattr(flax, name, type(getattr(flax, name))(getattr(ours, name)[...]))
        ours.use_running_average = not training
        x = normal(0, (4, 3, 3, 5), "float64") * 2 + 1

        def loss(norm, x):
            y = norm(x)
            return (y * normal(5, y.shape, y.dtype)).sum()

        argnums = (nnx.DiffState(0, nnx.Param), 1)
        (state_a, dx_a), (state_b, dx_b) = (
            nnx.grad(loss, argnums=argnums)(norm, x) for norm in (ours, flax)
        )
        assert relative_error(dx_a, dx_b) < 1e-12
        for name in ("scale", "bias"):
            assert relative_error(state_a[name][...], state_b[name][...]) < 1e-12
        for name in ("mean", "var"):
            assert relative_error(getattr(ours, name)[...], getattr(flax, name)[...]) < 1e-12
        assert relative_error(ours(x), flax(x)) < 1e-12


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_equals_torch(training):
    torch = pytest.importorskip("torch")
    with x64("float64"):
        ours = random_norm(TORCH, dtype="float64")
        theirs = torch.nn.BatchNorm2d(5, dtype=torch.float64).train(training)
        with torch.no_grad():
            for mine, name in (
                (ours.scale, "weight"),
                (ours.bias, "bias"),
                (ours.mean, "running_mean"),
                (ours.var, "running_var"),
            ):
                getattr(theirs, name).copy_(torch.tensor(np.array(mine[...])))
        ours.use_running_average = not training
        x = np.random.default_rng(0).standard_normal((2, 3, 2, 5)) * 2 + 1
        expected = theirs(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        assert relative_error(ours(jnp.asarray(x)), expected.detach()) < 1e-12
        # Twelve values per channel: n / (n - 1) is 9 % away from 1.
        assert relative_error(ours.mean[...], theirs.running_mean) < 1e-12
        assert relative_error(ours.var[...], theirs.running_var) < 1e-12


@pytest.mark.parametrize("config", [TORCH, KERAS])
def test_masked_rows_count_for_nothing(config):
    with x64("float64"):
        x = normal(0, (6, 3, 3, 5), "float64")
        mask = jnp.asarray([True, False, True, True, False, True])
        garbage = x.at[1].set(1e6).at[4].set(-1e6)
        masked, without = (random_norm(config, dtype="float64") for _ in range(2))
        masked.train(), without.train()

        @functools.partial(nnx.grad, argnums=1)
        def gradient(norm, x, mask, weights):
            y = norm(x, mask)
            return jnp.sum(y * weights, where=(weights != 0))

        weights = normal(7, x.shape, "float64") * mask[:, None, None, None]
        dx = gradient(masked, garbage, mask, weights)
        expected = gradient(without, x[mask], None, weights[mask])
        np.testing.assert_allclose(dx[mask], expected, rtol=1e-11, atol=1e-13)
        for name in ("mean", "var"):
            np.testing.assert_allclose(
                getattr(masked, name)[...], getattr(without, name)[...], rtol=1e-13
            )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_moments_of_pieces_serve_for_all_their_channels(dtype):
    """A norm that is given the moments of maps side by side does what it does with their batch."""
    with x64(dtype), layers.lowering("jax"):
        pieces = [normal(i, (4, 3, 2, c), dtype) * (i + 1) + i for i, c in enumerate((3, 2))]
        mask = jnp.asarray([True, True, False, True])
        norms = [random_norm(TORCH, dtype=dtype) for _ in range(2)]
        [norm.train() for norm in norms]
        weights = normal(7, (4, 3, 2, 5), dtype)

        def loss(norm, pieces, given):
            parts = [BatchNorm(x.shape[-1], TORCH, dtype=norm.dtype) for x in pieces]
            for part, end in zip(parts, (3, 5), strict=True):
                part.mean[...] = norm.mean[...][end - part.mean.shape[0] : end]
                part.train()
            known = [part.moments(x, mask) for part, x in zip(parts, pieces, strict=True)]
            moments = layers.side_by_side(known) if given else None
            y = norm(jnp.concatenate(pieces, -1), mask, moments=moments)
            return (y * weights).astype("float64" if dtype == "float64" else "float32").sum()

        argnums = (nnx.DiffState(0, nnx.Param), 1)
        one, two = (
            jax.tree.leaves(nnx.grad(loss, argnums=argnums)(norm, pieces, given))
            for norm, given in zip(norms, (True, False), strict=True)
        )
        for a, b in zip(one, two, strict=True):
            assert relative_error(a, b) <= TOLERANCE[dtype]
        for name in ("mean", "var"):
            ours, theirs = (getattr(norm, name)[...] for norm in norms)
            assert relative_error(ours, theirs) <= min(TOLERANCE[dtype], 1e-5)


def test_moments_are_asked_for_where_they_are_used():
    norm = random_norm(TORCH)
    x = normal(0, (4, 3, 3, 5), "float32")
    assert norm.moments(x, None) is None  # it evaluates
    norm.train()
    with layers.lowering("jax"):
        known = norm.moments(x, None)
        np.testing.assert_allclose(known.mean, x.mean((0, 1, 2)), atol=1e-6)
        np.testing.assert_allclose(known.var, x.var((0, 1, 2)), rtol=1e-5)
        last = norm.moments(x[..., 3:], None)
        np.testing.assert_allclose(last.mean, known.mean[3:], atol=1e-7)
    if native.serves(norm.dtype):
        assert norm.moments(x, None) is None  # one pass in C++ does it all
    assert layers.side_by_side([known, None]) is None


def test_a_batch_of_padding_moves_nothing():
    norm = random_norm(TORCH)
    norm.train()
    before = nnx.clone(nnx.state(norm))
    y = norm(normal(0, (2, 3, 3, 5), "float32"), jnp.zeros(2, bool))
    assert jnp.isfinite(y).all()
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(norm))


def test_one_value_per_channel():
    norm = random_norm(TORCH)
    x = normal(0, (1, 1, 1, 5), "float32")
    norm(x)  # at evaluation it is nothing special
    norm.train()
    with pytest.raises(InputError, match="one value per channel"):
        norm(x)
    # Under a mask the count is known only when run: finite, with the biased variance, 0.
    before = norm.var[...]
    y = norm(jnp.concatenate([x, x + 1]), jnp.asarray([True, False]))
    np.testing.assert_allclose(y[0, 0, 0], norm.bias[...], rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 * before, rtol=1e-6)


def test_variance_is_centred():
    # E[x^2] - E[x]^2 in float32 would lose it all: 1e4^2 has a spacing of 8.
    norm = BatchNorm(1, TORCH)
    norm.train()
    norm(1e4 + jnp.asarray([-1.0, 1.0] * 8).reshape(4, 2, 2, 1))
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * 16 / 15, rtol=1e-5)


def test_bfloat16_keeps_float32_statistics():
    norm, wide = random_norm(TORCH, dtype="bfloat16"), random_norm(TORCH)
    norm.train(), wide.train()
    x = normal(0, (8, 4, 4, 5), "bfloat16") * 3 + 20
    y, expected = norm(x), wide(x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    assert relative_error(y, expected) < 2**-8
    for name in ("mean", "var"):
        assert getattr(norm, name)[...].dtype == jnp.float32
        found, exact = (getattr(one, name)[...] for one in (norm, wide))
        np.testing.assert_allclose(found, exact, rtol=1e-6)  # in bfloat16 they would be 4e-3 off
    norm.eval()
    assert norm(x).dtype == jnp.bfloat16


def test_statistics_are_those_of_the_whole_sharded_batch():
    sharding = two_devices()
    x = normal(0, (8, 4, 4, 5), "float32") + jnp.arange(8.0)[:, None, None, None]
    one, two = random_norm(TORCH), random_norm(TORCH)
    one.train(), two.train()
    step = nnx.jit(lambda norm, x: norm(x))
    expected, y = step(one, x), step(two, jax.device_put(x, sharding))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(two.mean[...], one.mean[...], rtol=1e-5)
    np.testing.assert_allclose(two.var[...], one.var[...], rtol=1e-5)
