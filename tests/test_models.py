"""The three networks: sizes, shapes, modes, dtypes and refusals. The oracles prove the values."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxmed.models import (
    DenseNet121,
    ResNet18,
    Xception,
    checks,
    create_model,
    layers,
    list_models,
    minimum_size,
    xception,
)
from flaxmed.models.densenet import DENSENET121, DenseNetConfig
from flaxmed.models.initializers import variance_scaling
from flaxmed.models.layers import BatchNorm
from flaxmed.models.resnet import RESNET18, ResNetConfig
from flaxmed.models.xception import TIMM, XceptionConfig
from flaxmed.types import InputError

# The same code with few channels, for tests that must run and not only be traced.
TINY = {
    ResNet18: ResNetConfig(stage_sizes=(1, 2, 1, 1), widths=(8, 8, 12, 16), bn=RESNET18.bn),
    DenseNet121: DenseNetConfig(
        stage_sizes=(2, 1, 1, 2), growth=4, bottleneck=2, stem_width=8, bn=DENSENET121.bn
    ),
    Xception: XceptionConfig(
        stem_widths=(4, 8),
        entry_widths=(8, 12, 16),
        middle_blocks=1,
        exit_widths=(16, 20, 24),
        pool_padding="SAME",
        bn=xception.KERAS.bn,
        conv_init=xception.KERAS.conv_init,
        linear_init=xception.KERAS.linear_init,
    ),
}
NETWORKS = list(TINY)


def tiny(network, *, seed: int = 0, num_classes: int = 3, stem: str = "small", **options):
    """A tiny network whose norms have random parameters and statistics, so that each is felt."""
    model = network(
        num_classes,
        stem=stem,
        config=options.pop("config", TINY[network]),
        rngs=nnx.Rngs(seed),
        **options,
    )
    rng = np.random.default_rng(seed)
    for _, norm in nnx.iter_modules(model):
        if isinstance(norm, BatchNorm):
            for variable, low, high in (
                (norm.scale, 0.5, 2.0),
                (norm.bias, -1.0, 1.0),
                (norm.mean, -1.0, 1.0),
                (norm.var, 0.5, 2.0),
            ):
                values = rng.uniform(low, high, variable[...].shape)
                variable[...] = jnp.asarray(values, variable[...].dtype)
    return model


# XLA spends most of these tests compiling; what it makes of the networks is not in question here.
QUICK = {"xla_backend_optimization_level": 0}


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def _run(graphdef, method: str, state, *args):
    model = nnx.merge(graphdef, state)
    return getattr(model, method)(*args), nnx.state(model)


def call(model, *args, method: str = "__call__"):
    """A compiled call, which moves the statistics of a training model as a plain one does."""
    graphdef, state = nnx.split(model)
    y, state = _run(graphdef, method, state, *args)
    nnx.update(model, state)
    return y


def images(n: int, size: int, channels: int = 3, dtype="float32") -> jax.Array:
    shape = (n, size, size, channels)
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), dtype)


def count(model, kind) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, kind)))


def abstract(network, *args, **options):
    """The network's shapes alone."""
    return nnx.eval_shape(lambda: network(*args, rngs=nnx.Rngs(0), **options))


def map_shapes(network, size: int, channels: int = 3, **options) -> dict[str, tuple[int, ...]]:
    """The shape of every named map, without computing one."""

    def features():
        model = network(2, in_channels=channels, rngs=nnx.Rngs(0), **options)
        return model.features(jnp.zeros((1, size, size, channels)))

    return {name: leaf.shape[1:] for name, leaf in jax.eval_shape(features).items()}


# --- Size -----------------------------------------------------------------------------------------

