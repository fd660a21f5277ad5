"""The functions in C++: against XLA's in float64, alone and in a crowd, and without them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from test_layers import CONVOLUTIONS, ONE_OF_EACH, normal, relative_error, value_and_gradients

from flaxmed.models import create_model, native, operations
from flaxmed.models.layers import BatchNorm, conv2d, lowering
from flaxmed.models.window import ConvWindow, resolve_padding

# Images, then as in CONVOLUTIONS. Tiles and panels that are cut off, blocks of rows, of many
# images, of one; odd counts; more channels than a vector and fewer.
MORE = {
    "rows in blocks": (2, 70, 75, 40, 24, 3, 1, 1, 1),
    "rows in blocks, stride 2": (2, 112, 111, 24, 20, 3, 2, 1, 1),
    "rows in blocks, depthwise": (1, 90, 80, 37, 37, 3, 1, 1, 37),
    "imagenet stem, large": (1, 130, 131, 3, 64, 7, 2, 3, 1),
    "many images": (65, 5, 5, 16, 33, 3, 1, 1, 1),
    "tiny maps": (33, 2, 2, 64, 64, 3, 1, 1, 1),
    "many channels": (3, 4, 4, 260, 272, 3, 1, 1, 1),
    # the places of a tiny map one by one
    "places": (33, 3, 3, 40, 70, 3, 1, 1, 1),
    "places, stride 2": (20, 5, 4, 300, 33, 3, 2, 1, 1),
    "places, 5x5": (14, 2, 1, 20, 40, 5, 1, 2, 1),
    "places beyond the image": (14, 2, 2, 20, 40, 2, 1, ((2, 0), (0, 0)), 1),
    # the kernel's rows shared out; the last panel cut off
    "few pixels": (1, 7, 7, 70, 45, 3, 1, 1, 1),
    "few pixels, stride 2": (1, 8, 7, 130, 64, 3, 2, 1, 1),
    "few pixels, pointwise": (3, 4, 4, 300, 100, 1, 1, 0, 1),
    "stride 3": (3, 13, 12, 5, 7, 3, 3, ((2, 1), (0, 1)), 1),
    "stride larger than the kernel": (2, 9, 9, 4, 6, 2, 3, 0, 1),
    "pointwise, padded at the far sides": (3, 7, 6, 16, 20, 1, 1, ((0, 2), (0, 1)), 1),
    "pointwise, cropped at the far sides": (3, 7, 6, 16, 20, 1, 1, ((0, -2), (0, 0)), 1),
    "pointwise, cropped to the right": (3, 7, 6, 16, 20, 1, 1, ((0, 0), (0, -2)), 1),
    "a crop": (2, 9, 9, 4, 6, 3, 1, ((-1, 0), (0, -2)), 1),
    "a crop, stride 2": (2, 8, 8, 8, 16, 3, 2, ((-1, 0), (-1, 0)), 1),
    "a crop, stride 3": (3, 11, 5, 8, 5, 5, 3, ((-1, 0), (3, -3)), 1),
    "pointwise, cropped to the left": (2, 5, 6, 8, 16, 1, 1, ((0, 4), (-2, 4)), 1),
    "cropped by more than the window": (2, 4, 7, 8, 16, 2, 1, ((0, 1), (-3, 1)), 1),
    "depthwise, 5x5": (2, 9, 8, 19, 19, 5, 1, 2, 19),
    # tiles of 2x4 outputs: cut off below and to the right; sums of few images, and of many
    "depthwise, odd": (3, 7, 9, 40, 40, 3, 1, 1, 40),
    "depthwise, one row": (2, 1, 6, 16, 16, 3, 1, 1, 16),
    "depthwise, few channels": (5, 6, 7, 5, 5, 3, 1, 1, 5),
    "depthwise, uneven padding": (4, 8, 7, 24, 24, 3, 1, ((2, 0), (0, 3)), 24),
    "depthwise, cropped": (4, 9, 8, 20, 20, 3, 1, ((-1, 1), (1, -2)), 20),
    "depthwise, tiny maps": (70, 2, 2, 33, 33, 3, 1, 1, 33),
    # squares of 2x2 outputs: cut off at the far sides, in several blocks, over three panels
    "squares, odd": (9, 7, 7, 16, 33, 3, 1, 1, 1),
    "squares, odd channels": (12, 8, 10, 37, 70, 3, 1, 1, 1),
    "squares, wide": (5, 15, 16, 130, 20, 3, 1, 1, 1),
    "squares, no padding": (12, 10, 9, 40, 40, 3, 1, 0, 1),
    "squares, uneven padding": (8, 12, 11, 24, 24, 3, 1, ((2, 0), (0, 3)), 1),
    "squares, cropped": (8, 14, 15, 24, 24, 3, 1, ((-1, 1), (1, -2)), 1),
    "squares beyond the padding": (8, 8, 8, 16, 16, 3, 1, 4, 1),
}
MORE_RELU = [(name, True) for name in ("rows in blocks", "many images", "few pixels", "places")]
CASES = {name: (4, *case) for name, case in CONVOLUTIONS.items()} | MORE


@pytest.fixture(scope="module", autouse=True)
def _built():
    """A compiler is there wherever the tests run: what is not built is not tested."""
    assert native.why_not() is None


def window(h, w, c, o, k, stride, padding, groups) -> ConvWindow:
    pads = resolve_padding(padding, (h, w), (k, k), stride)
    return ConvWindow((h, w), (k, k), stride, pads, (c, o), groups)


@pytest.mark.parametrize("case", CASES)
def test_equals_lax(case):
    n, h, w, c, o, k, stride, padding, groups = CASES[case]
    g = window(h, w, c, o, k, stride, padding, groups)
    if native.forms(g, jnp.dtype("float32")) is None:
        assert groups > 1
        assert (stride, k) != (1, 3) or groups != o
        return
    x = normal(0, (n, h, w, c), "float32")
    kernel = normal(1, (k, k, c // groups, o), "float32")

    def ours(x, kernel):
        return conv2d(x, kernel, stride=stride, padding=g.pads, groups=groups)

    def oracle(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            g.pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    text = str(jax.make_jaxpr(lambda *a: value_and_gradients(ours, *a))(x, kernel))
    assert text.count("ffi_call") >= 3
    found = value_and_gradients(ours, x, kernel)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), "float64") for a in (x, kernel)]
        y, vjp = jax.vjp(oracle, *wide)
        cotangent = jnp.asarray(np.asarray(normal(99, y.shape, "float32")), "float64")
        expected = (y, *vjp(cotangent))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.float32
        assert relative_error(a, b) < 1e-6


def all_three(n=16, size=14, c=48, o=40):
    x, kernel = normal(0, (n, size, size, c), "float32"), normal(1, (3, 3, c, o), "float32")
    return jax.jit(lambda x, k: value_and_gradients(lambda x, k: conv2d(x, k, padding=1), x, k)), (
        x,
        kernel,
    )


def test_the_same_bits_every_time():
    f, operands = all_three()
    first = [np.asarray(a) for a in f(*operands)]
    for _ in range(10):
        for a, b in zip(f(*operands), first, strict=True):
            np.testing.assert_array_equal(a, b)


def test_many_callers_at_once_neither_wait_for_ever_nor_disturb_each_other():
    """More calls than XLA has threads: each must be able to do its work alone."""
    f, operands = all_three()
    expected = [np.asarray(a) for a in f(*operands)]
    wrong: list[str] = []

    def call():
        for _ in range(5):
            if not all(np.array_equal(a, b) for a, b in zip(f(*operands), expected, strict=True)):
                wrong.append("another result")

    threads = [threading.Thread(target=call, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_other_dtypes_and_lowerings_do_without():
    g = window(8, 8, 4, 6, 3, 1, 1, 1)
    assert native.forms(g, jnp.dtype("float32"))
    for dtype in ("float64", "float16"):
        assert native.forms(g, jnp.dtype(dtype)) is None
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 6))
    for mode, used in (("auto", True), ("jax", False), ("xla", False)):
        with lowering(mode):
            text = str(jax.make_jaxpr(lambda x, k: conv2d(x, k, padding=1))(x, kernel))
        assert ("ffi_call" in text) == used


@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("size", [(2, 2), (2, 8), (8, 2)])
def test_where_no_window_fits_the_kernels_gradient_is_zero(size, groups):
    x = normal(0, (2, *size, 16), "float32")
    kernel = normal(1, (3, 3, 16 // groups, 16), "float32")
    y, dx, dk = value_and_gradients(
        lambda x, kernel: conv2d(x, kernel, padding=0, groups=groups), x, kernel
    )
    assert y.size == 0
    assert not dx.any()
    assert not dk.any()


@pytest.mark.parametrize("groups", [1, 40])
def test_bfloat16_is_float32_rounded_once(groups):
    x, kernel = (
        normal(0, (4, 9, 9, 40), "bfloat16"),
        normal(1, (3, 3, 40 // groups, 40), "bfloat16"),
    )

    def conv(x, kernel):
        return conv2d(x, kernel, padding=1, groups=groups)

    def widened(x, kernel, cotangent):
        y, vjp = jax.vjp(conv, x.astype("float32"), kernel.astype("float32"))
        return y, *vjp(cotangent.astype("float32"))

    assert str(jax.make_jaxpr(conv)(x, kernel)).count("ffi_call") == 1
    found = value_and_gradients(conv, x, kernel)
    expected = widened(x, kernel, normal(99, found[0].shape, "bfloat16"))
    for narrow, wide in zip(found, expected, strict=True):
        assert narrow.dtype == jnp.bfloat16
        np.testing.assert_array_equal(narrow, wide.astype("bfloat16"))


def test_a_batch_on_two_devices_gives_the_same():
    devices = jax.devices()[:2]
    if len(devices) < 2:
        pytest.skip("one device")
    f, (x, kernel) = all_three(n=8)
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for a, b in zip(f(jax.device_put(x, sharding), kernel), f(x, kernel), strict=True):
        assert relative_error(a, b) < 1e-6


@pytest.mark.parametrize(
    ("case", "relu"),
    [("dense, wide, stride 2, even", False), *((case, True) for case in ONE_OF_EACH), *MORE_RELU],
)
def test_a_scaled_convolution_is_its_steps(case, relu):
    n, h, w, c, o, k, stride, padding, groups = CASES[case]
    g = window(h, w, c, o, k, stride, padding, groups)
    x = normal(0, (n, h, w, c), "float32")
    kernel = normal(1, (k, k, c // groups, o), "float32")
    factor, shift = normal(2, (o,), "float32"), normal(3, (o,), "float32")

    def scaled(*operands):
        return operations.scaled_conv2d(
            *operands, relu=relu, stride=stride, padding=g.pads, groups=groups
        )

    found = value_and_gradients(scaled, x, kernel, factor, shift)
    with lowering("xla"):
        expected = value_and_gradients(
            lambda *operands: scaled(*operands), x, kernel, factor, shift
        )
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 2e-6


@pytest.mark.parametrize(
    ("n", "size", "out"),
    [(5, (7, 6), 40), (1, (5, 5), 70), (3, (16, 14), 128), (1, (70, 60), 33)],
    ids=["images in blocks", "few pixels", "an image a block", "rows in blocks"],
)
def test_a_bottleneck_is_its_steps(n, size, out):
    widths = (24, 8, 5, 11)
    pieces = [normal(i, (n, *size, width), "float32") for i, width in enumerate(widths)]
    scale, bias = (normal(i, (sum(widths),), "float32") for i in (5, 6))
    kernel = normal(7, (1, 1, sum(widths), out), "float32")
    factor, shift = (normal(i, (out,), "float32") for i in (8, 9))

    def ours(*operands):
        return operations.bottleneck(operands[5:], *operands[:5])

    operands = (scale, bias, kernel, factor, shift, *pieces)
    found = value_and_gradients(ours, *operands)
    with lowering("xla"):
        expected = value_and_gradients(lambda *operands: ours(*operands), *operands)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 2e-6


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "xception"])
def test_a_network_evaluates_as_it_does_in_plain_xla(name):
    """Five images at once, and one alone, which is cut among threads in another way."""
    model = create_model(name, 3, stem="small", rngs=nnx.Rngs(0))
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.mean[...] = 0.1 * normal(1, module.mean.shape, "float32")
            module.var[...] = 1 + 0.5 * jnp.abs(normal(2, module.var.shape, "float32"))
    x = normal(3, (5, 32, 32, 3), "float32")
    graph, state = nnx.split(model)
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x))(state, x)
    assert "flaxmed_conv_norm" in str(jaxpr)
    ours = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    with lowering("xla"):
        expected = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)
    assert relative_error(ours(state, x), expected) < 1e-5
    assert relative_error(ours(state, x[:1]), expected[:1]) < 1e-5


def norm_case(channels: int, seed: int = 0):
    shape = (5, 6, 7, channels)
    x = 3 + 2 * normal(seed, shape, "float32")
    scale, bias = (normal(seed + i, (channels,), "float32") for i in (1, 2))
    return x, scale, bias, normal(seed + 3, shape, "float32")


def plain_norm(x, scale, bias, mask, relu):
    """The definition, in whatever precision the operands have."""
    rows = mask[:, None, None, None]
    count = jnp.maximum(mask.sum() * x.shape[1] * x.shape[2], 1)
    mean = (x * rows).sum((0, 1, 2)) / count
    variance = (rows * (x - mean) ** 2).sum((0, 1, 2)) / count
    y = (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias
    return jnp.maximum(y, 0) if relu else y, mean, variance


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("masked", [(1, 1, 1, 1, 1), (1, 0, 1, 0, 1), (0, 0, 0, 0, 1)])
@pytest.mark.parametrize("channels", [1, 7, 32, 300, 5000])
def test_batch_norm_equals_its_definition(channels, masked, relu):
    x, scale, bias, dy = norm_case(channels)

    def ours(x, scale, bias):
        return native.batch_norm(1e-5, relu, x, scale, bias, jnp.asarray(masked, jnp.float32))

    y, mean, variance = ours(x, scale, bias)
    gradients = jax.vjp(lambda *a: ours(*a)[0], x, scale, bias)[1](dy)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), "float64") for a in (x, scale, bias)]
        mask = jnp.asarray(masked, "float64")
        expected = plain_norm(*wide, mask, relu)
        vjp = jax.vjp(lambda *a: plain_norm(*a, mask, relu)[0], *wide)[1]
        # A ReLU decides by the sign: where rounding turned it, the gradient is another's.
        same = (np.asarray(y) > 0) == (np.asarray(expected[0]) > 0)
        assert not relu or same.mean() > 0.999
        expected_gradients = vjp(jnp.asarray(np.asarray(dy), "float64"))
    for a, b in zip((y, mean, variance), expected, strict=True):
        assert relative_error(a, b) < 2e-6
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert relative_error(a, b) < 5e-6


def test_batch_norm_of_large_values_does_not_cancel():
    x = 1e4 + normal(0, (8, 16, 16, 3), "float32")
    _, mean, variance = native.batch_norm(1e-5, False, x, *jnp.ones((2, 3)), jnp.ones(8))
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, wide.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_passes_nan_on(relu):
    """A ReLU that made zeros of them would hide that a run has diverged."""
    x = jnp.ones((2, 3, 3, 4)).at[1, 0, 0, 2].set(jnp.nan)
    y, *_ = native.batch_norm(1e-5, relu, x, jnp.ones(4), jnp.ones(4), jnp.ones(2))
    assert np.isnan(y[..., 2]).all()
    assert np.isfinite(np.delete(y, 2, axis=-1)).all()


def test_batch_norm_of_padding_alone_has_finite_gradients():
    x, scale, bias, dy = norm_case(4)
    y, mean, variance = native.batch_norm(1e-5, True, x, scale, bias, jnp.zeros(5))
    assert not np.asarray(mean).any()
    assert not np.asarray(variance).any()
    gradients = jax.vjp(
        lambda *a: native.batch_norm(1e-5, True, *a, jnp.zeros(5))[0], x, scale, bias
    )[1](dy)
    assert all(np.isfinite(g).all() for g in (y, *gradients))


def test_batch_norm_has_the_same_bits_every_time():
    x, scale, bias, dy = norm_case(300)
    f = jax.jit(
        lambda x: jax.vjp(
            lambda *a: native.batch_norm(1e-5, True, *a, jnp.ones(5))[0], x, scale, bias
        )[1](dy)
    )
    first = [np.asarray(a) for a in f(x)]
    for _ in range(10):
        assert all(np.array_equal(a, b) for a, b in zip(f(x), first, strict=True))


def in_a_new_process(**environment: str) -> str:
    code = (
        "import jax.numpy as jnp; from flaxmed.models import native, layers\n"
        "y = layers.conv2d(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), padding=1)\n"
        "assert float(y[0, 1, 1, 0]) == 9, y\n"
        "print(native.why_not())"
    )
    root = operations.__file__.rsplit("flaxmed", 1)[0]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_what_keeps_it_from_being_built_is_said_and_does_no_harm(tmp_path):
    fresh = {"XDG_CACHE_HOME": str(tmp_path)}
    assert in_a_new_process(FLAXMED_NATIVE="0") == "switched off by FLAXMED_NATIVE=0"
    assert in_a_new_process(PATH="", CXX="") == "no C++ compiler (c++, g++, clang++) on the path"
    assert "absent-compiler" in in_a_new_process(CXX="absent-compiler", **fresh)
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho cannot compile today >&2\nexit 1\n")
    broken.chmod(0o755)
    assert "cannot compile today" in in_a_new_process(CXX=str(broken), **fresh)
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.slow
def test_it_is_built_once_and_a_folder_that_cannot_be_written_is_said(tmp_path):
    calls, counting = tmp_path / "calls", tmp_path / "counting"
    # Asked about the machine, slow to answer: both processes then find that nothing is built yet.
    counting.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) echo >>{calls};; *) sleep 2;; esac\nexec c++ "$@"\n'
    )
    counting.chmod(0o755)
    environment = {"XDG_CACHE_HOME": str(tmp_path), "CXX": str(counting)}
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(lambda _: in_a_new_process(**environment), range(2))) == {"None"}
    assert calls.read_text() == "\n"
    (library,) = tmp_path.rglob("*.so")
    before = library.stat()
    assert in_a_new_process(XDG_CACHE_HOME=str(tmp_path)) == "None"
    assert library.stat() == before
    assert list(library.parent.iterdir()) == [library]
    file = tmp_path / "file"
    file.write_text("")
    assert "file" in in_a_new_process(XDG_CACHE_HOME=str(file))


def test_every_form_is_called():
    """A table of names that the library does not have would only be found where it is used."""
    source = "".join(path.read_text() for path in native._SOURCES)
    for name in (*native._DENSE, *native._DEPTHWISE, native._SCALED, *native._NORM):
        assert f"XLA_FFI_DEFINE_HANDLER_SYMBOL({name}," in source
