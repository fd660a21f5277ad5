"""What `flaxmed bench` measures, prints and refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flaxmed.benchmark import Cost, Setting, measure, measure_ceiling, table
from flaxmed.cli import main
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
    assert lines[2].split() == ["resnet18", "flaxmed", "20.0", "100.0", "51.0", "1.5", "2", "12%"]
    assert "10.0 (x2.00)" in lines[3]
    assert "102.0 (x2.00)" in lines[3]  # of two latencies the shorter is the faster


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


def test_the_ceiling_is_that_of_a_matrix_product():
    assert 1e8 < measure_ceiling(side=256) < 1e16


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_every_timing(tmp_path, capsys):
    out = tmp_path / "bench.json"
    words = ["bench", "--models", "resnet18", "--size", "8", "--batch", "4", "--rounds", "2"]
    assert main([*words, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "resnet18" in printed
    assert "GFLOP/s" in printed
    found = json.loads(out.read_text())
    assert found["setting"]["batch"] == 4
    assert found["convolutions"] == "C++"
    (row,) = found["rows"]
    assert len(row["train_seconds"]) == len(row["inference_seconds"]) == 2
    assert row["train_images_per_second"] > 0
    assert row["memory_bytes"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet18", "densenet121", "xception"])
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_pytorchs_network_is_the_same_one(network, stem):
    """Its parameters and multiply-adds are ours; that it also computes the same, others hold."""
    oracle = pytest.importorskip("tests.oracles.torch_reference")
    try:
        oracle.import_packages()
    except ImportError as error:
        pytest.skip(f"the reference torch cannot be imported: {error}")
    from flaxmed.benchmark.jax_network import JaxNetwork
    from flaxmed.benchmark.pytorch import PyTorchNetwork

    setting = Setting(size=40, stem=stem, batch=2)
    theirs = PyTorchNetwork(network, setting, "eager")
    assert theirs.parameters == JaxNetwork(network, setting).parameters
    theirs.train_step()
    theirs.infer(1)