PARAMETERS = [
    # torchvision's and Keras's published counts, then each by formula.
    (ResNet18, "imagenet", 1000, 3, 11_689_512),
    (ResNet18, "imagenet", 9, 3, 11_181_129),
    (ResNet18, "imagenet", 14, 1, 11_177_422),
    (ResNet18, "imagenet", 2, 1, 11_171_266),
    # MedMNIST's ResNet-18 for 28 px.
    (ResNet18, "small", 9, 3, 11_173_449),
    (ResNet18, "small", 2, 1, 11_168_706),
    (DenseNet121, "imagenet", 1000, 3, 7_978_856),
    (DenseNet121, "imagenet", 9, 3, 6_963_081),
    (DenseNet121, "imagenet", 14, 1, 6_961_934),
    (DenseNet121, "imagenet", 2, 1, 6_949_634),
    # torchxrayvision's.
    (DenseNet121, "imagenet", 18, 1, 6_966_034),
    # 7x7 becomes 3x3: 40 weights less per input channel and stem channel (64).
    (DenseNet121, "small", 9, 3, 6_963_081 - 40 * 3 * 64),
    (Xception, "imagenet", 1000, 3, 22_855_952),
    (Xception, "imagenet", 9, 3, 20_825_393),
    (Xception, "imagenet", 14, 1, 20_835_062),
    (Xception, "imagenet", 2, 1, 20_810_474),
    (Xception, "small", 9, 3, 20_825_393),
]


@pytest.mark.parametrize(("network", "stem", "classes", "channels", "expected"), PARAMETERS)
def test_parameter_count(network, stem, classes, channels, expected):
    model = abstract(network, classes, in_channels=channels, stem=stem)
    assert count(model, nnx.Param) == expected


@pytest.mark.parametrize(
    ("network", "without_head", "running_values", "total"),
    [
        (ResNet18, 11_176_512, 9_600, 11_699_112),
        (DenseNet121, 6_953_856, 83_648, 8_062_504),
        (Xception, 20_806_952, 54_528, 22_910_480),
    ],
)
def test_head_and_running_values(network, without_head, running_values, total):
    model = abstract(network, 1000)
    trainable = count(model, nnx.Param)
    assert trainable - count(model.classifier, nnx.Param) == without_head
    assert count(model, nnx.BatchStat) == running_values
    assert trainable + running_values == total


def test_both_conventions_of_xception_have_one_shape():
    keras, timm = (abstract(Xception, 5, config=c) for c in (xception.KERAS, xception.TIMM))
    shapes = [jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(m))) for m in (keras, timm)]
    assert shapes[0] == shapes[1]


# --- Maps -----------------------------------------------------------------------------------------

XCEPTION_CHANNELS = [64, 128, 256, 728] + [728] * 8 + [1024, 1536, 2048, 2048]
XCEPTION_NAMES = [
    "stem",
    *(f"entry{i}" for i in (1, 2, 3)),
    *(f"middle{i}" for i in range(1, 9)),
    *("exit1", "exit2", "exit3", "final"),
]


def xception_maps(stem: int, first: int, second: int, third: int, last: int):
    sides = [stem, first, second, third] + [third] * 8 + [last] * 4
    return {
        name: (side, side, channels)
        for name, side, channels in zip(XCEPTION_NAMES, sides, XCEPTION_CHANNELS, strict=True)
    }


def resnet_maps(*sides: int):
    channels = (64, 64, 128, 256, 512, 512)
    names = ("stem", "stage1", "stage2", "stage3", "stage4", "final")
    return {
        name: (side, side, width) for name, side, width in zip(names, sides, channels, strict=True)
    }


def densenet_maps(first: int, second: int, third: int, fourth: int):
    sides = (first, first, second, second, third, third, fourth, fourth, fourth)
    channels = (64, 256, 128, 512, 256, 1024, 512, 1024, 1024)
    names = ("stem", "stage1", "transition1", "stage2", "transition2", "stage3", "transition3")
    return {
        name: (side, side, width)
        for name, side, width in zip((*names, "stage4", "final"), sides, channels, strict=True)
    }


