"""The model card: front matter that is YAML, what is filled in, what waits for the author."""

from __future__ import annotations

import re

import numpy as np
import pytest
from test_page import CLASSES, SEXES, make, page_of, record_of

from flaxmed.evaluation import evaluate
from flaxmed.evaluation.card import AUTHOR, model_card
from flaxmed.evaluation.card_items import CLAIM, TRIPOD_AI
from flaxmed.evaluation.front_matter import yaml_lines
from flaxmed.evaluation.record import RunRecord
from flaxmed.evaluation.report import Source
from flaxmed.evaluation.tables import ends, escape, number

EVIL = ('a: "b" # c', "- |pipe*star_", "ümlaut & <tag>\u2028\x07'")


def front_matter(card):
    return re.match(r"---\n(.*?)\n---\n", card, re.S)[1]


def card_of(p, *, record=None, source=None, **options):
    _, report = page_of(p, source=source, **options)
    return model_card(report, record=record), report


@pytest.mark.parametrize("task", CLASSES)
def test_the_front_matter_is_yaml_with_the_results(yaml, task):
    p = make(task)
    card, report = card_of(p, record=record_of(p), source=Source("breastmnist", "test", "resnet18"))
    values = yaml.safe_load(front_matter(card))
    assert values["library_name"] == "flaxmed"
    assert values["pipeline_tag"] == "image-classification"
    assert values["license"] == "other"
    assert values["datasets"] == ["breastmnist"]
    assert "resnet18" in values["tags"]
    (model,) = values["model-index"]
    assert model["name"] == "resnet18 on breastmnist"
    (result,) = model["results"]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"type": "breastmnist", "name": "breastmnist", "split": "test"}
    found = {metric["type"]: metric for metric in result["metrics"]}
    assert found["roc_auc"]["value"] == report["auc"].value
    assert found["accuracy"]["value"] == report["accuracy"].value
    assert ends(report["auc"].interval) in found["roc_auc"]["name"]
    assert set(values["metrics"]) == set(found)
    if task == "binary":
        assert "positive: malignant" in found["f1"]["name"]


def test_any_name_is_safe_in_the_front_matter(yaml):
    p = make("multiclass", classes=EVIL)
    for name in EVIL:
        card, _ = card_of(p, record=record_of(p, name=name), source=Source(name, "test", name))
        values = yaml.safe_load(front_matter(card))
        assert values["datasets"] == ["".join(c if c.isprintable() else " " for c in name)]
        (model,) = values["model-index"]
        about = model["results"][0]["dataset"]
        assert about["name"] == values["datasets"][0]
        assert re.fullmatch(r"[\w.-]+", about["type"], re.ASCII)


def test_what_yaml_reads_is_what_was_written(yaml):
    values = {
        "numbers": [1e-7, -3e22, 0.5, 12, 1e-300],
        "nothing": [],
        "nested": [{"a": {"b": [True, None]}, "c": {}}],
        "words": ["yes", "1e-7", "null", "- a", "k: v", "#", ""],
    }
    assert yaml.safe_load("\n".join(yaml_lines(values))) == values


def test_an_undefined_metric_is_no_result(yaml):
    card, report = card_of(make("multiclass", labels=np.array([0, 2] * 20)))
    values = yaml.safe_load(front_matter(card))
    kinds = {m["type"] for m in values["model-index"][0]["results"][0]["metrics"]}
    assert "roc_auc" not in kinds
    assert "accuracy" in kinds
    assert escape(report["auc"].reason) in card
    card, _ = card_of(make(labels=np.zeros(0, np.int64)))
    assert "model-index" not in yaml.safe_load(front_matter(card))


@pytest.mark.parametrize("task", CLASSES)
def test_tables_keep_their_cells(task):
    classes = CLASSES[task][:3]
    p = make(task, classes=classes)
    options = {"val": make(task, classes=classes, seed=1), "subgroups": SEXES}
    card, report = card_of(p, record=record_of(p), **options)
    for block in re.findall(r"(?:^\|.*\n)+", card, re.M):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1, block
    for metric in report.values():
        assert f"{number(metric.value)} | {ends(metric.interval)}" in card
    assert "(malignant)" in card or task != "binary"
    assert "## Subgroups\n\n| sex |" in card


def test_what_is_recorded_is_filled_in():
    p = make()
    card, _ = card_of(
        p, record=record_of(p), val=make(seed=1), source=Source("b", "test", "resnet18")
    )
    for part in (
        "CC BY 4.0",
        "750601b1f35ba3300ea97c75c52ff8f6",
        "optimizer.learning\\_rate | 0.001",
        "seed 7",
        "jax | 0.10.2",
        "11,168,706",
        "(x / 255 - 0.5) / 0.5",
        "training and test 1.",
        "Patients are not recorded",
        "Temperature",
        "Not a medical device",
        "Positive class: malignant.",
    ):
        assert part in card, part
    assert not re.search(r"\b(?:nan|None)\b", card)


def statuses(card, title):
    table = card.split(f"## Checklist: {title}")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {row[0].strip(): row[-1].strip() for row in rows[1:]}


def test_the_checklists_are_whole_and_true():
    assert [item.number for item in CLAIM] == [str(n) for n in range(1, 45)]
    numbers = [item.number for item in TRIPOD_AI]
    assert len(numbers) == len(set(numbers)) == 52
    assert list(dict.fromkeys(int(re.match(r"\d+", n)[0]) for n in numbers)) == list(range(1, 28))
    p = make()
    full, _ = card_of(p, record=record_of(p), val=make(seed=1), subgroups=SEXES)
    bare, _ = card_of(p, record=RunRecord())
    chapters = set(re.findall(r"^## (.*)$", full, re.M))
    for title, items in (("CLAIM, 2024 update", CLAIM), ("TRIPOD+AI", TRIPOD_AI)):
        more, less = statuses(full, title), statuses(bare, title)
        assert list(more) == [item.number for item in items]
        for item in items:
            assert item.section == "" or item.section in chapters
            assert AUTHOR in more[item.number] or more[item.number] == f"see {item.section}"
        assert sum(AUTHOR in s for s in less.values()) > sum(AUTHOR in s for s in more.values())
    claim, tripod = statuses(full, "CLAIM, 2024 update"), statuses(full, "TRIPOD+AI")
    assert claim["37"] == "see Evaluation"
    assert claim["44"] == claim["8"] == claim["33"] == AUTHOR
    assert claim["20"] == AUTHOR  # patients are not recorded
    assert tripod["18a"] == tripod["17"] == AUTHOR
    assert tripod["24"] == "see Calibration"
    assert "in part: see Subgroups" in tripod["14"]


def test_synthetic_images_have_no_patients_and_a_known_truth():
    p = make("multiclass")
    record = record_of(p, synthetic=True)
    card, _ = card_of(p, record=record, source=Source("phantom", "test", "resnet18", True))
    claim = statuses(card, "CLAIM, 2024 update")
    assert claim["14"] == "see Reference standard"
    assert claim["8"] == "not applicable: the images are synthetic"
    assert claim["20"] == "see Partition"
    assert "resnet18 on phantom (synthetic)" in card
    assert '"synthetic-data"' in front_matter(card)
    assert "say nothing about any disease" in card


def test_a_card_needs_nothing_but_a_report():
    card = model_card(evaluate(make(), draws=100))
    assert card.count(f"*{AUTHOR.capitalize()}.*") > 15
    assert card.endswith("\n")
