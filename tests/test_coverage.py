"""Intervals and tests where the truth is known: a small run of the benchmark, and the phantom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flaxmed.data.phantom import load_phantom
from flaxmed.evaluation import compare
from flaxmed.evaluation.reliability import reliability
from flaxmed.types import Predictions

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_intervals_cover_and_tests_hold_on_few_test_sets(tmp_path):
    """benchmarks/coverage.py on 150 test sets: what 5,000 showed stays within four errors."""
    out = tmp_path / "coverage.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "coverage.py"), "--sets", "150"]
    command += ["--draws", "400", "--pool", "3000", "--cases", "0", "3", "--processes", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--json", str(out)], check=True, env=env, stdout=subprocess.DEVNULL)
    cases = json.loads(out.read_text())["cases"]
    assert [case["patients"] for case in cases] == [None, 60]
    for case in cases:
        assert case["sets"] == 150
        for kind in ("intervals", "differences"):
            for name, found in case[kind].items():
                assert found["covered"] >= 0.87, (case["name"], name, found)
                assert found["undefined"] <= 15
        for name, found in case["tests"].items():
            assert found["rejected"] <= 0.13, (case["name"], name, found)
    narrow = cases[0]["intervals"]["accuracy"]["width"]
    assert narrow < cases[1]["intervals"]["accuracy"]["width"] * np.sqrt(240 / 156)


def phantom(seed, n=1024):
    data = load_phantom(n_train=1, n_val=1, n_test=n, seed=seed)
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(data.ideal["test"]), -40)
    rest = {"labels": data.test.labels, "task": data.info.task, "classes": data.info.classes}
    return Predictions(logits=logits, **rest), rest


@pytest.mark.slow
def test_the_ideal_observer_is_not_found_miscalibrated():
    p_values = []
    for seed in range(4):
        p, _ = phantom(seed)
        found = reliability(p.labels, p.probabilities, task=p.task, resamples=400)
        p_values.append(found.p_value)
    assert min(p_values) > 0.05 / 4


def test_no_observer_is_significantly_above_the_ideal():
    p, rest = phantom(0)
    noisy = {}
    for name, noise in (("a little noise", 0.02), ("some", 0.3), ("much", 1.5)):
        own = np.random.default_rng(1).normal(0, noise, p.logits.shape)
        noisy[name] = Predictions(logits=p.logits + own, **rest)
    comparison = compare(noisy, ideal=p, draws=200)
    for pair in comparison.from_ideal:
        assert pair.primary.value < 0 or pair.adjusted > 0.05
    assert comparison.from_ideal[2].adjusted < 0.001
    assert comparison.from_ideal[2].primary.value < 0
