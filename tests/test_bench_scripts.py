"""The scripts beside `flaxmed bench`: the README's table, accuracy against cost, the GPU's rows."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from oracles.compare import require

from flaxmed.training import probe
from flaxmed.types import Predictions

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


def script(name):
    """A script as a module; one may import its neighbours, as Python lets it when it is run."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(f"script_{name}", BENCHMARKS / f"{name}.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def bench_row(network, contestant="flaxmed", train=1.0, infer=0.5, **more):
    """A row of `flaxmed bench` whose timings, of batches of 10, lie within one hundredth."""

    def around(value):
        return [value, value * 0.99, value * 1.01]

    return {
        "network": network,
        "contestant": contestant,
        "multiply_adds": 1000,
        "train_images_per_second": 10 / train,
        "inference_images_per_second": 10 / infer,
        "latency_ms": {"p50": 20.0, "p99": 30.0},
        "compile_seconds": 2.0,
        "memory_bytes": 5_000_000,
        "train_seconds": around(train),
        "inference_seconds": around(infer),
        **more,
    }


def bench_file(path, rows, **setting):
    """A file as `flaxmed bench --json` writes it."""
    values = {
        "device": "3 cores, some processor",
        "convolutions": "C++",
        "versions": {"jax": "1.2.3", "torch": "4.5.6+cpu"},
        "date": "2030-01-02",
        "command": "flaxmed bench --json FILE",
        "setting": {
            **{"size": 28, "channels": 3, "stem": "small", "batch": 10, "dtype": "float32"},
            **setting,
        },
        "rows": rows,
    }
    path.write_text(json.dumps(values))
    return path


# ------------------------------------------------------------------------------ the README's table


def test_the_readme_is_what_the_measurements_give():
    assert script("readme").main(["--check"]) == 0


def readme_with(folder, *files):
    path = folder / "README.md"
    path.write_text(f"before\n\n<!-- bench: {' '.join(files)} -->\nold\n<!-- end -->\n\nafter\n")
    return path


def test_the_table_has_both_sides_their_ratio_and_a_dash_for_what_is_missing(tmp_path):
    rows = [
        bench_row("resnet18", train=1.0, infer=0.5, restart_seconds=0.7),
        bench_row("resnet18", "PyTorch eager", train=2.0, infer=1.0, compile_seconds=9.0),
        bench_row("resnet18", "PyTorch compile", train=0.5, infer=5.0, compile_seconds=60.0),
        bench_row("xception", train=1.0),
    ]
    bench_file(tmp_path / "a.json", rows)
    path = readme_with(tmp_path, "a.json", "absent.json")
    assert script("readme").main(["--readme", str(path)]) == 0
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert "old" not in lines
    assert lines[3].startswith(
        "| flaxmed / PyTorch eager / PyTorch compile (ratio to the better) | training, images/s |"
    )
    assert lines[5] == (
        "| ResNet-18, 28 px | 10.0 / 5.0 / 20.0 (0.50) | 20.0 / 10.0 / 2.0 (2.00) "
        "| 20.0 / 20.0 / 20.0 (1.00) | 2.0 / 60.0 | 0.7 | 5 |"
    )
    assert lines[6] == (
        "| Xception, 28 px | 10.0 / – / – | 20.0 / – / – | 20.0 / – / – | 2.0 / – | – | 5 |"
    )
    assert lines[8] == (
        "- 28 px, colour, small stem, batch 10, float32, SGD; 3 cores, some processor; "
        "convolutions: C++; jax 1.2.3, torch 4.5.6; 2030-01-02; `flaxmed bench --json FILE`"
    )


