"""Whether predictions can be compared: the same images, labels and questions; and sane costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxmed.evaluation.tables import few
from flaxmed.types import InputError, Predictions


def cost_parameters(name: str, cost: Mapping[str, Any]) -> int | None:
    """The number of parameters among a network's costs, or None.

    Raises:
        InputError: not a whole number.
    """
    value = cost.get("parameters")
    if value is None:
        return None
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 0:
        raise InputError(f"costs of {name}: parameters must be a whole number, got {value!r}")
    return int(value)


def cost_seconds(name: str, cost: Mapping[str, Any], seeds: int) -> tuple[float, ...]:
    """The training times among a network's costs; empty where they are not known.

    Raises:
        InputError: unknown costs, or not one number, or one per seed.
    """
    unknown = set(cost) - {"parameters", "train_seconds"}
    if unknown:
        raise InputError(
            f"costs of {name}: unknown {min(unknown)!r}; expected parameters or train_seconds"
        )
    value = cost.get("train_seconds")
    if value is None:
        return ()
    try:
        seconds = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError):
        seconds = np.array([math.nan])
    if seconds.shape not in ((1,), (seeds,)) or not np.all(np.isfinite(seconds) & (seconds >= 0)):
        raise InputError(
            f"costs of {name}: train_seconds must be one number, or one per seed ({seeds}), "
            f"got {value!r}"
        )
    return tuple(seconds.tolist())


def paired(p: Predictions, name: str, first: Predictions, first_name: str) -> Predictions:
    """``p`` with its images in the order of ``first``'s, or an InputError that counts what
    differs."""
    if p is first:
        return p
    if p.task is not first.task:
        raise InputError(f"{name} is a {p.task} task, {first_name} {first.task}")
    if p.classes != first.classes:
        raise InputError(
            f"{name} has the classes {few(p.classes)}, {first_name} {few(first.classes)}"
        )
    if p.positive != first.positive:
        raise InputError(f"{name} has positive class {p.positive}, {first_name} {first.positive}")
    ids, wanted = np.asarray(p.ids), np.asarray(first.ids)
    extra, absent = np.setdiff1d(ids, wanted), np.setdiff1d(wanted, ids)
    if len(extra) or len(absent):
        raise InputError(
            f"{name} and {first_name} are not predictions of the same images: {len(extra)} of "
            f"{len(ids)} ids of {name} are not in {first_name}, and {len(absent)} of "
            f"{len(wanted)} the other way round"
        )
    by_id = np.argsort(ids)
    order = by_id[np.searchsorted(ids, wanted, sorter=by_id)]
    labels = p.labels[order]
    off = labels != first.labels
    off = off.any(axis=1) if off.ndim > 1 else off
    if off.any():
        raise InputError(
            f"{name} and {first_name} have different labels for {off.sum()} of {len(off)} images, "
            f"{str(wanted[off.argmax()])!r} the first"
        )
    groups = None if p.groups is None else p.groups[order]
    digests = None if p.image_sha256 is None else p.image_sha256[order]
    if digests is not None and first.image_sha256 is not None:
        other = digests != first.image_sha256
        if other.any() and not other.all():  # all: the same images at another size
            raise InputError(
                f"{name} and {first_name} saw different pixels (SHA-256) for {other.sum()} of "
                f"{len(other)} images, {str(wanted[other.argmax()])!r} the first"
            )
    return dataclasses.replace(
        p, labels=labels, logits=p.logits[order], ids=wanted, groups=groups, image_sha256=digests
    )


def same_groups(
    seeds: Mapping[str, tuple[Predictions, ...]],
) -> dict[str, tuple[Predictions, ...]]:
    """The predictions, all with the groups that any of them has.

    Args:
        seeds: by network, of the same images in the same order.

    Raises:
        InputError: groups that differ; the message counts the images.
    """
    known = [(name, p.groups) for name, each in seeds.items() for p in each if p.groups is not None]
    if not known:
        return dict(seeds)
    first_name, groups = known[0]
    for name, other in known[1:]:
        differing = int((other != groups).sum())
        if differing:
            raise InputError(
                f"{name} and {first_name} put {differing} of {len(groups)} images into different "
                "groups"
            )
    return {
        name: tuple(dataclasses.replace(p, groups=groups) for p in each)
        for name, each in seeds.items()
    }
