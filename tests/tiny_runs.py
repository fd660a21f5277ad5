"""Runs of a tiny network on a tiny phantom, quick enough to train in a test."""

import jax
import numpy as np

import flaxmed
from flaxmed.models.resnet import RESNET18, ResNet, ResNetConfig
from flaxmed.training import AugmentConfig, OptimizerConfig, TrainConfig
from flaxmed.training import run as run_module

TINY = ResNetConfig(stage_sizes=(1, 1), widths=(4, 8), bn=RESNET18.bn)


def create(name, num_classes, variant=None, **options):
    """In place of ``create_model``."""
    assert name == "resnet18"
    return ResNet(num_classes, config=TINY, **options)


def config(**changes):
    usual = {
        "stem": "imagenet",
        "epochs": 3,
        "batch_size": 8,
        "eval_batch_size": 8,
        "augment": AugmentConfig(flips=True, rotation=10, intensity=0.1),
        "optimizer": OptimizerConfig(warmup_epochs=1),
    }
    return TrainConfig(**{**usual, **changes})


def fit(data, out, **changes):
    return flaxmed.train(config(**changes), data, out=out, progress=False)


def weights(run):
    return jax.tree.map(np.asarray, run_module.init_weights(run.model))


def assert_same_run(one, other):
    jax.tree.map(np.testing.assert_array_equal, weights(one), weights(other))
    for name in ("val", "test"):
        np.testing.assert_array_equal(one.predictions[name].logits, other.predictions[name].logits)
    assert (one.dir / "metrics.jsonl").read_bytes() == (other.dir / "metrics.jsonl").read_bytes()
