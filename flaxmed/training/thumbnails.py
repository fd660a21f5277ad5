"""Small pictures of the test images that the kept model gets most wrong, for the report."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from flaxmed.evaluation.worst import worst_images
from flaxmed.types import Predictions, RunError, Split

SIDE = 128  # pixels: what a report shows of an image


def save_thumbnails(path: Path, predictions: Predictions, split: Split) -> None:
    """Write ``ids`` and ``images`` of the worst images to ``path`` (.npz), whole or not at all.

    Args:
        path: ``thumbnails.npz`` of the run.
        predictions: of the kept model on ``split``, in its order.
        split: the images.

    Raises:
        RunError: the file cannot be written.
    """
    rows = worst_images(predictions)
    images = [shrink(np.asarray(split.images[int(row)])) for row in rows]
    shape = (0, *split.images.shape[1:])
    arrays = {
        "ids": predictions.ids[rows],
        "images": np.stack(images) if images else np.zeros(shape, np.uint8),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def shrink(image: UInt8[np.ndarray, "h w c"], side: int = SIDE) -> UInt8[np.ndarray, "a b c"]:
    """An image whose longer side has at most ``side`` pixels, each the mean of the area it covers.

    Images that are small enough are returned as they are: nothing is ever enlarged.

    Args:
        image: ``[h, w, c]``, 0 to 255.
        side: of the result, 1 or more.

    Example:
        >>> image = np.array([[0, 100, 200, 200]], np.uint8)[:, :, None]
        >>> shrink(image, 2)[:, :, 0].tolist()
        [[50, 200]]
    """
    h, w, _ = image.shape
    longer = max(h, w)
    if longer <= side:
        return image
    sizes = (max(1, round(n * side / longer)) for n in (h, w))
    rows, columns = (_areas(n, size) for n, size in zip((h, w), sizes, strict=True))
    small = np.einsum("ah,hwc,bw->abc", rows, image.astype(np.float64), columns, optimize=True)
    return np.rint(small).astype(np.uint8)


def _areas(n: int, size: int) -> Float[np.ndarray, "a n"]:
    """By new pixel the share of it that each old one covers; rows sum to 1."""
    edges = np.arange(size + 1) * n / size
    old = np.arange(n)
    left = np.maximum(edges[:-1, None], old)
    right = np.minimum(edges[1:, None], old + 1)
    return np.maximum(right - left, 0) * size / n
