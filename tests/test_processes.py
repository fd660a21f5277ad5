"""One run on any number of devices and processes: the same curves, the same answers, one record.

Every process here is a real one, started as a cluster would, with JAX's own runtime on the loopback
address. Sums over a batch are taken in another order on other devices, so results agree to
rounding; in float64 that is far below anything else that could differ.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import flaxmed
from flaxmed.models import create_model
from flaxmed.models.weights import save_weights
from flaxmed.types import Preprocessing

# one worker's, so that the reference is trained once
pytestmark = pytest.mark.xdist_group("processes")

WORKER = Path(__file__).with_name("job_worker.py")
# neither batch divides by 4 or 8
SETTINGS = {"batch_size": 6, "eval_batch_size": 10, "dtype": "float64", "ema_decay": 0.9}
TOLERANCE = 1e-11
PATIENCE = 240
DEAD_AFTER = 60  # seconds within which a job ends when one of its processes has died


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Job:
    """Processes that train one run together, each on some devices of its own."""

    def __init__(self, folder, *, processes=1, devices=1, run="run", each=None, **changes):
        self.run, address = folder / run, f"127.0.0.1:{free_port()}"
        self.results = [folder / f"{run}-{i}-{time.monotonic_ns()}.npz" for i in range(processes)]
        self.processes = []
        for i, result in enumerate(self.results):
            own = {**SETTINGS, **changes, **(each or {}).get(i, {})}
            words = [f"{name}={json.dumps(value)}" for name, value in own.items()]
            place = [address, str(processes), str(i)] if processes > 1 else []
            command = [sys.executable, WORKER, self.run, result, *place, *words]
            log = open(folder / f"{result.stem}.log", "wb")  # noqa: SIM115 (the process has it)
            self.processes.append(
                subprocess.Popen(command, env=environment(devices), stdout=log, stderr=log)
            )
            log.close()

    def wait(self, seconds=PATIENCE):
        """The exit codes; no process is left when this returns."""
        end = time.monotonic() + seconds
        try:
            return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def output(self):
        return "\n".join(
            f"--- process {i}\n" + result.with_suffix(".log").read_text(errors="replace")
            for i, result in enumerate(self.results)
        )

    def done(self):
        """What each process came to know, once all ended well."""
        codes = self.wait()
        assert codes == [0] * len(codes), self.output()
        return [dict(np.load(result, allow_pickle=False)) for result in self.results]

    def lines(self):
        """The last line of each process."""
        return [result.with_suffix(".log").read_text().splitlines()[-1] for result in self.results]


def environment(devices):
    home = str(Path(flaxmed.__file__).parents[1])
    usual = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return {
        **usual,
        "PYTHONPATH": os.pathsep.join([home, str(WORKER.parent)]),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_ENABLE_X64": "1",
    }


def assert_alike(found, expected):
    """Within TOLERANCE of each array's largest value; ``pytest -rP`` shows what was found."""
    assert set(found) == set(expected)
    deviations = {
        name: np.abs(found[name] - value).max() / max(1e-3, np.abs(value).max())
        for name, value in expected.items()
    }
    for kind in ("history", "weights", "logits"):
        worst = max(value for name, value in deviations.items() if name.startswith(kind))
        print(f"{kind}: {worst:.1e}")
        assert worst <= TOLERANCE, (kind, worst)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """One process on one device: its folder and what it came to."""
    made = {}

    def run():
        if not made:
            folder = tmp_path_factory.mktemp("reference")
            (made["result"],) = Job(folder).done()
            made["run"] = folder / "run"
        return made["run"], made["result"]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "fetch"),
    [(1, 2, "resident"), (1, 8, "resident"), (2, 1, "streamed"), (2, 4, "resident")],
)
def test_any_number_of_devices_and_processes_trains_the_same(
    processes, devices, fetch, reference, tmp_path
):
    run, expected = reference()
    assert len(expected["logits/test"]) == 19
    job = Job(tmp_path, processes=processes, devices=devices, fetch=fetch)
    for found in job.done():
        assert_alike(found, expected)
    # one record, by one process
    names = {path.relative_to(run) for path in run.rglob("*") if "checkpoints" not in path.parts}
    assert names == {
        path.relative_to(job.run) for path in job.run.rglob("*") if "checkpoints" not in path.parts
    }
    for name in ("val", "test"):
        written = np.load(job.run / "predictions" / f"{name}.npz", allow_pickle=False)
        assert len(written["ids"]) == len(set(written["ids"])) == len(expected[f"logits/{name}"])


