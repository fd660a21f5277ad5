"""verify-weights: the libraries themselves say whether weights give the same here."""

from __future__ import annotations

import sys

import jax
import numpy as np
import pytest
from flax import nnx
from oracles.cases import random_tensors
from oracles.compare import require

import flaxmed
from flaxmed.cli import main
from flaxmed.models import create_model
from flaxmed.models.pretrained import load_state
from flaxmed.verify import torch_network, verification, verify_weights

SMALL = {"resnet18": 64, "densenet121": 64, "xception": 96}


def saved(path, network, naming, *, variant=None, stem="imagenet", channels=3):
    """A file of random values under the names of a library, or under flaxmed's own."""
    model = nnx.eval_shape(
        lambda: create_model(
            network, 5, in_channels=channels, stem=stem, variant=variant, rngs=nnx.Rngs(0)
        )
    )
    load_state(model, random_tensors(model), "flaxmed")
    flaxmed.save_weights(model, path, naming=naming)
    return path


@pytest.mark.parametrize(
    ("library", "network", "naming", "options"),
    [
        ("torchvision", "resnet18", "torchvision", {}),
        ("torchvision", "resnet18", "medmnist", {"stem": "small", "channels": 1}),
        ("torchvision", "resnet18", "kerashub", {}),
        ("torchvision", "densenet121", "torchvision", {"channels": 1}),
        ("timm", "xception", "timm", {"variant": "timm"}),
        ("timm", "xception", "flaxmed", {"variant": "timm"}),
        ("keras", "xception", "keras", {}),
        ("keras", "densenet121", "flaxmed", {"variant": "keras"}),
    ],
)
def test_a_file_is_verified_by_its_library(library, network, naming, options, tmp_path, capsys):
    require(library)
    path = saved(tmp_path / "weights.safetensors", network, naming, **options)
    size = 28 if options.get("stem") == "small" else SMALL[network]
    assert main(["verify-weights", str(path), "--size", str(size), "--images", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: flaxmed beside {library}, float32"
    model = nnx.eval_shape(lambda: create_model(network, 5, rngs=nnx.Rngs(0)))
    shape = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    stages = [*nnx.eval_shape(lambda m, x: m.features(x), model, shape), "logits"]
    assert [line.split()[0] for line in lines[2:-1]] == stages
    assert lines[-1].startswith("equal to rounding")


def test_what_is_not_equal_is_said_and_is_an_error(tmp_path, monkeypatch, capsys):
    require("torchvision")
    path = saved(tmp_path / "weights.safetensors", "resnet18", "torchvision")
    real = verification._of_flaxmed

    def other(model, x):
        norm = model.stage3[0].norm1
        norm.var[...] = 1.01 * norm.var[...]
        return real(model, x)

    monkeypatch.setattr(verification, "_of_flaxmed", other)
    found = verify_weights(path, size=64, images=1)
    assert not found.holds
    apart = {stage: a > verification.TOLERANCE * s for stage, (a, s) in found.differences.items()}
    # from the stage on in which it is
    assert list(apart.values()) == [False, False, False, True, True, True, True]
    assert main(["verify-weights", str(path), "--size", "64", "--images", "1"]) == 1
    captured = capsys.readouterr()
    assert "NOT EQUAL" in captured.out
    assert captured.err.splitlines()[-1] == f"flaxmed: error: {path}: not equal to torchvision"


@pytest.mark.parametrize("network", ["densenet121", "xception"])
def test_a_stem_that_no_library_has_is_refused(network, tmp_path, capsys):
    path = saved(tmp_path / "weights.safetensors", network, "flaxmed", stem="small")
    assert main(["verify-weights", str(path)]) == 2
    assert f'{network} with stem="small", which no library has' in capsys.readouterr().err


def test_without_the_library_it_says_which(tmp_path, monkeypatch, capsys):
    path = saved(tmp_path / "weights.safetensors", "resnet18", "torchvision")
    torch_network.import_packages.cache_clear()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["verify-weights", str(path)]) == 2
    assert "verified by torchvision, which cannot be imported" in capsys.readouterr().err
