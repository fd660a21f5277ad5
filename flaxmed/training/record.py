"""What a run writes while it trains: a row per epoch, clocks, checkpoints."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from flaxmed.training import manifest
from flaxmed.training.checkpoint import Checkpoints, restore, saved_steps
from flaxmed.training.config import TrainConfig
from flaxmed.training.processes import first_does, from_first, is_first, known_to_all
from flaxmed.training.rundir import append_row, cut_rows, jsonable, read_rows
from flaxmed.training.step import TrainState
from flaxmed.types import RunError

_KEEP_LAST = 3  # should the newest be damaged there is one before it
_KEEP_BEST = 2  # the best epoch before this one is needed until this one's state is saved


def last_folder(run_dir: Path) -> Path:
    """Where the states lie from which a run goes on."""
    return run_dir / "checkpoints" / "last"


def best_folder(run_dir: Path) -> Path:
    """Where the networks of the best epochs so far lie, the best of all with the highest step."""
    return run_dir / "checkpoints" / "best"


def sound_step(run_dir: Path) -> tuple[int, list[str]]:
    """The step from which a run can go on, 0 for its start, and why not from later ones.

    It needs the state of that step and the network of the best epoch until then, both undamaged.

    Example:
        >>> sound_step(Path("no/such/run"))
        (0, [])
    """
    rows, reasons = read_rows(run_dir / "metrics.jsonl"), list[str]()
    for step in saved_steps(last_folder(run_dir)):
        reason = manifest.damage(last_folder(run_dir) / str(step))
        if reason is None and (until := [row for row in rows if row["step"] <= step]):
            reason = manifest.damage(best_folder(run_dir) / str(best_row(until)["step"]))
        if reason is None:
            return step, reasons
        reasons.append(f"{reason}: the checkpoint of step {step} is skipped")
    return 0, reasons


class Record:
    """The files of one run that grow as it goes on; process 0 writes them, all know what they say.

    Args:
        config: its settings.
        run_dir: its folder, which is its own.

    Attributes:
        metrics: the rows of ``metrics.jsonl``.
        timing: those of ``timing.jsonl``.
        skipped: a line for each damaged checkpoint that was passed over.
        whole_from: the epoch from which all stages are trained; patience begins there.
    """

    metrics: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    skipped: list[str]

    def __init__(self, config: TrainConfig, run_dir: Path):
        self.config, self.run_dir = config, run_dir
        self.whole_from = 0

        def opened() -> None:
            self.last = Checkpoints(last_folder(run_dir), keep=_KEEP_LAST)
            self.best = Checkpoints(best_folder(run_dir), keep=_KEEP_BEST)

        first_does(opened)

    def resume(self, fresh: TrainState) -> TrainState:
        """The state of the last sound checkpoint, or the ``fresh`` one; what is later goes."""
        done, self.skipped = first_does(lambda: sound_step(self.run_dir))
        state = fresh
        if done:
            state = from_first(lambda: restore(last_folder(self.run_dir), done, fresh), fresh)

        self._cut_back(done)
        return state

    def start_over(self) -> None:
        """Remove what an earlier attempt left."""
        self.skipped = []
        self._cut_back(0)

    def _cut_back(self, done: int) -> None:
        def cut() -> list[list[dict[str, Any]]]:
            for checkpoints in (self.last, self.best):
                checkpoints.forget_after(done)
            return [
                cut_rows(self.run_dir / name, until_step=done)
                for name in ("metrics.jsonl", "timing.jsonl")
            ]

        self.metrics, self.timing = first_does(cut)

    @property
    def stopped_early(self) -> bool:
        """Whether the best epoch lies ``early_stopping`` epochs back."""
        rows, patience = self.metrics, self.config.early_stopping
        if patience is None or not rows:
            return False
        since = max(best_row(rows)["epoch"], self.whole_from)
        return bool(rows[-1]["epoch"] - since >= patience)

    def end_epoch(self, state: TrainState, row: dict[str, Any]) -> bool:
        """Write down an epoch with its row of metrics and the state after it; whether it is the
        best so far."""
        row = jsonable(row)
        self.metrics.append(row)
        is_best = best_row(self.metrics) is row

        def write() -> None:
            self.last.wait()  # a new best may remove the one that goes with an older state
            append_row(self.run_dir / "metrics.jsonl", row)
            if is_best:
                self.best.save(row["step"], state.weights)
            self.last.save(row["step"], state)

        first_does(write)
        return is_best

    def end_at_once(self, weights: Any, row: dict[str, Any]) -> None:
        """Write down a run that is one epoch long, with the network it ends with; no state."""
        self.metrics.append(jsonable(row))

        def write() -> None:
            append_row(self.run_dir / "metrics.jsonl", row)
            self.best.save(row["step"], weights)

        first_does(write)

    def note_time(self, row: dict[str, Any]) -> None:
        """Write down a row of clocks."""
        self.timing.append(row)
        first_does(lambda: append_row(self.run_dir / "timing.jsonl", row))

    def stop(self, done: int, state: TrainState) -> None:
        """Save the state in the middle of an epoch, and let go of the folder."""
        first_does(lambda: self.last.save(done, state))
        self.close()

    def close(self) -> None:
        """Wait for what is being saved."""
        first_does(self.release)

    def release(self) -> None:
        """As ``close``, in one process alone."""
        if is_first():
            with contextlib.ExitStack() as both:
                both.callback(self.best.close)
                self.last.close()

    def best_weights(self, like: Any) -> Any:
        """The best epoch's parameters and statistics, in the structure of ``like``."""
        folder, step = best_folder(self.run_dir), best_row(self.metrics)["step"]
        return from_first(lambda: restore(folder, step, like), like)

    def summary(self) -> dict[str, Any]:
        """What ``run.json`` says of the time taken and of the best epoch."""
        chosen = best_row(self.metrics)
        seconds = {
            name: round(sum(row[name] for row in self.timing), 3)
            for name in ("seconds", "evaluation_seconds")
        }
        return {
            "train_seconds": seconds["seconds"],
            "evaluation_seconds": seconds["evaluation_seconds"],
            "epochs": len(self.metrics),
            "best_epoch": chosen["epoch"],
            "best_val_auc": chosen["val_auc"],
        }