def test_a_second_file_adds_its_rows_when_it_is_there(tmp_path, capsys):
    bench_file(tmp_path / "a.json", [bench_row("resnet18")])
    path = readme_with(tmp_path, "a.json", "b.json")
    readme = script("readme")
    assert readme.main(["--readme", str(path)]) == 0
    assert readme.main(["--readme", str(path), "--check"]) == 0
    bench_file(tmp_path / "b.json", [bench_row("resnet18")], size=64, stem="imagenet")
    before = path.read_text()
    assert readme.main(["--readme", str(path), "--check"]) == 1
    assert "not what the measurements give" in capsys.readouterr().err
    assert path.read_text() == before
    assert readme.main(["--readme", str(path)]) == 0
    text = path.read_text()
    assert "| ResNet-18, 64 px |" in text
    assert "- 64 px, colour, imagenet stem" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no block", "has no block"),
        ("<!-- bench: a.json -->\n<!-- end -->", "none of these files is there: a.json"),
        ("<!-- bench: README.md -->\n<!-- end -->", "not a file of flaxmed bench"),
    ],
)
def test_a_readme_that_cannot_be_made_is_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "README.md"
    path.write_text(text)
    assert script("readme").main(["--readme", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert path.read_text() == text


# -------------------------------------------------------------------------- accuracy against cost


def run_dir(folder, model, skill, *, seed=0, n=300, noise=0.5, size=28):
    """A finished run's files, with predictions of some skill on the same images."""
    rng = np.random.default_rng(1)
    labels, shared = rng.integers(0, 2, n), rng.normal(size=n)
    own = np.random.default_rng([seed, *model.encode()]).normal(size=n)
    logit = skill * (labels - 0.5) + shared + noise * own
    path = folder / f"{model}-{seed}"
    (path / "predictions").mkdir(parents=True)
    logits = np.stack([np.zeros(n), logit], axis=1)
    made = Predictions(labels=labels, logits=logits, task="binary")
    made.save(path / "predictions" / "test.npz")
    files = {
        "config": {"model": model, "seed": seed, "stem": "auto"},
        "dataset": {"name": "made up", "image_shape": [size, size, 3]},
        "run": {},
    }
    for name, values in files.items():
        (path / f"{name}.json").write_text(json.dumps(values))
    return str(path)


def cost_of(tmp_path, skills, rows, **options):
    """What cost.py writes as JSON for runs of these skills."""
    runs = [run_dir(tmp_path, model, skill, **options) for model, skill in skills.items()]
    bench = bench_file(tmp_path / "bench.json", rows)
    out = tmp_path / "cost.svg"
    words = ["--runs", *runs, "--bench", str(bench), "--out", str(out)]
    assert script("cost").main([*words, "--json", str(tmp_path / "cost.json")]) == 0
    return json.loads((tmp_path / "cost.json").read_text())


def test_a_costlier_network_that_is_worse_is_dominated_and_one_that_is_better_a_trade(
    tmp_path, capsys
):
    skills = {"resnet18": 2.0, "densenet121": 4.0, "xception": 1.0}
    rows = [
        bench_row("resnet18", train=1.0, infer=1.0),
        bench_row("densenet121", train=2.0, infer=0.1),
        bench_row("xception", train=3.0, infer=0.5),
    ]
    found = cost_of(tmp_path, skills, rows)
    training, inference = (" ".join(found["verdict"][k]) for k in ("training", "inference"))
    assert training.startswith("Training: ResNet-18 costs least, 100 s per 1,000 images.")
    assert "DenseNet-121 costs 2.00 times as much as ResNet-18, and its AUC is higher" in training
    assert "Xception costs 3.00 times as much as ResNet-18, and its AUC is lower" in training
    assert "it is dominated" in training
    assert "DenseNet-121: more AUC for more cost, a trade" in training
    # of inference the most accurate network is also the cheapest: the others have nothing
    assert inference.endswith("DenseNet-121 has the best AUC for its cost.")
    assert inference.count("it is dominated") == 2
    printed = capsys.readouterr().out
    assert training in printed
    assert inference in printed
    assert "these trained networks (one seed each)" in printed
    by_name = {one["name"]: one for one in found["networks"]}
    assert by_name["densenet121"]["cost"]["inference"]["value"] == pytest.approx(10.0)
    assert by_name["resnet18"]["cost"]["training"]["value"] == pytest.approx(100.0)


def test_what_the_images_cannot_tell_is_said(tmp_path):
    rows = [bench_row("resnet18", train=1.0), bench_row("xception", train=2.0)]
    found = cost_of(tmp_path, {"resnet18": 2.0, "xception": 2.05}, rows, n=60, noise=1.0)
    said = " ".join(found["verdict"]["training"])
    assert "whether its AUC is higher is open" in said
    assert said.endswith(
        "Whether more AUC comes with the cost of Xception these 60 test images cannot tell."
    )
    assert "dominated" not in said


def test_a_gain_that_the_interval_keeps_below_what_matters_is_no_gain(tmp_path):
    rows = [bench_row("resnet18", train=1.0), bench_row("xception", train=2.0)]
    found = cost_of(tmp_path, {"resnet18": 2.0, "xception": 2.0}, rows, n=1000, noise=0.1)
    said = found["verdict"]["training"]
    assert "for a gain in AUC below the 0.02 that would matter" in said[1]
    assert said[2] == "ResNet-18 has the best AUC for its cost."
    (pair,) = found["pairs"]["training"]
    assert pair["gain"]["high"] < 0.02
    # the same for inference, where the two cost alike, does not make one dominated
    assert {pair["alike"] for pair in found["pairs"]["inference"]} == {True}
    assert not any(pair["dominated"] for pair in found["pairs"]["inference"])


def test_accuracy_and_its_interval_are_those_of_the_evaluation(tmp_path):
    from flaxmed import evaluate

    found = cost_of(tmp_path, {"resnet18": 2.0}, [bench_row("resnet18")])
    report = evaluate(Predictions.load(tmp_path / "resnet18-0" / "predictions" / "test.npz"))
    for metric in ("auc", "accuracy"):
        wanted = {"value": report[metric].value, "low": report[metric].low}
        assert found["networks"][0][metric] == wanted | {"high": report[metric].high}


def test_three_seeds_give_the_interval_of_new_seeds(tmp_path):
    for seed in (1, 2):
        run_dir(tmp_path, "resnet18", 2.0, seed=seed)
    cost = script("cost")
    runs = [run_dir(tmp_path, "resnet18", 2.0), *map(str, sorted(tmp_path.glob("resnet18-[12]")))]
    bench = json.loads(bench_file(tmp_path / "b.json", [bench_row("resnet18")]).read_text())
    comparison = cost.compare_runs(runs)
    (one,) = cost.networks(comparison, bench)
    joint = comparison.columns[0].means["auc"].joint
    assert one.seeds == 3
    assert (one.scores["auc"].low, one.scores["auc"].high) == (joint.low, joint.high)


@pytest.mark.parametrize("apart", [0.0, 0.01, 1.0])
def test_names_in_the_figure_hide_nothing(tmp_path, apart):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    cost = script("cost")
    models = ("resnet18", "densenet121", "xception")
    runs = [run_dir(tmp_path, m, 2.0 + 0.1 * i) for i, m in enumerate(models)]
    rows = [bench_row(m, train=1 + i * apart, infer=1 - 0.2 * i) for i, m in enumerate(models)]
    bench = json.loads(bench_file(tmp_path / "b.json", rows).read_text())
    comparison = cost.compare_runs(runs)
    found = cost.networks(comparison, bench)
    drawn = cost.figure(comparison, found, cost.KINDS, {kind.name: set() for kind in cost.KINDS})
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    for axes in drawn.axes:
        names = [text for text in axes.texts if text.get_text()]
        assert {text.get_text() for text in names} == {"ResNet-18", "DenseNet-121", "Xception"}
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in names]
        for i, box in enumerate(boxes):
            assert drawn.bbox.x0 < box.x0 < box.x1 < drawn.bbox.x1
            assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": "cost.pdf"}, "--out: expected a name that ends in .svg or .png"),
        ({"rows": [bench_row("xception")]}, "--bench: no row of resnet18; it has xception"),
        ({"size": 64}, "--bench: measured at 64 px with the small stem"),
        ({"rows": [bench_row("resnet18", inference_seconds=[])]}, "no timings of inference"),
        ({"bench": "absent.json"}, "not a file of flaxmed bench"),
    ],
)
def test_input_that_does_not_fit_is_one_line(tmp_path, capsys, change, message):
    run = run_dir(tmp_path, "resnet18", 2.0)
    rows = change.get("rows", [bench_row("resnet18")])
    bench = bench_file(tmp_path / "bench.json", rows, size=change.get("size", 28))
    bench = tmp_path / change.get("bench", bench.name)
    out = tmp_path / change.get("out", "cost.svg")
    words = ["--runs", run, "--bench", str(bench), "--out", str(out)]
    assert script("cost").main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not out.exists()


