"""Checkpoints that were damaged, or never finished, are found, named and passed over."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import assert_same_run, config, fit

import flaxmed
from flaxmed.training import manifest
from flaxmed.training.record import best_folder, last_folder, sound_step
from flaxmed.types import InputError, RunError

pytestmark = pytest.mark.usefixtures("tiny_network")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A run of three epochs of four steps each."""
    made = {}

    def train():
        if "run" not in made:
            made["run"] = fit(data, tmp_path_factory.mktemp("finished") / "run")
        return made["run"]

    return train


@pytest.fixture
def stopped(finished, tmp_path):
    """A copy of it that lacks what is written after the last epoch."""
    whole, copy = finished().dir, tmp_path / "run"
    shutil.copytree(whole, copy)
    (copy / "run.json").unlink()
    shutil.rmtree(copy / "predictions")
    return copy


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def test_the_last_three_states_and_two_best_are_kept(finished):
    run = finished()
    assert [path.name for path in sorted(last_folder(run.dir).iterdir())] == ["12", "4", "8"]
    assert len(list(best_folder(run.dir).iterdir())) <= 2
    assert sound_step(run.dir) == (12, [])


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (flip, "its SHA-256 is not that of manifest.json"),
        (truncate, "bytes, .* by manifest.json"),
        (lambda path: path.unlink(), "is missing"),
    ],
    ids=["flipped", "truncated", "missing"],
)
def test_every_damaged_file_is_found_and_named(stopped, do, says):
    newest = last_folder(stopped) / "12"
    files = [path for path in files_of(newest) if path.name != manifest.NAME]
    assert len(files) > 5
    for path in files:
        whole = path.read_bytes()
        if not whole and do is not flip:
            continue
        do(path) if whole else path.write_bytes(b"1")
        step, (line,) = sound_step(stopped)
        assert step == 8
        assert str(path) in line
        assert line.endswith("the checkpoint of step 12 is skipped")
        path.write_bytes(whole)
    assert sound_step(stopped) == (12, [])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": 3}', b'{"files": {"a": 1}}'])
def test_a_damaged_seal_is_named(stopped, content):
    seal = last_folder(stopped) / "12" / manifest.NAME
    seal.write_bytes(content)
    assert sound_step(stopped) == (
        8,
        [f"{seal}: cannot be read: the checkpoint of step 12 is skipped"],
    )


def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one(finished, stopped, data, capsys):
    flip(next(path for path in files_of(last_folder(stopped) / "12") if path.parent.name == "d"))
    run = flaxmed.train(config(), data, out=stopped)
    lines = capsys.readouterr().err
    assert "the checkpoint of step 12 is skipped" in lines
    assert "goes on from step 8" in lines
    assert_same_run(run, finished())
    assert sound_step(stopped) == (12, [])


def test_without_the_best_epochs_network_it_goes_on_from_where_there_was_one(
    finished, stopped, data
):
    """As if killed between the two saves of an epoch."""
    rows = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["val_auc"])["step"]
    (best_folder(stopped) / str(best) / manifest.NAME).unlink()
    step, reasons = sound_step(stopped)
    assert step < best
    assert all("was not finished" in line for line in reasons)
    assert_same_run(fit(data, stopped), finished())


def test_where_no_checkpoint_is_sound_it_starts_anew(finished, stopped, data):
    for checkpoint in last_folder(stopped).iterdir():
        truncate(checkpoint / manifest.NAME)
    assert sound_step(stopped)[0] == 0
    assert len(sound_step(stopped)[1]) == 3
    assert_same_run(fit(data, stopped), finished())


def test_what_a_killed_process_left_half_written_is_removed(finished, stopped, data):
    half = last_folder(stopped) / "16.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "values").write_bytes(b"1")
    later = last_folder(stopped) / "16"
    shutil.copytree(last_folder(stopped) / "12", later)  # of steps that are to be done again
    (later / manifest.NAME).unlink()
    assert_same_run(fit(data, stopped), finished())
    assert sorted(path.name for path in last_folder(stopped).iterdir()) == ["12", "4", "8"]


def test_a_damaged_network_is_not_loaded(stopped):
    newest = max(best_folder(stopped).iterdir(), key=lambda path: int(path.name))
    flip(path := next(path for path in files_of(newest) if path.parent.name == "d"))
    with pytest.raises(InputError, match=f"{path}: its SHA-256 .* the checkpoint is damaged"):
        flaxmed.load_model(stopped)


def test_a_run_without_a_finished_checkpoint_has_no_network(stopped):
    for checkpoint in best_folder(stopped).iterdir():
        (checkpoint / manifest.NAME).unlink()
    with pytest.raises(InputError, match="no checkpoint there yet"):
        flaxmed.load_model(stopped)


