"""Does a long run grow? Memory, live arrays, open files and threads over 20,000 training steps.

    python benchmarks/soak.py --steps 20000 --json benchmarks/results/soak.json

ResNet-18 on a small phantom, resident and streamed, with an evaluation and a checkpoint every 200
steps. A thread looks about it once a second. What is compared are the medians of the second quarter
and of the last one: the first quarter is that of caches which fill.

What grows a little is what tensorstore 0.1.86 loses for each array in a checkpoint (237 bytes in
each call of ``KvStore.Spec.to_json``, by tracemalloc): some 50 kB for the two saves of an epoch.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
from timed_training import machine

import flaxmed
from flaxmed.data.phantom import load_phantom
from flaxmed.training.rundir import read_rows, write_json

_PER_EPOCH, _BATCH = 200, 8
_PAGE = os.sysconf("SC_PAGE_SIZE")


def look(run_dir: Path) -> dict[str, int]:
    """What this process holds now."""
    rows = read_rows(run_dir / "metrics.jsonl")
    arrays = jax.live_arrays()
    return {
        "step": rows[-1]["step"] if rows else 0,
        "resident_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE,
        "device_bytes": sum(array.nbytes for array in arrays),
        "device_arrays": len(arrays),
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "system_threads": len(os.listdir("/proc/self/task")),
    }


def soak(steps: int, fetch: str, run_dir: Path) -> dict[str, Any]:
    """Train for so many steps; what was seen, and how the quarters compare."""
    seen: list[dict[str, int]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            seen.append(look(run_dir))

    watcher = threading.Thread(target=watch)
    watcher.start()
    data = load_phantom(size=32, n_train=_PER_EPOCH * _BATCH, n_val=32, n_test=32)
    config = flaxmed.TrainConfig(
        stem="imagenet", epochs=steps // _PER_EPOCH, batch_size=_BATCH, fetch=fetch
    )
    try:
        flaxmed.train(config, data, out=run_dir, progress=False)
    finally:
        over.set()
        watcher.join()
    quarter = len(seen) // 4
    growth = {}
    for name in seen[0]:
        before, after = (
            float(np.median([row[name] for row in part]))
            for part in (seen[quarter : 2 * quarter], seen[-quarter:])
        )
        growth[name] = {"second_quarter": before, "last_quarter": after}
    return {"steps": steps, "fetch": fetch, "seen": seen[:: max(1, len(seen) // 100)], **growth}


def main() -> None:
    """Train, watch, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    results = []
    for fetch in ("resident", "streamed"):
        with tempfile.TemporaryDirectory() as folder:
            results.append(soak(args.steps, fetch, Path(folder) / "run"))
        print(f"{args.steps} steps, {fetch}: second quarter, last quarter")
        for name, value in results[-1].items():
            if isinstance(value, dict):
                before, after = value["second_quarter"], value["last_quarter"]
                print(f"  {name:<16} {before:>14,.0f} {after:>14,.0f}")
    if args.json:
        write_json(args.json, {**machine(), "runs": results})


if __name__ == "__main__":
    main()