@pytest.mark.slow
def test_processes_start_from_the_weights_that_the_first_reads(tmp_path):
    """Which decide for all."""
    model = create_model("resnet18", 5, rngs=nnx.Rngs(1))
    model.preprocessing = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
    save_weights(model, tmp_path / "five.safetensors")
    frozen = {"train_from": "stage4"}
    changes = {"weights": str(tmp_path / "five.safetensors"), "finetune": frozen, "epochs": 1}
    (expected,) = Job(tmp_path, run="one", **changes).done()
    job = Job(tmp_path, run="two", processes=2, **changes)
    for found in job.done():
        assert_alike(found, expected)
    assert json.loads((job.run / "weights.json").read_text())["loaded"] == 100


@pytest.mark.slow
def test_a_run_goes_on_where_there_are_other_devices_and_processes(reference, tmp_path):
    """From eight devices to two, to two processes, to one device, and to eight again."""
    _, expected = reference()
    # 27 images an epoch, in batches of 6; of two processes both stop five steps after the signal
    for processes, devices, at in ((1, 8, 6), (1, 2, 18), (2, 1, 27), (1, 1, 66)):
        job = Job(tmp_path, processes=processes, devices=devices, _signal_at=at)
        assert job.wait() == [143] * processes, job.output()
    (found,) = Job(tmp_path, devices=8).done()
    assert_alike(found, expected)


@pytest.mark.slow
def test_all_stop_at_the_same_step_when_one_is_told_to(reference, tmp_path):
    _, expected = reference()
    job = Job(tmp_path, processes=2, each={1: {"_signal_at": 30}})
    assert job.wait() == [143, 143], job.output()
    steps = {line.split(":")[0] for line in map(last_words, job.lines())}
    assert len(steps) == 1
    assert steps.pop().startswith("SIGTERM at step ")
    for found in Job(tmp_path, processes=2).done():
        assert_alike(found, expected)


def last_words(line):
    return line.removeprefix("flaxmed: ")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_a_process_that_dies_brings_the_others_down_and_the_run_goes_on(
    victim, reference, tmp_path
):
    _, expected = reference()
    job = Job(tmp_path, processes=3, each={victim: {"_die_at": 39}})
    assert job.processes[victim].wait(PATIENCE) == -signal.SIGKILL, job.output()
    began = time.monotonic()
    codes = job.wait(DEAD_AFTER)
    print(f"the others ended {time.monotonic() - began:.0f} s later")
    assert all(code != 0 for code in codes), job.output()
    (found,) = Job(tmp_path).done()
    assert_alike(found, expected)


@pytest.mark.slow
def test_what_one_process_finds_wrong_all_say(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    job = Job(tmp_path, processes=2)
    assert job.wait() == [2, 2], job.output()
    for line in job.lines():
        assert line.endswith("run: the output folder is not empty and holds no run")
    shutil.rmtree(tmp_path / "run")
    job = Job(tmp_path, processes=2, each={1: {"seed": 5}})
    assert job.wait() == [2, 2], job.output()
    for line in job.lines():
        assert line.endswith("the settings of process 1 are not those of process 0")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_never_comes_is_not_waited_for_without_end(tmp_path):
    place = [f"127.0.0.1:{free_port()}", "2", "0"]
    code = (
        "import sys; from flaxmed.cli import run_command; from flaxmed.training import join\n"
        "sys.exit(run_command(lambda: join(sys.argv[1], 2, 0, patience=3)))"
    )
    began = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", code, *place],
        env=environment(1),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert process.returncode != 0
    assert "process 0 of 2 waits for the others at 127.0.0.1:" in process.stderr
    assert "DEADLINE_EXCEEDED" in process.stderr  # JAX's own last words
    assert time.monotonic() - began < DEAD_AFTER
