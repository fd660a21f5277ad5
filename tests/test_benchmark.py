"""What `flaxmed bench` measures, prints and refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from flaxmed.benchmark import (
    Ceiling,
    Cost,
    Setting,
    ceiling,
    closing_lines,
    measure,
    measure_ceiling,
    ratios,
    table,
)
from flaxmed.benchmark.restart import time_compilation
from flaxmed.cli import main
from flaxmed.models import create_model, native
from flaxmed.training.memory import activation_bytes, kept_for_gradients
from flaxmed.types import InputError

COST = Cost(
    contestant="flaxmed",
    network="resnet18",
    parameters=10,
    multiply_adds=1_000_000,
    compile_seconds=1.5,
    train_seconds=(0.5, 0.4, 9.0),
    infer_seconds=(0.1, 0.1, 0.1),
    latency_seconds=tuple(np.linspace(0.001, 0.101, 101)),
    memory=2_000_000,
    activations=3_000_000,
    restart_seconds=0.25,
    restart_cached=True,
)


def test_rates_are_medians_and_shares_count_every_product():
    row = COST.to_dict(batch=10, ceiling=1e9)
    assert row["train_images_per_second"] == 20
    assert row["inference_images_per_second"] == 100
    assert row["latency_ms"] == {"p50": 51.0, "p99": 100.0}
    assert row["train_share_of_ceiling"] == pytest.approx(20 * 6e6 / 1e9)
    assert row["inference_share_of_ceiling"] == pytest.approx(100 * 2e6 / 1e9)
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_the_table_says_how_many_times_as_fast_flaxmed_is():
    ours = COST.to_dict(batch=10, ceiling=1e9)
    theirs = ours | {
        "contestant": "PyTorch eager",
        "train_images_per_second": 10.0,
        "latency_ms": {"p50": 102.0, "p99": 1.0},
        "memory_bytes": None,
    }
    lines = table([ours, theirs]).splitlines()
    own = "resnet18 flaxmed 20.0 100.0 51.0 1.5 0.2 2 3 12%"
    assert lines[2].split() == own.split()
    assert "10.0 (x2.00)" in lines[3]
    assert "102.0 (x2.00)" in lines[3]  # of two latencies the shorter is the faster
    assert lines[3].split()[-3:-1] == ["-", "3"]


def test_what_was_not_measured_is_none_and_a_dash():
    cost = dataclasses.replace(COST, infer_seconds=(), latency_seconds=(), restart_seconds=None)
    row = cost.to_dict(batch=10, ceiling=1e9)
    assert row["inference_images_per_second"] is None
    assert row["inference_share_of_ceiling"] is None
    assert row["latency_ms"] == {"p50": None, "p99": None}
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    cells = table([row]).splitlines()[2].split()
    assert cells == ["resnet18", "flaxmed", "20.0", "-", "-", "1.5", "-", "2", "3", "12%"]


def contestants(**ways):
    """Rows of one network: rates of training, of inference, and the median latency in ms."""
    ours = COST.to_dict(batch=10, ceiling=1e9)
    return [
        ours
        | {
            "contestant": name.replace("_", " "),
            "train_images_per_second": train,
            "inference_images_per_second": infer,
            "latency_ms": {"p50": p50, "p99": p50},
        }
        for name, (train, infer, p50) in ways.items()
    ]


def test_ratios_are_of_the_better_way_in_each_column():
    rows = contestants(
        flaxmed=(30.0, 90.0, 10.0), PyTorch_eager=(20.0, 100.0, 12.0), PyTorch_compile=(40, 60, 8.0)
    )
    assert ratios(rows) == {"resnet18": {"train": 0.75, "inference": 0.9, "latency": 0.8}}
    line = "resnet18: training x0.75, inference x0.90, latency x0.80 of the better PyTorch"
    assert closing_lines(rows) == [line]
    assert closing_lines(rows[:2]) == [
        "resnet18: training x1.50, inference x0.90, latency x1.20 of PyTorch eager"
    ]
    assert ratios(rows[:1]) == {}
    assert closing_lines(rows[:1]) == []


def test_each_network_stands_beside_its_own_rival():
    first = contestants(flaxmed=(30.0, 90.0, 10.0), PyTorch_eager=(20.0, 90.0, 10.0))
    second = [
        row | {"network": "xception"}
        for row in contestants(flaxmed=(10.0, 90.0, 10.0), PyTorch_eager=(20.0, 90.0, 10.0))
    ]
    rows = [first[0], second[0], first[1], second[1]]
    assert {name: r["train"] for name, r in ratios(rows).items()} == {
        "resnet18": 1.5,
        "xception": 0.5,
    }
    assert "20.0 (x0.50)" in table(rows).splitlines()[5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"dtype": "float64"}, "dtype must be float32 or bfloat16, got 'float64'"),
        ({"pytorch": ("fast",)}, "pytorch must be of eager, compile, got 'fast'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Setting(**options)


def test_an_unknown_network_is_refused():
    with pytest.raises(InputError, match="network must be one of resnet18"):
        measure("vgg", Setting())


def test_a_folder_that_is_not_there_is_refused_before_anything_is_measured(tmp_path, capsys):
    assert main(["bench", "--json", str(tmp_path / "absent" / "bench.json")]) == 2
    assert "absent: no such folder" in capsys.readouterr().err


def test_the_ceiling_is_plausible_and_says_what_reached_it():
    found = measure_ceiling(side=256)
    assert 1e8 < found.rate < 1e16
    assert found.by in ("matrix product, XLA", "1x1 convolution, C++")


@pytest.mark.parametrize(
    ("serves", "seconds", "expected"),
    [
        (True, (2e-3, 1e-3), Ceiling(2 * 256**2 * 14**2 / 1e-3, "1x1 convolution, C++")),
        (True, (1e-3, 1e3), Ceiling(2 * 64**3 / 1e-3, "matrix product, XLA")),
        (False, (1e3, 1e-9), Ceiling(2 * 64**3 / 1e3, "matrix product, XLA")),
    ],
)
def test_the_ceiling_is_the_better_of_those_that_can_be(monkeypatch, serves, seconds, expected):
    times = iter(seconds)
    monkeypatch.setattr(ceiling, "best_seconds", lambda *_: next(times))
    monkeypatch.setattr(native, "serves", lambda dtype: serves)
    assert measure_ceiling(side=64) == expected


def test_the_ceilings_convolution_does_every_operation_that_is_counted(monkeypatch):
    """1x1: no product with zeros of a padding, and no algorithm that does with fewer."""
    made = []
    monkeypatch.setattr(native, "serves", lambda dtype: True)
    monkeypatch.setattr(
        ceiling,
        "best_seconds",
        lambda f, *operands: made.append(jax.eval_shape(f, *operands)) or 1.0,
    )
    found = measure_ceiling(side=1024)
    product, images = made
    assert images.shape == (84, 14, 14, 256)
    assert product.shape == (1024, 1024)
    assert found.rate == max(2 * 1024**3, 2 * images.size * 256)


# ------------------------------------------------------------------------- what is kept for later


def test_activations_are_what_a_hand_count_finds():
    """sin(x w1) @ w2, squared: its sine for w2, its cosine for w1, and what the square is of."""
    n, d, h, o = 5, 3, 7, 2

    def loss(params, x, y):
        w1, w2 = params
        return ((jnp.sin(x @ w1) @ w2 - y) ** 2).sum()

    params = jnp.ones((d, h)), jnp.ones((h, o))
    assert activation_bytes(loss, params, jnp.ones((n, d)), jnp.ones((n, o))) == 4 * (
        2 * n * h + n * o
    )


def test_activations_count_an_array_once_and_arguments_never():
    def loss(p, x):
        y = jnp.exp(x * p)  # kept for its own derivative and for the two products
        return (y * x).sum() + (y * y).sum()

    p, x = jnp.ones(()), jnp.ones((10, 2))
    assert activation_bytes(loss, p, x) == 4 * 20


def test_activations_are_those_that_jax_names():
    """On a network, beside what jax's own debugging aid lists."""
    from jax._src.ad_checkpoint import saved_residuals

    def loss(params, x):
        for w in params:
            x = jax.nn.relu(x @ w)
            x = x / (1 + jnp.abs(x).mean(axis=0))
        return jax.nn.logsumexp(x, axis=-1).mean()

    params, x = [jnp.ones((6, 6))] * 3, jnp.ones((11, 6))
    named = saved_residuals(lambda params: loss(params, x), params)
    kept = [aval for aval, source in named if "argument" not in source and "const" not in source]
    kept = [aval for aval in kept if aval.shape]  # a literal is part of the program
    assert activation_bytes(loss, params, x) == sum(a.size * a.dtype.itemsize for a in kept)


