"""Settings: to JSON and back, and what is refused by name."""

import dataclasses
import json

import pytest

from flaxmed.training import AugmentConfig, OptimizerConfig, TrainConfig, parse_augment
from flaxmed.training.config import RECIPES
from flaxmed.types import InputError, Preprocessing


@pytest.mark.parametrize("recipe", RECIPES)
def test_json_and_back_is_the_same_config(recipe):
    config = TrainConfig.from_recipe(
        recipe,
        size=64,
        class_weights=(1.0, 2.0),
        early_stopping=5,
        preprocessing=Preprocessing((0.1, 0.2, 0.3), (1.0, 1.0, 1.0)),
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_medmnist_recipe_is_the_published_one():
    config = TrainConfig.from_recipe("medmnist")
    assert (config.epochs, config.batch_size) == (100, 128)
    assert config.optimizer == OptimizerConfig(
        name="adam",
        learning_rate=1e-3,
        schedule="step",
        warmup_epochs=0,
        step_milestones=(0.5, 0.75),
        step_factor=0.1,
        weight_decay=0,
        clip_norm=None,
    )
    assert config.augment == AugmentConfig()
    assert config.preprocessing is None  # what is taken then: tests/test_start.py


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"epoch": 3}, "unknown setting epoch; did you mean epochs?"),
        ({"optimizer": {"lr": 1}}, "unknown setting optimizer.lr; expected name, learning_rate"),
        ({"epochs": "3"}, "setting epochs: expected a whole number, got '3'"),
        ({"epochs": True}, "setting epochs: expected a whole number, got True"),
        ({"epochs": 0}, "setting epochs: expected a number at least 1, got 0"),
        ({"optimizer": 3}, "setting optimizer must be an object, got 3"),
        ({"optimizer": {"name": "lion"}}, "setting optimizer.name: expected 'adam' or 'adamw'"),
        (
            {"optimizer": {"learning_rate": float("nan")}},
            "setting optimizer.learning_rate: expected a number above 0, got nan",
        ),
        (
            {"optimizer": {"step_milestones": [0.5, "x"]}},
            r"setting optimizer.step_milestones\[1\]: expected a number, got 'x'",
        ),
        ({"augment": {"rotation": 200}}, "setting augment.rotation: .* at least 0 and at most 180"),
        ({"class_weights": "equal"}, "setting class_weights: expected 'balanced' or a list of a"),
        ({"seed": -1}, "setting seed: expected a number at least 0"),
        ({"dtype": "float16"}, "setting dtype: expected 'float32' or 'bfloat16' or 'float64'"),
        ({"preprocessing": {"mean": [0.5], "std": [0]}}, "std positive"),
    ],
)
def test_bad_settings_are_refused_by_name(values, line):
    with pytest.raises(InputError, match=line) as caught:
        TrainConfig.from_dict(values)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_or_change_is_refused():
    with pytest.raises(InputError, match="unknown recipe 'mednist'; expected one of default"):
        TrainConfig.from_recipe("mednist")
    with pytest.raises(InputError, match="unknown setting epoch; did you mean epochs"):
        TrainConfig.from_recipe("default", epoch=3)


def test_weight_decay_with_adam_is_refused_rather_than_ignored():
    with pytest.raises(InputError, match="adam has none; use adamw"):
        OptimizerConfig(name="adam", weight_decay=0.1)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mirror"], "--augment mirror: expected none alone, or flips, rotation"),
        (["rotation"], "--augment rotation: expected rotation=NUMBER"),
        (["rotation=x"], "--augment rotation=x: expected rotation=NUMBER"),
        (["rotation=400"], "setting augment.rotation"),
    ],
)
def test_bad_augmentations_are_refused(words, line):
    with pytest.raises(InputError, match=line):
        parse_augment(words)


def test_settings_as_they_stand_are_the_default_recipe():
    assert TrainConfig() == TrainConfig.from_recipe("default") == TrainConfig.from_dict({})


def test_what_settings_leave_out_is_their_recipes():
    config = TrainConfig.from_dict({"recipe": "medmnist", "optimizer": {"learning_rate": 0.01}})
    expected = TrainConfig.from_recipe("medmnist").optimizer
    assert config.optimizer == dataclasses.replace(expected, learning_rate=0.01)
    assert config.epochs == 100
    with pytest.raises(InputError, match="unknown recipe 'nonsense'"):
        TrainConfig.from_dict({"recipe": "nonsense"})


def test_values_out_of_range_are_refused_in_python_too():
    with pytest.raises(InputError, match="setting size: expected a number at least 1, got -3"):
        TrainConfig(size=-3)
    with pytest.raises(InputError, match=r"setting optimizer.step_factor: .* above 0, got nan"):
        OptimizerConfig(step_factor=float("nan"))
    assert type(AugmentConfig(rotation=10).rotation) is float


def test_augmentation_words():
    assert parse_augment(["none"]) == AugmentConfig()
    assert parse_augment(["flips", "shift=0.1"]) == AugmentConfig(flips=True, shift=0.1)