def best_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The first row of the highest validation AUC; where that is undefined, the lowest loss."""
    if all(row["val_auc"] is None for row in rows):
        return min(rows, key=lambda row: row["val_loss"])
    return max((row for row in rows if row["val_auc"] is not None), key=lambda row: row["val_auc"])


def epoch_row(state: TrainState, done: int, per_epoch: int) -> dict[str, Any]:
    """The training half of an epoch's metrics: means over the epoch, as it went."""
    sums = {name: float(value) for name, value in state.sums.items()}
    return {
        "epoch": done // per_epoch - 1,
        "step": done,
        "train_loss": sums["loss"] / sums["weight"],
        "train_accuracy": sums["correct"] / sums["count"],
    }


def time_row(done: int, per_epoch: int, seconds: float, evaluation: float) -> dict[str, Any]:
    """One line of ``timing.jsonl``; seconds include compilation where there was some."""
    return {
        "epoch": (done - 1) // per_epoch,
        "step": done,
        "seconds": round(seconds, 4),
        "evaluation_seconds": round(evaluation, 4),
        "clock": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def check_finite(state: TrainState, names: list[str]) -> None:
    """Raises RunError with the first step at which a loss stopped being finite, if one did.

    Args:
        state: of one run, or stacked.
        names: of the runs, for the message; only said where there are several.
    """
    steps = np.atleast_1d(state.bad_step)
    for step, name in zip(steps, names, strict=True):
        if step >= 0:
            # counted from 1, as the steps done are everywhere
            whose = f" of {name}" if len(names) > 1 else ""
            line = f"the training loss{whose} is not finite at step {int(step) + 1}"
            raise known_to_all(RunError(f"{line}; try a lower learning rate"))