@pytest.mark.parametrize(
    ("network", "size", "options", "expected"),
    [
        (ResNet18, 224, {}, resnet_maps(56, 56, 28, 14, 7, 7)),
        (ResNet18, 28, {"stem": "small"}, resnet_maps(28, 28, 14, 7, 4, 4)),
        (DenseNet121, 224, {}, densenet_maps(56, 28, 14, 7)),
        (DenseNet121, 28, {"stem": "small"}, densenet_maps(28, 14, 7, 3)),
        (Xception, 299, {}, xception_maps(147, 74, 37, 19, 10)),
        (Xception, 299, {"config": xception.TIMM}, xception_maps(147, 74, 37, 19, 10)),
        (Xception, 28, {"stem": "small"}, xception_maps(28, 14, 7, 4, 2)),
    ],
)
def test_named_maps(network, size, options, expected):
    shapes = map_shapes(network, size, **options)
    assert shapes == expected
    assert list(shapes) == list(expected)  # in the order of the computation, through jit as well


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("network", NETWORKS)
def test_minimum_size(network, stem):
    smallest = network.minimum_size(stem)
    shapes = list(map_shapes(network, smallest, stem=stem, config=TINY[network]).values())
    # The map before the last halving has two pixels, and the one after it at least one.
    assert shapes[-1][0] == 1
    assert [side for side, _, _ in shapes if side > 1][-1] in (2, 3)
    with pytest.raises(
        InputError,
        match=f'{network.__name__} with stem "{stem}" needs images of at least '
        f"{smallest}x{smallest} pixels, got {smallest - 1}x{smallest - 1}",
    ):
        map_shapes(network, smallest - 1, stem=stem)


def test_minimum_sizes_by_name():
    sizes = {
        (name, stem): minimum_size(name, stem)
        for name in list_models()
        for stem in ("imagenet", "small")
    }
    assert sizes == {
        ("resnet18", "imagenet"): 17,
        ("resnet18", "small"): 5,
        ("densenet121", "imagenet"): 29,  # torchvision's DenseNet121_Weights: min_size (29, 29)
        ("densenet121", "small"): 8,
        ("xception", "imagenet"): 23,
        ("xception", "small"): 9,
    }


# --- Modes ----------------------------------------------------------------------------------------


def statistics(model):
    return jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


@pytest.mark.parametrize("network", NETWORKS)
def test_evaluates_when_fresh_and_trains_when_told(network):
    model, x = tiny(network), images(4, 16)
    before = statistics(model)
    logits = call(model, x)
    assert logits.shape == (4, 3)
    jax.tree.map(np.testing.assert_array_equal, before, statistics(model))
    # In evaluation mode each image is judged by itself.
    np.testing.assert_allclose(call(model, x[:2]), logits[:2], rtol=1e-4, atol=1e-5)

    model.train()
    assert not np.allclose(call(model, x), logits, rtol=1e-2)
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), before, statistics(model))
    assert all(jax.tree.leaves(moved))

    model.eval()
    after = statistics(model)
    call(model, x)
    jax.tree.map(np.testing.assert_array_equal, after, statistics(model))


@pytest.mark.parametrize("network", NETWORKS)
def test_views_share_the_weights(network):
    model = tiny(network)
    view = nnx.view(model, use_running_average=False)
    before = statistics(model)
    call(view, images(4, 16))
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), before, statistics(model))
    assert all(jax.tree.leaves(moved))
    norms = [m for _, m in nnx.iter_modules(model) if isinstance(m, BatchNorm)]
    assert all(norm.use_running_average for norm in norms)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_padding_rows_change_nothing(network):
    with jax.enable_x64(True):
        x = images(5, 16, dtype="float64")
        mask = jnp.asarray([True, True, False, True, False])
        padded, without = (tiny(network, dtype=jnp.float64) for _ in range(2))
        padded.train(), without.train()
        logits = call(padded, jnp.where(mask[:, None, None, None], x, 7.0), mask)
        expected = call(without, x[mask])
        np.testing.assert_allclose(logits[mask], expected, rtol=1e-9, atol=1e-11)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12),
            statistics(padded),
            statistics(without),
        )


@pytest.mark.parametrize("network", NETWORKS)
def test_head_of_the_final_map_gives_the_logits(network):
    model, x = tiny(network), images(4, 16)
    maps = call(model, x, method="features")
    assert next(iter(maps)) == "stem"
    assert list(maps)[-1] == "final"
    np.testing.assert_allclose(model.head(maps["final"]), call(model, x), rtol=1e-5, atol=1e-6)


def test_nnx_jit():
    model, x = tiny(ResNet18), images(4, 16)
    model.train()
    before = statistics(model)
    logits = nnx.jit(lambda model, x: model(x))(model, x)
    assert logits.shape == (4, 3)
    assert not np.array_equal(before["stem"]["norm"]["mean"], model.stem.norm.mean[...])