# ----------------------------------------------------------------------------- the rows of the GPU


def rows_of(script_rows, budget):
    """What gpu.py makes of these rows, and what it saved after each."""
    gpu = script("gpu")
    saved = []
    rows = script_rows(gpu)
    end = time.monotonic() + budget
    found = gpu.measure_rows(rows, end, lambda known: saved.append(json.loads(json.dumps(known))))
    return found, saved


def test_what_was_measured_is_saved_after_each_row():
    found, saved = rows_of(lambda gpu: {"a": lambda: {"x": 1}, "b": lambda: {"y": 2}}, 60)
    assert [list(known["rows"]) for known in saved] == [["a"], ["a", "b"]]
    assert found["rows"] == {"a": {"x": 1}, "b": {"y": 2}}
    assert found["not_measured"] == {}
    assert list(found["row_seconds"]) == ["a", "b"]


def test_rows_for_which_there_is_no_time_are_named_and_not_begun():
    begun = []
    found, saved = rows_of(lambda gpu: {"a": lambda: begun.append(1)}, -1)
    assert not begun
    assert saved[-1]["not_measured"] == {"a": "the time was over"}
    assert found["rows"] == {}


def test_a_row_ends_with_the_time_and_one_that_fails_does_not_end_the_rest():
    def rows(gpu):
        def long():
            end = time.monotonic() + 60
            while time.monotonic() < end:
                time.sleep(0.01)
            return {}

        return {
            "fails": lambda: 1 / 0,
            "works": lambda: {"x": 1},
            "long": long,
            "late": lambda: {"x": 2},
        }

    start = time.monotonic()
    found, saved = rows_of(rows, 2)
    assert time.monotonic() - start < 30
    assert list(found["rows"]) == ["works"]
    assert found["not_measured"] == {
        "fails": "ZeroDivisionError: division by zero",
        "long": "the time was over before its end",
        "late": "the time was over",
    }
    assert len(saved) == 4
    time.sleep(0.1)  # no alarm is left that would ring in what comes after


