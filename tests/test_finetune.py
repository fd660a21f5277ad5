"""What is frozen does not move; what is trained moves as fast, and from when on, as was asked."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from tiny_runs import TINY, assert_same_run, config, fit

import flaxmed
from flaxmed.models import DenseNet, ResNet, create_model, list_models
from flaxmed.models.densenet import DENSENET121
from flaxmed.models.layers import BatchNorm, lowering
from flaxmed.summary import summarize
from flaxmed.training import FineTuneConfig, OptimizerConfig, TrainConfig, train_seeds
from flaxmed.training import group as group_module
from flaxmed.training import run as run_module
from flaxmed.training.checkpoint import saved_steps, unflatten
from flaxmed.training.finetune import by_path, freeze_norms, gradient_of, make_tuning
from flaxmed.training.record import last_folder
from flaxmed.types import InputError

STEPS = 4  # of an epoch


def variables(tree):
    """Parameters and statistics by their dotted paths."""
    flat = by_path(tree)
    return {name.partition(".")[2]: np.asarray(value) for name, value in flat.items()}


def at_random(data, **changes):
    model = run_module.build_model(config(**changes), data.info, (32, 32))
    return variables(run_module.init_weights(model))


def moved(before, after):
    return {name for name in before if not np.array_equal(before[name], after[name])}


WAYS = {
    "adamw": {},
    "sgd, decay": {"optimizer": OptimizerConfig(name="sgd", weight_decay=0.1, clip_norm=None)},
    "averaged": {"ema_decay": 0.9},
    "micro-batches": {"accumulate": 2},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize("way", WAYS)
def test_of_frozen_stages_nothing_moves(data, tmp_path, way):
    changes = WAYS[way] | {"finetune": FineTuneConfig(train_from="stage2"), "epochs": 1}
    before = at_random(data, **changes)
    run = fit(data, tmp_path / "run", **changes)
    after = variables(run_module.init_weights(run.model))
    trained = {name for name in before if name.startswith(("stage2.", "classifier."))}
    assert {"stage2.0.norm1.mean", "stage2.0.norm1.scale", "classifier.bias"} <= trained
    assert {"stem.norm.mean", "stem.norm.var", "stage1.0.norm1.mean"} <= before.keys() - trained
    assert moved(before, after) == trained
    values = sum(before[name].size for name in trained if not name.endswith((".mean", ".var")))
    assert run.summary["trained_parameters"] == values < run.summary["parameters"]


@pytest.mark.usefixtures("tiny_network")
def test_layers_that_are_frozen_at_random_values_are_said(data, tmp_path, capsys):
    settings = config(finetune=FineTuneConfig(train_from="stage2"), epochs=1)
    flaxmed.train(settings, data, out=tmp_path / "run")
    assert "frozen layers keep the values that they began with at random" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_network")
def test_single_layers_are_frozen_by_their_paths(data, tmp_path):
    """Of a norm whose bias alone is frozen the statistics move: it still normalises the batch."""
    paths = ("stage1.0.norm1", "stage2.0.norm2.bias", "stem.conv")
    changes = {"finetune": FineTuneConfig(freeze=paths), "epochs": 1}
    before = at_random(data, **changes)
    after = variables(run_module.init_weights(fit(data, tmp_path / "run", **changes).model))
    still = {f"stage1.0.norm1.{name}" for name in ("scale", "bias", "mean", "var")}
    assert before.keys() - moved(before, after) == {
        *still,
        "stage2.0.norm2.bias",
        "stem.conv.kernel",
    }


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_network")
def test_stages_join_one_after_another_from_the_end(data, tmp_path):
    changes = {"finetune": FineTuneConfig(unfreeze_epochs=1), "epochs": 4}
    before = at_random(data, **changes)
    run = fit(data, tmp_path / "run", **changes)
    like = run_module.init_weights(run.model)
    folder = last_folder(run.dir)
    stages = ["classifier", "stage2", "stage1", "stem"]
    assert saved_steps(folder) == [4 * STEPS, 3 * STEPS, 2 * STEPS]
    for step in saved_steps(folder):
        after = variables(weights_at(folder / str(step), like))
        reached = {name.partition(".")[0] for name in moved(before, after)}
        assert reached == set(stages[: step // STEPS]), step


def weights_at(checkpoint, like):
    """Parameters and statistics in a checkpoint of the whole state."""
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore((checkpoint / "default").absolute())
    return unflatten(like, arrays)


@pytest.mark.usefixtures("tiny_network")
def test_patience_begins_when_all_stages_are_trained(data, tmp_path, monkeypatch):
    areas = iter([0.9, 0.5, 0.5, 0.5, 0.5, 0.5])
    monkeypatch.setattr(
        group_module, "score", lambda p: {"loss": 1.0, "accuracy": 0.5, "auc": next(areas)}
    )
    settings = FineTuneConfig(train_from="stage2", unfreeze_epochs=2)
    changes = {"finetune": settings, "epochs": 6, "early_stopping": 1}
    run = fit(data, tmp_path / "run", **changes)
    assert len(run.history) == 4  # stage2 joins in the third epoch, one more is waited for


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize("epochs_lost", [1, 2])
def test_a_run_that_unfreezes_goes_on_to_the_same_bits(data, tmp_path, epochs_lost):
    changes = {
        "finetune": FineTuneConfig(unfreeze_epochs=1, layer_decay=0.5, freeze=("stem.conv",)),
        "epochs": 4,
    }
    whole = fit(data, tmp_path / "whole", **changes)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / "run.json").unlink()
    for step in saved_steps(last_folder(tmp_path / "again"))[:epochs_lost]:
        shutil.rmtree(last_folder(tmp_path / "again") / str(step))
    assert_same_run(fit(data, tmp_path / "again", **changes), whole)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_network")
def test_seeds_in_one_program_freeze_and_unfreeze_each_its_own(data, tmp_path):
    changes = {
        "finetune": FineTuneConfig(train_from="stage2", unfreeze_epochs=1),
        "epochs": 2,
        "optimizer": OptimizerConfig(name="sgd", learning_rate=1e-3),
    }
    runs = train_seeds(config(**changes), [0, 1], data, out=tmp_path, progress=False, together=True)
    for seed, run in list(enumerate(runs))[1:]:
        alone = fit(data, tmp_path / f"alone{seed}", seed=seed, **changes)
        before = at_random(data, seed=seed, **changes)
        together, single = (variables(run_module.init_weights(one.model)) for one in (run, alone))
        still = {name for name in before if name.startswith(("stem.", "stage1."))}
        assert still
        assert not still & moved(before, together)
        for name in before:
            np.testing.assert_allclose(together[name], single[name], rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------- how fast


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_network")
def test_every_stage_learns_at_its_part_of_the_rate(data, tmp_path):
    """After one step of plain gradient descent the ways gone are in these proportions."""
    plain = OptimizerConfig(
        name="sgd", momentum=0, weight_decay=0, clip_norm=None, schedule="constant", warmup_epochs=0
    )
    one_step = {"optimizer": plain, "epochs": 1, "batch_size": 27}
    before = at_random(data, **one_step)
    whole, decayed = (
        variables(run_module.init_weights(fit(data, tmp_path / name, **one_step, **more).model))
        for name, more in {
            "whole": {},
            "part": {"finetune": FineTuneConfig(layer_decay=0.5)},
        }.items()
    )
    parts = {"classifier": 1.0, "stage2": 0.5, "stage1": 0.25, "stem": 0.125}
    for name in before:
        if name.endswith((".mean", ".var")):
            continue
        part = parts[name.partition(".")[0]]
        far, near = whole[name] - before[name], decayed[name] - before[name]
        np.testing.assert_allclose(near, part * far, rtol=1e-3, atol=1e-7, err_msg=name)
        assert np.abs(far).max() > 1e-6, name


@pytest.mark.parametrize("name", list_models())
def test_stages_are_those_of_the_summary(name):
    model = nnx.eval_shape(lambda: create_model(name, 2, rngs=nnx.Rngs(0)))
    assert model.stages == [row.name for row in summarize(model, (96, 96, 3)).stages]


# --------------------------------------------------------- the gradient beside frozen norms


NETWORKS = {
    "resnet": lambda: ResNet(2, stem="small", config=TINY, rngs=nnx.Rngs(0)),
    "densenet": lambda: DenseNet(2, stem="small", config=TINY_DENSENET, rngs=nnx.Rngs(0)),
}
TINY_DENSENET = dataclasses.replace(DENSENET121, stage_sizes=(2, 2), growth=8, stem_width=16)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_pass_through_frozen_norms(name):
    """They use running statistics, on a CPU in the fused form of evaluation; XLA's is the judge."""
    model = NETWORKS[name]()
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(3, 16, 16, 3)), jnp.float32)
    frozen = frozenset(n for n in by_path(params) if n.startswith(("stage1.", "transition1.")))
    assert frozen
    found = {}
    for mode in ("auto", "xla"):
        view = nnx.view(model, use_running_average=False)
        freeze_norms(view, frozen)
        graph, _, stats = nnx.split(view, nnx.Param, nnx.BatchStat)

        def loss(params, graph=graph, stats=stats):
            logits = nnx.merge(graph, params, nnx.to_pure_dict(stats))(images)
            return jnp.square(logits).sum(), None

        with lowering(mode):
            grads, _ = jax.jit(gradient_of(loss, frozen))(params)
        found[mode] = by_path(grads)
    for path, grad in found["xla"].items():
        assert (path in frozen) == (not np.any(grad)), path
        scale = np.abs(grad).max()
        np.testing.assert_allclose(found["auto"][path], grad, atol=2e-4 * scale + 1e-7)


