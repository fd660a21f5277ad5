"""A model card from a run: Markdown with Hugging Face front matter, after CLAIM and TRIPOD+AI.

What the run knows is filled in; what only its author can know is marked "author to complete".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flaxmed.evaluation.card_items import CLAIM, TRIPOD_AI, Item
from flaxmed.evaluation.front_matter import identifier, printable, yaml_lines
from flaxmed.evaluation.record import RunRecord
from flaxmed.evaluation.report import Report, describe_images
from flaxmed.evaluation.report_tables import (
    calibration_table,
    class_table,
    confusion_table,
    gap_notes,
    gap_table,
    metric_table,
    operating_caption,
    operating_table,
    subgroup_table,
)
from flaxmed.evaluation.sentences import NOT_A_DEVICE, lead_sentences, positive_note, warnings_of
from flaxmed.evaluation.tables import ends, escape, markdown, percent
from flaxmed.types import Task

AUTHOR = "author to complete"
_ASK = f"*{AUTHOR.capitalize()}.*"
_NO_PEOPLE = "not applicable: the images are synthetic"

# The names under which the Hugging Face hub knows these metrics.
_HUB_METRICS = {
    "accuracy": "accuracy",
    "auc": "roc_auc",
    "f1": "f1",
    "mcc": "matthews_correlation",
    "brier": "brier_score",
}


def model_card(report: Report, *, record: RunRecord | None = None) -> str:
    """The model card of one run, as Markdown.

    Args:
        report: of the run's test predictions.
        record: what the run directory tells; None: the author completes what it would have told.

    Example:
        >>> import numpy as np
        >>> from flaxmed.evaluation.report import evaluate
        >>> from flaxmed.types import Predictions
        >>> labels = np.arange(60) % 2
        >>> logits = np.stack([np.zeros(60), np.random.default_rng(0).normal(2 * labels - 1)], 1)
        >>> card = model_card(evaluate(Predictions(labels=labels, logits=logits, task="binary")))
        >>> card.splitlines()[:4]
        ['---', 'license: "other"', 'license_name: "author-to-complete"', 'library_name: "flaxmed"']
    """
    record = RunRecord() if record is None else record
    parts = [
        ["---", *yaml_lines(_front_matter(report, record)), "---", ""],
        [f"# {escape(_name(report))}", "", f"**{NOT_A_DEVICE}**", ""],
        _summary(report),
        _intended_use(report),
        _data(report, record),
        _partition(report, record),
        _preprocessing(report, record),
        _model(report, record),
        _training(record),
        _evaluation(report),
        _calibration(report),
        _subgroups(report),
        _limits(report),
        _others(record),
        _checklist("CLAIM, 2024 update", CLAIM, report, record),
        _checklist("TRIPOD+AI", TRIPOD_AI, report, record),
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _front_matter(report: Report, record: RunRecord) -> dict[str, Any]:
    """What the hub reads. The licence of the weights is the author's to choose."""
    source = report.source
    dataset = source.dataset or str(record.dataset.get("name", "")) or "unnamed"
    tags = ["jax", "flax", "medical-imaging", "image-classification", "not-a-medical-device"]
    tags += [source.model] if source.model else []
    tags += ["synthetic-data"] if source.synthetic else []
    found = {name: kind for name, kind in _HUB_METRICS.items() if name in report}
    values: dict[str, Any] = {
        "license": "other",
        "license_name": AUTHOR.replace(" ", "-"),
        "library_name": "flaxmed",
        "pipeline_tag": "image-classification",
        "tags": tags,
        "datasets": [dataset],
        "metrics": list(found.values()),
    }
    results = [
        {"type": kind, "name": _metric_name(report, name), "value": report[name].value}
        for name, kind in found.items()
        if math.isfinite(report[name].value)
    ]
    if results:  # the hub refuses a result without a value
        task = {"type": "image-classification", "name": "Image classification"}
        about = {"type": identifier(dataset), "name": dataset, "split": source.split or "test"}
        values["model-index"] = [
            {
                "name": _name(report),
                "results": [{"task": task, "dataset": about, "metrics": results}],
            }
        ]
    return values


def _metric_name(report: Report, name: str) -> str:
    metric = report[name]
    positive = "" if metric.positive is None else f", positive: {metric.positive}"
    if math.isnan(metric.low):
        return f"{metric.title}{positive}"
    level = percent(report.level)
    return f"{metric.title}{positive} ({level} interval {ends(metric.interval)})"


def _name(report: Report) -> str:
    source = report.source
    named = f"{source.model or 'A network'} on {source.dataset or 'unnamed images'}"
    return printable(named + (" (synthetic)" if source.synthetic else ""))


