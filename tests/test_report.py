"""Reports and comparisons: what they say, in each form, and what they refuse."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import warnings

import numpy as np
import pytest
from sklearn.exceptions import UndefinedMetricWarning

from flaxmed.evaluation import (
    compare,
    compare_runs,
    evaluate,
    evaluate_run,
    score,
    tables,
    write_comparison,
)
from flaxmed.evaluation.metrics import METRICS
from flaxmed.types import DatasetInfo, InputError, Predictions, Task

CLASSES = {
    "binary": ("malignant", "normal, benign"),
    "multiclass": ("adipose", "a|b_c", "mucus"),
    "ordinal": ("0", "1", "2", "3"),
    "multilabel": ("mass", "nodule"),
}
COSTS = {"resnet18": {"parameters": 11_173_449, "train_seconds": 245.3}}


def make(task="binary", n=60, *, seed=0, labels=None, skill=1.0, **rest):
    """Predictions of some skill, with the same labels for every seed."""
    classes = CLASSES[task]
    k = len(classes)
    if labels is None:
        drawn = np.random.default_rng(99)
        labels = drawn.integers(0, 2, (n, k)) if task == "multilabel" else drawn.integers(0, k, n)
    hint = labels if task == "multilabel" else np.eye(k)[labels]
    logits = np.random.default_rng(seed).normal(size=(len(labels), k)) + skill * hint
    rest.setdefault("ids", np.array([f"test-{i}" for i in range(len(labels))]))
    positive = 0 if task == "binary" else None
    return Predictions(
        labels=labels,
        logits=logits.astype(np.float32),
        task=Task(task),
        classes=classes,
        positive=positive,
        **rest,
    )


def reorder(p, order, **changes):
    given = {"labels": p.labels[order], "logits": p.logits[order], "ids": p.ids[order]}
    return Predictions(
        **{**given, "task": p.task, "classes": p.classes, "positive": p.positive, **changes}
    )


# -------------------------------------------------------------------------------------- reports


@pytest.mark.parametrize("task", CLASSES)
def test_a_report_holds_every_metric_that_applies(task):
    p = make(task)
    report = evaluate(p)
    assert list(report) == [spec.name for spec in METRICS if p.task in spec.tasks]
    for spec in METRICS:
        if p.task in spec.tasks:
            assert report[spec.name].value == spec(p)
            assert report[spec.name].reason is None
    assert {name: report[name].value for name in ("accuracy", "loss", "auc")} == score(p)
    assert report.n == len(p) == 60
    total = p.labels.sum() if task == "multilabel" else 60
    assert sum(report.counts) == total
    if task != "binary":
        areas = [metric.value for metric in report.class_auc]
        assert np.mean(areas) == pytest.approx(report["auc"].value)


def test_the_positive_class_stands_beside_what_depends_on_it():
    report = evaluate(make())
    named = {metric.name for metric in report.values() if metric.positive == "malignant"}
    assert named == {"average_precision", "f1", "sensitivity", "specificity", "ppv", "npv"}
    assert report["auc"].positive is None
    for text in (str(report), report.to_markdown()):
        assert "sensitivity (malignant)" in text
        assert "Positive class: malignant." in text
    assert report.to_dict()["metrics"]["sensitivity"]["positive"] == "malignant"


def test_which_class_is_positive_matters_where_it_should():
    p = make()
    other = reorder(p, np.arange(60), positive=1)
    first, second = evaluate(p), evaluate(other)
    assert first["auc"].value == second["auc"].value
    assert first["sensitivity"].value == second["specificity"].value
    assert first["ppv"].value == second["npv"].value


def test_a_report_prints_its_numbers():
    report = evaluate(make())
    text = str(report)
    n0 = int((make().labels == 0).sum())
    assert f"60 images (malignant {n0}; normal, benign {60 - n0})" in text
    for metric in report.values():
        assert f"{metric.value:.4f}" in text
    assert re.search(rf"malignant +{report.confusion[0, 0]} +{report.confusion[0, 1]}\n", text)
    assert max(len(line) for line in text.splitlines()) <= 100
    with pytest.raises(KeyError, match="'aucc'; this report has accuracy"):
        report["aucc"]


def test_markdown_keeps_names_with_special_characters_in_their_cells():
    text = evaluate(make("multiclass")).to_markdown()
    assert "| a\\|b\\_c |" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1


@pytest.mark.parametrize("task", CLASSES)
def test_a_report_goes_to_json_and_back(task):
    report = evaluate(make(task))
    values = json.loads(tables.json_text(report.to_dict()))
    assert values["n"] == 60
    assert values["metrics"]["loss"]["value"] == report["loss"].value
    assert values["confusion"] == report.confusion.tolist()
    assert [row["name"] for row in values["classes"]] == list(CLASSES[task])
    assert [row["auc"]["value"] for row in values["classes"]] == [
        metric.value for metric in report.class_auc
    ]


def test_undefined_is_nan_with_its_reason_and_a_warning():
    labels = np.array([0, 2] * 10)
    with pytest.warns(UndefinedMetricWarning, match=r"no image of class 'a\|b_c'"):
        report = evaluate(make("multiclass", labels=labels))
    assert math.isnan(report["auc"].value)
    assert math.isnan(report["auc"].low)
    assert report["auc"].reason == "no image of class 'a|b_c'"
    assert [math.isnan(metric.value) for metric in report.class_auc] == [False, True, False]
    assert report.class_auc[1].reason == "no image of class 'a|b_c'"
    assert report["accuracy"].reason is None
    assert re.search(r"AUC +undefined", str(report))
    text = " ".join(str(report).split())
    assert "Undefined: balanced accuracy, AUC, average precision, sensitivity (no image of" in text
    values = report.to_dict()["metrics"]["auc"]
    assert values["value"] is values["low"] is values["high"] is None
    assert values["reason"] == "no image of class 'a|b_c'"


@pytest.mark.parametrize("task", CLASSES)
def test_no_images_at_all(task):
    k = len(CLASSES[task])
    labels = np.zeros((0, k) if task == "multilabel" else 0, np.int64)
    with pytest.warns(UndefinedMetricWarning, match="no image"):
        report = evaluate(make(task, labels=labels))
    assert report.n == 0
    assert all(math.isnan(metric.value) and metric.reason for metric in report.values())
    assert "0 images" in str(report)
    assert report.to_markdown()
    assert tables.json_text(report.to_dict())


def test_three_images_of_one_class():
    with pytest.warns(UndefinedMetricWarning):
        report = evaluate(make(labels=np.zeros(3, np.int64)))
    assert report["auc"].reason == (
        "every image is of class 'malignant'; no image of class 'normal, benign'"
    )
    assert report["specificity"].reason == "every image is of class 'malignant'"
    assert report["sensitivity"].value == report["accuracy"].value


def test_a_wide_confusion_matrix_still_fits_a_terminal():
    classes = tuple(f"a class with a rather long name {i}" for i in range(9))
    p = Predictions(
        labels=np.arange(90) % 9,
        logits=np.random.default_rng(0).normal(size=(90, 9)),
        task=Task.MULTICLASS,
        classes=classes,
    )
    assert max(len(line) for line in str(evaluate(p)).splitlines()) <= 100


# ---------------------------------------------------------------------------------- comparisons


def cells(text):
    """The cells of a printed table, by the first of each row; later tables do not overwrite."""
    rows = {}
    for line in text.splitlines():
        first, *rest = re.split(r" {2,}", line.strip())
        rows.setdefault(first, rest)
    return rows


def test_a_column_per_network_in_the_decks_rows():
    p1, p2 = make(seed=1), make(seed=2)
    comparison = compare({"resnet18": p1, "xception": p2}, costs=COSTS)
    rows = comparison_rows = cells(str(comparison))
    wanted = ["test accuracy", "test loss", "AUC", "parameters", "training time"]
    assert [name for name in comparison_rows if name in wanted] == wanted
    for row, name in (("test accuracy", "accuracy"), ("test loss", "loss"), ("AUC", "auc")):
        assert rows[row] == [f"{evaluate(p)[name].value:.4f}" for p in (p1, p2)]
    assert rows["parameters"] == ["11,173,449", "–"]
    assert rows["training time"] == ["4 min 05 s", "–"]
    found = comparison["xception"].means["accuracy"].interval
    assert f"{found.low:.4f} to {found.high:.4f}" in str(comparison)
    assert f"{found.low:.4f} to {found.high:.4f}" in comparison.to_markdown()


def test_without_costs_there_are_no_rows_for_them():
    text = str(compare({"resnet18": make()}))
    assert "parameters" not in text
    assert "training time" not in text


def test_several_seeds_give_mean_and_range():
    seeds = [make(seed=s) for s in range(3)]
    comparison = compare(
        {"resnet18": make(seed=7), "xception": seeds},
        costs={"xception": {"parameters": 5, "train_seconds": [10.0, 20.0, 30.0]}},
    )
    values = [evaluate(p)["auc"].value for p in seeds]
    spread = comparison["xception"]["auc"]
    assert spread.values == tuple(values)
    assert (spread.min, spread.max) == (min(values), max(values))
    assert spread.mean == pytest.approx(np.mean(values))
    assert f"{np.mean(values):.4f}" in str(comparison)
    assert f"{min(values):.4f} to {max(values):.4f}" in str(comparison)
    mean = comparison["xception"].means["auc"]
    each = [f"{a:.4f} to {b:.4f}" for a, b in ((mean.interval.low, mean.interval.high),)]
    each += [f"{spread.min:.4f} to {spread.max:.4f}"]
    each += [f"{mean.joint.low:.4f} to {mean.joint.high:.4f}"]
    assert f"{np.mean(values):.4f} ({'; '.join(each)})" in comparison.to_markdown()
    assert "20.0 s (10.0 s to 30.0 s)" in comparison.to_markdown()
    assert "seeds: resnet18 1, xception 3" in str(comparison)
    assert comparison.to_dict()["columns"][1]["metrics"]["auc"]["values"] == values


def test_csv_is_the_same_table_at_full_precision():
    seeds = [make(seed=s) for s in range(2)]
    comparison = compare({"resnet18": make(seed=7), "xception": seeds}, costs=COSTS)
    header, *rows = csv.reader(io.StringIO(comparison.to_csv()))
    assert header == ["", "resnet18", "xception"]
    table = {row[0]: row[1:] for row in rows}
    assert float(table["test loss"][1]) == comparison["xception"]["loss"].mean
    assert float(table["test loss, smallest"][1]) == comparison["xception"]["loss"].min
    assert float(table["AUC, largest"][0]) == evaluate(make(seed=7))["auc"].value
    assert table["parameters"] == ["11173449", ""]
    assert table["training time (s)"] == ["245.3", ""]
    assert table["seeds"] == ["1", "2"]
    assert table["test images"] == ["60", "60"]


def test_the_ideal_observer_has_its_column():
    comparison = compare({"resnet18": make(seed=1)}, ideal=make(seed=2, skill=3), costs=COSTS)
    text = str(comparison)
    assert re.search(r"^ +resnet18 +ideal observer$", text, re.M)
    best = evaluate(make(seed=2, skill=3))["accuracy"].value
    assert cells(text)["test accuracy"][1] == f"{best:.4f}"
    assert cells(text)["parameters"][1] == "–"
    assert comparison.ideal is not None
    assert list(comparison) == ["resnet18"]
    assert comparison.to_dict()["ideal_observer"]["metrics"]["accuracy"]["mean"] == best
    assert "on average no method does better" in " ".join(text.split())
    (pair,) = comparison.from_ideal
    assert pair.primary.value == pytest.approx(
        comparison["resnet18"]["auc"].mean - comparison.ideal["auc"].mean
    )


def test_pairing_is_by_id_not_by_row():
    p = make(seed=1)
    order = np.random.default_rng(0).permutation(60)
    groups = np.array([f"patient-{i // 2}" for i in range(60)])
    q = reorder(make(seed=2), order, groups=groups[order])
    comparison = compare({"a": p, "b": q})
    paired = comparison["b"].predictions[0]
    assert (paired.ids == p.ids).all()
    assert (paired.labels == p.labels).all()
    assert (paired.logits == make(seed=2).logits).all()
    assert (paired.groups == groups).all()
    assert comparison["b"].reports[0]["loss"].value == evaluate(q)["loss"].value


def refused(message, given, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        with pytest.raises(InputError, match=message) as caught:
            compare(given, **options)
    assert "\n" not in str(caught.value)


def test_other_images_are_refused_and_counted():
    p = make()
    ids = p.ids.copy()
    ids[:4] = ["new-0", "new-1", "new-2", "new-3"]
    refused(
        "b and a are not predictions of the same images: 4 of 60 ids of b are not in a, and 4 of "
        "60 the other way round",
        {"a": p, "b": reorder(p, np.arange(60), ids=ids)},
    )
    refused("0 of 50 ids of b are not in a, and 10 of 60", {"a": p, "b": reorder(p, np.arange(50))})
    refused(r"b \(2 of 2\) and a are not", {"a": p, "b": [p, reorder(p, np.arange(50))]})
    refused("ideal observer and a are not", {"a": p}, ideal=reorder(p, np.arange(50)))


def test_other_labels_are_refused_and_counted():
    p = make()
    labels = p.labels.copy()
    labels[7:9] = 1 - labels[7:9]
    changed = reorder(p, np.arange(60), labels=labels)
    refused(
        "b and a have different labels for 2 of 60 images, 'test-7' the first",
        {"a": p, "b": changed},
    )
    p = make("multilabel")
    labels = p.labels.copy()
    labels[3] = 1 - labels[3]
    refused(
        "different labels for 1 of 60 images, 'test-3'",
        {"a": p, "b": reorder(p, np.arange(60), labels=labels)},
    )


def test_other_pixels_under_the_same_id():
    digests = np.array([f"{i:064x}" for i in range(60)])
    p = make(image_sha256=digests)
    changed = digests.copy()
    changed[5] = "f" * 64
    refused(
        r"b and a saw different pixels \(SHA-256\) for 1 of 60 images, 'test-5' the first",
        {"a": p, "b": make(seed=1, image_sha256=changed)},
    )
    other_size = make(seed=1, image_sha256=np.array([f"{i + 60:064x}" for i in range(60)]))
    assert "did not see the same pixels" in str(compare({"a": p, "b": other_size}))
    assert "pixels" not in str(compare({"a": p, "b": make(seed=1), "c": p}))


def test_other_questions_are_refused():
    p = make()
    three = make("multiclass", labels=p.labels)
    refused("b is a multiclass task, a binary", {"a": p, "b": three})
    swapped = reorder(p, np.arange(60), classes=("x", "y"))
    refused("b has the classes x, y, a malignant, normal, benign", {"a": p, "b": swapped})
    refused("b has positive class 1, a 0", {"a": p, "b": reorder(p, np.arange(60), positive=1)})
    refused("nothing to compare", {})
    refused("b: no predictions", {"a": p, "b": []})


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"resnet": {}}, "costs of 'resnet', which is not compared; expected a, b"),
        ({"a": {"params": 3}}, "costs of a: unknown 'params'; expected parameters or"),
        ({"a": {"parameters": 1.5}}, "costs of a: parameters must be a whole number, got 1.5"),
        ({"a": {"train_seconds": -1}}, "costs of a: train_seconds must be one number"),
        ({"b": {"train_seconds": [1, 2, 3]}}, r"one per seed \(2\), got \[1, 2, 3\]"),
        ({"b": {"train_seconds": "long"}}, "got 'long'"),
    ],
)
def test_bad_costs_are_named(costs, message):
    refused(message, {"a": make(), "b": [make(), make()]}, costs=costs)


def test_undefined_in_a_comparison():
    labels = np.zeros(20, np.int64)
    given = {"a": make(labels=labels), "b": make(labels=labels, seed=1)}
    with pytest.warns(UndefinedMetricWarning):
        comparison = compare(given)
    assert re.search(r"AUC +undefined +undefined", str(comparison))
    assert str(comparison).count("Undefined: AUC (every image is of class 'malignant'") == 1
    assert "\nAUC,,\n" in comparison.to_csv()
    assert comparison.to_dict()["columns"][0]["metrics"]["auc"]["mean"] is None
    assert tables.json_text(comparison.to_dict())


def test_durations():
    given = [0.04, 59.94, 59.96, 61, 3599.4, 3599.6, 7620]
    texts = ["0.0 s", "59.9 s", "1 min 00 s", "1 min 01 s", "59 min 59 s", "1 h 00 min"]
    assert [tables.duration(seconds) for seconds in given] == [*texts, "2 h 07 min"]


# -------------------------------------------------------------------------------- run directories

INFO = DatasetInfo("breastmnist", Task.BINARY, CLASSES["binary"], 1, positive=0)
PHANTOM = DatasetInfo("phantom", Task.BINARY, CLASSES["binary"], 1, positive=0, synthetic=True)


def write_run(path, p, *, model="resnet18", seed=0, info=INFO, ideal=None, epochs=3, **settings):
    """A finished run's directory, as training leaves it."""
    (path / "predictions").mkdir(parents=True)
    p.save(path / "predictions" / "test.npz")
    if ideal is not None:
        ideal.save(path / "predictions" / "ideal_test.npz")
    config = {"dataset": info.name, "model": model, "seed": seed, "fetch": "auto", **settings}
    config = {"optimizer": {"learning_rate": 0.001}, **config, "versions": {"jax": str(seed)}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "dataset.json").write_text(json.dumps(info.to_dict()))
    rows = [
        {
            "epoch": epoch,
            "step": epoch + 1,
            "train_loss": 0.7 / (epoch + 1),
            "train_accuracy": 0.6 + 0.1 * epoch,
            "val_loss": 0.8 / (epoch + 1),
            "val_accuracy": 0.5 + 0.1 * epoch,
            "val_auc": None if epoch == 0 else 0.8,
        }
        for epoch in range(epochs)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {"parameters": 123_456, "train_seconds": 10.0 + seed, "best_epoch": 1, "epochs": epochs}
    (path / "run.json").write_text(json.dumps(facts))
    return path


def test_a_run_is_evaluated_into_its_directory(tmp_path):
    p = make(seed=3)
    run = write_run(tmp_path / "run", p)
    report = evaluate_run(run)
    assert {name: report[name].value for name in ("accuracy", "loss", "auc")} == score(p)
    assert str(report).startswith("breastmnist test, resnet18\n60 images")
    written = json.loads((run / "report.json").read_text())
    assert written == json.loads(tables.json_text(report.to_dict()))
    assert written["dataset"] == "breastmnist"
    drawn = ("roc", "precision_recall", "reliability", "decision", "confusion", "curves")
    names = {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    assert {path.name for path in (run / "figures").iterdir()} == names
    assert evaluate_run(run)["auc"] == report["auc"]  # once more: files are replaced


def test_a_run_on_the_phantom_shows_the_ideal_observer(tmp_path):
    ideal = make(seed=4, skill=3)
    report = evaluate_run(write_run(tmp_path / "run", make(), info=PHANTOM, ideal=ideal))
    assert str(report).startswith("phantom test (synthetic), resnet18")
    assert report.ideal is not None
    assert report.ideal["auc"].value == evaluate(ideal)["auc"].value
    assert "ideal observer" in str(report)
    assert report.to_dict()["ideal_observer"]["metrics"]["auc"] == report.ideal["auc"].to_dict()


def test_runs_of_one_network_are_its_seeds(tmp_path):
    dirs = [
        write_run(tmp_path / "r0", make(seed=0), seed=0),
        write_run(tmp_path / "x0", make(seed=1), model="xception", seed=0),
        write_run(tmp_path / "r1", make(seed=2), seed=1, fetch="resident"),
    ]
    comparison = compare_runs(dirs)
    assert list(comparison) == ["resnet18", "xception"]
    assert comparison["resnet18"]["auc"].values == tuple(
        evaluate(make(seed=s))["auc"].value for s in (0, 2)
    )
    assert comparison["resnet18"].train_seconds == (10, 11)
    assert comparison["resnet18"].parameters == 123_456
    history = comparison["xception"].histories[0]
    assert history.epochs.tolist() == [1, 2, 3]
    assert history.best_epoch == 2
    assert math.isnan(history.series["val_auc"][0])


def leaking(path, count):
    """Writes into a run's dataset.json that so many of its images are in training and test."""
    about = json.loads((path / "dataset.json").read_text())
    by_splits = {"train+test": count} if count else {}
    about["duplicates"] = {"groups": count, "by_splits": by_splits, "differing_labels": {}}
    (path / "dataset.json").write_text(json.dumps(about))


ONE = "1 image occurs in training and test, the same in every pixel."
TWO = "2 images occur in training and test, the same in every pixel."


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((0, 0, 0), []),
        ((2, 2, 2), [TWO]),
        ((2, 2, 0), [f"resnet18: {TWO}"]),
        ((0, 0, 2), [f"xception: {TWO}"]),
        ((0, 2, 0), [f"r1: {TWO}"]),
        ((2, 0, 2), [f"r0, xception: {TWO}"]),
        ((1, 2, 2), [f"r0: {ONE}", f"r1, xception: {TWO}"]),
    ],
)
def test_each_runs_own_file_tells_of_images_in_two_splits(tmp_path, counts, expected):
    dirs = [
        write_run(tmp_path / "r0", make(seed=0), seed=0),
        write_run(tmp_path / "r1", make(seed=2), seed=1),
        write_run(tmp_path / "x0", make(seed=1), model="xception", seed=0),
    ]
    for path, count in zip(dirs, counts, strict=True):
        leaking(path, count)
    comparison = compare_runs(dirs)
    leaks = [flag for flag in comparison.flags() if "same in every pixel" in flag]
    assert leaks == expected
    assert comparison.to_dict()["flags"] == comparison.flags()
    for flag in expected:
        assert f"! {flag}"[:60] in str(comparison)


