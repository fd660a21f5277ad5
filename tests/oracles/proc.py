"""R's pROC as the reference for areas under ROC curves: variance, interval, comparison of two.

X. Robin et al., BMC Bioinformatics 12, 77 (2011); on Debian the package r-cran-proc. ``proc.R`` is
run once over all cases. Its answers are also kept in ``golden/proc.json``.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flaxmed.evaluation.delong import auc_estimate, covariance, paired_test
from flaxmed.evaluation.intervals import auc_interval

from .cases import draw
from .golden import FOLDER

SCRIPT = Path(__file__).with_suffix(".R")
GOLDEN = FOLDER / "proc.json"
# What proc.R answers, by the last part of its name ("first.auc"), and how it is called in a report.
KINDS = {
    "auc": "AUC",
    "variance": "variance",
    "low": "interval",
    "high": "interval",
    "covariance": "covariance",
    "z": "z",
    "p": "paired p",
}
# Below this a variance is zero but for rounding, and is measured against this instead.
FLOOR = 1e-15


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """Two models' scores for the same images."""

    labels: np.ndarray
    first: np.ndarray
    second: np.ndarray


def _uniform(name: str, n: int) -> np.ndarray:
    """Numbers in [0, 1)."""
    return (1 + draw(name, (n,))) / 2


def _case(name: str, positives: int, negatives: int, step: float, gap: float, both: float) -> Case:
    """Scores of two models that part the kinds by a ``gap`` and have their noise partly in common.

    They are rounded to multiples of ``step``. None is finer than nine decimals: R's reading may be
    off in the seventeenth, and must neither part nor join two scores.
    """
    n = positives + negatives
    labels = np.repeat([1, 0], [positives, negatives])
    noise = [
        both * _uniform(f"{name} both", n) + (1 - both) * _uniform(f"{name} {one}", n)
        for one in ("first", "second")
    ]
    scores = [(gap * labels + value) / (1 + gap) for value in noise]
    return Case(labels, *(np.clip(np.round(np.round(s / step) * step, 9), 0, 1) for s in scores))


_FINE = 1e-9
# name: positives, negatives, step of the scores, gap between the kinds, noise in common
_DRAWN: dict[str, tuple[int, int, float, float, float]] = {
    "random": (40, 60, _FINE, 0.3, 0.5),
    "no gap": (50, 50, _FINE, 0.0, 0.5),
    "wide gap": (50, 50, _FINE, 0.7, 0.5),
    "independent": (60, 40, _FINE, 0.3, 0.0),
    "alike": (60, 40, _FINE, 0.3, 0.98),
    "breastmnist": (42, 114, _FINE, 0.5, 0.7),
    "wrong way": (30, 30, _FINE, -0.3, 0.5),
    "odd sizes": (7, 13, _FINE, 0.3, 0.3),
    "tied": (40, 60, 0.1, 0.3, 0.5),
    "tied, no gap": (50, 50, 0.1, 0.0, 0.5),
    "tied, wide gap": (50, 50, 0.1, 0.7, 0.5),
    "tied, alike": (60, 40, 0.1, 0.3, 0.98),
    "tied, odd sizes": (7, 13, 0.1, 0.3, 0.3),
    "three scores": (42, 114, 0.5, 0.5, 0.5),
    "two scores": (30, 50, 1.0, 0.3, 0.5),
    "two scores, many": (300, 500, 1.0, 0.3, 0.5),
    "2 + 2": (2, 2, _FINE, 0.1, 0.0),
    "2 + 5": (2, 5, _FINE, 0.1, 0.3),
    "3 + 3": (3, 3, _FINE, 0.1, 0.0),
    "3 + 3 again": (3, 3, _FINE, 0.2, 0.3),
    "3 + 3, tied": (3, 3, 0.25, 0.1, 0.0),
    "3 + 4": (3, 4, _FINE, 0.1, 0.2),
    "4 + 3, tied": (4, 3, 0.25, 0.1, 0.2),
    "3 + 500": (3, 500, _FINE, 0.3, 0.5),
    "500 + 3": (500, 3, _FINE, 0.3, 0.5),
    "2 + 1000": (2, 1000, _FINE, 0.3, 0.5),
    "10 + 990": (10, 990, _FINE, 0.5, 0.5),
    "10 + 990, tied": (10, 990, 0.05, 0.5, 0.5),
    "1 + 20": (1, 20, _FINE, 0.3, 0.5),
    "20 + 1": (20, 1, _FINE, 0.3, 0.5),
    "5000": (2500, 2500, _FINE, 0.3, 0.5),
    "5000, tied": (2500, 2500, 0.01, 0.3, 0.5),
    "5000, unbalanced": (100, 4900, _FINE, 0.5, 0.7),
    "5000, alike": (1500, 3500, _FINE, 0.4, 0.999),
}
# Where the variance of the difference is 0 and the difference is not, pROC divides by it, or by
# what rounding leaves of it. flaxmed has no z and no p then.
NO_TEST = ("perfect and constant", "perfect and none right", "every place moved alike")