def test_a_row_that_hears_no_alarm_ends_with_the_process():
    code = """
import hashlib, json, sys, time
import gpu

def long():  # computes outside of Python, as a compiler does
    return hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

rows = {"short": lambda: {"x": 1}, "long": long}
gpu.measure_rows(rows, time.monotonic() + 1, lambda found: print(json.dumps(found)), grace=1)
"""
    command = [sys.executable, "-c", code]
    env = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    *_, saved, said = done.stdout.splitlines()
    assert json.loads(saved)["rows"] == {"short": {"x": 1}}
    assert said == "long: the time was over in a call that nothing interrupts"


def test_the_file_is_named_after_the_device():
    assert script("gpu").file_name("NVIDIA H100 80GB HBM3") == "gpu_nvidia_h100_80gb_hbm3"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no accelerator here; --tiny runs on a CPU"),
        (["--tiny", "--rows", "epochs"], "--rows: no row 'epochs'"),
        (["--tiny", "--out", "absent/gpu.json"], "--out: absent: no such folder"),
    ],
)
def test_what_the_gpu_script_refuses_is_one_line(capsys, monkeypatch, words, message):
    import jax

    if jax.default_backend() != "cpu" and not words:
        pytest.skip("an accelerator is here")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    assert script("gpu").main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_all_rows_of_the_gpu_run_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--out", str(out)]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "XLA_FLAGS": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    found = json.loads(out.read_text())
    assert done.returncode == 0, done.stderr
    assert found["not_measured"] == {}
    rows = found["rows"]
    assert set(rows) == {"ceilings", "train resnet18", "epoch", "input path", "many seeds"}
    assert rows["many seeds"]["ratio"]["unrolled"] > 0
    assert min(rows["ceilings"][f"{what}_per_second"] for what in ("flops", "bytes")) > 0
    ours = rows["train resnet18"]["contestants"][0]
    assert ours["contestant"] == "flaxmed"
    assert ours["latency_ms"]["p50"] is None  # training alone
    assert rows["train resnet18"]["share_of_bytes"] > 0
    assert len(rows["epoch"]["flaxmed"]) == 1
    assert set(rows["input path"]["step_seconds"]) == {"held", "resident", "streamed"}
    assert min(rows["input path"]["ratio"].values()) > 0
    if isinstance(rows["epoch"]["pytorch"], str):  # why it was not measured
        assert "torch" in rows["epoch"]["pytorch"]
        assert rows["epoch"]["ratio"] is None
    else:
        assert rows["epoch"]["best_pytorch"]["workers"] == 0
        assert rows["epoch"]["ratio"] > 0