def _summary(report: Report) -> list[str]:
    about = describe_images(report.n, report.task, report.classes, report.counts, width=0)
    lines = ["## Summary", ""]
    lines += ["A convolutional network (deep learning) that classifies images.", ""]
    lines += [escape(" ".join(lead_sentences(report))), ""]
    lines += [escape(f"Test images: {about[0]}. {positive_note(report)}"), ""]
    return [*lines, *(f"- {escape(flag)}" for flag in warnings_of(report)), ""]


def _intended_use(report: Report) -> list[str]:
    people = _NO_PEOPLE if report.source.synthetic else _ASK
    return [
        "## Intended use",
        "",
        "Research on methods, and teaching. It may not be used to diagnose, to triage or to treat.",
        "",
        f"- Population, purpose and place in the care pathway, users: {people}",
        f"- Uses that are out of scope beyond those named above: {_ASK}",
        "",
    ]


def _data(report: Report, record: RunRecord) -> list[str]:
    people = f"{_NO_PEOPLE}." if report.source.synthetic else _ASK
    rows = record.data_rows()
    return [
        "## Data",
        "",
        *(_table([["", "as recorded"], *rows]) if rows else [_ASK]),
        "",
        f"- Setting, centres, dates, acquisition of the images: {people}",
        f"- Eligibility, inclusion and exclusion: {people}",
        f"- De-identification: {people}",
        "",
    ]


def _partition(report: Report, record: RunRecord) -> list[str]:
    splits = record.split_table()
    drawn = "each was drawn for its own split, at random." if report.source.synthetic else _ASK
    return [
        "## Partition",
        "",
        *(markdown(splits) if splits else [_ASK]),
        "",
        *(f"- {escape(line)}" for line in (record.overlaps() if record.dataset else [])),
        f"- How images were assigned to the splits: {drawn}",
        "",
    ]


def _preprocessing(report: Report, record: RunRecord) -> list[str]:
    rule = record.settings.get("preprocessing")
    said = _ASK
    if rule:
        mean, std = (", ".join(f"{v:g}" for v in rule[name]) for name in ("mean", "std"))
        said = f"Pixels x of 0 to 255 become (x / 255 - {mean}) / {std}, by channel."
    names = "; ".join(map(escape, report.classes))
    known = "The class from which each image was drawn: known without error."
    return [
        "## Preprocessing",
        "",
        said,
        "",
        "Every image of every split is used; none is left out.",
        "",
        "## Reference standard",
        "",
        known if report.source.synthetic else _ASK,
        "",
        f"Classes: {names}.",
        "",
    ]


def _model(report: Report, record: RunRecord) -> list[str]:
    s, multilabel = record.settings, report.task is Task.MULTILABEL
    said = [_ASK]
    if "model" in s:
        output = "a sigmoid for each" if multilabel else "softmax"
        decided = "given where its probability is above 0.5" if multilabel else "the most probable"
        name, stem = escape(str(s["model"])), escape(str(s.get("stem", "not recorded")))
        said = [
            f"{name}, stem {stem}: pixels in, one logit for each of {len(report.classes)} "
            f"{'labels' if multilabel else 'classes'} out; {output} makes probabilities of them. "
            f"The image is all it sees. {escape(record.start())}",
            "",
            f"The {'label is' if multilabel else 'class decided for is'} {decided}; for other "
            "thresholds see Calibration.",
        ]
    return ["## Model", "", *said, ""]


def _training(record: RunRecord) -> list[str]:
    settings, facts, versions = record.setting_rows(), record.fact_rows(), record.version_rows()
    said = [_ASK]
    if settings:
        weights = escape(str(record.settings.get("class_weights") or "none"))
        said = [
            f"One network of one seed, no ensemble. {record.choice()}; the test images had no part "
            f"in it. Class weights: {weights}.",
            "",
            f"Why these settings, and what else was tried: {_ASK}",
            "",
            *_table([["setting", "value"], *settings]),
        ]
    return [
        "## Training",
        "",
        *said,
        "",
        *([*_table([["the run", ""], *facts]), ""] if facts else []),
        "## Software",
        "",
        *(_table([["package", "version"], *versions]) if versions else [_ASK]),
        "",
    ]


def _evaluation(report: Report) -> list[str]:
    classes = [] if report.task is Task.BINARY else ["", *markdown(class_table(report))]
    return [
        "## Evaluation",
        "",
        *markdown(metric_table(report)),
        *classes,
        "",
        *(f"- {escape(note)}" for note in report.notes()),
        "",
    ]


