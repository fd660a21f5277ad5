"""Kill a training process at random moments, resume it, and compare the end with one never touched.

    python benchmarks/kills.py --kills 50 --json benchmarks/results/kills.json

A worker process trains ResNet-18 on a small phantom, six epochs with a checkpoint each. It is
killed (SIGKILL) after a random time or, every other time, while a checkpoint is being written;
started again, and killed again, until it ends; then another run begins. Every run must end with the
same bits: the last state (parameters, optimiser, statistics, moving averages, step), the best
epoch's network, ``metrics.jsonl`` and the predictions.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from timed_training import machine

import flaxmed
from flaxmed.data.phantom import load_phantom
from flaxmed.training.checkpoint import saved_steps
from flaxmed.training.record import best_folder, last_folder
from flaxmed.training.rundir import write_json

_HALF_WRITTEN = "checkpoints/*/*.orbax-checkpoint-tmp"
_PATIENCE = 300.0  # seconds for a worker that nobody kills


def work(out: Path) -> None:
    """What is killed: a training run that takes a few seconds."""
    config = flaxmed.TrainConfig(
        stem="imagenet", epochs=6, batch_size=16, eval_batch_size=32, ema_decay=0.9
    )
    flaxmed.train(
        config, load_phantom(size=32, n_train=70, n_val=32, n_test=32), out=out, progress=False
    )


def start(out: Path) -> subprocess.Popen[bytes]:
    """A process that does the work."""
    return subprocess.Popen([sys.executable, __file__, "--work", str(out)])


def kill_once(out: Path, seconds: float, *, in_a_save: bool) -> bool:
    """Start the work and kill it; whether it was still running then.

    Args:
        out: run directory.
        seconds: when to kill.
        in_a_save: from then on wait until a checkpoint is being written.
    """
    with start(out) as process:
        end = time.monotonic() + seconds
        while process.poll() is None:
            if time.monotonic() >= end and (not in_a_save or next(out.glob(_HALF_WRITTEN), None)):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
    return process.returncode == -signal.SIGKILL


def finish(out: Path) -> None:
    """Let the work go on to its end."""
    with start(out) as process:
        if process.wait(_PATIENCE) != 0:
            raise SystemExit(f"{out}: the work failed with exit code {process.returncode}")


def end_state(out: Path) -> dict[str, str]:
    """A digest of all that a finished run must agree in, by what it is."""
    last, best = last_folder(out), best_folder(out)
    found = {
        "last state": digest_of(arrays_in(last / str(saved_steps(last)[0]))),
        "best network": digest_of(arrays_in(best / str(saved_steps(best)[0]))),
        "metrics.jsonl": hashlib.sha256((out / "metrics.jsonl").read_bytes()).hexdigest(),
    }
    for name in ("val", "test"):
        with np.load(out / "predictions" / f"{name}.npz", allow_pickle=False) as file:
            found[f"predictions of {name}"] = digest_of({key: file[key] for key in file.files})
    return found


def arrays_in(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's arrays by name, as orbax reads them with nothing of ours in between."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        restored: dict[str, Any] = checkpointer.restore((checkpoint / "default").absolute())
    return restored


def digest_of(arrays: dict[str, Any]) -> str:
    """One SHA-256 over names, types, shapes and bits."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def survive(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill runs until there were so many kills; compare each with one that was never touched."""
    draw = random.Random(seed)
    finish(folder / "warm-up")  # fills the compilation cache
    began = time.monotonic()
    finish(folder / "untouched")
    usual = time.monotonic() - began
    expected = end_state(folder / "untouched")
    rows: list[dict[str, Any]] = []
    killed = 0
    while killed < kills:
        out, moments = folder / f"run{len(rows)}", list[dict[str, Any]]()
        while killed < kills:
            seconds, in_a_save = draw.uniform(0.2, 0.9) * usual, len(moments) % 2 == 1
            if not kill_once(out, seconds, in_a_save=in_a_save):
                break
            half = [path.name for path in out.glob(_HALF_WRITTEN)]
            moments.append({"seconds": round(seconds, 2), "half_written": half})
            killed += 1
        finish(out)
        found = end_state(out)
        differs = [name for name in expected if found[name] != expected[name]]
        rows.append({"kills": moments, "differs": differs})
        print(f"run {len(rows)}: {len(moments)} kills, differs in {differs or 'nothing'}")
    return {
        "kills": killed,
        "kills_in_a_save": sum(bool(kill["half_written"]) for row in rows for kill in row["kills"]),
        "runs": len(rows),
        "equal_runs": sum(not row["differs"] for row in rows),
        "seconds_untouched": round(usual, 2),
        "rows": rows,
    }


def main() -> None:
    """Kill, resume, compare; exit code 1 where a run ended otherwise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        work(args.work)
        return
    with tempfile.TemporaryDirectory() as folder:
        results = survive(args.kills, args.seed, Path(folder))
    line = (
        f"{results['kills']} kills, {results['kills_in_a_save']} of them in a save; "
        f"{results['equal_runs']} of {results['runs']} runs ended with the same bits"
    )
    print(line)
    if args.json:
        write_json(args.json, {**machine(), "seed": args.seed, **results})
    if results["equal_runs"] < results["runs"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
