"""Prints the largest deviation per network and check as a Markdown table.

    python -m tests.oracles.report [--cases NAME ...] [--full] [--json FILE]

from the repository's root. Needs torch, torchvision, timm and keras. Without ``--full`` the
training checks run at each network's smallest size only; with it, at all sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .cases import CASES
from .compare import Comparison, Deviations, worst

CHECKS = {
    "evaluation": "logits and maps",
    "evaluation_float32": "logits, float32",
    "training_logits": "training logits",
    "statistics": "running statistics",
    "gradients": "gradients",
    "sgd": "5 steps of SGD",
    "rounding": "gradients, float32: rounding",
    "rounding_reference": "the reference's own",
    "largest": "gradients, float32: largest",
    "largest_reference": "the reference's own",
}


def measure(name: str, full: bool) -> Iterator[dict[str, Any]]:
    """One record per check, channel count and size of a case."""
    sizes = CASES[name].sizes
    for channels in (1, 3):
        for size in sizes:
            comparison = Comparison(name, channels, size)
            found = {
                "evaluation": comparison.evaluation(),
                "evaluation_float32": comparison.evaluation_float32(),
            }
            if full or size == sizes[0]:
                checks = ("training_logits", "statistics", "gradients", "sgd")
                found |= {check: getattr(comparison, check)() for check in checks}
                errors = comparison.gradients_float32()
                for check in ("rounding", "largest"):
                    measure_of = getattr(errors, check)
                    found[check] = {"all": measure_of(errors.ours)}
                    found[f"{check}_reference"] = {"all": measure_of(errors.theirs)}
            for check, deviations in found.items():
                yield record(name, channels, size, check, deviations)


def record(
    name: str, channels: int, size: int, check: str, deviations: Deviations
) -> dict[str, Any]:
    """The largest deviation of a check, and the tensor that has it."""
    return {
        "case": name,
        "channels": channels,
        "size": size,
        "check": check,
        "worst": worst(deviations),
        "tensor": max(deviations, key=lambda tensor: deviations[tensor]),
    }


def table(records: list[dict[str, Any]]) -> str:
    """A row per case, a column per check; the largest over channels and sizes."""
    lines = ["| network | " + " | ".join(CHECKS.values()) + " |", "|---" * (len(CHECKS) + 1) + "|"]
    for name in dict.fromkeys(record["case"] for record in records):
        cells = []
        for check in CHECKS:
            values = [r["worst"] for r in records if (r["case"], r["check"]) == (name, check)]
            cells.append(f"{max(values):.1e}" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and writes what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracles.report")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--full", action="store_true", help="training checks at every size")
    parser.add_argument("--json", type=Path, help="write every record to this file")
    options = parser.parse_args(arguments)
    records = []
    for name in options.cases:
        for found in measure(name, options.full):
            print(json.dumps(found), file=sys.stderr, flush=True)
            records.append(found)
        if options.json:
            temporary = options.json.with_name(f".{options.json.name}.tmp")
            temporary.write_text(json.dumps(records, indent=1) + "\n")
            os.replace(temporary, options.json)
    print(table(records))


if __name__ == "__main__":
    main()
