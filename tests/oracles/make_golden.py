"""Writes the golden files anew, from the references alone.

    python -m tests.oracles.make_golden [CASE ...]

from the repository's root. Needs torch, torchvision, timm and keras; takes a few minutes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from . import golden
from .cases import CASES
from .compare import Comparison


def write(name: str) -> Path:
    """Writes the golden file of one case: 3 channels, its smallest size."""
    comparison = Comparison(name)
    content = golden.answers(
        comparison.weights,
        comparison.their_evaluation,
        comparison.their_step,
        comparison.their_sgd,
    )
    golden.FOLDER.mkdir(exist_ok=True)
    path = golden.FOLDER / f"{name}.npz"
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, **content)
    os.replace(temporary, path)
    return path


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        written = write(case)
        print(f"{written} {written.stat().st_size / 1000:.0f} kB", flush=True)
