"""The images that a model gets most wrong, and their pictures as a run directory keeps them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from flaxmed.evaluation.checks import decisions
from flaxmed.evaluation.weighted import image_losses
from flaxmed.types import Archive, InputError, Predictions, Task

WORST = 24


def worst_images(predictions: Predictions, count: int = WORST) -> Int[np.ndarray, " m"]:
    """Row numbers of the images that the model gets most wrong, at most ``count``.

    Those decided wrongly come first (multi-label: with any label wrong), each kind by falling loss;
    of equal losses the smaller id. The order of the rows does not matter.

    Args:
        predictions: of one model on one split.
        count: the most images, 0 or more.

    Example:
        >>> scores = [[0.6, 0.4], [0.9, 0.1], [0.1, 0.9], [0.45, 0.55]]
        >>> p = Predictions.from_probabilities(scores, labels=[0, 1, 1, 0], task="binary")
        >>> worst_images(p, 3).tolist()
        [1, 3, 0]
    """
    p, scores = predictions, predictions.probabilities
    # A probability of exactly 0 has a finite loss here; the last digits are no difference.
    loss = np.round(image_losses(p.labels, scores, p.task), 12)
    wrong = decisions(scores, task=p.task) != p.labels
    wrong = wrong.any(axis=1) if p.task is Task.MULTILABEL else wrong
    return np.lexsort((p.ids, -loss, ~wrong))[:count]


@dataclasses.dataclass(frozen=True, eq=False)
class Thumbnails:
    """Small pictures of some images.

    Attributes:
        ids: of the images, ``[m]``.
        images: ``[m, h, w, c]``, 0 to 255.
    """

    ids: Shaped[np.ndarray, " m"]
    images: UInt8[np.ndarray, "m h w c"]


def read_thumbnails(path: str | os.PathLike[str]) -> Thumbnails:
    """What training wrote as ``thumbnails.npz``: the arrays ``ids`` and ``images``.

    Raises:
        InputError: no such file, or contents that do not fit.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "thumbnails.npz"
        ...     np.savez(path, ids=np.array(["a"]), images=np.zeros((1, 2, 2, 1), np.uint8))
        ...     read_thumbnails(path).images.shape
        (1, 2, 2, 1)
    """
    path = Path(path)
    with Archive(path) as archive:
        if missing := [name for name in ("ids", "images") if name not in archive.names]:
            raise InputError(f"{path}: lacks the array {missing[0]!r}; expected ids and images")
        ids, images = archive.read("ids"), archive.read("images")
    if images.dtype != np.uint8 or images.ndim != 4 or ids.shape != images.shape[:1]:
        raise InputError(
            f"{path}: expected images uint8 [m, h, w, c] and an id for each, got "
            f"{images.dtype} {list(images.shape)} and ids {list(ids.shape)}"
        )
    return Thumbnails(ids.astype(str), images)
