"""The linear probe: the optimum of its problem, features computed once, a run like any other."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import flaxmed
from flaxmed.data.phantom import load_phantom
from flaxmed.evaluation import evaluate_run
from flaxmed.files import cache_dir
from flaxmed.inference import normalise, pooled_features, predict_logits
from flaxmed.models import create_model, list_models
from flaxmed.models.weights import save_weights, weights_of
from flaxmed.training import FineTuneConfig, TrainConfig, load_model
from flaxmed.training import probe as probe_module
from flaxmed.training.linear import fit_linear
from flaxmed.types import InputError, Preprocessing, RunError, Task, sigmoid, softmax

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def small():
    return load_phantom(size=32, n_train=60, n_val=30, n_test=20)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Random features, which tell classes apart as some features do."""
    model = create_model("resnet18", 3, in_channels=1, rngs=nnx.Rngs(1))
    model.preprocessing = Preprocessing((0.4,), (0.2,))
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    save_weights(model, path)
    return path


def config(start, **changes):
    usual = {"weights": str(start), "finetune": FineTuneConfig(linear_probe=True)}
    return TrainConfig(**usual | changes)


@pytest.fixture(scope="module")
def probed(small, start, tmp_path_factory):
    out = tmp_path_factory.mktemp("probed") / "run"
    return flaxmed.train(config(start), small, out=out, progress=False)


# ------------------------------------------------------------------------------- the problem


def problem(task, classes, n=80, d=7):
    features = RNG.normal(3.0, 2.0, (n, d)) * np.geomspace(0.01, 100, d)
    scores = features @ RNG.normal(size=(d, classes)) / np.geomspace(0.01, 100, d).mean()
    noisy = scores + RNG.normal(size=scores.shape) * scores.std()
    labels = noisy.argmax(axis=1) if task.exclusive else (noisy > noisy.mean(axis=0)).astype(int)
    return features, labels


@pytest.mark.parametrize(
    ("task", "classes"), [(Task.BINARY, 2), (Task.MULTICLASS, 4), (Task.MULTILABEL, 3)]
)
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_probabilities_are_scikit_learns(task, classes, strength):
    features, labels = problem(task, classes)
    solver = LogisticRegression(C=strength, tol=1e-10, max_iter=10000)
    solver = solver if task.exclusive else OneVsRestClassifier(solver)
    theirs = make_pipeline(StandardScaler(), solver).fit(features, labels)
    fit = fit_linear(features, labels, task, classes, strength)
    found = (softmax if task.exclusive else sigmoid)(fit.logits(features))
    np.testing.assert_allclose(found, theirs.predict_proba(features), atol=1e-4)


@pytest.mark.parametrize("task", [Task.MULTICLASS, Task.MULTILABEL])
def test_the_gradient_of_the_stated_problem_vanishes(task):
    """Weighted losses, plus the penalty on the coefficients of standardised features."""
    features, labels = problem(task, 3)
    weights, strength = RNG.uniform(0.2, 3.0, len(labels)), 0.3
    fit = fit_linear(features, labels, task, 3, strength, weights)
    logits, spread = fit.logits(features), features.std(axis=0)
    standard = (features - features.mean(axis=0)) / spread
    wanted = np.eye(3)[labels] if task.exclusive else labels
    off = (softmax if task.exclusive else sigmoid)(logits) - wanted
    gradient = standard.T @ (weights[:, None] * off) + fit.kernel * spread[:, None] / strength
    assert np.abs(gradient).max() < 1e-3 * np.abs(standard).sum(axis=0).max()
    assert np.abs((weights[:, None] * off).sum(axis=0)).max() < 1e-3 * weights.sum()


def test_a_class_without_images_is_unlikely_and_no_more():
    features, labels = problem(Task.MULTICLASS, 3)
    fit = fit_linear(features, labels, Task.MULTICLASS, 5, 1.0)
    shares = softmax(fit.logits(features)).mean(axis=0)
    assert np.all(shares[3:] < 0.05)
    assert np.all(shares[3:] > 1e-5)
    one = fit_linear(features, np.zeros(80, int), Task.MULTICLASS, 2, 1.0)
    assert np.all(one.logits(features).argmax(axis=1) == 0)
    never = fit_linear(features, np.zeros((80, 1), int), Task.MULTILABEL, 1, 1.0)
    np.testing.assert_allclose(sigmoid(never.logits(features)), 0.5 / 81)


