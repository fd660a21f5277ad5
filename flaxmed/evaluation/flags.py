"""Signs that a number does not mean what it seems to: collapse to one class, images in two splits.

Each flag is one sentence for the report. None of them proves anything; each is a reason to look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxmed.evaluation.bootstrap import ratio_interval
from flaxmed.evaluation.checks import decisions
from flaxmed.evaluation.tables import percent
from flaxmed.types import Predictions, Task

ALMOST_ALWAYS = 0.98


def collapse_flags(predictions: Predictions, *, level: float = 0.95) -> tuple[str, ...]:
    """Whether a model may answer without looking.

    Three signs: almost all images (98%) get one answer, more than the interval of that class's
    share holds; the accuracy is not above the interval of the most frequent class's share; a class
    that occurs is never the answer. Of multi-label tasks: labels found in no image, or in all.

    Args:
        predictions: of one model on one split.
        level: coverage of the intervals of shares, which respect groups.

    Returns:
        A sentence per sign; none where there are fewer than two images.

    Example:
        >>> labels = np.array([0] * 27 + [1] * 73)
        >>> p = Predictions(labels=labels, logits=np.tile([0.0, 1.0], (100, 1)), task="binary")
        >>> for flag in collapse_flags(p):
        ...     print(flag[:61])
        The answer is "1" for 100 of 100 images, but only 73 are "1":
        The accuracy, 0.7300, is not clearly above 0.7300 (95% interv
    """
    p = predictions
    if len(p) < 2:
        return ()
    if p.task is Task.MULTILABEL:
        return _label_flags(p)
    decided = decisions(p.probabilities, task=p.task)
    n, names, k = len(p), p.classes, len(p.classes)
    answers, truth = np.bincount(decided, minlength=k), np.bincount(p.labels, minlength=k)
    top, common = int(answers.argmax()), int(truth.argmax())
    right = int((decided == p.labels).sum())
    flags = []
    if answers[top] >= ALMOST_ALWAYS * n and answers[top] > n * _share(p, top, level)[1]:
        flags.append(
            f'The answer is "{names[top]}" for {answers[top]} of {n} images, but only '
            f'{truth[top]} are "{names[top]}": the model may not tell the classes apart.'
        )
    low, high = _share(p, common, level)
    if right <= n * high and truth[common] < n:
        flags.append(
            f"The accuracy, {right / n:.4f}, is not clearly above {truth[common] / n:.4f} "
            f"({percent(level)} interval {low:.4f} to {high:.4f}), which answering "
            f'"{names[common]}" to every image would reach.'
        )
    never = np.flatnonzero((answers == 0) & (truth > 0))
    if len(never) and answers[top] < n:  # else the first sentence says it
        flags.append(f"Never the answer (images of the class): {_named(names, truth, never)}.")
    return tuple(flags)


def leak_flags(
    test: Predictions,
    val: Predictions | None = None,
    dataset: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Whether images, or groups such as patients, stand in more than one split.

    Args:
        test: predictions on the test split.
        val: those on the validation split.
        dataset: what a run recorded about its data, ``dataset.json``: it tells of all splits. What
            it does not tell is taken from the digests and groups of the two predictions.

    Returns:
        A sentence per sign.

    Example:
        >>> rest = dict(labels=[0, 1], logits=[[1.0, 0.0], [0.0, 1.0]], task="binary")
        >>> test = Predictions(**rest, image_sha256=["a", "b"])
        >>> leak_flags(test, Predictions(**rest, image_sha256=["b", "c"]))
        ('1 test image is identical to a validation image.',)
    """
    known = dataset or {}
    duplicates, groups = known.get("duplicates"), known.get("shared_groups")
    if duplicates is None:
        found = _identical(test, val)
    else:
        found = _recorded(duplicates.get("by_splits", {}), duplicates.get("differing_labels", {}))
    if groups is None and val is not None and test.groups is not None and val.groups is not None:
        shared = len(np.intersect1d(test.groups, val.groups))
        groups = {"val+test": shared} if shared else {}
    for splits, count in (groups or {}).items():
        have = "groups (patients) have" if count > 1 else "group (patient) has"
        found.append(f"{count} {have} images in {_and(splits)}.")
    return tuple(found)


def _share(p: Predictions, c: int, level: float) -> tuple[float, float]:
    """The interval of a class's share of the images."""
    members = (p.labels == c).astype(np.float64)
    found = ratio_interval(members, np.ones(len(p)), groups=p.groups, level=level)
    return found.low, found.high


def _label_flags(p: Predictions) -> tuple[str, ...]:
    """The labels that (almost) no image is given of those that have them, or every image."""
    decided, truth = decisions(p.probabilities, task=p.task), p.labels.sum(axis=0)
    flags = []
    almost = decided.sum(axis=0) <= (1 - ALMOST_ALWAYS) * truth
    never = np.flatnonzero(almost & (truth > 0))
    if len(never):
        named = _named(p.classes, truth, never)
        flags.append(
            f"Found in (almost) no image, at a threshold of 0.5 (images that have it): {named}."
        )
    always = np.flatnonzero(decided.all(axis=0) & (truth < len(p)))
    if len(always):
        named = _named(p.classes, truth, always)
        flags.append(
            f"Found in all {len(p)} images, at a threshold of 0.5 (images that have it): {named}."
        )
    return tuple(flags)


def _identical(test: Predictions, val: Predictions | None) -> list[str]:
    """Test images that are validation images too, by their digests."""
    if val is None or test.image_sha256 is None or val.image_sha256 is None:
        return []
    count = int(np.isin(test.image_sha256, val.image_sha256).sum())
    are = "test images are" if count > 1 else "test image is"
    return [f"{count} {are} identical to a validation image."] if count else []


def _recorded(by_splits: Mapping[str, int], differing: Mapping[str, int]) -> list[str]:
    """A sentence for each set of splits that share images; duplicates within one are not meant."""
    found = []
    for splits, count in by_splits.items():
        if "+" not in splits:
            continue
        text = f"{count} image{'s occur' if count > 1 else ' occurs'} in {_and(splits)}"
        other = differing.get(splits, 0)
        labels = f", with other labels for {other} of them" if other else ""
        found.append(f"{text}, the same in every pixel{labels}.")
    return found


def _named(names: Sequence[str], counts: np.ndarray, which: np.ndarray) -> str:
    """Such as ``"mass" (12), "nodule" (3)``."""
    return ", ".join(f'"{names[c]}" ({counts[c]})' for c in which)


def _and(splits: str) -> str:
    """``"training and test"`` of ``"train+test"``."""
    words = {"train": "training", "val": "validation"}
    *first, last = [words.get(split, split) for split in splits.split("+")]
    return f"{', '.join(first)} and {last}"
