"""What .ci/run asserts about files: test results, run folders and the wheel.

Usage::

    python .ci/check.py tests [--no-skips] RESULTS.xml
    python .ci/check.py total RESULTS.xml...
    python .ci/check.py runs DIR
    python .ci/check.py wheel FILE.whl
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

NETWORKS = {"resnet18", "densenet121", "xception"}


def count(path: str) -> tuple[int, list[str], int]:
    """Passed, skipped (by name and reason) and failed tests of a junit file."""
    passed, failed, skipped = 0, 0, []
    for case in ElementTree.parse(path).iter("testcase"):
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif skip is not None:
            name = f"{case.get('classname')}::{case.get('name')}"
            skipped.append(f"{name}: {skip.get('message')}")
        else:
            passed += 1
    return passed, skipped, failed


def check_tests(path: str, no_skips: bool) -> None:
    """At least one test ran, none failed and, if asked, none was skipped."""
    passed, skipped, failed = count(path)
    print(f"{path}: {passed} passed, {len(skipped)} skipped, {failed} failed")
    for line in skipped:
        print(f"  skipped {line}")
    assert passed, "no test passed"
    assert not failed, "a test failed"
    assert not skipped or not no_skips, "a test was skipped"


def total(paths: list[str]) -> None:
    """The closing line over all test runs."""
    counts = [count(path) for path in paths]
    passed, failed = sum(c[0] for c in counts), sum(c[2] for c in counts)
    skipped = sum(len(c[1]) for c in counts)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    assert passed, "no test passed"
    assert not failed, "a test failed"


def check_runs(folder: Path) -> None:
    """The comparison in its four forms, and each network's predictions, log, report and figures."""
    csv_rows = list(csv.reader((folder / "comparison.csv").open(encoding="utf-8")))
    assert len({len(row) for row in csv_rows}) == 1, csv_rows
    check_ideal(json.loads((folder / "comparison.json").read_text(encoding="utf-8")))
    for suffix in ("txt", "md", "csv", "json"):
        text = (folder / f"comparison.{suffix}").read_text(encoding="utf-8")
        assert all(network in text.lower().replace("-", "") for network in NETWORKS), text
    check_figures(folder / "figures", "roc", "curves")
    check_page(folder / "report.html")

    runs = sorted(path.parent for path in folder.glob("*/config.json"))
    assert {run.name.split("-")[0] for run in runs} == NETWORKS, runs
    for run in runs:
        for split in ("val", "test"):
            with np.load(run / "predictions" / f"{split}.npz", allow_pickle=False) as arrays:
                assert np.isfinite(arrays["logits"]).all(), run
                assert len(arrays["logits"]) == len(arrays["labels"]) == len(arrays["ids"]), run
        for name in ("dataset.json", "run.json", "report.json"):
            json.loads((run / name).read_text(encoding="utf-8"))
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]
        assert epochs, run
        check_figures(run / "figures", "roc", "precision_recall", "confusion", "curves")
        check_page(run / "report.html")
        assert (run / "MODEL_CARD.md").read_text(encoding="utf-8").startswith("---\n"), run

    unfinished = list(folder.rglob("*.tmp*"))
    assert not unfinished, unfinished
    print(f"{folder}: comparison, predictions, logs and figures of {len(runs)} runs are in order")


def check_ideal(comparison: dict) -> None:
    """On the phantom, ResNet-18 comes within 0.03 AUC of the ideal observer; none is above it."""
    if comparison["ideal_observer"] is None:
        return
    best = comparison["ideal_observer"]["metrics"]["auc"]["mean"]
    auc = {column["name"]: column["metrics"]["auc"]["mean"] for column in comparison["columns"]}
    assert auc["resnet18"] > best - 0.03, (auc, best)
    for pair in comparison["from_ideal"]:
        below = pair["differences"]["auc"]["value"] < 0
        assert below or pair["holm_p_value"] > 0.05, pair


def check_page(path: Path) -> None:
    """A whole page that fetches nothing and runs nothing."""
    text = path.read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>"), path
    assert "default-src 'none'" in text, path
    assert "<script" not in text, path


def check_figures(folder: Path, *names: str) -> None:
    """Each figure is there as PNG and SVG."""
    for name in names:
        png = (folder / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG\r\n\x1a\n"), folder / name
        assert png.endswith(b"IEND\xaeB`\x82"), folder / name
        assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")


def check_wheel(path: str) -> None:
    """The package with its templates and type marker, its licence, and nothing else."""
    names = zipfile.ZipFile(path).namelist()
    print(f"{path}: {len(names)} files")
    tops = {name.split("/")[0] for name in names}
    assert sorted(top.split("-")[0] for top in tops) == ["flaxmed", "flaxmed"], tops
    assert "flaxmed/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names), names
    package = Path(__file__).resolve().parents[1]
    files = (path for path in (package / "flaxmed").rglob("*.*") if path.suffix != ".pyc")
    assert {str(path.relative_to(package)) for path in files} == {
        name for name in names if name.startswith("flaxmed/")
    }


def main() -> None:
    """Runs one check; an assertion that fails is the message."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("check", choices=["tests", "total", "runs", "wheel"])
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--no-skips", action="store_true")
    arguments = parser.parse_args()
    if arguments.check == "total":
        total(arguments.paths)
    for path in arguments.paths:
        if arguments.check == "tests":
            check_tests(path, arguments.no_skips)
        elif arguments.check == "runs":
            check_runs(Path(path))
        elif arguments.check == "wheel":
            check_wheel(path)


if __name__ == "__main__":
    sys.exit(main())
