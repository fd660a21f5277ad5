"""One process of a job: trains the tiny network, and writes what it came to know to a file.

    python job_worker.py RUN RESULT [HOST:PORT COUNT INDEX] [NAME=VALUE ...]

RESULT is an .npz with the network's values, the logits and the history, as this process has them.
NAME=VALUE (JSON) are settings, or ``_signal_at`` and ``_die_at``: the number of images after which
this process sends itself SIGTERM, or SIGKILL.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

from flaxmed.cli import run_command


def main(words):
    from flaxmed.training import join

    run_dir, result = Path(words[0]), Path(words[1])
    place = [word for word in words[2:] if "=" not in word]
    changes = {
        name: json.loads(value)
        for name, value in (word.split("=", 1) for word in words[2:] if "=" in word)
    }
    if place:
        join(place[0], int(place[1]), int(place[2]), patience=60)

    from tiny_runs import create, fit, weights

    from flaxmed.data.phantom import load_phantom
    from flaxmed.training import run as run_module
    from flaxmed.training.checkpoint import flatten
    from flaxmed.training.progress import Progress

    if "weights" not in changes:  # which are a real network's
        run_module.create_model = create
    moments = {"_signal_at": signal.SIGTERM, "_die_at": signal.SIGKILL}
    due = {number: changes.pop(name) for name, number in moments.items() if name in changes}
    real = Progress.advance

    def advance(self, count):
        real(self, count)
        for number, at in due.items():
            if self.done >= at > self.done - count:
                os.kill(os.getpid(), number)

    Progress.advance = advance
    data = load_phantom(size=32, n_train=27, n_val=21, n_test=19)
    run = fit(data, run_dir, **changes)
    arrays = {f"weights/{name}": value for name, value in flatten(weights(run)).items()}
    arrays |= {f"logits/{name}": p.logits for name, p in run.predictions.items()}
    arrays |= {
        f"history/{name}": np.array([row[name] for row in run.history]) for name in run.history[0]
    }
    np.savez(result, **arrays)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
