"""Runs that start from weights: what the weights decide, what is taken, what is written down."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import flaxmed
from flaxmed.data.phantom import load_phantom
from flaxmed.evaluation import evaluate_run
from flaxmed.evaluation.record import RunRecord
from flaxmed.models import create_model
from flaxmed.models.pretrained import LoadReport
from flaxmed.models.weights import open_weights, save_weights, weights_of
from flaxmed.training import FineTuneConfig, OptimizerConfig, TrainConfig, load_model
from flaxmed.training import start as start_module
from flaxmed.training.finetune import by_path
from flaxmed.training.run import build_model, init_weights
from flaxmed.training.start import describe, digest, load_start, settle
from flaxmed.types import DatasetInfo, InputError, Preprocessing, Task

IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def small():
    return load_phantom(size=32, n_train=12, n_val=8, n_test=8)


@pytest.fixture(scope="module")
def rgb_file(tmp_path_factory):
    """A ResNet-18 for colour images of five known classes, normalised as ImageNet's are."""
    model = create_model("resnet18", 5, rngs=nnx.Rngs(1))
    model.preprocessing = IMAGENET
    model.info = DatasetInfo("five", Task.MULTICLASS, tuple("abcde"), channels=3)
    rng = np.random.default_rng(0)
    statistics = nnx.state(model, nnx.BatchStat)
    drawn = nnx.to_pure_dict(statistics)
    drawn = _map(drawn, lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32))
    nnx.replace_by_pure_dict(statistics, drawn)
    nnx.update(model, statistics)
    path = tmp_path_factory.mktemp("weights") / "five.safetensors"
    save_weights(model, path, licence="cc-by-4.0")
    return path


def _map(tree, function):
    if isinstance(tree, dict):
        return {key: _map(value, function) for key, value in tree.items()}
    return function(tree)


def config(**changes):
    """All but the classifier is frozen: what the weights brought can be seen at the end."""
    usual = {
        "epochs": 1,
        "batch_size": 8,
        "finetune": FineTuneConfig(train_from="classifier"),
        "optimizer": OptimizerConfig(warmup_epochs=0),
    }
    return TrainConfig(**usual | changes)


