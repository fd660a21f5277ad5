"""Transfer helps: what is learnt of one kind of phantom serves on few images of another."""

import pytest

import flaxmed
from flaxmed.data.phantom import load_phantom
from flaxmed.evaluation.paired import auc_difference
from flaxmed.training import OptimizerConfig, TrainConfig


@pytest.mark.slow
def test_a_network_that_has_seen_rings_needs_few_images_of_lesions(tmp_path):
    """Beyond the interval of the paired comparison with training from scratch, on 1,024 images."""
    rings = load_phantom(n_train=1024, n_val=64, n_test=8, config="phantom-ring")
    lesions = load_phantom(n_train=48, n_val=64, n_test=1024)
    first = TrainConfig(stem="imagenet", epochs=4)
    pretrained = flaxmed.train(first, rings, out=tmp_path / "rings", progress=False)

    few = {"epochs": 12, "batch_size": 16, "optimizer": OptimizerConfig(warmup_epochs=1)}
    starts = {"scratch": {"stem": "imagenet"}, "tuned": {"weights": str(pretrained.dir)}}
    runs = {
        name: flaxmed.train(
            TrainConfig(**few, **start), lesions, out=tmp_path / name, progress=False
        )
        for name, start in starts.items()
    }
    gained = auc_difference(*([runs[name].predictions["test"]] for name in ("tuned", "scratch")))
    low, high = gained.interval.low, gained.interval.high
    print(f"AUC gained: {gained.value:.3f} ({low:.3f} to {high:.3f})")
    assert low > 0
