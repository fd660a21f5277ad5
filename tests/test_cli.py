"""The command line: exit codes, and one clear line for each mistake."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import flaxmed
from flaxmed.cli import main
from flaxmed.types import Predictions

RNG = np.random.default_rng(0)


def arrays(size=32, n=8, k=2, **changes):
    made = {}
    for split in ("train", "val", "test"):
        made[f"{split}_images"] = RNG.integers(0, 256, (n, size, size), np.uint8)
        made[f"{split}_labels"] = (np.arange(n) % k).reshape(n, 1).astype(np.uint8)
    return {**made, **changes}


def save(path, **changes):
    made = {name: value for name, value in arrays(**changes).items() if value is not None}
    np.savez_compressed(path, **made)
    return path


def fails(capsys, *words, code=2):
    """The one line on stderr of a command that must fail with this exit code."""
    assert main([str(word) for word in words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("flaxmed: error: ")
    assert err.count("\n") == 1, err
    return err


def test_version_and_help(capsys):
    for words in (["--version"], ["--help"], ["train", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0
    assert "Not a medical device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--epochs", "ten"], "--epochs: invalid int value: 'ten'"),
        (["train", "--dataset", "brestmnist"], "did you mean 'breastmnist'?"),
        (["train", "--model", "resnet50"], "resnet50"),
        (["train", "--recipe", "best"], "unknown recipe 'best'; expected one of default, medmnist"),
        (["train", "--stem", "tiny"], "setting stem: expected 'auto'"),
        (["train", "--epochs", "0"], "setting epochs: expected a number at least 1, got 0"),
        (["train", "--augment", "mirror"], "--augment mirror: expected none alone, or flips"),
        (["train", "--class-weights", "a", "b"], "--class-weights: expected balanced or numbers"),
        (["train", "--dataset", "breastmnist", "--size", "32"], "28"),
        (["train", "--resume", "no/such/run"], "no/such/run"),
        (["train", "--config", "no/such.json"], "no/such.json"),
        (["train", "--resume", "r", "--out", "x"], "--out does not go with --resume RUN"),
        (["train", "--resume", "r", "--seeds", "1"], "--seeds does not go with --resume RUN"),
        (["train", "--resume", "r", "--recipe", "x"], "--recipe does not go with --resume RUN"),
        (["train", "--distributed", "host"], "expected nothing, or HOST:PORT COUNT INDEX"),
        (["train", "--distributed", "h:1", "2", "x"], "got h:1 2 x"),
        (["train", "--distributed", "h:1", "2", "2"], "process 2 is not one of 2"),
        (["train", "--distributed", "h", "2", "0"], "the address of a job is HOST:PORT, got 'h'"),
        (
            ["train", "--seed", "0", "--seeds", "1", "2"],
            "--seed is for one run, --seeds for several",
        ),
        (["train", "--seeds", "1", "1"], "seeds: expected one or more, all different, got 1 1"),
        (["train", "--config", "c", "--recipe", "medmnist"], "leave out --recipe"),
        (["train", "--linear-probe", "--epochs", "3"], "--epochs does not go with a linear probe"),
        (
            ["train", "--linear-probe", "--learning-rate", "0.1"],
            "--learning-rate does not go with a linear probe, which takes no steps",
        ),
        (["train", "--augment", "none", "flips"], "--augment none: expected none alone"),
        (["train", "--dataset", "~no-such-user/a.npz"], "~no-such-user/a.npz"),
        (["evaluate", "no/such/run"], "no/such/run"),
        (["evaluate", "no/such/run", "--level", "95"], "--level: expected a number between 0 and"),
        (["evaluate", ".", "--val", "a.npz"], "--val goes with a predictions .npz"),
        (["evaluate", ".", "--subgroups", "no.csv"], "config.json: no such file"),
        (["compare", "a.npz", "no/such/run"], "a.npz: expected run directories alone"),
        (["compare", "no/such/run"], "no/such/run"),
        (["compare", "no/such/run", "--power", "high"], "argument --power: invalid float value"),
        (["summary", "resnet50"], "resnet50"),
        (["summary", "resnet18", "--size", "4"], "at least"),
        (["summary", "resnet18", "--stem", "big"], "imagenet"),
    ],
)
def test_mistakes_give_one_line_and_code_2(capsys, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in fails(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def truncated(path):
    data = save(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def not_a_zip(path):
    path.write_text("label,pixel\n1,2\n")


def pickled(path):
    save(path, train_labels=np.array([{"label": 1}] * 8, dtype=object))


BAD_FILES = {
    "truncated": (truncated, "zip"),
    "not a zip": (not_a_zip, "zip"),
    "pickled": (pickled, "train_labels"),
    "missing array": (lambda path: save(path, val_labels=None), "val_labels"),
    "lengths differ": (lambda path: save(path, test_labels=np.zeros((7, 1), np.uint8)), "test"),
    "float images": (lambda path: save(path, val_images=np.zeros((8, 32, 32))), "val_images"),
    "images too flat": (
        lambda path: save(path, val_images=np.zeros((8, 32), np.uint8)),
        "val_images",
    ),
    "negative label": (
        lambda path: save(path, test_labels=np.full((8, 1), -1)),
        "test_labels",
    ),
    "label not in training": (
        lambda path: save(path, classes=np.array(["a", "b"]), val_labels=np.full((8, 1), 9)),
        "val_labels",
    ),
    "empty split": (
        lambda path: save(
            path, val_images=np.zeros((0, 32, 32), np.uint8), val_labels=np.zeros((0, 1), np.uint8)
        ),
        "val",
    ),
    "too small": (lambda path: save(path, size=6), "own: ResNet18 with stem"),
    "absent": (lambda path: None, "own.npz"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_and_nothing_is_written(capsys, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    make, expected = BAD_FILES[case]
    make(tmp_path / "own.npz")
    before = sorted(tmp_path.iterdir())
    line = fails(capsys, "train", "--dataset", "own.npz", "--stem", "imagenet", "--epochs", "1")
    assert expected in line
    assert sorted(tmp_path.iterdir()) == before


def test_a_config_file_is_checked_by_key(capsys, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"optimizer": {"learning_rat": 0.1}}))
    assert "did you mean optimizer.learning_rate?" in fails(capsys, "train", "--config", path)
    path.write_text(json.dumps({"recipe": "nonsense"}))
    assert "config.json: unknown recipe 'nonsense'" in fails(capsys, "train", "--config", path)
    path.write_text("[]")
    assert "config.json: expected a JSON object, got list" in fails(
        capsys, "train", "--config", path
    )
    path.write_text("[" * 100_000)
    assert "config.json: not readable as JSON" in fails(capsys, "train", "--config", path)
    path.write_text("{")
    assert "not readable as JSON" in fails(capsys, "train", "--config", path)


def test_a_data_folder_that_is_a_file_is_refused(capsys, tmp_path):
    (tmp_path / "data").write_text("")
    line = fails(capsys, "train", "--dataset", "bloodmnist", "--data-dir", tmp_path / "data")
    assert "data: is a file; expected the folder" in line


def test_predictions_files_are_compared_without_their_runs(capsys, tmp_path):
    for name in ("a", "b"):
        p = Predictions(labels=[0, 1, 1, 0], logits=[[1, 0], [0, 1], [1, 0], [2, 0]], task="binary")
        p.save(tmp_path / f"{name}.npz")
    files = [str(tmp_path / f"{name}.npz") for name in ("a", "b")]
    assert main(["compare", *files]) == 0
    assert re.search(r"test accuracy +0\.7500 +0\.7500\n", capsys.readouterr().out)
    assert "given twice" in fails(capsys, "compare", files[0], files[0])


@pytest.mark.slow
def test_the_example_refuses_a_mistake_in_its_last_network_before_it_trains(tmp_path):
    example = Path(__file__).parents[1] / "examples" / "train_medmnist.py"
    for words, expected in (
        (["--models", "resnet18", "resnet19"], "unknown model 'resnet19'"),
        (["--epochs", "x"], "argument --epochs: invalid int value: 'x'"),
    ):
        command = [sys.executable, str(example), *words, "--out", "runs"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("flaxmed: error: ")
        assert done.stderr.count("\n") == 1
        assert expected in done.stderr
        assert list(tmp_path.iterdir()) == []


def test_a_wrong_digest_is_refused(capsys, tmp_path):
    save(tmp_path / "breastmnist.npz", size=28)
    line = fails(
        capsys, "train", "--dataset", "breastmnist", "--data-dir", tmp_path, "--out", tmp_path / "o"
    )
    assert "750601b1f35ba3300ea97c75c52ff8f6" in line
    assert not (tmp_path / "o").exists()


def test_without_network_the_line_says_where_to_put_the_file(capsys, tmp_path):
    line = fails(
        capsys, "train", "--dataset", "bloodmnist", "--data-dir", tmp_path, "--out", tmp_path / "o"
    )
    assert "bloodmnist.npz" in line
    assert "phantom" in line
    assert list(tmp_path.iterdir()) == []


def test_datasets_and_summary_print(capsys):
    assert main(["datasets"]) == 0
    out = capsys.readouterr().out
    assert "breastmnist" in out
    assert "phantom" in out
    assert main(["summary", "resnet18", "--size", "28", "--stem", "small", "--classes", "9"]) == 0
    assert "11,173,449" in capsys.readouterr().out


def test_evaluate_takes_a_predictions_file(capsys, tmp_path):
    p = Predictions(labels=[0, 1, 1, 0], logits=[[1, 0], [0, 1], [1, 0], [2, 0]], task="binary")
    p.save(tmp_path / "test.npz")
    assert main(["evaluate", str(tmp_path / "test.npz")]) == 0
    assert "0.75" in capsys.readouterr().out
    (tmp_path / "sex.csv").write_text("id,sex\n0,F\n1,M\n2,F\n3,M\n")
    files = {"--val": tmp_path / "test.npz", "--subgroups": tmp_path / "sex.csv"}
    options = [str(word) for pair in files.items() for word in pair]
    options += ["--sensitivity", "0.8"]
    assert main(["evaluate", str(tmp_path / "test.npz"), *options, "--level", "0.9"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "90% interval" in text
    assert "sensitivity at least 0.80 on validation" in text
    assert "by sex" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sex.csv", "test.npz"]
    for option in files:
        line = fails(capsys, "evaluate", tmp_path / "test.npz", option, tmp_path / "no.npz")
        assert "no.npz" in line
    (tmp_path / "bad.npz").write_bytes(b"PK")
    assert "bad.npz" in fails(capsys, "evaluate", tmp_path / "bad.npz")


@pytest.mark.slow
def test_train_interrupt_resume_evaluate_compare(tmp_path):
    """The whole path by hand: a run is stopped by Ctrl-C, resumed as its last line says."""
    save(tmp_path / "own.npz", n=64)
    command = [sys.executable, "-m", "flaxmed.cli"]
    words = [
        "train",
        "--dataset",
        "own.npz",
        "--stem",
        "imagenet",
        "--epochs",
        "40",
        "--batch-size",
        "8",
        "--out",
        "run",
    ]
    # the copy of flaxmed that is tested, wherever the command runs
    home = {"PYTHONPATH": str(Path(flaxmed.__file__).parents[1])}
    options = {"cwd": tmp_path, "env": {**os.environ, **home}, "text": True}
    process = subprocess.Popen(
        [*command, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, **options
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    limit = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < limit:
        if metrics.exists() and metrics.read_text():
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("flaxmed: SIGINT at step ")
    resume = last.split("flaxmed train ")[1].split()
    assert resume == ["--resume", "run"]
    # one more epoch is enough to see that it goes on
    done = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    resume += ["--epochs", str(done + 1)]
    for follow in (["train", *resume], ["evaluate", "run"], ["compare", "run", "--out", "table"]):
        done_process = subprocess.run(
            [*command, *follow], capture_output=True, timeout=240, **options
        )
        assert done_process.returncode == 0, done_process.stderr
    assert (tmp_path / "table" / "comparison.csv").exists()
    assert (tmp_path / "run" / "report.json").exists()


def test_a_closed_pipe_is_no_error():
    code = "import sys; from flaxmed.cli import main; sys.exit(main(['datasets']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ)
    process.stdout.close()
    assert process.wait(timeout=120) == 0


def test_compare_takes_what_was_declared(capsys, tmp_path):
    labels = np.arange(60) % 2
    for i, name in enumerate("ab"):
        logits = np.random.default_rng(i).normal(size=(60, 2)) + np.eye(2)[labels]
        Predictions(labels=labels, logits=logits, task="binary").save(tmp_path / f"{name}.npz")
    files = [tmp_path / "a.npz", tmp_path / "b.npz"]
    options = ["--metric", "brier", "--difference", "0.01", "--power", "0.9", "--level", "0.9"]
    assert main(["compare", *map(str, files), *options]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "no difference in Brier score between" in text
    assert "a true difference of 0.01 in Brier score with probability 0.9" in text
    assert "90% interval" in text
    assert main(["compare", *map(str, files), "--out", str(tmp_path / "out")]) == 0
    assert "read " + str(tmp_path / "out" / "report.html") in capsys.readouterr().out
    assert {"report.html", "comparison.json", "figures"} <= set(os.listdir(tmp_path / "out"))
    for option, value in (("--metric", "f2"), ("--power", "1"), ("--level", "95")):
        assert value in fails(capsys, "compare", *files, option, value)