# ------------------------------------------------------------------------------ the features


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("densenet121", 1024)])
def test_features_are_what_the_classifier_sees(name, width):
    model = create_model(name, 3, in_channels=1, stem="small", rngs=nnx.Rngs(0))
    images, own = RNG.integers(0, 256, (3, 32, 32, 1), np.uint8), Preprocessing((0.3,), (0.2,))
    features = pooled_features(model, images, preprocessing=own, batch_size=2)
    assert features.shape == (3, width)
    head = model.classifier
    logits = features @ head.kernel[...] + head.bias[...]
    expected = predict_logits(model, images, preprocessing=own)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    maps = model.features(normalise(jnp.asarray(images), own))["final"]
    np.testing.assert_allclose(features, maps.mean((1, 2)), atol=1e-4)


def test_features_are_computed_once(probed, small, start, tmp_path, monkeypatch, capsys):
    def never(*_, **__):
        raise AssertionError("computed again")

    with monkeypatch.context() as patched:
        patched.setattr(probe_module, "pooled_features", never)
        balanced = config(start, class_weights="balanced")
        again = flaxmed.train(balanced, small, out=tmp_path / "again")
    assert "read from" in capsys.readouterr().err
    assert again.predictions["test"].logits.shape == probed.predictions["test"].logits.shape