# --- Dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_bfloat16(network):
    narrow, wide, x = tiny(network, dtype=jnp.bfloat16), tiny(network), images(4, 16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(narrow))} == {jnp.dtype("float32")}
    maps = call(narrow, x, method="features")
    assert {m.dtype for m in maps.values()} == {jnp.dtype("bfloat16")}
    logits = narrow.head(maps["final"])
    assert logits.dtype == jnp.float32
    expected = call(wide, x)
    assert np.linalg.norm(logits - expected) < 0.1 * np.linalg.norm(expected)


@pytest.mark.parametrize("network", NETWORKS)
def test_float64_throughout(network):
    def gradients(model, x):
        def loss(model):
            return jnp.sum(model(x) ** 2)

        return nnx.grad(loss)(model)

    with jax.enable_x64(True):
        model, x = tiny(network, dtype=jnp.float64), images(2, 16, dtype="float64")
        model.train()
        program = str(jax.make_jaxpr(lambda x: gradients(nnx.clone(model), x))(x))
        assert "f64" in program
        assert "f32" not in program
        state = jax.tree.leaves(nnx.state(model))
        assert {leaf.dtype for leaf in state} == {jnp.dtype("float64")}


@pytest.mark.parametrize(
    ("network", "stem"),
    [
        (ResNet18, "imagenet"),
        (DenseNet121, "small"),
        (Xception, "small"),
        pytest.param(ResNet18, "small", marks=pytest.mark.slow),
        pytest.param(DenseNet121, "imagenet", marks=pytest.mark.slow),
        pytest.param(Xception, "imagenet", marks=pytest.mark.slow),
    ],
)
def test_lowerings_agree(network, stem):
    """The whole network and every gradient, on this backend's lowering and on plain XLA."""
    with jax.enable_x64(True):
        model = tiny(network, stem=stem, dtype=jnp.float64)
        model.train()
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        x = images(3, 36, dtype="float64")

        def loss(params, x):
            model = nnx.merge(graphdef, params, rest, copy=True)
            logits = model(x)
            return jnp.sum(jnp.sin(logits)), logits

        def run():
            # A new function each time: jit would keep the first lowering.
            step = jax.jit(
                lambda params, x: jax.value_and_grad(loss, has_aux=True)(params, x),
                compiler_options=QUICK,
            )
            (_, logits), gradients = step(params, x)
            return logits, nnx.to_pure_dict(gradients)

        ours = run()
        with layers.lowering("xla"):
            plain = run()

        def close(a, b):
            assert np.linalg.norm(a - b) <= 1e-9 * np.linalg.norm(b) + 1e-12

        jax.tree.map(close, ours, plain)


# --- Initial values -------------------------------------------------------------------------------


def test_initial_values_of_resnet():
    model = ResNet18(100, rngs=nnx.Rngs(0))
    kernel = np.asarray(model.stage4[0].conv1.kernel[...])  # 3x3, 256 to 512
    assert abs(kernel.std() / math.sqrt(2 / (9 * 512)) - 1) < 0.01
    assert np.abs(kernel).max() > 4 * kernel.std()  # normal, not truncated at two deviations
    bound = 1 / math.sqrt(512)
    for values in (model.classifier.kernel[...], model.classifier.bias[...]):
        assert 0.9 * bound < float(jnp.abs(values).max()) <= bound


def test_initial_values_of_medmnist_resnet():
    model = ResNet18(9, stem="small", rngs=nnx.Rngs(0))
    for kernel, fan_in in (
        (model.stem.conv.kernel, 9 * 3),
        (model.stage3[1].conv2.kernel, 9 * 256),
        (model.stage4[0].shortcut.conv.kernel, 256),
    ):
        bound = 1 / math.sqrt(fan_in)  # torch.nn.Conv2d
        assert 0.98 * bound < float(jnp.abs(kernel[...]).max()) <= bound
        assert abs(float(kernel[...].std()) / (bound / math.sqrt(3)) - 1) < 0.05


def test_initial_values_of_densenet():
    model = DenseNet121(100, rngs=nnx.Rngs(0))
    kernel = np.asarray(model.stage4[15].conv2.kernel[...])  # 3x3, 128 to 32
    assert abs(kernel.std() / math.sqrt(2 / (9 * 128)) - 1) < 0.02
    assert np.abs(kernel).max() > 3.5 * kernel.std()
    bound = 1 / math.sqrt(1024)
    assert 0.99 * bound < float(jnp.abs(model.classifier.kernel[...]).max()) <= bound
    assert not model.classifier.bias[...].any()


