"""Prints the largest deviation per network and check, as a Markdown table, and that from pROC.

    pytest tests/test_parity.py tests/test_proc.py --junitxml=parity.xml
    python -m tests.oracles.report parity.xml

from the repository's root. The deviations are those that the tests put on record: float64, relative
L2, the largest over all tensors, channels and sizes; float32 logits as a part of their spread;
float32 gradients as multiples of the reference's own error (``GradientErrors.ratios``). What is
measured beside R's pROC, and how, says ``proc.deviations``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from xml.etree import ElementTree

CHECKS = (
    "logits and maps",
    "training logits",
    "running statistics",
    "gradients",
    "5 steps of SGD",
    "float32 logits",
    "float32 gradients",
)
PROC = ("AUC", "variance", "interval", "covariance", "z", "paired p")


def read(paths: Iterable[str]) -> dict[str, dict[str, float]]:
    """The largest deviation by network and check, from pytest's result files."""
    found: dict[str, dict[str, float]] = {}
    for path in paths:
        for record in ElementTree.parse(path).iter("property"):
            network, _, check = record.get("name", "").partition(": ")
            if check in (PROC if network == "pROC" else CHECKS):
                values = found.setdefault(network, {})
                values[check] = max(values.get(check, 0.0), float(record.get("value", math.nan)))
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """A row per network, a column per check."""
    lines = ["| network | " + " | ".join(CHECKS) + " |", "|---" * (len(CHECKS) + 1) + "|"]
    for network, values in sorted(found.items()):
        if network == "pROC":
            continue
        cells = [f"{values[check]:.1e}" if check in values else "" for check in CHECKS]
        lines.append(f"| {network} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def beside_proc(values: dict[str, float]) -> str:
    """A line of the largest deviations from pROC."""
    listed = ", ".join(f"{check} {values[check]:.1e}" for check in PROC)
    return f"areas under ROC curves beside R's pROC, worst difference: {listed}"


def main() -> None:
    """Reads, prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracles.report")
    parser.add_argument("results", nargs="+", help="what pytest --junitxml wrote")
    found = read(parser.parse_args().results)
    print(table(found))
    if "pROC" in found:
        print(f"\n{beside_proc(found['pROC'])}")


if __name__ == "__main__":
    main()