@pytest.fixture(scope="module")
def tuned(small, rgb_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "run"
    return flaxmed.train(config(weights=str(rgb_file)), small, out=out, progress=False)


@pytest.mark.slow
def test_all_but_the_classifier_is_that_of_the_file(tuned, rgb_file):
    theirs, own = open_weights(rgb_file), weights_of(tuned.model)
    assert tuned.model.num_classes == 3
    same = {name for name in own.tensors if np.array_equal(own.tensors[name], theirs.tensors[name])}
    assert own.tensors.keys() - same == {"classifier.kernel", "classifier.bias"}


def test_the_weights_decide_what_was_left_open(tuned, small):
    """Grey images are repeated for a network whose channels are normalised differently."""
    settings = json.loads((tuned.dir / "config.json").read_text())
    assert settings["stem"] == "imagenet"  # at 32 px the usual would be small
    assert settings["variant"] == "torchvision"
    assert tuned.config.preprocessing == IMAGENET
    assert (small.info.channels, tuned.model.in_channels) == (1, 3)
    assert tuned.model.preprocessing == IMAGENET


def test_what_was_taken_is_written_down(tuned, rgb_file):
    said = json.loads((tuned.dir / "weights.json").read_text())
    assert said["source"] == str(rgb_file)
    assert said["sha256"] == digest(open_weights(rgb_file).tensors)
    assert said["licence"] == "cc-by-4.0"
    assert said["loaded"] == 100
    reason = "the file has 5 classes, the network 3"
    assert said["left_out"] == {"classifier.kernel": reason, "classifier.bias": reason}
    assert said["new"] == ["classifier.bias", "classifier.kernel"]
    assert tuned.summary["started_from"] == said


def test_a_run_that_is_under_way_needs_the_weights_no_more(small, rgb_file, tmp_path):
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(rgb_file.read_bytes())
    settings = config(weights=str(moved))
    run = flaxmed.train(settings, small, out=tmp_path / "run", progress=False)
    moved.unlink()
    (tmp_path / "run" / "run.json").unlink()  # as if it had been stopped in its last seconds
    again = flaxmed.train(settings, small, out=tmp_path / "run", progress=False)
    for name in ("val", "test"):
        np.testing.assert_array_equal(again.predictions[name].logits, run.predictions[name].logits)
    assert again.summary["started_from"] == run.summary["started_from"]
    loaded = load_model(tmp_path / "run")
    assert by_path(init_weights(loaded)).keys() == by_path(init_weights(run.model)).keys()
    with pytest.raises(InputError, match="no such weights"):
        flaxmed.train(settings, small, out=tmp_path / "other", progress=False)


def test_other_weights_of_the_same_name_are_noticed(small, rgb_file, tmp_path):
    """By a run that was begun, but has no checkpoint yet."""
    path, out = tmp_path / "w.safetensors", tmp_path / "run"
    path.write_bytes(rgb_file.read_bytes())
    flaxmed.train(config(weights=str(path)), small, out=out, progress=False)
    (out / "run.json").unlink()
    for checkpoint in (out / "checkpoints" / "last").iterdir():
        (checkpoint / "flaxmed.json").unlink(missing_ok=True)
        for file in checkpoint.rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
    other = create_model("resnet18", 5, rngs=nnx.Rngs(2))
    other.preprocessing = IMAGENET
    save_weights(other, path)
    with pytest.raises(InputError, match=r"weights.json: the run was begun from other weights"):
        flaxmed.train(config(weights=str(path)), small, out=out, progress=False)


def test_from_another_run_with_its_classifier(tuned, small, tmp_path, capsys):
    """Same classes: the head goes along. Nothing moves at a rate that rounds to nothing."""
    still = OptimizerConfig(learning_rate=1e-30, warmup_epochs=0, weight_decay=0)
    settings = config(weights=str(tuned.dir), optimizer=still)
    run = flaxmed.train(settings, small, out=tmp_path / "run")
    assert run.summary["started_from"]["new"] == []
    said = "the classifier is taken along: its classes are those of the data"
    assert said in capsys.readouterr().err
    np.testing.assert_array_equal(run.predictions["test"].logits, tuned.predictions["test"].logits)
    assert run.config.preprocessing == IMAGENET


def test_a_run_in_the_home_folder_is_found(tuned, monkeypatch):
    monkeypatch.setenv("HOME", str(tuned.dir.parent))
    assert start_module.open_start("~/run").kind.num_classes == 3


@pytest.mark.parametrize("change", [{"classes": ("x", "y", "z")}, {"task": Task.MULTILABEL}])
def test_other_classes_in_the_same_number_get_a_classifier_of_their_own(
    change, tuned, small, tmp_path
):
    """As do those that do not exclude one another: their logits mean something else."""
    other = dataclasses.replace(small, info=dataclasses.replace(small.info, **change))
    settled = settle(config(weights=str(tuned.dir)), other)
    model = build_model(settled, other.info, (32, 32))
    lines = load_start(model, settled, other.info, tmp_path)
    assert not any("taken along" in line for line in lines)
    said = json.loads((tmp_path / "weights.json").read_text())
    assert said["new"] == ["classifier.bias", "classifier.kernel"]


def test_where_nothing_says_how_images_were_normalised_it_is_said(small, tmp_path):
    """As of a library's file that is none of the published ones."""
    model = create_model("resnet18", 5, rngs=nnx.Rngs(1))
    save_weights(model, tmp_path / "theirs.safetensors", naming="torchvision")
    settings = settle(config(weights=str(tmp_path / "theirs.safetensors")), small)
    assert settings.preprocessing == Preprocessing((0.5,), (0.5,))
    network = build_model(settings, small.info, (32, 32))
    lines = load_start(network, settings, small.info, tmp_path)
    assert lines[-1].startswith("nothing says how the weights' images were normalised: mean 0.5")


def test_settings_have_the_last_word_and_it_is_said(rgb_file, small, tmp_path):
    own = Preprocessing((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    settings = settle(config(weights=str(rgb_file), preprocessing=own), small)
    assert settings.preprocessing == own
    network = build_model(settings, small.info, (32, 32))
    assert load_start(network, settings, small.info, tmp_path)[-1] == (
        "images are normalised with mean 0.1, 0.2, 0.3 and standard deviation 1, 1, 1, as set; "
        "the weights had mean 0.485, 0.456, 0.406 and standard deviation 0.229, 0.224, 0.225"
    )
    assert network.preprocessing == own
    assert settle(config(), small).preprocessing == Preprocessing((0.5,), (0.5,))


def test_of_process_0_others_learn_what_was_decided_and_nothing_else(rgb_file, small, monkeypatch):
    """Or settings that differ from process 0's would be lost before they are compared."""

    def of_process_0(action):
        return {**action(), "seed": 5, "epochs": 9, "variant": "torchvision"}

    monkeypatch.setattr(start_module, "first_does", of_process_0)
    settled = settle(config(weights=str(rgb_file)), small)
    assert (settled.seed, settled.epochs) == (0, 1)
    assert (settled.stem, settled.variant) == ("imagenet", "torchvision")
    assert settled.preprocessing == IMAGENET
    assert settle(config(seed=3), small).seed == 3


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": "densenet121"}, "weights of resnet18, not of densenet121"),
        ({"variant": "keras"}, "made for the variant 'torchvision', not 'keras'"),
        ({"stem": "small"}, 'made for stem="imagenet" .* use stem="imagenet"'),
        ({"weights": "no/such.safetensors"}, "no/such.safetensors: no such weights; expected"),
        ({"weights": "~nobody-here/w.pth"}, "~nobody-here/w.pth: no such weights; expected"),
    ],
    ids=["network", "variant", "stem", "file", "home of nobody"],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    rgb_file, small, tmp_path, changes, line
):
    settings = config(**{"weights": str(rgb_file)} | changes)
    with pytest.raises(InputError, match=line):
        flaxmed.train(settings, small, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=line):
        flaxmed.training.check_run(settings, small)


def test_a_tensor_too_many_is_said_before_anything_is_written(rgb_file, small, tmp_path):
    tensors = load_file(rgb_file) | {"stage9.kernel": np.zeros(3, np.float32)}
    with safe_open(rgb_file, "numpy") as file:
        save_file(tensors, tmp_path / "more.safetensors", metadata=file.metadata())
    settings = config(weights=str(tmp_path / "more.safetensors"))
    with pytest.raises(InputError, match=r"unexpected 1: stage9\.kernel"):
        flaxmed.train(settings, small, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_path_in_this_folder_is_no_more_told_than_any(small, rgb_file, tmp_path, monkeypatch):
    """Relative, it might be a repository's name."""
    monkeypatch.chdir(tmp_path)
    for source in ("ward7/mine.safetensors", str(rgb_file)):
        (tmp_path / source).parent.mkdir(exist_ok=True)
        (tmp_path / source).write_bytes(rgb_file.read_bytes())
        described = describe(open_weights(source), LoadReport((), {}, ()))
        record = RunRecord(settings={"weights": source}, facts={"started_from": described})
        name = source.rpartition("/")[2]
        assert record.start().startswith(f"Parameters began as those of {name} (licence")
        assert record.setting_rows() == [["weights", name]]
    hub = RunRecord(settings={"weights": "timm/resnet18.tv_in1k"})
    assert hub.setting_rows() == [["weights", "timm/resnet18.tv_in1k"]]


@pytest.mark.filterwarnings("ignore:Undefined")  # of eight images
def test_the_card_says_what_the_run_started_from(tuned, rgb_file):
    evaluate_run(tuned.dir)
    card = (tuned.dir / "MODEL_CARD.md").read_text()
    assert "Parameters began as those of five.safetensors (licence: cc-by-4.0; SHA-256" in card
    assert "new, at random: classifier.bias, classifier.kernel." in card
    assert str(rgb_file.parent) not in card