@pytest.mark.parametrize("network", ["resnet18", "densenet121"])
def test_activations_grow_by_the_same_for_every_image(network):
    model = nnx.eval_shape(lambda: create_model(network, 8, stem="small", rngs=nnx.Rngs(0)))

    def kept(n):
        shapes = {"images": ((n, 16, 16, 3), jnp.uint8)}
        shapes |= {"labels": ((n,), jnp.int32), "mask": ((n,), bool)}
        return kept_for_gradients(
            model, {name: jax.ShapeDtypeStruct(*one) for name, one in shapes.items()}
        )

    two, four, six = map(kept, (2, 4, 6))
    assert six - four == four - two
    # What does not grow, the statistics of the channels, is little beside one image's maps.
    assert 0 <= two - (four - two) < 0.2 * two
    # At the least what every normalisation is given: of ResNet-18 5 maps of 64 channels, and so on.
    assert four - two >= 2 * 4 * 5 * 16 * 16 * 64


def programs(scale=3.0):
    """Compiles a small program, and nothing beside it, anew at each call."""
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    return lambda: jax.jit(lambda x: jnp.sin(x) @ x * scale).lower(x).compile()


@contextlib.contextmanager
def everything_is_cached(yes):
    """Whether jax also keeps programs that compile within a second."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 0.0 if yes else 60.0)
    try:
        yield
    finally:
        jax.config.update(name, before)


@contextlib.contextmanager
def noted_events():
    events = []

    def note(event, **_):
        events.append(event.rsplit("/", 1)[-1])

    jax.monitoring.register_event_listener(note)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_listener(note)


def test_the_second_start_finds_the_program_and_the_first_does_not():
    with everything_is_cached(True), noted_events() as events:
        compiled = programs()
        compiled()  # now it is in this process's own cache, which the first start must not see
        del events[:]
        found = time_compilation(compiled)
    events = [event for event in events if event in ("cache_hits", "cache_misses")]
    assert events == ["cache_misses", "cache_hits"]
    assert found.cached
    np.testing.assert_allclose(found.program(jnp.ones((8, 8))), 8 * 3 * np.sin(1), rtol=1e-5)


def test_a_program_that_training_would_not_keep_is_compiled_anew():
    with everything_is_cached(False):
        found = time_compilation(programs(4.0))
    assert not found.cached
    assert min(found.seconds, found.restart_seconds) > 0


@contextlib.contextmanager
def cache_in(folder):
    """A cache on disk of this process alone: the tests' own is shared by processes."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


