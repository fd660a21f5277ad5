"""Write the README's table of speeds from the files that `flaxmed bench --json` wrote.

    python benchmarks/readme.py            rewrites README.md
    python benchmarks/readme.py --check    says whether that would change it (exit code 1)

What stands between ``<!-- bench: FILE.json FILE.json -->`` and ``<!-- end -->`` is made from the
files named there; paths are relative to README.md, and a file that is not there yet is passed over.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxmed.benchmark.text import ratios
from flaxmed.evaluation.tables import DASH, write_file
from flaxmed.types import InputError

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- bench: (?P<files>[^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
TITLES = {"resnet18": "ResNet-18", "densenet121": "DenseNet-121", "xception": "Xception"}
OURS = "flaxmed"
COLUMNS = (
    *("training, images/s", "inference, images/s", "latency of one image, ms"),
    *("compile, s", "restart, s", "memory of a step, MB"),
)

Found = Mapping[str, Any]


def updated(text: str, folder: Path) -> str:
    """README's text with every block made anew.

    Args:
        text: as it is.
        folder: where the files' paths begin.

    Raises:
        InputError: no block, no file of a block, or one that cannot be read.
    """

    def made(match: re.Match[str]) -> str:
        paths = [folder / name for name in match["files"].split()]
        found = [read(path) for path in paths if path.is_file()]
        if not found:
            raise InputError(f"none of these files is there: {match['files']}")
        return "\n".join([match[1].rstrip("\n"), *block(found), match[3]])

    new, blocks = BLOCK.subn(made, text)
    if not blocks:
        raise InputError("README.md has no block <!-- bench: FILE.json --> ... <!-- end -->")
    return new


def read(path: Path) -> Found:
    """What `flaxmed bench` wrote.

    Raises:
        InputError: not such a file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _ = [(row["network"], row["contestant"]) for row in found["rows"]], found["setting"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a file of flaxmed bench: {error!r}") from None
    return found


def block(found: Sequence[Found]) -> list[str]:
    """The lines of the table, and under it what was measured, where and how, file by file."""
    ways = [row["contestant"] for one in found for row in one["rows"] if row["contestant"] != OURS]
    ways = list(dict.fromkeys(ways))
    against = " (ratio to the better)" if len(ways) > 1 else " (ratio)" if ways else ""
    header = [" / ".join([OURS, *ways]) + against, *COLUMNS]
    lines = [f"| {' | '.join(header)} |", "|---" + "|---:" * len(COLUMNS) + "|"]
    for one in found:
        lines += [f"| {' | '.join(cells)} |" for cells in rows_of(one, ways)]
    return [*lines, "", *map(about, found)]


def rows_of(one: Found, ways: Sequence[str]) -> list[list[str]]:
    """The cells of a file's rows, one per network."""
    times = ratios(one["rows"])
    rows = []
    for network in dict.fromkeys(row["network"] for row in one["rows"]):
        by = {row["contestant"]: row for row in one["rows"] if row["network"] == network}
        sides = [by.get(name, {}) for name in (OURS, *ways)]
        ratio = times.get(network, {})
        p50 = [(side.get("latency_ms") or {}).get("p50") for side in sides]
        # what eager PyTorch does at its first call is no compilation
        compiled = [by.get(name, {}) for name in (OURS, *ways) if name != "PyTorch eager"]
        rows.append(
            [
                f"{TITLES.get(network, network)}, {one['setting']['size']} px",
                beside([s.get("train_images_per_second") for s in sides], ratio.get("train")),
                beside(
                    [s.get("inference_images_per_second") for s in sides], ratio.get("inference")
                ),
                beside(p50, ratio.get("latency")),
                beside([side.get("compile_seconds") for side in compiled]),
                number(sides[0].get("restart_seconds")),
                number(sides[0].get("memory_bytes"), "{:.0f}", 1e-6),
            ]
        )
    return rows


def beside(values: Sequence[float | None], ratio: float | None = None) -> str:
    """Such as ``39.8 / 36.9 (1.08)``."""
    text = " / ".join(map(number, values))
    return text if ratio is None else f"{text} ({ratio:.2f})"


def number(value: float | None, form: str = "{:.1f}", scale: float = 1.0) -> str:
    """The number, or a dash where it was not measured."""
    return DASH if value is None else form.format(value * scale)


def about(one: Found) -> str:
    """What was measured, where and with what, in one line."""
    setting, versions = one["setting"], one["versions"]
    colour = {1: "grey", 3: "colour"}.get(setting["channels"], f"{setting['channels']} channels")
    parts = [
        f"{setting['size']} px, {colour}, {setting['stem']} stem, batch {setting['batch']}, "
        f"{setting['dtype']}, SGD",
        f"{one['device']}; convolutions: {one['convolutions']}",
        ", ".join(
            f"{name} {str(versions[name]).split('+')[0]}"
            for name in ("jax", "torch")
            if name in versions
        ),
        one["date"],
        *(
            [f"allocator: {one['allocator']}"]
            if one.get("allocator", "default") != "default"
            else []
        ),
        f"`{one['command']}`",
    ]
    return f"- {'; '.join(parts)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check; the exit code: 0 done, 1 another text is due, 2 something is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    args = parser.parse_args(arguments)
    try:
        text = args.readme.read_text(encoding="utf-8")
        new = updated(text, args.readme.parent)
    except (OSError, InputError) as error:
        print(f"{args.readme.name}: {error}", file=sys.stderr)
        return 2
    if not args.check:
        write_file(args.readme, new)
    elif new != text:
        print(
            f"{args.readme.name}: not what the measurements give; run python benchmarks/readme.py",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
