"""All that is measured on one GPU, in less than ten minutes.

    python benchmarks/gpu.py --budget 540

Writes benchmarks/results/gpu_<device>.json anew after every row. A row that the time does not reach
is named there under ``not_measured``, as is one that failed, with its reason. ``--rows`` chooses
rows; ``--tiny`` runs all on small sizes, on a CPU too. ``benchmarks/gpu_rows.py`` has the rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Nothing heavy is imported up here: PyTorch's worker processes read this file anew.

ROOT = Path(__file__).resolve().parents[1]


class TimeOver(BaseException):
    """The budget ended, perhaps in a row, where no ``except Exception`` may stop this."""


@contextmanager
def until(end: float) -> Iterator[None]:
    """Raises TimeOver inside the block when the clock (time.monotonic) reaches ``end``."""

    def stop(*_: Any) -> None:
        raise TimeOver

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(end - time.monotonic(), 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def at_the_latest(end: float, leave: Callable[[], None]) -> Iterator[None]:
    """Calls ``leave`` and ends the process when the block is not over at ``end``.

    TimeOver waits for Python's next step, and a compiler in C++ can take minutes to come back.
    """

    def end_all() -> None:
        leave()
        os._exit(1)

    timer = threading.Timer(max(end - time.monotonic(), 0), end_all)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def measure_rows(
    rows: Mapping[str, Callable[[], Mapping[str, Any]]],
    end: float,
    save: Callable[[Mapping[str, Any]], None],
    grace: float = 5,
) -> dict[str, Any]:
    """Row after row until the time is over.

    Args:
        rows: by name, what measures it.
        end: when to stop, by time.monotonic.
        save: called after each row with all that is known.
        grace: seconds after ``end``; then the process ends, whatever it is in.

    Returns:
        ``rows``, ``not_measured`` (why) and ``row_seconds``, each by name.
    """
    found: dict[str, Any] = {"rows": {}, "not_measured": {}, "row_seconds": {}}
    for name, row in rows.items():
        start = time.monotonic()

        def leave(name: str = name) -> None:
            found["not_measured"][name] = "the time was over in a call that nothing interrupts"
            save(found)
            print(f"{name}: {found['not_measured'][name]}", flush=True)

        try:
            if start >= end:
                raise TimeOver
            with at_the_latest(end + grace, leave), until(end):
                found["rows"][name] = dict(row())
        except TimeOver:
            begun = time.monotonic() - start > 1
            found["not_measured"][name] = "the time was over" + (" before its end" if begun else "")
        except Exception as error:  # the rows that follow are worth having all the same
            text = " ".join(f"{type(error).__name__}: {error}".split())
            found["not_measured"][name] = text[:500]
        found["row_seconds"][name] = round(time.monotonic() - start, 1)
        state = "measured" if name in found["rows"] else found["not_measured"][name]
        print(f"{name}: {state} ({found['row_seconds'][name]:.0f} s)", flush=True)
        save(found)
    return found


def file_name(device: str) -> str:
    """Such as ``gpu_nvidia_h100_80gb_hbm3.json``."""
    return "gpu_" + "_".join("".join(c if c.isalnum() else " " for c in device.lower()).split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; the exit code: 0 done, 1 a row is missing, 2 the input is wrong."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=float, default=540, help="seconds for all of it")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these alone, and the ceilings")
    parser.add_argument("--tiny", action="store_true", help="small sizes, also on a CPU")
    parser.add_argument("--alone", action="store_true", help="without PyTorch")
    parser.add_argument("--out", type=Path, help="another file than results/gpu_<device>.json")
    args = parser.parse_args(arguments)
    # two libraries share the device's memory: neither may take most of it beforehand
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    import gpu_rows
    import jax

    from flaxmed.training.rundir import write_json

    if jax.default_backend() == "cpu" and not args.tiny:
        print("gpu.py: no accelerator here; --tiny runs on a CPU", file=sys.stderr)
        return 2
    sizes = gpu_rows.TINY if args.tiny else gpu_rows.FULL
    sizes = dataclasses.replace(sizes, alone=args.alone)
    rows = gpu_rows.make_rows(sizes)
    if unknown := set(args.rows or ()) - set(rows):
        print(f"gpu.py: --rows: no row {min(unknown)!r}; expected of {list(rows)}", file=sys.stderr)
        return 2
    folder = ROOT / "benchmarks" / "results"
    out = args.out or folder / f"{file_name(jax.devices()[0].device_kind)}.json"
    if not out.parent.is_dir():
        print(f"gpu.py: --out: {out.parent}: no such folder", file=sys.stderr)
        return 2
    head = gpu_rows.head(sizes) | {"command": shlex.join(["python", *sys.argv])}
    names = {"ceilings", *(args.rows or rows)}
    chosen = {name: row for name, row in rows.items() if name in names}
    found = measure_rows(
        chosen, start + args.budget, lambda found: write_json(out, {**head, **found})
    )
    print(f"written: {out}")
    return 1 if found["not_measured"] else 0


if __name__ == "__main__":
    sys.exit(main())
