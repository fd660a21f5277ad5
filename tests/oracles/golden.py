"""The references' answers as small files, so that the comparison lives where they do not.

Inputs and weights are drawn by name (``cases.draw``), so a file holds only answers. Logits are
kept whole; of every other tensor its norm and two projections on fixed random directions. The
projections of a difference of two tensors estimate its norm, so a deviation reads like a relative
L2 error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .cases import Step, Tensors, draw

FOLDER = Path(__file__).parent / "golden"
PROJECTIONS = 2


def sketch(name: str, tensor: np.ndarray) -> np.ndarray:
    """The norm of a tensor and its projections on directions that its name and shape fix."""
    flat = np.ravel(tensor).astype(np.float64)
    directions = [draw(f"{name} direction {k}", flat.shape) for k in range(PROJECTIONS)]
    return np.array([np.linalg.norm(flat), *(direction @ flat for direction in directions)])


def sketches(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The sketch of every tensor, in the order of their names, [tensors, 1 + PROJECTIONS]."""
    return np.stack([sketch(name, tensors[name]) for name in sorted(tensors)])


def sketch_deviations(
    ours: Mapping[str, np.ndarray], expected: np.ndarray, floor: float
) -> dict[str, float]:
    """Estimated relative L2 deviation of every tensor from the one that was sketched.

    A direction's entries have variance 1/3, so the mean square of a difference's projections is a
    third of its squared norm. The norms themselves differ by no more than it.

    Args:
        ours: Tensors by name.
        expected: What :func:`sketches` gave for the reference's.
        floor: Least divisor, as a part of the largest norm (see ``compare.relative_l2``).
    """
    assert len(ours) == len(expected), f"{len(ours)} tensors, {len(expected)} in the file"
    difference = sketches(ours) - expected
    norms = np.maximum(expected[:, 0], floor * expected[:, 0].max())
    projected = np.sqrt(3 * np.mean(difference[:, 1:] ** 2, axis=1))
    deviations = np.maximum(np.abs(difference[:, 0]), projected) / norms
    return dict(zip(sorted(ours), deviations.tolist(), strict=True))


def answers(
    weights: Tensors, evaluation: tuple[np.ndarray, Tensors], step: Step, trained: Tensors
) -> dict[str, np.ndarray]:
    """What a golden file holds."""
    logits, maps = evaluation
    return {
        "names": np.array(sorted(weights)),
        "shapes": np.array(["x".join(map(str, weights[name].shape)) for name in sorted(weights)]),
        "weights": sketches(weights),
        "logits": logits,
        "maps": sketches(maps),
        "training_logits": step.logits,
        "loss": step.loss,
        "statistics": sketches(step.statistics),
        "gradients": sketches(step.gradients),
        "sgd": sketches(trained),
    }


def load(name: str) -> dict[str, np.ndarray]:
    """The golden file of a case."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}
