"""What a person sees while a run goes on, and how they stop it."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
from tqdm import tqdm

from flaxmed.training.processes import largest

_VOTES_AHEAD = 4  # steps that may be on their way while a vote is


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and saved its state first.

    Attributes:
        signal: the number of the signal that asked.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal = signal_number


class StopRequest:
    """Remembers SIGINT and SIGTERM so that the loop can stop between two steps.

    A second SIGINT acts at once, as usual. Where several processes train together, all stop at the
    same step, whichever of them was asked.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._votes: deque[jax.Array] = deque()

    def asked(self, mesh: jax.sharding.Mesh) -> int:
        """The number of the signal, or 0; to be called after every step by all processes.

        The answer is then that of some steps before: nobody waits for it.
        """
        if jax.process_count() == 1:
            return self.signal or 0
        self._votes.append(largest(self.signal or 0, mesh))
        return int(self._votes.popleft()) if len(self._votes) > _VOTES_AHEAD else 0

    def last_asked(self) -> int:
        """As ``asked``, once no step is to come."""
        return (
            max(map(int, self._votes), default=0) if jax.process_count() > 1 else self.signal or 0
        )

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take the two signals over for the time of the ``with`` block (main thread only)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


class Progress:
    """A bar on a terminal, plain lines elsewhere: images/s, time left, loss, validation AUC.

    Args:
        name: of the run.
        epochs, images: length of the run, and images per epoch.
        done: images already done, when a run goes on.
        show: False for silence.
    """

    def __init__(self, name: str, *, epochs: int, images: int, done: int = 0, show: bool = True):
        self.name, self.epochs, self.images, self.show = name, epochs, images, show
        self.started, self.done, self.begun_at = time.monotonic(), done, done
        self.shown_at = 0.0
        self.notes: dict[str, str] = {}
        self.bar: tqdm[Any] | None = None
        if show and sys.stderr.isatty():
            self.bar = tqdm(
                total=epochs * images, initial=done, desc=name, unit="img", dynamic_ncols=True
            )

    def due(self) -> bool:
        """Whether the bar is old enough to be drawn again: reading a loss waits for the device."""
        return self.bar is not None and time.monotonic() - self.shown_at > 0.25

    def advance(self, count: int) -> None:
        """``count`` more images were trained on."""
        self.done += count

    def loss(self, value: float) -> None:
        """Draw the bar anew with this running loss."""
        self.shown_at = time.monotonic()
        self.notes["loss"] = f"{value:.4f}"
        if self.bar is not None:
            self.bar.set_postfix(self.notes, refresh=False)
            self.bar.update(self.done - self.bar.n)

    def epoch(self, row: dict[str, Any], best: bool, name: str | None = None) -> None:
        """An epoch ended with this row of metrics, of the run of this name."""
        self.notes["val AUC"] = _number(row["val_auc"])
        self.loss(row["train_loss"])
        if self.show and self.bar is None:
            print(
                f"{name or self.name}  {self.line(row)}{'  best' if best else ''}", file=sys.stderr
            )

    def line(self, row: dict[str, Any]) -> str:
        """One line for an epoch, for logs."""
        rate = (self.done - self.begun_at) / max(time.monotonic() - self.started, 1e-9)
        left = (self.epochs * self.images - self.done) / max(rate, 1e-9)
        return (
            f"epoch {row['epoch'] + 1:>3}/{self.epochs}  loss {row['train_loss']:.4f}  "
            f"val loss {row['val_loss']:.4f}  val acc {row['val_accuracy']:.4f}  "
            f"val AUC {_number(row['val_auc'])}  {rate:.0f} images/s  "
            f"{tqdm.format_interval(left)} left"
        )

    def say(self, text: str) -> None:
        """A line above the bar."""
        if not self.show:
            return
        if self.bar is None:
            print(f"{self.name}  {text}", file=sys.stderr)
        else:
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()


def _number(value: float | None) -> str:
    return "undefined" if value is None or value != value else f"{value:.4f}"
