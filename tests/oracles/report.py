"""Prints the largest deviation per network and check, as a Markdown table.

    pytest tests/test_parity.py --junitxml=parity.xml
    python -m tests.oracles.report parity.xml

from the repository's root. The deviations are those that the tests put on record: float64, relative
L2, the largest over all tensors, channels and sizes; float32 logits as a part of their spread;
float32 gradients as multiples of the reference's own error (``GradientErrors.ratios``).
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


def read(paths: Iterable[str]) -> dict[str, dict[str, float]]:
    """The largest deviation by network and check, from pytest's result files."""
    found: dict[str, dict[str, float]] = {}
    for path in paths:
        for record in ElementTree.parse(path).iter("property"):
            network, _, check = record.get("name", "").partition(": ")
            if check in CHECKS:
                values = found.setdefault(network, {})
                values[check] = max(values.get(check, 0.0), float(record.get("value", math.nan)))
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """A row per network, a column per check."""
    lines = ["| network | " + " | ".join(CHECKS) + " |", "|---" * (len(CHECKS) + 1) + "|"]
    for network, values in sorted(found.items()):
        cells = [f"{values[check]:.1e}" if check in values else "" for check in CHECKS]
        lines.append(f"| {network} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Reads, prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracles.report")
    parser.add_argument("results", nargs="+", help="what pytest --junitxml wrote")
    print(table(read(parser.parse_args().results)))


if __name__ == "__main__":
    main()