def test_runs_whose_folders_share_a_name_are_told_apart_by_their_paths(tmp_path):
    dirs = [write_run(tmp_path / str(i) / "run", make(seed=i), seed=i) for i in range(2)]
    leaking(dirs[1], 1)
    assert f"{dirs[1]}: {ONE}" in compare_runs(dirs).flags()


def test_a_run_named_like_its_network_is_not_taken_for_all_runs(tmp_path):
    names = {"resnet18": 0, "again": 1}
    dirs = [write_run(tmp_path / name, make(seed=i), seed=i) for name, i in names.items()]
    leaking(dirs[0], 1)
    assert f"resnet18: {ONE}" in compare_runs(dirs).flags()


def test_digests_of_each_runs_validation_images_are_used_where_nothing_is_recorded(tmp_path):
    digests = np.array([f"d{i}" for i in range(60)])
    dirs = [
        write_run(tmp_path / f"r{i}", make(seed=i, image_sha256=digests), seed=i) for i in range(2)
    ]
    val = make(seed=3, image_sha256=np.array(["d7", *(f"v{i}" for i in range(59))]))
    val.save(dirs[1] / "predictions" / "val.npz")
    same = "1 test image is identical to a validation image."
    assert f"r1: {same}" in compare_runs(dirs).flags()


