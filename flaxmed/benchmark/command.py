"""`flaxmed bench`: the networks one after another, with what was found so far in the JSON file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flaxmed.benchmark import about, measure
from flaxmed.benchmark.ceiling import measure_ceiling
from flaxmed.benchmark.setting import Setting
from flaxmed.benchmark.text import closing_lines, ratios, table
from flaxmed.training.rundir import write_json


def bench(
    models: Sequence[str], setting: Setting, *, command: str, json_path: Path | None = None
) -> None:
    """Measure, print the table, and write the JSON file anew after every network.

    Args:
        models: names of networks.
        setting: the same for all.
        command: what the file says it was made by.
        json_path: the file, in a folder that is there; None: no file.
    """
    ceiling = measure_ceiling(setting.dtype)
    head = about(setting) | {
        "command": command,
        "ceiling": ceiling.rate,
        "ceiling_by": ceiling.by,
    }
    print(f"{head['device']}; convolutions: {head['convolutions']}")
    print(f"ceiling: {ceiling.rate / 1e9:.0f} GFLOP/s, {setting.dtype}, by a {ceiling.by}")
    rows: list[dict[str, Any]] = []
    for model in models:
        rows += [cost.to_dict(setting.batch, ceiling.rate) for cost in measure(model, setting)]
        if json_path is not None:
            write_json(json_path, {**head, "ratios": ratios(rows), "rows": rows})
        print(f"{model} measured", file=sys.stderr)
    print(table(rows))
    for line in closing_lines(rows):
        print(line)