def test_initial_values_of_timms_xception():
    """timm: kaiming_normal, fan_out, of every convolution; torch's own draw of the head."""
    model = Xception(10, config=TIMM, rngs=nnx.Rngs(0))
    pointwise = np.asarray(model.middle1.sep1.conv.pointwise.kernel[...])
    assert abs(pointwise.std() / math.sqrt(2 / 728) - 1) < 0.01
    depthwise = np.asarray(model.middle1.sep1.conv.depthwise.kernel[...])
    assert abs(depthwise.std() / math.sqrt(2 / (9 * 728)) - 1) < 0.05
    for values in (model.classifier.kernel, model.classifier.bias):
        assert 0 < float(jnp.abs(values[...]).max()) <= 1 / math.sqrt(2048)


def test_initial_values_of_xception():
    model = Xception(100, rngs=nnx.Rngs(0))
    conv = model.middle1.sep1.conv
    for kernel, fans in (
        (conv.depthwise.kernel, 9 * 728 + 9),
        (conv.pointwise.kernel, 728 + 728),
        (model.stem.conv1.kernel, 9 * 3 + 9 * 32),
        (model.classifier.kernel, 2048 + 100),
    ):
        bound = math.sqrt(6 / fans)
        assert 0.98 * bound < float(jnp.abs(kernel[...]).max()) <= bound
    assert not model.classifier.bias[...].any()


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
def test_variance_scaling_is_that_of_jax(mode, distribution):
    shape, key = (3, 3, 64, 256), jax.random.key(0)  # two and a quarter chunks
    ours = variance_scaling(1.5, mode, distribution)(key, shape)
    theirs = jax.nn.initializers.variance_scaling(1.5, mode, distribution)(key, shape)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    quantiles = np.linspace(0.01, 0.99, 25)
    a, b = (np.quantile(values, quantiles) for values in (ours, theirs))
    np.testing.assert_allclose(a, b, atol=0.01 * float(theirs.std()) * 2)
    assert np.unique(ours).size > 0.98 * ours.size  # no chunk is drawn twice


@pytest.mark.parametrize("network", NETWORKS)
def test_initial_norms_and_seeds(network):
    def make(seed):
        return network(2, config=TINY[network], rngs=nnx.Rngs(seed))

    model = make(0)
    for _, norm in nnx.iter_modules(model):
        if isinstance(norm, BatchNorm):
            assert (norm.scale[...] == 1).all()
            assert (norm.var[...] == 1).all()
            assert not norm.bias[...].any()
            assert not norm.mean[...].any()
    first, again, other = (jax.tree.leaves(nnx.state(m)) for m in (model, make(0), make(1)))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not all((a == b).all() for a, b in zip(first, other, strict=True))


def test_initial_values_do_not_depend_on_tracing():
    def make():
        return ResNet18(2, stem="small", rngs=nnx.Rngs(0), config=TINY[ResNet18])

    eager, traced = (jax.tree.leaves(nnx.state(f())) for f in (make, nnx.jit(make)))
    for a, b in zip(eager, traced, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


# --- The two Xceptions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "equal"),
    [(71, True), (75, False)],  # maps of 33, 17, 9, 5; of 35, 18, 9, 5
)
def test_pools_differ_on_even_maps_only(size, equal):
    same, one = (
        tiny(
            Xception,
            stem="imagenet",
            config=dataclasses.replace(TINY[Xception], pool_padding=padding),
        )
        for padding in ("SAME", 1)
    )
    x = images(1, size)
    a, b = (call(model, x) for model in (same, one))
    assert np.allclose(a, b, rtol=1e-5, atol=1e-6) == equal


def test_conventions_are_the_published_ones():
    assert xception.KERAS.bn == layers.BatchNormConfig(momentum=0.99, epsilon=1e-3, unbiased=False)
    assert xception.TIMM.bn == layers.BatchNormConfig(momentum=0.9, epsilon=1e-5, unbiased=True)
    assert (xception.KERAS.pool_padding, xception.TIMM.pool_padding) == ("SAME", 1)
    assert abstract(Xception, 2).config == xception.KERAS


# --- By name, and refusals ------------------------------------------------------------------------