def test_a_sign_of_some_seeds_is_named_by_them():
    labels = np.arange(60) % 2
    constant = Predictions(labels=labels, logits=np.tile([0.0, 1.0], (60, 1)), task="binary")
    fine = Predictions(labels=labels, logits=np.eye(2)[labels], task="binary")
    flags = compare({"a": [fine, constant], "b": fine}).flags()
    assert [flag.split(" The answer")[0] for flag in flags if "The answer is" in flag] == [
        "a (2 of 2):"
    ]
    flags = compare({"a": [constant, constant], "b": fine}).flags()
    assert any(flag.startswith('a: The answer is "1"') for flag in flags)


def test_the_page_tells_what_each_run_recorded_of_identical_images(tmp_path):
    dirs = [write_run(tmp_path / f"r{i}", make(seed=i), seed=i) for i in range(2)]
    leaking(dirs[0], 0)
    leaking(dirs[1], 1)
    write_comparison(dirs, tmp_path / "out")
    page = html.unescape((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert f"<li>r1: {ONE}</li>" in page
    assert "<p>r0: No two images are identical in every pixel.</p>" in page
    assert "<p>r1: Sets of images of the same pixels, by where they are: training and" in page
    assert page.count("Patients are not recorded") == 1


def test_runs_with_other_settings_are_other_columns(tmp_path):
    dirs = [
        write_run(tmp_path / "a", make(seed=0), recipe="default"),
        write_run(tmp_path / "b", make(seed=1), recipe="medmnist"),
        write_run(
            tmp_path / "c", make(seed=2), recipe="medmnist", optimizer={"learning_rate": 0.1}
        ),
    ]
    assert list(compare_runs(dirs[:2])) == ["resnet18, recipe=default", "resnet18, recipe=medmnist"]
    assert list(compare_runs(dirs)) == [
        "resnet18, learning_rate=0.001, recipe=default",
        "resnet18, learning_rate=0.001, recipe=medmnist",
        "resnet18, learning_rate=0.1, recipe=medmnist",
    ]


def test_columns_are_told_apart_by_what_their_runs_started_from(tmp_path):
    """Stem and preprocessing, which weights decide, differ as well, and need not be named."""
    tuned = {"stem": "imagenet", "variant": "torchvision", "preprocessing": {"mean": [0.4]}}
    starts = {
        "a": {"weights": None, "stem": "small"},
        "b": {"weights": "/data/mine/w.pth", **tuned},
    }
    probe = {"finetune": {"linear_probe": True, "layer_decay": 1.0}}
    plain = {"finetune": {"linear_probe": False, "layer_decay": 1.0}}
    dirs = [
        write_run(tmp_path / "a", make(seed=0), **starts["a"], **plain),
        write_run(tmp_path / "b", make(seed=1), **starts["b"], **plain),
        write_run(tmp_path / "c", make(seed=2), **starts["b"], **probe),
    ]
    assert list(compare_runs(dirs[:2])) == ["resnet18, from scratch", "resnet18, from w.pth"]
    assert list(compare_runs(dirs)) == [
        "resnet18, from scratch, linear_probe=False",
        "resnet18, from w.pth, linear_probe=False",
        "resnet18, from w.pth, linear_probe=True",
    ]


def test_weights_whose_files_share_a_name_are_told_apart_by_their_paths(tmp_path):
    starts = (None, "one/model.safetensors", "two/model.safetensors", "w.pth")
    dirs = [
        write_run(tmp_path / str(i), make(seed=i), weights=start) for i, start in enumerate(starts)
    ]
    assert list(compare_runs(dirs)) == [
        "resnet18, from scratch",
        "resnet18, from one/model.safetensors",
        "resnet18, from two/model.safetensors",
        "resnet18, from w.pth",
    ]


def test_a_comparison_is_written_whole(tmp_path):
    ideal = make(seed=4, skill=3)
    dirs = [
        write_run(tmp_path / name, make(seed=i), model=name, info=PHANTOM, ideal=ideal)
        for i, name in enumerate(("resnet18", "xception"))
    ]
    out = tmp_path / "new" / "out"
    comparison = write_comparison(dirs, out)
    assert (out / "comparison.txt").read_text() == f"{comparison}\n"
    assert (out / "comparison.md").read_text() == comparison.to_markdown()
    assert (out / "comparison.csv").read_text() == comparison.to_csv()
    values = json.loads((out / "comparison.json").read_text())
    assert values["synthetic"] is True
    assert [column["name"] for column in values["columns"]] == ["resnet18", "xception"]
    assert values["ideal_observer"]["name"] == "ideal observer"
    assert str(comparison).startswith("phantom test (synthetic)\n")
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {"roc.png", "roc.svg", "curves.png", "curves.svg"}
    assert len(list(out.iterdir())) == 6  # these, and report.html


def spoil(path, how):
    test = path / "predictions" / "test.npz"
    if how == "not there":
        return path / "elsewhere"
    if how == "no config":
        (path / "config.json").unlink()
    elif how == "no model":
        (path / "config.json").write_text("{}")
    elif how == "no json":
        (path / "dataset.json").write_text("{")
    elif how == "a list":
        (path / "run.json").write_text("[]")
    elif how == "unfinished":
        test.unlink()
    elif how == "truncated":
        test.write_bytes(test.read_bytes()[:200])
    elif how == "other task":
        make("multilabel").save(test)
        arrays = dict(np.load(test))
        np.savez(test, **{**arrays, "task": np.array("binary")})
    elif how == "log":
        (path / "metrics.jsonl").write_text('{"epoch": 0}\nnonsense\n')
    return path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("not there", "elsewhere: no such run directory"),
        ("no config", r"config\.json: no such file; expected the settings of a run"),
        ("no model", r"config\.json: lacks the key 'model'"),
        ("no json", r"dataset\.json: not readable as JSON"),
        ("a list", r"run\.json: expected a JSON object"),
        ("unfinished", r"run: no predictions/test\.npz; expected a finished run"),
        ("truncated", r"test\.npz: not an \.npz archive, or a truncated one"),
        ("other task", r"test\.npz: labels must have shape"),
        ("log", r"metrics\.jsonl, line 2: not readable as JSON"),
    ],
)
def test_a_spoilt_run_is_named_in_one_line(tmp_path, how, message):
    path = spoil(write_run(tmp_path / "run", make()), how)
    for call in (evaluate_run, lambda path: compare_runs([path])):
        with pytest.raises(InputError, match=message) as caught:
            call(path)
        assert "\n" not in str(caught.value)
    assert not (path / "report.json").exists()


