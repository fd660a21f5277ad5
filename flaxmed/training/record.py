"""What a run writes while it trains: a row per epoch, clocks, checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from flaxmed.training.checkpoint import Checkpoints
from flaxmed.training.config import TrainConfig
from flaxmed.training.rundir import JsonLines
from flaxmed.training.step import TrainState
from flaxmed.types import RunError


class Record:
    """The files of one run that grow as it goes on.

    Args:
        config: its settings.
        run_dir: its folder, which is its own.

    Attributes:
        metrics: the rows of ``metrics.jsonl``.
        timing: those of ``timing.jsonl``.
        best: checkpoints of the best epoch's network.
    """

    metrics: JsonLines
    timing: JsonLines

    def __init__(self, config: TrainConfig, run_dir: Path):
        self.config, self.run_dir = config, run_dir
        self.last = Checkpoints(run_dir / "checkpoints" / "last")
        self.best = Checkpoints(run_dir / "checkpoints" / "best")

    def resume(self, fresh: TrainState) -> TrainState:
        """The state of the last checkpoint, or the ``fresh`` one; later rows are cut off."""
        state = fresh if self.last.latest_step is None else self.last.restore(fresh)
        done = int(state.step)
        self.metrics = JsonLines(self.run_dir / "metrics.jsonl", until_step=done)
        self.timing = JsonLines(self.run_dir / "timing.jsonl", until_step=done)
        return state

    @property
    def stopped_early(self) -> bool:
        """Whether the best epoch lies ``early_stopping`` epochs back."""
        rows, patience = self.metrics.rows, self.config.early_stopping
        if patience is None or not rows:
            return False
        return bool(rows[-1]["epoch"] - best_row(rows)["epoch"] >= patience)

    def end_epoch(self, state: TrainState, row: dict[str, Any]) -> bool:
        """Write down an epoch with its row of metrics and the state after it; whether it is the
        best so far."""
        self.metrics.append(row)
        is_best = best_row(self.metrics.rows) is self.metrics.rows[-1]
        if is_best:
            weights = {"params": state.params, "batch_stats": state.batch_stats}
            self.best.save(row["step"], weights)
        self.last.save(row["step"], state)
        return is_best

    def stop(self, done: int, state: TrainState) -> None:
        """Save the state in the middle of an epoch, and let go of the folder."""
        self.last.save(done, state)
        self.close()

    def close(self) -> None:
        """Wait for what is being saved."""
        self.last.close()
        self.best.close()

    def summary(self) -> dict[str, Any]:
        """What ``run.json`` says of the time taken and of the best epoch."""
        chosen = best_row(self.metrics.rows)
        seconds = {
            name: round(sum(row[name] for row in self.timing.rows), 3)
            for name in ("seconds", "evaluation_seconds")
        }
        return {
            "train_seconds": seconds["seconds"],
            "evaluation_seconds": seconds["evaluation_seconds"],
            "epochs": len(self.metrics.rows),
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
            raise RunError(
                f"the training loss{whose} is not finite at step {int(step) + 1}; "
                "try a lower learning rate"
            )