def test_create_model():
    assert list_models() == ["resnet18", "densenet121", "xception"]
    for name, network in zip(list_models(), NETWORKS, strict=True):
        model = abstract(functools.partial(create_model, name), 4, in_channels=1, stem="small")
        assert type(model) is network
        assert (model.num_classes, model.in_channels, model.stem_name) == (4, 1, "small")


def test_unknown_names():
    known = "choose one of resnet18, densenet121, xception"
    with pytest.raises(InputError, match=f"unknown model 'resnet50': {known}"):
        create_model("resnet50", 2, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=f"unknown model 'xception41': {known}"):
        minimum_size("xception41", "small")
    stem = 'stem must be "imagenet" or "small", got \'tiny\''
    with pytest.raises(InputError, match=stem):
        create_model("resnet18", 2, stem="tiny", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=stem):
        minimum_size("resnet18", "tiny")
    with pytest.raises(InputError, match="imagenet: no such weights; expected a file, a reposi"):
        create_model("resnet18", 2, weights="imagenet", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="resnet18: num_classes is needed, unless weights say"):
        create_model("resnet18", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="unknown variant 'timm'; choose one of torchvision"):
        create_model("resnet18", 2, variant="timm", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="num_classes must be at least 1, got 0"):
        create_model("resnet18", 0, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="in_channels must be at least 1, got 0"):
        create_model("xception", 2, in_channels=0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("network", NETWORKS)
def test_unfit_images(network):
    name = network.__name__
    grey, colour = (tiny(network, in_channels=c) for c in (1, 3))
    with pytest.raises(InputError, match=f"{name} expects 1 channel, got 3"):
        grey(jnp.zeros((1, 28, 28, 3)))
    with pytest.raises(InputError, match=f"{name} expects 3 channels, got 1"):
        colour(jnp.zeros((1, 28, 28, 1)))
    with pytest.raises(InputError, match=r"needs images of at least \dx\d pixels, got 28x4"):
        colour(jnp.zeros((1, 28, 4, 3)))
    with pytest.raises(InputError, match=r"normalised floating-point images, got uint8: normalise"):
        colour(jnp.zeros((1, 28, 28, 3), jnp.uint8))
    with pytest.raises(ValueError):  # what a caller without this package's names would catch
        colour(jnp.zeros((1, 28, 28, 1)))


def test_images_without_a_batch_axis():
    # Called below the annotations, which the test runner enforces and an installation does not.
    with pytest.raises(
        InputError, match=r"expects images of shape \[N, H, W, C\], got \[28, 28, 3\]"
    ):
        checks.check_images(
            jnp.zeros((28, 28, 3)), network="ResNet18", stem="small", in_channels=3, minimum=5
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "remat"), [((), True), (("stage1", 1), False), (("transition1",), False)], ids=str
)
def test_dense_blocks_compute_moments_once(frozen, remat, monkeypatch):
    """As where every norm takes those of its whole input, also where some norms are frozen."""
    with jax.enable_x64(True):
        images = jnp.asarray(np.random.default_rng(0).normal(size=(5, 16, 16, 3)))
        mask = jnp.asarray([True, True, False, True, True])
        asked = []

        def gradients(shared):
            model = tiny(DenseNet121, dtype=jnp.float64, remat=remat)
            model.train()
            if frozen:
                part = getattr(model, frozen[0])
                (part.norm if len(frozen) == 1 else part[frozen[1]].norm1).eval()
            graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
            pure = nnx.to_pure_dict(stats)

            def loss(params):
                model = nnx.merge(graphdef, params, pure)
                logits = model(images, mask)
                moved = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
                return jnp.sin(3 * logits).sum(), moved

            with monkeypatch.context() as patch:
                moments = BatchNorm.moments

                def ask(norm, x, mask):
                    asked.append(x.shape[-1])
                    return moments(norm, x, mask) if shared else None

                patch.setattr(BatchNorm, "moments", ask)
                return jax.jit(jax.grad(loss, has_aux=True))(nnx.to_pure_dict(params))

        once, anew = jax.tree.leaves(gradients(True)), jax.tree.leaves(gradients(False))
        assert len(asked) == 2 * (4 + sum(TINY[DenseNet121].stage_sizes))
        for a, b in zip(once, anew, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
