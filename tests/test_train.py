"""The training loop: what it writes, resumes, refuses. A tiny network keeps it quick."""

import dataclasses
import io
import json
import os
import re
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from sklearn.utils.class_weight import compute_class_weight
from tiny_runs import assert_same_run, config, fit, weights

import flaxmed
from flaxmed.data.phantom import load_phantom
from flaxmed.evaluation.metrics import score
from flaxmed.evaluation.worst import read_thumbnails, worst_images
from flaxmed.models.layers import BatchNorm
from flaxmed.models.resnet import RESNET18
from flaxmed.training import Interrupted, OptimizerConfig, TrainConfig
from flaxmed.training import group as group_module
from flaxmed.training import loop as loop_module
from flaxmed.training import run as run_module
from flaxmed.training.checkpoint import restore
from flaxmed.training.optimizer import make_optimizer
from flaxmed.training.progress import Progress
from flaxmed.training.record import last_folder
from flaxmed.training.step import init_state
from flaxmed.types import InputError, Preprocessing, RunError, Task

pytestmark = pytest.mark.usefixtures("tiny_network")


def test_a_run_writes_what_a_reader_needs(data, tmp_path):
    run = fit(data, tmp_path / "run")
    rows = [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows == run.history
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    saved = json.loads((run.dir / "config.json").read_text())
    assert saved["versions"]["jax"] == jax.__version__
    dataset = json.loads((run.dir / "dataset.json").read_text())
    assert dataset["splits"]["train"]["images"] == 27
    assert run.summary["best_val_auc"] == max(row["val_auc"] for row in rows)
    timing = (run.dir / "timing.jsonl").read_text().splitlines()
    assert len(timing) == 3
    for name, split in (("val", data.val), ("test", data.test)):
        p = run.predictions[name]
        np.testing.assert_array_equal(p.ids, split.ids)
        np.testing.assert_array_equal(p.labels, split.labels)
        assert len(set(p.image_sha256)) == len(split)
        ideal = flaxmed.Predictions.load(run.dir / "predictions" / f"ideal_{name}.npz")
        np.testing.assert_allclose(ideal.probabilities, data.ideal[name], rtol=1e-9)
    kept, worst = read_thumbnails(run.dir / "thumbnails.npz"), worst_images(run.predictions["test"])
    np.testing.assert_array_equal(kept.ids, data.test.ids[worst])
    np.testing.assert_array_equal(kept.images, data.test.images[worst])


def test_the_batch_norm_momentum_is_the_networks_own_unless_set(data):
    for setting, expected in ((None, RESNET18.bn.momentum), (0.5, 0.5)):
        model = run_module.build_model(config(batch_norm_momentum=setting), data.info, (32, 32))
        norms = [m for _, m in nnx.iter_modules(model) if isinstance(m, BatchNorm)]
        assert len(norms) > 5
        assert {norm.config.momentum for norm in norms} == {expected}


@pytest.mark.slow
def test_the_model_comes_back_as_it_was(data, tmp_path):
    run = fit(data, tmp_path / "run")
    model = flaxmed.load_model(run.dir)
    # the run predicted on two devices, this on one: the same numbers to rounding
    np.testing.assert_allclose(
        flaxmed.predict(model, data.test.images),
        run.predictions["test"].probabilities,
        atol=1e-6,
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        weights(run),
        jax.tree.map(np.asarray, run_module.init_weights(model)),
    )
    assert model.info == data.info
    # evaluation mode: a second look moves no statistics
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    flaxmed.predict(model, data.val.images)
    after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.slow
def test_the_best_epoch_is_kept_not_the_last(data, tmp_path, monkeypatch):
    scores = iter([0.6, 0.9, 0.7])
    real = group_module.score
    monkeypatch.setattr(
        group_module, "score", lambda predictions: {**real(predictions), "auc": next(scores)}
    )
    run = fit(data, tmp_path / "three")
    assert run.summary["best_epoch"] == 1
    scores = iter([0.6, 0.9])
    monkeypatch.setattr(
        group_module, "score", lambda predictions: {**real(predictions), "auc": next(scores)}
    )
    # a constant rate makes the first two epochs of both runs the same
    constant = OptimizerConfig(schedule="constant", warmup_epochs=0)
    two = fit(data, tmp_path / "two", epochs=2, optimizer=constant)
    scores = iter([0.6, 0.9, 0.7])
    three = fit(data, tmp_path / "again", optimizer=constant)
    jax.tree.map(np.testing.assert_array_equal, weights(two), weights(three))


@pytest.mark.slow
def test_early_stopping_counts_epochs_since_the_best(data, tmp_path, monkeypatch):
    scores = iter([0.6, 0.9, 0.7, 0.8, 0.95])
    real = group_module.score
    monkeypatch.setattr(
        group_module, "score", lambda predictions: {**real(predictions), "auc": next(scores)}
    )
    run = fit(data, tmp_path / "run", epochs=5, early_stopping=2)
    assert [row["val_auc"] for row in run.history] == [0.6, 0.9, 0.7, 0.8]
    assert run.summary["best_epoch"] == 1


def test_streamed_and_resident_end_in_the_same_bits(data, tmp_path):
    resident = fit(data, tmp_path / "resident", fetch="resident")
    streamed = fit(data, tmp_path / "streamed", fetch="streamed")
    assert resident.summary["fetch"] == "resident"
    assert streamed.summary["fetch"] == "streamed"
    assert_same_run(resident, streamed)


@pytest.mark.parametrize(
    ("at", "number", "changes"),
    [(8, signal.SIGINT, {}), (54, signal.SIGTERM, {"ema_decay": 0.9})],
    ids=["first epoch", "last epoch, averaged"],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    data, tmp_path, monkeypatch, at, number, changes
):
    whole = fit(data, tmp_path / "whole", **changes)
    real = Progress.advance

    def advance(self, count):
        real(self, count)
        if self.done >= at > self.done - count:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(Progress, "advance", advance)
        fit(data, tmp_path / "cut", **changes)
    assert f"same call, out='{tmp_path / 'cut'}'" in str(caught.value)
    assert caught.value.signal == number
    assert not (tmp_path / "cut" / "run.json").exists()
    resumed = fit(data, tmp_path / "cut", **changes)
    assert_same_run(whole, resumed)


def test_averaged_weights_are_evaluated_kept_and_predicted_with(data, tmp_path):
    plain = fit(data, tmp_path / "plain")
    run = fit(data, tmp_path / "averaged", ema_decay=0.9)
    for one, other in zip(plain.history, run.history, strict=True):
        assert one["train_loss"] == other["train_loss"]  # training itself is untouched
        assert one["val_loss"] != other["val_loss"]
    best = run.history[run.summary["best_epoch"]]
    model = run_module.build_model(config(), data.info, (32, 32))
    optimizer = make_optimizer(config().optimizer, epochs=3, steps_per_epoch=4)
    state, averaged = init_state(model, optimizer), init_state(model, optimizer, averaged=True)
    kept = restore(last_folder(run.dir), best["step"], averaged)
    jax.tree.map(np.testing.assert_array_equal, weights(run), kept.ema)
    moved = restore(last_folder(plain.dir), best["step"], state)
    jax.tree.map(np.testing.assert_array_equal, kept.params, moved.params)
    assert score(run.predictions["val"])["loss"] == pytest.approx(best["val_loss"], rel=1e-6)


def test_the_line_that_says_how_to_resume_can_be_pasted():
    line = loop_module.how_to_resume(Path("my runs/a"), "data", own_data=False)
    assert line == "go on with: flaxmed train --resume 'my runs/a' --data-dir data"


def test_recipes_have_folders_of_their_own(data):
    info = dataclasses.replace(data.info, name="breastmnist")
    configs = [
        TrainConfig.from_recipe(recipe, size=size)
        for recipe, size in (("default", None), ("medmnist", None), ("default", 64))
    ]
    assert [loop_module.default_dir(config, info).as_posix() for config in configs] == [
        "runs/breastmnist/resnet18-seed0",
        "runs/breastmnist/resnet18-medmnist-seed0",
        "runs/breastmnist_64/resnet18-seed0",
    ]


@pytest.mark.slow
def test_progress_says_pace_time_left_loss_and_auc(data, tmp_path, capsys, monkeypatch):
    flaxmed.train(config(epochs=2), data, out=tmp_path / "lines")
    where, first, second = capsys.readouterr().err.splitlines()
    assert where == "resnet18 seed 0  training images: on the device, 0.0 MB"
    number = r"\d+\.\d{4}"
    assert re.fullmatch(
        rf"resnet18 seed 0  epoch   1/2  loss {number}  val loss {number}  val acc {number}  "
        rf"val AUC {number}  \d+ images/s  \d\d:\d\d left  best",
        first,
    )
    assert "epoch   2/2" in second
    assert "00:00 left" in second

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    flaxmed.train(config(epochs=2), data, out=tmp_path / "bar")
    last = terminal.getvalue().replace("\r", "\n").strip().splitlines()[-1]
    assert re.search(rf"seed 0: 100%.*54/54 .*img/s, loss={number}, val AUC={number}", last)


@pytest.mark.slow
def test_metrics_after_the_checkpoint_are_cut_and_computed_again(data, tmp_path, monkeypatch):
    whole = fit(data, tmp_path / "whole")

    def interrupt(self, count):
        self.done += count
        if self.done == 27 + 8:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Progress, "advance", interrupt)
        fit(data, tmp_path / "cut")
    # as if the run had been killed after writing a later row, and half of another
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 1, "step": 8, "val_loss": 0.1, "val_auc": 1.0}\n{"epoch": 2, "st')
    assert_same_run(whole, fit(data, tmp_path / "cut"))


def test_a_finished_run_is_read_back_not_trained_again(data, tmp_path, monkeypatch):
    first = fit(data, tmp_path / "run")
    monkeypatch.setattr(group_module, "make_step_function", None)
    assert_same_run(first, fit(data, tmp_path / "run"))


@pytest.mark.slow
def test_another_run_in_the_folder_is_refused_with_what_differs(data, tmp_path):
    fit(data, tmp_path / "run", epochs=1)
    with pytest.raises(
        InputError, match=r"run: holds another run, which differs in seed: 0, now 1"
    ):
        fit(data, tmp_path / "run", epochs=1, seed=1)
    other = load_phantom(size=32, n_train=27, n_val=21, n_test=18)
    with pytest.raises(InputError, match="holds a run on other data"):
        fit(other, tmp_path / "run", epochs=1)


def test_a_folder_with_other_files_is_refused_and_left_alone(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty and holds no run"):
        fit(data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used as output folder"):
        fit(data, tmp_path / "file" / "run")


@pytest.mark.slow
def test_a_non_finite_loss_stops_the_run_soon_and_with_its_step(tmp_path, monkeypatch):
    data = load_phantom(size=32, n_train=320, n_val=8, n_test=8)
    wild = OptimizerConfig(
        name="sgd", learning_rate=1e30, schedule="constant", warmup_epochs=0, clip_norm=None
    )
    steps, real = [], Progress.advance
    monkeypatch.setattr(
        Progress, "advance", lambda self, count: (steps.append(1), real(self, count))
    )
    # the first step is taken from good weights, the second from what it made of them
    with pytest.raises(RunError, match="not finite at step 2; try a lower learning rate"):
        fit(data, tmp_path / "run", optimizer=wild)
    assert 2 <= len(steps) <= 2 + loop_module.MAX_IN_FLIGHT + 1 < 40


def test_images_that_are_too_small_are_refused_before_anything_is_written(data, tmp_path):
    tiny = {f"{s}_images": np.zeros((4, 2, 2), np.uint8) for s in ("train", "val", "test")}
    labels = {f"{s}_labels": np.array([0, 1, 0, 1]) for s in ("train", "val", "test")}
    with pytest.raises(InputError, match="at least"):
        fit({**tiny, **labels}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def narrow(data):
    return {
        **{f"{s}_images": np.zeros((4, 40, 2), np.uint8) for s in ("train", "val", "test")},
        **{f"{s}_labels": np.array([0, 1, 0, 1]) for s in ("train", "val", "test")},
    }


@pytest.mark.parametrize(
    ("make", "changes", "line"),
    [
        (narrow, {"stem": "imagenet"}, "at least .* got 40x2"),
        (None, {"class_weights": (1.0, 2.0)}, "expected 3 numbers, one per class, got 2"),
        (None, {"preprocessing": Preprocessing((0.5, 0.5), (1.0, 1.0))}, "has 2 means"),
    ],
    ids=["narrow images", "class weights", "preprocessing"],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    data, tmp_path, make, changes, line
):
    with pytest.raises(InputError, match=line):
        fit(make(data) if make else data, tmp_path / "run", **changes)
    assert list(tmp_path.iterdir()) == []


def test_balanced_weights_are_scikit_learns_up_to_their_scale(data):
    ours = group_module.class_weights(config(class_weights="balanced"), data)
    labels = data.train.labels
    theirs = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    np.testing.assert_allclose(ours, theirs / theirs.mean(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multilabel", "ordinal"])
def test_other_tasks_train_too(data, tmp_path, task):
    rng = np.random.default_rng(0)
    arrays = {"task": task}
    for name, split in data.splits.items():
        shape = (len(split), 3) if task == "multilabel" else (len(split),)
        labels = rng.integers(0, 2 if task == "multilabel" else 3, shape)
        labels[:3] = np.eye(3) if task == "multilabel" else np.arange(3)
        arrays |= {f"{name}_images": split.images, f"{name}_labels": labels}
    run = fit(arrays, tmp_path / "run", epochs=1, class_weights="balanced")
    assert run.predictions["test"].task is Task(task)
    assert run.predictions["test"].logits.shape == (19, 3)


def test_balanced_weights_need_every_class(data, tmp_path):
    arrays = {}
    for name, split in data.splits.items():
        arrays |= {f"{name}_images": split.images, f"{name}_labels": split.labels.copy()}
    arrays["train_labels"] = np.where(arrays["train_labels"] == 1, 0, arrays["train_labels"])
    arrays |= {"classes": np.array(["a", "b", "c"]), "task": "multiclass"}
    with pytest.raises(InputError, match="class 'b' has no training image"):
        fit(arrays, tmp_path / "run", class_weights="balanced")
    with pytest.raises(InputError, match="expected 3 numbers, one per class, got 2"):
        fit(data, tmp_path / "other", class_weights=(1.0, 2.0))


def test_float64_is_asked_for_with_its_environment_variable(data, tmp_path):
    with pytest.raises(InputError, match="JAX_ENABLE_X64=1"):
        fit(data, tmp_path / "run", dtype="float64")


@pytest.mark.slow
def test_bfloat16_trains_and_predicts_in_float32(data, tmp_path):
    run = fit(data, tmp_path / "run", epochs=1, dtype="bfloat16")
    assert run.predictions["test"].logits.dtype == np.float32
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(weights(run)))


def test_a_named_setting_changes_from_where_the_run_is(data, tmp_path):
    begun = fit(data, tmp_path / "run")
    with pytest.raises(InputError, match=r"which differs in epochs: 3, now 4$"):
        fit(data, tmp_path / "run", epochs=4)
    longer = flaxmed.train(
        config(epochs=4), data, out=tmp_path / "run", progress=False, change=["epochs"]
    )
    assert len(longer.history) == 4
    assert longer.history[:3] == begun.history
    assert longer.config.epochs == 4
    said = json.loads((tmp_path / "run" / "config.json").read_text())
    assert said["changed"] == [{"epochs_done": 3, "settings": {"epochs": "3, now 4"}}]
    # that is the run's now: it goes on, and is read back, with these settings
    assert len(fit(data, tmp_path / "run", epochs=4).history) == 4
    slower = dataclasses.replace(config().optimizer, learning_rate=1e-5)
    flaxmed.train(
        config(epochs=5, optimizer=slower),
        data,
        out=tmp_path / "run",
        progress=False,
        change=["epochs", "optimizer"],
    )
    said = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [entry["epochs_done"] for entry in said["changed"]] == [3, 4]
    assert said["changed"][1]["settings"]["optimizer.learning_rate"] == "0.001, now 1e-05"
    with pytest.raises(InputError, match="5 epochs are done; expected as many or more"):
        flaxmed.train(config(epochs=4), data, out=tmp_path / "run", change=["epochs", "optimizer"])
    # what decides no result needs no name, and is kept for the next time
    fit(data, tmp_path / "run", epochs=5, optimizer=slower, fetch="streamed")
    said = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (said["fetch"], len(said["changed"])) == ("streamed", 2)
    assert (tmp_path / "run" / "run.json").exists()


def test_a_signal_in_the_last_validation_is_not_lost(data, tmp_path, monkeypatch):
    """The run comes to its end; what was to follow does not begin."""
    real = group_module.validate

    def validate(*args):
        if args[-1] == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(group_module, "validate", validate)
    with pytest.raises(Interrupted, match="SIGTERM: the run had come to its end; ") as caught:
        flaxmed.training.train_seeds(config(), [0, 1], data, out=tmp_path, progress=False)
    assert caught.value.signal == signal.SIGTERM
    assert (tmp_path / "resnet18-seed0" / "run.json").exists()
    assert not (tmp_path / "resnet18-seed1").exists()


def test_what_makes_another_run_does_not_change_though_named(data, tmp_path):
    fit(data, tmp_path / "run", epochs=1)
    before = (tmp_path / "run" / "config.json").read_bytes()
    for changes in (
        {"seed": 1},
        {"batch_size": 4},
        {"optimizer": OptimizerConfig(warmup_epochs=1, clip_norm=None)},
        {"optimizer": OptimizerConfig(warmup_epochs=1, name="sgd")},
    ):
        other, named = config(epochs=1, **changes), list(changes)
        with pytest.raises(InputError, match="these do not change in a run: "):
            flaxmed.train(other, data, out=tmp_path / "run", change=named)
        assert (tmp_path / "run" / "config.json").read_bytes() == before