@pytest.mark.parametrize("harm", ["flipped", "truncated", "empty", "packed otherwise"])
def test_damaged_features_are_computed_again(probed, small, start, tmp_path, harm):
    for path in (cache_dir() / "features").glob("*.npz"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        kinds = {"flipped": content, "truncated": content[:500], "empty": b""}
        kinds["packed otherwise"] = bytearray(path.read_bytes())
        kinds["packed otherwise"][content.rindex(b"PK\1\2") + 10] = 99
        path.write_bytes(kinds[harm])
    again = flaxmed.train(config(start), small, out=tmp_path / "run", progress=False)
    for name in ("val", "test"):
        np.testing.assert_array_equal(
            again.predictions[name].logits, probed.predictions[name].logits
        )


def test_features_are_computed_of_what_is_fitted_on(small, start, tmp_path, monkeypatch):
    """The test images have no part in the fit: they are seen at the end, as after any run."""
    seen = []

    def counted(model, images, **options):
        seen.append(len(images))
        return pooled_features(model, images, **options)

    monkeypatch.setattr(probe_module, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(probe_module, "pooled_features", counted)
    flaxmed.train(config(start), small, out=tmp_path / "run", progress=False)
    assert seen == [len(small.train), len(small.val)]


def test_of_a_memory_map_a_block_is_read_at_once(small, monkeypatch):
    read = []

    class Map(np.ndarray):
        def __getitem__(self, rows):
            read.append(rows)
            return super().__getitem__(rows)

    whole = probe_module._digest_of_images(small.train.images, "key")
    monkeypatch.setattr(probe_module, "_BLOCK", 25)
    assert probe_module._digest_of_images(small.train.images.view(Map), "key") == whole
    assert read == [slice(0, 25), slice(25, 50), slice(50, 75)]


def test_features_that_cannot_be_kept_are_used_all_the_same(
    small, start, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(probe_module, "cache_dir", lambda: tmp_path / "file")
    run = flaxmed.train(config(start), small, out=tmp_path / "run")
    assert "features 60 x 512: computed\n" in capsys.readouterr().err
    assert run.summary["linear_probe"]["tried"]


def test_features_that_are_not_finite_end_the_run_in_one_line(small, start, tmp_path, monkeypatch):
    monkeypatch.setattr(probe_module, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(
        probe_module, "pooled_features", lambda *_, **__: np.full((60, 512), np.inf, np.float32)
    )
    with pytest.raises(RunError, match="features of the train images are not finite"):
        flaxmed.train(config(start), small, out=tmp_path / "run", progress=False)
    assert not list(tmp_path.glob("features/*"))


def test_other_features_have_other_places(small, start):
    """Of another network, preprocessing or images; another classifier changes nothing."""
    model = create_model("resnet18", 3, in_channels=1, rngs=nnx.Rngs(1))
    model.preprocessing = Preprocessing((0.4,), (0.2,))
    first = probe_module._key_of_network(model)
    model.classifier.bias.set_value(model.classifier.bias.get_value() + 1)
    assert probe_module._key_of_network(model) == first
    model.preprocessing = Preprocessing((0.5,), (0.2,))
    second = probe_module._key_of_network(model)
    model.stem.norm.mean.set_value(model.stem.norm.mean.get_value() + 1)
    assert len({first, second, probe_module._key_of_network(model)}) == 3
    images, other = small.val.images, small.val.images.copy()
    other[-1, -1, -1, -1] ^= 1
    wide, place = images.reshape(-1, 16, 64, 1), probe_module._digest_of_images
    assert len({place(images, "a"), place(images, "b"), place(other, "a"), place(wide, "a")}) == 4


@pytest.mark.parametrize("name", list_models())
def test_features_have_the_same_place_in_every_process(name):
    """No address of a function, which Xception's constants contain, is in it."""
    model = nnx.eval_shape(lambda: create_model(name, 3, rngs=nnx.Rngs(0)))
    model.preprocessing = Preprocessing()
    said = probe_module._built(model)
    assert " at 0x" not in said
    assert f"epsilon={model.config.bn.epsilon}" in said
    assert "padding" in said or name == "resnet18"


# ----------------------------------------------------------------------------------- the run


def test_the_network_gives_the_logits_of_the_fit(probed, small, start):
    model = load_model(probed.dir)
    features = pooled_features(model, small.test.images)
    row = min(probed.summary["linear_probe"]["tried"], key=lambda row: row["val_loss"])
    train = pooled_features(model, small.train.images)
    fit = fit_linear(train, small.train.labels, Task.MULTICLASS, 3, row["C"])
    expected, found = fit.logits(features), probed.predictions["test"].logits
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_only_the_classifier_is_another(probed, start):
    before, after = flaxmed.open_weights(start).tensors, weights_of(probed.model).tensors
    other = {name for name in before if not np.array_equal(before[name], after[name])}
    assert other == {"classifier.kernel", "classifier.bias"}


def test_the_penalty_is_that_of_the_lowest_validation_loss(probed):
    tried = probed.summary["linear_probe"]["tried"]
    assert [row["C"] for row in tried] == list(probe_module.PENALTIES)
    (row,) = probed.history
    assert row["val_loss"] == min(one["val_loss"] for one in tried)
    assert {"train_loss", "train_accuracy", "val_accuracy", "val_auc"} <= row.keys()


def test_it_is_evaluated_and_read_back_like_any_run(probed, small, start, capsys):
    assert evaluate_run(probed.dir)["auc"].value > 0
    card = (probed.dir / "MODEL_CARD.md").read_text()
    assert "Only the classifier was fitted" in card
    assert "optimizer" not in card
    assert "penalties tried" in card
    assert "| trained parameters | 1,539 of 11,171,779 |" in card
    assert not (probed.dir / "figures" / "curves.png").exists()  # there are no epochs to draw
    again = flaxmed.train(config(start), small, out=probed.dir)
    assert again.summary == probed.summary
    assert json.loads((probed.dir / "config.json").read_text())["finetune"]["linear_probe"] is True


@pytest.mark.filterwarnings("ignore:no image of class")
def test_an_undefined_auc_is_evaluated_like_any(small, start, tmp_path):
    """Of validation images that lack a class."""
    rows = small.val.labels > 0
    val = dataclasses.replace(
        small.val,
        images=small.val.images[rows],
        labels=small.val.labels[rows],
        ids=small.val.ids[rows],
    )
    few = dataclasses.replace(small, val=val, ideal=None)
    run = flaxmed.train(config(start), few, out=tmp_path / "run", progress=False)
    assert run.history[0]["val_auc"] is None
    assert evaluate_run(run.dir)["auc"].value > 0


def test_several_labels_of_an_image(small, start, tmp_path):
    def both(split):
        labels = np.stack([split.labels > 0, split.labels > 1], axis=1).astype(int)
        return dataclasses.replace(split, labels=labels)

    info = dataclasses.replace(small.info, task=Task.MULTILABEL, classes=("a", "b"))
    splits = {name: both(split) for name, split in small.splits.items()}
    data = dataclasses.replace(small, info=info, ideal=None, **splits)
    run = flaxmed.train(config(start), data, out=tmp_path / "run", progress=False)
    assert run.predictions["test"].logits.shape == (20, 2)
    assert run.history[0]["val_loss"] < np.log(2)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"weights": None}, "finetune.linear_probe: needs weights to take features from"),
        ({"ema_decay": 0.9}, "finetune.linear_probe: there are no epochs"),
        ({"early_stopping": 3}, "finetune.linear_probe: there are no epochs"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_written(
    small, start, tmp_path, changes, line
):
    with pytest.raises(InputError, match=line):
        flaxmed.train(config(start, **changes), small, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_it_leaves_nothing_else_to_set():
    with pytest.raises(InputError, match="leaves nothing else to set"):
        FineTuneConfig(linear_probe=True, train_from="stage4")


def test_several_seeds_would_be_the_same_network(small, start, tmp_path):
    with pytest.raises(InputError, match="seeds: a linear probe draws nothing at random"):
        flaxmed.train_seeds(config(start), [0, 1], small, out=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