def test_freezing_a_view_leaves_the_network_as_it_is():
    model = create_model("resnet18", 2, stem="small", rngs=nnx.Rngs(0))
    view = nnx.view(model, use_running_average=False)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    freeze_norms(view, frozenset(by_path(params)))
    again = nnx.view(model, use_running_average=False)

    def modes(network):
        norms = (module for _, module in nnx.iter_modules(network))
        return {norm.use_running_average for norm in norms if isinstance(norm, BatchNorm)}

    assert (modes(view), modes(again)) == ({True}, {False})


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"train_from": "stage9"}, "train_from: no stage 'stage9'; expected one of stem, stage1"),
        ({"freeze": ("stage1.9",)}, "freeze: no parameter at 'stage1.9'; expected a stage"),
        ({"freeze": ("stem", "stage1", "stage2", "classifier")}, "nothing is left to train"),
        ({"unfreeze_epochs": 1}, "4 stages, one more every 1 epochs: the last .* epoch 3 of 3"),
    ],
    ids=["stage", "path", "everything", "too long"],
)
@pytest.mark.usefixtures("tiny_network")
def test_what_cannot_be_is_said_before_anything_is_written(data, tmp_path, settings, line):
    with pytest.raises(InputError, match=line):
        fit(data, tmp_path / "run", finetune=FineTuneConfig(**settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"layer_decay": 0}, "finetune.layer_decay: expected a number above 0 and at most 1"),
        ({"unfreeze_epochs": 0}, "finetune.unfreeze_epochs: expected a number at least 1"),
        ({"freeze": "stem"}, "finetune.freeze: expected a list of text, got 'stem'"),
    ],
)
def test_settings_out_of_range(settings, line):
    with pytest.raises(InputError, match=line):
        TrainConfig.from_dict({"finetune": settings})


def test_what_is_asked_for_of_a_network():
    model = nnx.eval_shape(lambda: create_model("xception", 2, rngs=nnx.Rngs(0)))
    tuning = make_tuning(model, FineTuneConfig(train_from="exit2", unfreeze_epochs=2), epochs=9)
    assert tuning.starts == {"exit2": 4, "exit3": 2, "classifier": 0}
    assert tuning.phases == [0, 2, 4]
    assert make_tuning(model, FineTuneConfig(), epochs=9) is None