def _built() -> dict[str, Case]:
    """Cases that are made, not drawn."""
    drawn = _case("base", 12, 18, _FINE, 0.3, 0.5)
    labels, perfect = drawn.labels, (drawn.labels + _uniform("perfect", 30)) / 2
    perfect, again = np.round(perfect, 9), np.round((labels + _uniform("again", 30)) / 2, 9)
    constant, six = np.full(30, 0.5), np.repeat([1, 0], 3)
    many, worse = (_case(f"5000, {gap}", 2000, 3000, _FINE, gap, 0.5) for gap in (0.4, 0.2))
    return {
        "5000, one better": Case(many.labels, many.first, worse.first),
        "identical": Case(labels, drawn.first, drawn.first),
        "the same order": Case(labels, drawn.first, np.round(drawn.first / 2, 12)),
        "opposite": Case(labels, drawn.first, np.round(1 - drawn.first, 9)),
        "perfect and not": Case(labels, perfect, drawn.second),
        "perfect twice": Case(labels, perfect, again),
        "perfect and none right": Case(labels, perfect, np.round(1 - again, 9)),
        "constant and not": Case(labels, constant, drawn.first),
        "perfect and constant": Case(labels, perfect, constant),
        # positives are above 3, 2, 2 negatives and, ties half, 2, 1, 1; negatives below 3, 3, 1
        # positives and 2, 2, 0
        "every place moved alike": Case(
            six, np.array([7, 4, 5, 1, 2, 6]) / 8, np.array([5, 3, 3, 3, 3, 6]) / 8
        ),
    }


CASES = {name: _case(name, *numbers) for name, numbers in _DRAWN.items()} | _built()


def table() -> str:
    """All cases as CSV, a row per image. A case goes by its number: names have commas."""
    lines = ["case,label,first,second"]
    for number, case in enumerate(CASES.values()):
        columns = (case.labels.tolist(), case.first.tolist(), case.second.tolist())
        lines += [f"{number},{y},{a!r},{b!r}" for y, a, b in zip(*columns, strict=True)]
    return "\n".join(lines) + "\n"


def digest() -> str:
    """SHA-256 of the cases: whether a golden file is of these."""
    return hashlib.sha256(table().encode()).hexdigest()


def absent() -> str | None:
    """Why pROC cannot be asked, or None."""
    rscript = shutil.which("Rscript")
    if rscript is None:
        return "the reference pROC cannot be asked: there is no Rscript on the PATH"
    command = [rscript, "--vanilla", "-e", "library(pROC)"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"R cannot load the reference pROC: {done.stderr}"


def require() -> None:
    """Skips a test where pROC is not installed; fails it if FLAXMED_REQUIRE_ORACLES=1."""
    missing = absent()
    if missing and os.environ.get("FLAXMED_REQUIRE_ORACLES") == "1":
        pytest.fail(missing, pytrace=False)
    if missing:
        pytest.skip(missing)


@functools.cache
def live() -> dict[str, Any]:
    """pROC's answers now, in the form of the golden file."""
    require()
    with tempfile.TemporaryDirectory() as folder:
        cases, answers = Path(folder, "cases.csv"), Path(folder, "answers.csv")
        cases.write_text(table(), encoding="utf-8")
        command = ["Rscript", "--vanilla", str(SCRIPT), str(cases), str(answers)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        header, *rows = (line.split(",") for line in answers.read_text("utf-8").splitlines())
    numbers = {
        int(row[0]): {key: _number(text) for key, text in zip(header[1:], row[1:], strict=True)}
        for row in rows
    }
    r, package = done.stdout.split()
    named = {name: numbers[i] for i, name in enumerate(CASES)}
    return {"R": r, "pROC": package, "inputs": digest(), "cases": named}


def _number(text: str | float) -> float:
    return math.nan if text == "NA" else float(text)


def stored() -> dict[str, Any]:
    """pROC's answers from the golden file."""
    content = json.loads(GOLDEN.read_text(encoding="utf-8"))
    content["cases"] = {
        name: {key: _number(value) for key, value in answers.items()}
        for name, answers in content["cases"].items()
    }
    return content


def ours(case: Case) -> dict[str, float]:
    """flaxmed's answers to the questions of proc.R, by the same names."""
    scores = [np.stack([1 - score, score], axis=1) for score in (case.first, case.second)]
    estimates = [auc_estimate(case.labels, score, task="binary") for score in scores]
    matrix, test = covariance(estimates), paired_test(*estimates)
    answers = {"covariance": float(matrix[0, 1]), "z": test.z, "p": test.p_value}
    positives = int(case.labels.sum())
    for i, (which, estimate) in enumerate(zip(("first", "second"), estimates, strict=True)):
        variance = float(matrix[i, i])
        ends = auc_interval(
            estimate.value,
            variance,
            positives=positives,
            negatives=len(case.labels) - positives,
            scale="plain",
        )
        found = {"auc": estimate.value, "variance": variance, "low": ends.low, "high": ends.high}
        answers |= {f"{which}.{key}": value for key, value in found.items()}
    return answers


def deviations(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """How far each answer is from pROC's.

    Areas and the ends of intervals by their difference; variances and p by their relative one;
    covariances as parts of the geometric mean of the two variances; z by its difference, where it
    is above 1 by the relative one. What is NaN on one side must be so on the other.
    """
    assert set(ours) == set(theirs), sorted(set(ours) ^ set(theirs))
    variances = [max(theirs[f"{which}.variance"], FLOOR) for which in ("first", "second")]
    scales: dict[str, Callable[[float], float]] = {
        "variance": lambda value: max(abs(value), FLOOR),
        "covariance": lambda value: math.sqrt(variances[0] * variances[1]),
        "z": lambda value: max(abs(value), 1.0),
        "p": lambda value: max(value, 1e-300),
    }
    found = {}
    for name, value in theirs.items():
        scale = scales.get(name.rsplit(".", 1)[-1], lambda value: 1.0)
        if math.isnan(value):
            found[name] = 0.0 if math.isnan(ours[name]) else math.inf
        else:
            found[name] = abs(ours[name] - value) / scale(value)
    return found


def by_kind(found: dict[str, float]) -> dict[str, float]:
    """The largest deviation of each kind, by its name in a report; NaN if there is one."""
    groups: dict[str, list[float]] = {}
    for name, value in found.items():
        groups.setdefault(KINDS[name.rsplit(".", 1)[-1]], []).append(value)
    return {kind: float(np.max(values)) for kind, values in groups.items()}
