"""What one call of a compiled program is: a step, many steps, micro-batches, several seeds."""

import dataclasses
import itertools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import TINY, assert_same_run, config, fit, weights

import flaxmed
from flaxmed.data.phantom import load_phantom
from flaxmed.models import create_model
from flaxmed.models.densenet import DENSENET121, DenseNet
from flaxmed.models.resnet import ResNet
from flaxmed.models.xception import KERAS, Xception
from flaxmed.training import batches, group, loop, seeds, train_seeds
from flaxmed.training.memory import kept_for_gradients
from flaxmed.training.progress import Interrupted, Progress
from flaxmed.training.sharding import make_mesh
from flaxmed.training.stacked import default_way, make_seed_mesh, stack, stacked_step, take
from flaxmed.training.step import (
    compile_training,
    init_state,
    make_step_function,
    make_train_step,
)
from flaxmed.types import InputError, Preprocessing, RunError, Task

pytestmark = pytest.mark.usefixtures("tiny_network")
SETTINGS = dict(task=Task.MULTICLASS, preprocessing=Preprocessing())


def tiny_model(seed=0, **options):
    return ResNet(3, config=TINY, rngs=nnx.Rngs(seed), **options)


def a_batch(n, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "images": jnp.asarray(rng.integers(0, 256, (n, 32, 32, 3), np.uint8)),
        "labels": jnp.asarray(rng.integers(0, 3, n)),
        "rows": jnp.arange(n),
        "mask": jnp.ones(n, bool),
        "epoch": jnp.int32(0),
    }


def assert_close(one, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


# Many steps in one call


@given(st.integers(0, 60), st.integers(1, 20), st.data())
def test_calls_cover_every_step_once_and_end_with_the_epoch(start, per_epoch, draw):
    most = draw.draw(st.integers(1, per_epoch))
    calls = list(itertools.islice(batches.call_lengths(start, per_epoch, most), 40))
    steps = [step for first, count in calls for step in range(first, first + count)]
    assert steps == list(range(start, start + len(steps)))
    for first, count in calls:
        assert count in (1, most)
        assert first // per_epoch == (first + count - 1) // per_epoch


def test_a_call_is_one_step_on_a_cpu_and_elsewhere_by_the_size_of_a_batch(monkeypatch):
    split = load_phantom(size=32, n_train=96, n_val=8, n_test=8).train
    settings = config(batch_size=8)  # 12 steps an epoch
    assert batches.steps_per_call(settings, split) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert batches.steps_per_call(settings, split) == 12
    monkeypatch.setattr(batches, "PIXELS_PER_CALL", 7 * 8 * 32 * 32)
    assert batches.steps_per_call(settings, split) == 6  # of 4 to 7, what divides 12 best
    monkeypatch.setattr(batches, "PIXELS_PER_CALL", 100)
    assert batches.steps_per_call(settings, split) == 1
    assert batches.steps_per_call(config(batch_size=8, steps_per_call=5), split) == 5
    assert batches.steps_per_call(config(batch_size=8, fetch="streamed"), split) == 1


@pytest.mark.slow
def test_many_steps_in_one_call_are_the_same_steps(data, tmp_path):
    with jax.enable_x64(True):
        one = fit(data, tmp_path / "one", dtype="float64")
        # four steps an epoch: three in a call, and the last alone
        three = fit(data, tmp_path / "three", dtype="float64", steps_per_call=3)
    assert_close(weights(one), weights(three), rtol=1e-9, atol=1e-12)
    for a, b in zip(one.history, three.history, strict=True):
        assert a == pytest.approx(b, rel=1e-9)


@pytest.mark.slow
def test_a_run_of_many_steps_a_call_stops_and_goes_on(data, tmp_path, monkeypatch):
    whole = fit(data, tmp_path / "whole", steps_per_call=2)
    real = Progress.advance

    def advance(self, count):
        real(self, count)
        if self.done == 27 + 16:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="SIGTERM at step 6"):
        patch.setattr(Progress, "advance", advance)
        fit(data, tmp_path / "cut", steps_per_call=2)
    assert_same_run(whole, fit(data, tmp_path / "cut", steps_per_call=2))


@pytest.mark.slow
def test_a_split_that_does_not_fit_is_streamed_and_the_run_says_so(
    data, tmp_path, monkeypatch, capsys
):
    resident = flaxmed.train(config(epochs=1), data, out=tmp_path / "resident")
    assert "training images: on the device, 0.0 MB" in capsys.readouterr().err
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 27 * 32 * 32 - 1)
    streamed = flaxmed.train(config(epochs=1), data, out=tmp_path / "streamed")
    said = capsys.readouterr().err
    assert "training images: streamed, since 0.0 MB are more than the 0 MB" in said
    assert (resident.summary["fetch"], streamed.summary["fetch"]) == ("resident", "streamed")
    assert_same_run(resident, streamed)