def test_the_process_keeps_its_own_cache(tmp_path):
    def kept():
        return set(tmp_path.iterdir())

    with cache_in(tmp_path), everything_is_cached(True):
        names = [name for name in jax.config.values if "cache" in name]
        before = {name: jax.config.values[name] for name in names}
        programs(5.0)()  # opens it
        there = kept()
        assert there
        time_compilation(programs(6.0))
        assert kept() == there  # nothing is added by what is timed
        programs(7.0)()
        assert kept() > there  # and it is used again
        with pytest.raises(ZeroDivisionError):
            time_compilation(lambda: 1 / 0)
        assert {name: jax.config.values[name] for name in names} == before


# ------------------------------------------------------------------------------------ the command


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_every_timing(tmp_path, capsys):
    out = tmp_path / "bench.json"
    words = ["bench", "--models", "resnet18", "--size", "8", "--batch", "4", "--rounds", "2"]
    assert main([*words, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "resnet18" in printed
    assert "GFLOP/s" in printed
    assert "of PyTorch" not in printed
    found = json.loads(out.read_text())
    assert found["setting"]["batch"] == 4
    assert found["convolutions"] == "C++"
    (row,) = found["rows"]
    assert len(row["train_seconds"]) == len(row["inference_seconds"]) == 2
    assert row["train_images_per_second"] > 0
    assert row["memory_bytes"] > row["activation_bytes"] / 4 > 0
    assert row["restart_seconds"] > 0
    assert row["peak_bytes"] is None  # a CPU
    assert found["ceiling_by"] in printed
    assert found["ratios"] == {}


def torch_or_skip():
    oracle = pytest.importorskip("oracles.torch_reference")
    try:
        oracle.import_packages()
    except ImportError as error:
        pytest.skip(f"the reference torch cannot be imported: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet18", "densenet121", "xception"])
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_pytorchs_network_is_the_same_one(network, stem):
    """Its parameters and multiply-adds are ours; that it also computes the same, others hold."""
    torch_or_skip()
    from flaxmed.benchmark.jax_network import JaxNetwork
    from flaxmed.benchmark.pytorch import PyTorchNetwork

    setting = Setting(size=40, stem=stem, batch=2)
    theirs = PyTorchNetwork(network, setting, "eager")
    assert theirs.parameters == JaxNetwork(network, setting).parameters
    theirs.train_step()
    theirs.infer(1)


@pytest.mark.slow
def test_the_command_says_how_flaxmed_stands_beside_pytorch(tmp_path, capsys):
    torch_or_skip()
    out = tmp_path / "bench.json"
    words = ["bench", "--models", "resnet18", "--size", "8", "--batch", "4", "--rounds", "1"]
    assert main([*words, "--pytorch", "eager", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [row["contestant"] for row in found["rows"]] == ["flaxmed", "PyTorch eager"]
    assert found["ratios"] == ratios(found["rows"])
    assert all(value > 0 for value in found["ratios"]["resnet18"].values())
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("resnet18: training x")
    assert last.endswith("of PyTorch eager")