# ------------------------------------------------------------------------------ weights


def test_the_readme_has_the_table_of_weights():
    found = json.loads((BENCHMARKS / "results" / "weights.json").read_text())
    assert found["not_measured"] == []
    assert "\n".join(script("weights").table(found["rows"])) in (ROOT / "README.md").read_text()
    assert f"`{found['command']}`" in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_weights_of_two_formats_are_measured(tmp_path, capsys, monkeypatch):
    require("torchvision")
    weights, path = script("weights"), tmp_path / "weights.json"
    words = ["--networks", "resnet18", "--formats", "torchvision", "flaxmed", "--size", "64"]
    assert weights.main([*words, "--images", "1", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert [row["format"] for row in found["rows"]] == ["torchvision .pth", "flaxmed safetensors"]
    torchs, ours = found["rows"]
    assert {row["tensors_loaded"] for row in found["rows"]} == {102}
    assert [len(names) for names in torchs["left_out"].values()] == [20]
    assert not ours["left_out"]
    assert torchs["worst_difference"] == ours["worst_difference"] < 1e-4 * torchs["largest"]
    assert "torchvision" in found["versions"]
    printed = capsys.readouterr().out
    assert "torchvision .pth, resnet18: 102 tensors loaded, left out 20 num_batches_tr" in printed
    assert "\n".join(weights.table(found["rows"])) in printed
    # a library that is absent is named, and a difference is the exit code
    monkeypatch.setattr(weights, "installed", lambda package: None)
    assert weights.main(words) == 0
    assert "torchvision .pth, resnet18: torchvision is not installed" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(weights, "TOLERANCE", 0)
    assert weights.main([*words, "--images", "1"]) == 1


# ------------------------------------------------------------------------------ scaling


def test_the_page_on_many_devices_is_what_was_counted_and_measured():
    scaling = script("scaling")
    counted = json.loads((BENCHMARKS / "results" / "scaling.json").read_text())["counts"]
    assert "\n".join(scaling.tables(counted)) in scaling.PAGE.read_text()


def test_what_passes_between_devices_is_counted_in_the_program():
    """Two devices: the gradients of all parameters, and a mean and a variance of each BatchNorm."""
    counts = script("scaling").count("resnet18", devices=2)
    assert counts["parameters"] == 11_180_616
    gradients = counts["bytes"] - counts["statistics_bytes"]
    assert gradients == pytest.approx(4 * counts["parameters"], rel=2e-3)
    assert counts["statistics"] >= 2 * 20 - 3  # three pairs, of blocks with a projection, in one


def test_an_all_reduce_costs_its_bytes_and_its_rounds():
    scaling = script("scaling")
    link = scaling.Link(bandwidth=1e9, latency=1e-6)
    assert scaling.all_reduce_seconds(0, 8, link) == pytest.approx(6e-6)
    assert scaling.all_reduce_seconds(1e9, 8, link) == pytest.approx(1.75, rel=1e-4)
    hidden = scaling.Scaled(step=3.0, statistics=1.0, gradients=2.0)
    assert hidden.efficiency == pytest.approx(3 / 4)
    shown = scaling.Scaled(step=3.0, statistics=1.0, gradients=4.0)
    assert shown.efficiency == pytest.approx(3 / 6)


@pytest.mark.slow
def test_every_way_to_start_from_weights_is_timed(tmp_path, monkeypatch, capsys):
    transfer, path = script("transfer"), tmp_path / "transfer.json"
    words = ["--dataset", "phantom", "--images", "16", "--models", "resnet18", "--epochs", "1"]
    words += ["--pretrain-images", "16", "--pretrain-epochs", "1", "--out", str(tmp_path / "runs")]
    monkeypatch.setattr(probe, "cache_dir", probe.cache_dir)  # which the script replaces
    monkeypatch.setattr(sys, "argv", ["transfer.py", *words, "--json", str(path)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metrics that so little training leaves undefined
        transfer.main()
    rows = {row["way"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == list(transfer.ways("resnet18", ""))
    assert all(row["seconds"] > 0 for row in rows.values())
    assert "gained" not in rows["from scratch"]
    assert rows["linear probe"]["gained"] == rows["linear probe again"]["gained"]
    with pytest.raises(SystemExit):  # finished runs would be read back, not timed
        transfer.main()
    assert "is there" in capsys.readouterr().err