def test_a_save_that_fails_in_the_background_stops_the_run(data, tmp_path, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "seal", full)
    with pytest.raises(RunError, match=r"cannot save the checkpoint: No space left on device"):
        fit(data, tmp_path / "run")


def test_a_disk_without_room_stops_the_run_and_it_can_go_on(finished, data, tmp_path, monkeypatch):
    real, calls = shutil.disk_usage, iter([10**9] * 3)

    def usage(path):
        return real(path)._replace(free=next(calls, 1000))

    with monkeypatch.context() as patch, pytest.raises(RunError) as caught:
        patch.setattr(shutil, "disk_usage", usage)
        fit(data, tmp_path / "run")
    assert re.search(
        r"cannot save the checkpoint: it takes \d+\.\d MB, 0.0 MB are free", str(caught.value)
    )
    assert_same_run(fit(data, tmp_path / "run"), finished())


def test_two_processes_do_not_train_in_one_folder(data, tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom flaxmed.training.rundir import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError) as caught:
            fit(data, tmp_path / "run", epochs=1)
        other.kill()  # which releases the lock
    assert str(caught.value).startswith(
        f"{tmp_path / 'run'}: another process trains there (process {other.pid} on "
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    fit(data, tmp_path / "run", epochs=1)


def test_a_clock_that_jumps_changes_nothing(finished, data, tmp_path, monkeypatch):
    """Set forward by a year and back by two, and back again, while a run goes on and resumes."""
    real, year = time.time, 365 * 86400.0
    jumps = itertools.cycle([0.0, year, -year, 3600.0])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    assert_same_run(fit(data, tmp_path / "run", epochs=3), finished())
    shutil.copytree(tmp_path / "run", tmp_path / "later")
    (tmp_path / "later" / "run.json").unlink()
    for path in (tmp_path / "later").rglob("*"):  # files from the future, and from the past
        os.utime(path, (real() + next(jumps),) * 2)
    assert_same_run(fit(data, tmp_path / "later"), finished())


def in_a_small_disk(size, folder, code):
    """Runs Python code in a process that sees a disk of its own at ``folder``, of so many bytes."""
    folder.mkdir()
    script = f'mount -t tmpfs -o size={size} tmpfs {folder} && exec {sys.executable} -c "$CODE"'
    home = os.pathsep.join([str(Path(flaxmed.__file__).parents[1]), str(Path(__file__).parent)])
    return subprocess.run(
        ["unshare", "--mount", "--map-root-user", "--user", "sh", "-c", script],
        env={**os.environ, "CODE": code, "PYTHONPATH": home},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


FILLS_THE_DISK = """
from contextlib import suppress
from pathlib import Path
from tiny_runs import assert_same_run, create, fit
from flaxmed.command import run_command
from flaxmed.data.phantom import load_phantom
from flaxmed.training import run as run_module
from flaxmed.training.progress import Progress

run_module.create_model = create
data, out = load_phantom(size=32, n_train=27, n_val=21, n_test=19), Path("FOLDER")
real = Progress.advance

def advance(self, count):
    real(self, count)
    if self.done >= 40 and not (out / "filler").exists():  # another user's file takes what is left
        with open(out / "filler", "wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

Progress.advance = advance
code = run_command(lambda: fit(data, out / "run"))
left = sorted(path.name for path in (out / "run").glob("*.tmp"))
Progress.advance = real
(out / "filler").unlink()
again = run_command(lambda: assert_same_run(fit(data, out / "run"), fit(data, Path("OTHER"))))
print("CODES", code, left, again)
"""


def test_a_disk_that_fills_up_ends_the_run_with_one_line_and_it_can_go_on(tmp_path):
    code = FILLS_THE_DISK.replace("FOLDER", str(tmp_path / "disk"))
    done = in_a_small_disk(2**24, tmp_path / "disk", code.replace("OTHER", str(tmp_path / "other")))
    assert "CODES 1 [] 0" in done.stdout, done.stdout + done.stderr
    lines = [x for x in done.stderr.splitlines() if not x.startswith("flaxmed: run ")]
    assert len(lines) == 1, done.stderr
    (line,) = lines
    # before a save, or in the middle of one
    assert line.startswith(f"flaxmed: error: {tmp_path / 'disk' / 'run'}")
    assert "no space left" in line.lower() or "MB are free" in line


def test_a_read_only_folder_is_refused_before_the_first_step(data, tmp_path):
    """Not even an administrator writes to /proc."""
    with pytest.raises(InputError, match="output folder"):
        fit(data, Path("/proc/flaxmed/run"))