def test_runs_that_do_not_belong_together_are_refused(tmp_path):
    a = write_run(tmp_path / "a", make())
    with pytest.raises(InputError, match=r"phantom, .*a on breastmnist; only runs on one data set"):
        compare_runs([a, write_run(tmp_path / "b", make(), info=PHANTOM)])
    with pytest.raises(InputError, match="a: given twice"):
        compare_runs([a, tmp_path / "b" / ".." / "a"])
    with pytest.raises(InputError, match=r"are the same run \(resnet18, seed 0\)"):
        compare_runs([a, write_run(tmp_path / "c", make(seed=1))])
    with pytest.raises(InputError, match="nothing to compare"):
        compare_runs([])


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    run = write_run(tmp_path / "run", make())
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"file.*cannot be written"):
        write_comparison([run], tmp_path / "file" / "out")


def test_a_comparison_is_not_written_into_a_run(tmp_path):
    a = write_run(tmp_path / "a", make())
    with pytest.raises(InputError, match="a: holds a run; expected a folder"):
        write_comparison([a], a)
    assert not (a / "comparison.txt").exists()


def test_a_whole_number_and_a_float_are_one_setting(tmp_path):
    a = write_run(tmp_path / "a", make(), seed=0, augment={"rotation": 10})
    b = write_run(tmp_path / "b", make(seed=1), seed=1, augment={"rotation": 10.0})
    assert list(compare_runs([a, b])) == ["resnet18"]