def _calibration(report: Report) -> list[str]:
    found, points = report.calibration, report.operating_points
    said = [_ASK]
    if found is not None and found.test.reason:
        said = [f"Undefined: {escape(found.test.reason)}."]
    elif found is not None:
        said = [*markdown(calibration_table(found)), ""]
        if found.temperature is not None and not found.temperature.reason:
            fitted = f"{found.temperature.value:.4f}, fitted on the validation images"
            said.append(f"- Temperature: {fitted}.")
        said += [f"- {escape(note)}" for note in found.notes()]
    if points:
        said += ["", f"{escape(operating_caption(points, report.level))}:", ""]
        said += markdown(operating_table(points))
    return ["## Calibration", "", *said, ""]


def _subgroups(report: Report) -> list[str]:
    people = f"{_NO_PEOPLE.capitalize()}." if report.source.synthetic else _ASK
    said = [f"No subgroups were given (`flaxmed evaluate RUN --subgroups CSV`). {people}", ""]
    if report.subgroups:
        said = []
    for found in report.subgroups:
        said += [*markdown(subgroup_table(found, report)), "", *markdown(gap_table(found)), ""]
        said += [*(f"- {escape(note)}" for note in (*gap_notes(found), *found.notes)), ""]
    return ["## Subgroups", "", *said]


def _limits(report: Report) -> list[str]:
    lines = ["## Failure analysis", "", *markdown(confusion_table(report)), ""]
    lines += ["The images with the largest errors are in `report.html`, where the run kept them."]
    lines += ["", f"Why they fail: {_ASK}", "", "## Limitations", ""]
    said = [
        *warnings_of(report),
        "One training run: another seed gives other numbers, which the intervals do not cover.",
        "No test on external data is recorded.",
        "No analysis of robustness, and no method of explanation, is part of this evaluation.",
    ]
    lines += [f"- {escape(line)}" for line in said]
    return [*lines, f"- Further limitations, and bias: {_ASK}", ""]


def _others(record: RunRecord) -> list[str]:
    known = {row[0]: row[1] for row in record.data_rows()}
    licence = known.get("licence of the images", "unknown")
    data = escape("; ".join(filter(None, (licence, known.get("source")))))
    asked = (
        "Ethical approval and consent",
        "Registration and protocol",
        "Funding, and the role of funders",
        "Conflicts of interest",
        "Patient and public involvement",
        "Contact",
    )
    return [
        "## Availability",
        "",
        "- Software: flaxmed, Apache-2.0.",
        f"- Images: {data if licence != 'unknown' else _ASK}",
        f"- Weights, their licence (it must suit the images'), and the analysis code: {_ASK}",
        "",
        "## Ethics, funding, registration",
        "",
        *(f"- {name}: {_ASK}" for name in asked),
        "",
    ]


def _checklist(title: str, items: Sequence[Item], report: Report, record: RunRecord) -> list[str]:
    """Each item of a guideline and where it is answered."""
    known = _known(report, record)
    rows = [[item.number, item.topic, _status(item, known)] for item in items]
    open_items = sum(AUTHOR in row[2] for row in rows)
    return [
        f"## Checklist: {title}",
        "",
        f"Of {len(rows)} items {open_items} wait, wholly or in part, for the author.",
        "",
        *_table([["item", "asks for", "here"], *rows]),
        "",
    ]


def _known(report: Report, record: RunRecord) -> set[str]:
    """What is recorded, by the names that items ask for."""
    found = report.calibration
    splits = record.dataset.get("splits", {})
    grouped = bool(splits) and all(s.get("groups") is not None for s in splits.values())
    synthetic = report.source.synthetic
    asked = {
        "": True,
        "data": bool(record.dataset),
        "splits": bool(record.split_table()),
        "patients": grouped or (synthetic and bool(splits)),
        "preprocessing": bool(record.settings.get("preprocessing")),
        "model": "model" in record.settings,
        "training": bool(record.setting_rows()),
        "versions": bool(record.version_rows()),
        "subgroups": bool(report.subgroups),
        "temperature": found is not None and found.temperature is not None,
        "synthetic": synthetic,
    }
    return {name for name, there in asked.items() if there}


def _status(item: Item, known: set[str]) -> str:
    if item.people and "synthetic" in known:
        return f"see {item.section}" if item.section == "Reference standard" else _NO_PEOPLE
    if not item.section or item.needs not in known or (item.people and not item.needs):
        return AUTHOR
    return f"in part: see {item.section}; {AUTHOR}" if item.part else f"see {item.section}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table of words: all columns to the left."""
    header, _, *body = markdown(rows)
    return [header, "|" + "---|" * len(rows[0]), *body]