def test_a_device_that_tells_its_memory_gives_a_quarter(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 80 * 10**9}

    assert batches.resident_limit() == batches.RESIDENT_BYTES
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert batches.resident_limit() == 20 * 10**9


# Micro-batches


def step_of(model, batch, steps=1, **settings):
    optimizer = optax.sgd(0.1)
    step = make_train_step(model, optimizer, **SETTINGS, **settings)
    state = init_state(model, optimizer)
    for _ in range(steps):
        state, _ = step(state, batch)
    return state


def test_equal_micro_batches_make_the_update_of_one_of_them():
    batch = a_batch(4)
    twice = {n: v if n == "epoch" else jnp.repeat(v, 2, axis=0) for n, v in batch.items()}
    once = step_of(tiny_model(), batch)
    accumulated = step_of(tiny_model(), twice, accumulate=2)
    assert_close(accumulated.params, once.params, rtol=1e-4, atol=1e-6)
    assert_close(accumulated.sums["loss"], 2 * once.sums["loss"], rtol=1e-6)
    assert accumulated.sums["count"] == 8
    # the running statistics move once per micro-batch: 0.9 and 0.81 of the old value stay
    old, new, moved = (
        state.batch_stats["stem"]["norm"]["mean"]
        for state in (init_state(tiny_model(), optax.sgd(0.1)), once, accumulated)
    )
    assert_close(moved - old, 1.9 * (new - old), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_micro_batches_count_each_image_alike_however_padded():
    # three real images in two micro-batches of two: the gradient is a mean over three images, not
    # over two means
    batch = a_batch(4) | {"mask": jnp.array([True, True, True, False])}
    model = tiny_model()
    state = step_of(model, batch, accumulate=2)
    parts = [{n: v if n == "epoch" else v[i::2] for n, v in batch.items()} for i in range(2)]
    before = init_state(tiny_model(), optax.sgd(0.1))
    moves, stats = [], None
    for part in parts:
        optimizer = optax.sgd(0.1)
        start = init_state(tiny_model(), optimizer)
        if stats is not None:
            start = dataclasses.replace(start, batch_stats=stats)
        after, _ = make_train_step(tiny_model(), optimizer, **SETTINGS)(start, part)
        moves.append(jax.tree.map(lambda a, b: a - b, after.params, before.params))
        stats = after.batch_stats
    mean = jax.tree.map(lambda b, x, y: b + (2 * x + y) / 3, before.params, *moves)
    assert_close(state.params, mean, rtol=1e-4, atol=1e-6)
    assert_close(state.batch_stats, stats, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_run_with_micro_batches_goes_on_and_pads_over_devices(data, tmp_path):
    # 8 images in 3 micro-batches on 2 devices: padded to 12
    run = fit(data, tmp_path / "run", epochs=1, accumulate=3)
    assert np.isfinite(run.history[0]["train_loss"])
    with pytest.raises(InputError, match="accumulate: expected a number at least 1 and at most 8"):
        config(accumulate=9)


def test_micro_batches_too_small_to_normalise_are_refused_before_anything_is_written(
    data, tmp_path, monkeypatch
):
    # a strided layer makes one pixel of 2x2 images, and a micro-batch has one image
    monkeypatch.setattr(loop, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
    small = {f"{s}_images": np.zeros((4, 2, 2), np.uint8) for s in ("train", "val", "test")}
    small |= {f"{s}_labels": np.array([0, 1, 0, 1]) for s in ("train", "val", "test")}
    with pytest.raises(InputError, match="cannot train on one value per channel"):
        fit(small, tmp_path / "run", batch_size=4, accumulate=4, stem="small")
    assert not (tmp_path / "run").exists()


# Rematerialisation


SMALL_DENSENET = dataclasses.replace(DENSENET121, stage_sizes=(4, 4), growth=8, stem_width=16)


@pytest.mark.parametrize("network", ["resnet", "densenet", "xception"])
def test_rematerialisation_changes_memory_and_nothing_else(network):
    def build(remat):
        options = dict(stem="small", remat=remat, rngs=nnx.Rngs(0))
        if network == "densenet":
            return DenseNet(3, config=SMALL_DENSENET, **options)
        return ResNet(3, **options) if network == "resnet" else small_xception(**options)

    batch = a_batch(16)
    found = {}
    for remat in (False, True):
        model, optimizer = build(remat), optax.sgd(0.1)
        step = make_train_step(model, optimizer, **SETTINGS)
        state = init_state(model, optimizer)
        program = step.lower(state, batch).compile()
        memory = program.memory_analysis().temp_size_in_bytes
        found[remat] = step(state, batch)[0], memory, kept_for_gradients(model, batch)
    (plain, much, kept), (again, less, kept_less) = found[False], found[True]
    assert_close(again.params, plain.params, rtol=1e-5, atol=1e-6)
    assert_close(again.batch_stats, plain.batch_stats, rtol=1e-5, atol=1e-6)
    assert less < 0.9 * much
    assert kept_less < 0.85 * kept


def small_xception(**options):
    small = dataclasses.replace(
        KERAS,
        stem_widths=(8, 16),
        entry_widths=(16, 16),
        middle_blocks=2,
        exit_widths=(16, 16, 16),
    )
    return Xception(3, config=small, **options)


@pytest.mark.slow
def test_a_run_can_rematerialise(data, tmp_path):
    plain = fit(data, tmp_path / "plain", epochs=1)
    again = fit(data, tmp_path / "remat", epochs=1, remat=True)
    assert_close(weights(again), weights(plain), rtol=1e-4, atol=1e-5)
    assert again.summary["peak_memory_bytes"] > 10**7


# Several seeds


def together(data, out, which=(3, 11), **changes):
    return train_seeds(config(**changes), which, data, out=out, progress=False, together=True)


@pytest.mark.parametrize(
    "changes",
    [{"ema_decay": 0.9}, pytest.param({"steps_per_call": 3}, marks=pytest.mark.slow)],
    ids=["one step, averaged", "three steps"],
)
def test_each_of_several_seeds_is_its_own_single_run(data, tmp_path, changes):
    with jax.enable_x64(True):
        runs = together(data, tmp_path / "all", dtype="float64", **changes)
        single = {**changes, "steps_per_call": None, "dtype": "float64"}
        alone = [fit(data, tmp_path / str(seed), seed=seed, **single) for seed in (3, 11)]
    assert [run.dir.name for run in runs] == ["resnet18-seed3", "resnet18-seed11"]
    for one, other in zip(runs, alone, strict=True):
        assert one.config.seed == other.config.seed
        assert one.summary["trained_together"] == [3, 11]
        assert_close(weights(one), weights(other), rtol=1e-9, atol=1e-12)
        for a, b in zip(one.history, other.history, strict=True):
            assert a == pytest.approx(b, rel=1e-9)
        np.testing.assert_allclose(
            one.predictions["test"].logits, other.predictions["test"].logits, rtol=1e-9
        )
    assert weights(runs[0])["params"]["stem"]["conv"]["kernel"].flat[0] != pytest.approx(
        weights(runs[1])["params"]["stem"]["conv"]["kernel"].flat[0]
    )


@pytest.mark.parametrize("way", ["vmap", "map", "unrolled"])
@pytest.mark.parametrize("count", [2, 3])
def test_every_way_to_stack_computes_each_seed_alone(way, count):
    # over two devices two seeds are one each; three stay on one device
    optimizer = optax.sgd(0.1)
    models = [tiny_model(seed) for seed in range(count)]
    states = [init_state(model, optimizer) for model in models]
    parts = [a_batch(4, seed) for seed in range(count)]
    function = make_step_function(models[0], optimizer, lowering="jax", **SETTINGS)
    mesh = make_seed_mesh(count)
    assert mesh.devices.size == (2 if count == 2 else 1)
    step = jax.jit(stacked_step(function, range(count), mesh, way=way))
    batch = stack([{n: v for n, v in part.items() if n != "epoch"} for part in parts])
    # through the host: to cut the arrays out where they are, devices would wait for one another
    after, losses = jax.device_get(step(stack(states), batch | {"epoch": jnp.int32(0)}))
    for i, (state, part) in enumerate(zip(states, parts, strict=True)):
        own, loss = jax.jit(function)(state, part, i)
        assert_close(take(after, i).params, own.params, rtol=1e-4, atol=1e-6)
        assert losses[i] == pytest.approx(float(loss), rel=1e-5)


def test_on_a_gpu_seeds_are_written_out_and_overlap(monkeypatch):
    assert default_way() == "vmap"
    compiled = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "jit", lambda f, **options: compiled.append(options) or f)
    assert default_way() == "unrolled"
    compile_training(len, overlap=True)
    compile_training(len)
    (overlapping, plain) = (options["compiler_options"] for options in compiled)
    monkeypatch.undo()
    assert overlapping["xla_gpu_command_buffer_scheduling_mode"] == "CONCURRENT"
    assert plain is None
    # XLA knows these options and their values, here too, where nothing comes of them
    assert jax.jit(lambda x: x + 1, compiler_options=overlapping)(1) == 2
    unknown = overlapping | {"xla_gpu_command_buffer_scheduling_mode": "SIDEWAYS"}
    with pytest.raises(jax.errors.JaxRuntimeError, match="SIDEWAYS"):
        jax.jit(lambda x: x + 1, compiler_options=unknown)(1)


@pytest.mark.slow
def test_on_a_cpu_seeds_follow_one_another_and_the_run_says_so(data, tmp_path, capsys):
    runs = train_seeds(config(epochs=1), [0, 1], data, out=tmp_path)
    said = capsys.readouterr().err
    assert said.startswith("resnet18  seeds one after another: stacked on one device")
    assert_same_run(runs[1], fit(data, tmp_path / "alone", epochs=1, seed=1))


@pytest.mark.slow
def test_seeds_that_stopped_together_go_on_together(data, tmp_path, monkeypatch):
    whole = together(data, tmp_path / "whole")
    real = Progress.advance

    def advance(self, count):
        real(self, count)
        if self.done == 2 * (27 + 8):
            os.kill(os.getpid(), signal.SIGINT)

    with (
        monkeypatch.context() as patch,
        pytest.raises(Interrupted, match="go on with the same command, or call"),
    ):
        patch.setattr(Progress, "advance", advance)
        together(data, tmp_path / "cut")
    resumed = together(data, tmp_path / "cut")
    for one, other in zip(whole, resumed, strict=True):
        assert_same_run(one, other)


@pytest.mark.slow
def test_seeds_at_different_steps_follow_one_another(data, tmp_path, capsys):
    fit(data, tmp_path / "resnet18-seed3", seed=3)
    runs = train_seeds(config(), (3, 11), data, out=tmp_path, together=True)
    assert (
        "seeds one after another: they were stopped at different steps" in capsys.readouterr().err
    )
    assert [run.summary["trained_together"] for run in runs] == [[3], [11]]


@pytest.mark.slow
def test_a_seed_that_stopped_early_is_left_as_it_was(data, tmp_path, monkeypatch):
    # the scores of the two in turn: the first is best at once, the second gets better and better
    scores = iter([0.9, 0.5, 0.8, 0.6, 0.7, 0.8, 0.9])
    real = group.score
    monkeypatch.setattr(group, "score", lambda made: {**real(made), "auc": next(scores)})
    runs = together(data, tmp_path, epochs=4, early_stopping=1)
    assert [row["val_auc"] for row in runs[0].history] == [0.9, 0.8]
    assert [row["val_auc"] for row in runs[1].history] == [0.5, 0.6, 0.7, 0.8]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_its_seed(data, tmp_path, monkeypatch):
    real = group.stacked_step

    def spoiled(function, seeds, mesh):
        step = real(function, seeds, mesh)

        def bad(state, batch):
            state, losses = step(state, batch)
            bad_step = state.bad_step.at[1].set(jnp.where(state.step[1] >= 2, 1, -1))
            return dataclasses.replace(state, bad_step=bad_step), losses.at[1].set(jnp.nan)

        return bad

    monkeypatch.setattr(group, "stacked_step", spoiled)
    with pytest.raises(RunError, match="loss of resnet18 seed 11 is not finite at step 2"):
        together(data, tmp_path)


@pytest.mark.parametrize("given", [(), (1, 1)])
def test_seeds_must_be_there_and_differ(data, given):
    with pytest.raises(InputError, match="seeds: expected one or more, all different, got"):
        train_seeds(config(), given, data)


def test_the_memory_of_a_device_decides_how_many_seeds_share_it(data, monkeypatch):
    settings = config()
    model = create_model("resnet18", 3, in_channels=1, stem="small", rngs=nnx.Rngs(0))
    need = seeds.seed_bytes(model, (8, 32, 32))
    assert need > 4 * 11_000_000 * 4

    class Device:
        def __init__(self, limit):
            self.limit = limit

        def memory_stats(self):
            return {"bytes_limit": self.limit} if self.limit else None

    monkeypatch.setattr(seeds, "seed_bytes", lambda *_, **__: 10**9)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    for limit, expected in ((None, 8), (16 * 10**9, 8), (6 * 10**9, 4), (10**8, 1)):
        monkeypatch.setattr(jax, "local_devices", lambda limit=limit: [Device(limit)])
        count, line = seeds.seeds_that_fit(settings, data, 8)
        assert count == expected
        assert (line is None) == (expected == 8)
        assert line is None or line.startswith(
            f"{expected} seeds at a time: one needs about 1.0 GB"
        )


def test_every_accelerator_gets_a_seed(data, tmp_path, monkeypatch):
    runs = {tmp_path / str(seed): config(seed=seed) for seed in range(5)}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for devices, expected, said in ((1, 1, "one after another"), (2, 2, "one on"), (8, 5, None)):
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        count, line = seeds.seeds_at_once(runs, data, None)
        assert count == expected
        assert (line is None) == (said is None)
        assert said is None or said in line