def test_a_run_without_a_log_has_no_curves(tmp_path):
    run = write_run(tmp_path / "run", make(), epochs=0)
    evaluate_run(run)
    assert not (run / "figures" / "curves.png").exists()
    assert compare_runs([run])["resnet18"].histories == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "n"), [("binary", 0), ("multilabel", 0), *((task, 1) for task in CLASSES)]
)
def test_figures_are_drawn_where_no_curve_is_defined(tmp_path, task, n):
    k = len(CLASSES[task])
    p = make(task, labels=np.zeros((n, k) if task == "multilabel" else n, np.int64))
    info = DatasetInfo("tiny", Task(task), CLASSES[task], 1)
    dirs = [write_run(tmp_path / name, p, model=name, info=info) for name in ("a", "b")]
    with pytest.warns(UndefinedMetricWarning):
        evaluate_run(dirs[0])
    with pytest.warns(UndefinedMetricWarning):
        write_comparison(dirs, tmp_path / "out")
    assert (dirs[0] / "figures" / "roc.png").stat().st_size > 5000
    assert (tmp_path / "out" / "figures" / "roc.png").stat().st_size > 5000


def test_a_comparison_page_says_what_the_comparison_says(tmp_path):
    dirs = [
        write_run(tmp_path / f"{name}{i}", make(seed=7 * j + i), model=name, seed=i)
        for j, name in enumerate(("resnet18", "xception"))
        for i in range(3)
    ]
    comparison = write_comparison(dirs, tmp_path / "out", difference=0.03)
    page = (tmp_path / "out" / "report.html").read_text()
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
    for sentence in (*comparison.verdict, *comparison.notes()):
        assert sentence in text
    assert "Positive class: malignant." in text
    assert "true difference of 0.03 in AUC" in text
    for column in comparison.columns:
        for mean in column.means.values():
            assert tables.ends(mean.interval) in text
        assert tables.ends(column.means["auc"].joint) in text
    assert "Settings that differ between runs" in text
    assert re.search(r"xception2 xception 2", text)
