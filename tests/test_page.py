"""The HTML report: what it says, that it is sound, and what it is made of."""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import math
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
import sklearn.metrics as sk
from PIL import Image
from sklearn.exceptions import UndefinedMetricWarning

from flaxmed.evaluation import evaluate, evaluate_run, runs
from flaxmed.evaluation import page as page_module
from flaxmed.evaluation.curves import (
    PrecisionRecallCurve,
    precision_recall_curve,
    roc_band,
    roc_curve,
)
from flaxmed.evaluation.figures import report_figures
from flaxmed.evaluation.page import MAX_SVG, Drawing, Page, Section, Table, render_page
from flaxmed.evaluation.plots_curves import precision_recall_figure
from flaxmed.evaluation.record import RunRecord
from flaxmed.evaluation.report import Source
from flaxmed.evaluation.report_tables import with_interval
from flaxmed.evaluation.run_page import report_page
from flaxmed.evaluation.sentences import MEANINGS, lead_sentences
from flaxmed.evaluation.tables import ends, number
from flaxmed.evaluation.worst import Thumbnails, read_thumbnails, worst_images
from flaxmed.types import InputError, Predictions, Split, Task

LONG = "colorectal adenocarcinoma epithelium, moderately differentiated"
CLASSES = {
    "binary": ("malignant", "normal, benign"),
    "multiclass": ("adipose", "<b>\"mucus\" & 'debris'</b>", LONG),
    "ordinal": ("0", "1", "2", "3"),
    "multilabel": tuple(f"finding {c}" for c in range(14)),
}
NO_FIGURES: dict = {}
UNDEFINED = PrecisionRecallCurve(*[np.array([math.nan])] * 3, math.nan, math.nan)


def make(task="binary", n=80, *, seed=0, labels=None, skill=1.5, classes=None, **rest):
    """Predictions of some skill, with the same labels for every seed."""
    classes = CLASSES[task] if classes is None else classes
    k = len(classes)
    if labels is None:
        drawn = np.random.default_rng(99)
        labels = drawn.integers(0, 2, (n, k)) if task == "multilabel" else drawn.integers(0, k, n)
    hint = 2 * labels - 1 if task == "multilabel" else np.eye(k)[labels]
    logits = np.random.default_rng(seed).normal(size=(len(labels), k)) + skill * hint
    rest.setdefault("ids", np.array([f"test/{i:04}" for i in range(len(labels))]))
    positive = 0 if task == "binary" else None
    return Predictions(
        labels=labels, logits=logits, task=task, classes=classes, positive=positive, **rest
    )


def record_of(p, *, channels=1, synthetic=False, **dataset):
    """What a run directory would tell of these predictions."""
    k = len(p.classes)
    split = {"images": len(p), "class_counts": [len(p) // k] * k, "groups": None}
    about = {
        "name": "breastmnist",
        "classes": list(p.classes),
        "licence": "CC BY 4.0",
        "source": "https://doi.org/10.5281/zenodo.10519652",
        "description": "Breast ultrasound.",
        "synthetic": synthetic,
        "origin": {"file": "breastmnist.npz", "md5": "750601b1f35ba3300ea97c75c52ff8f6"},
        "image_shape": [28, 28, channels],
        "splits": dict.fromkeys(("train", "val", "test"), split),
        "duplicates": {"groups": 1, "by_splits": {"train+test": 1}, "differing_labels": {}},
        "shared_groups": {},
        **dataset,
    }
    settings = {"model": "resnet18", "seed": 7, "optimizer": {"learning_rate": 0.001}}
    settings |= {"preprocessing": {"mean": [0.5], "std": [0.5]}, "versions": {"jax": "0.10.2"}}
    rows = worst_images(p, 5)
    pixels = np.random.default_rng(0).integers(0, 256, (len(rows), 28, 28, channels), np.uint8)
    kept = Thumbnails(p.ids[rows], pixels)
    facts = {"parameters": 11_168_706, "train_seconds": 480.2, "best_epoch": 3, "epochs": 9}
    return RunRecord(settings, about, facts, kept)


SEXES = {"sex": {f"test/{i:04}": "FM"[i % 2] for i in range(80)}}


@functools.cache
def full_page(task):
    """A page with every chapter and figure."""
    p = make(task)
    report = evaluate(p, val=make(task, seed=1), subgroups=SEXES, draws=200)
    figures = report_figures(report, p)
    return report_page(report, p, figures=figures, record=record_of(p))


def page_of(p, *, record=None, source=None, **options):
    """A page without figures, and its report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        report = evaluate(p, draws=100, **options)
    if source is not None:
        object.__setattr__(report, "source", source)
    return report_page(report, p, figures=NO_FIGURES, record=record), report


VOID = {"meta", "link", "img", "wbr"}


class Reader(HTMLParser):
    """Reads a page and notes what is not sound in it."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.tags, self.pieces = [], [], [], []
        self.rows, self.headings = [], []
        self.feed(text)
        self.close()
        self.faults += [f"{tag} is never closed" for tag in self.open]
        ids = [a["id"] for _, a in self.tags if "id" in a]
        self.faults += [f"id {name} twice" for name in {i for i in ids if ids.count(i) > 1}]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append([int(tag[1]), ""])

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"{tag} closes what is not open")

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.pieces.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            self.headings[-1][1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.pieces).split())

    def row(self, name):
        """The first row of that name."""
        return next(cells for cells in self.rows if cells and cells[0] == name)

    def chapters(self):
        return [text for level, text in self.headings if level == 2]


# ------------------------------------------------------------------------------------- soundness


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_a_whole_page_is_sound(task):
    text = full_page(task)
    page = Reader(text)
    assert page.faults == []
    assert not re.search("&lt;/?[a-z]|&amp;[a-z]+;", text)  # no markup that was taken for text
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    names = [tag for tag, _ in page.tags]
    assert names.count("table") == names.count("caption") >= 6
    assert names.count("figure") == names.count("figcaption") == names.count("img") >= 8
    for tag, attributes in page.tags:
        assert tag != "th" or attributes["scope"] in ("col", "row")
        assert tag != "img" or attributes["alt"]
    assert ("html", {"lang": "en"}) in page.tags
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [
        attributes for tag, attributes in page.tags if tag == "meta"
    ]


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_a_whole_page_needs_nothing_from_elsewhere(task):
    text = full_page(task)
    page = Reader(text)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {"http-equiv": "Content-Security-Policy", "content": policy} in [
        attributes for _, attributes in page.tags
    ]
    assert not {"script", "iframe", "object", "embed", "base", "form"} & {t for t, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/")
        if "href" in attributes:  # what a reader may follow, not what a browser fetches
            start = "data:," if tag == "link" else ("#", "https://")
            assert attributes["href"].startswith(start)
    style = re.search("<style>(.*?)</style>", text, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    anchors = {a["href"][1:] for t, a in page.tags if t == "a" and a["href"].startswith("#")}
    assert anchors <= {a["id"] for _, a in page.tags if "id" in a}


def test_a_figure_too_large_as_vectors_is_shown_as_pixels(monkeypatch):
    figure = precision_recall_figure([], title="t")
    size = figure.get_size_inches().tolist()
    drawing = Drawing(figure, "alt", "caption")
    shown = Page("t", lead=(), sections=(Section("s", drawings=(drawing,)),))
    widths = []
    for limit, kind in ((MAX_SVG, "svg+xml"), (10, "png")):
        monkeypatch.setattr(page_module, "MAX_SVG", limit)
        text = render_page(shown)
        assert f'src="data:image/{kind};base64,' in text
        widths.append(float(re.search(r'style="width: ([0-9.]+)in; min-width: 0.00in', text)[1]))
    assert widths == pytest.approx([size[0]] * 2, rel=0.15)
    assert figure.get_size_inches().tolist() == size
    wide = precision_recall_figure([("x" * 30, c) for c in [UNDEFINED] * 5], title="t")
    shown = Page("t", lead=(), sections=(Section("s", drawings=(Drawing(wide, "a", "b"),)),))
    assert 'class="scroll wide"' in render_page(shown)


def test_names_are_text_and_no_markup():
    name = CLASSES["multiclass"][1]
    text, _ = page_of(make("multiclass"))
    assert "<b>" not in text
    page = Reader(text)
    assert page.faults == []
    assert page.row(name)
    assert name in page.text
    evil = 'x"><script>alert(1)</script>'
    p = make(
        "multiclass", classes=(evil, "b", "c"), ids=np.array([evil + str(i) for i in range(80)])
    )
    record = record_of(p, name=evil, licence=evil)
    text, _ = page_of(p, record=record, source=Source(evil, "test", evil))
    assert "<script" not in text
    assert Reader(text).faults == []


# ------------------------------------------------------------------------------------ what it says


@pytest.mark.parametrize("task", CLASSES)
def test_every_metric_stands_in_the_page_with_its_interval(task):
    text, report = page_of(make(task))
    page = Reader(text)
    for metric in report.values():
        positive = "" if metric.positive is None else " (malignant)"
        row = page.row(metric.title + positive)
        assert row[1:3] == [number(metric.value), ends(metric.interval)]
        assert metric.name in MEANINGS
    assert page.text.count("Not a medical device") == 1
    if task != "binary":
        for name, auc in zip(report.classes, report.class_auc, strict=True):
            assert f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})" in page.row(name)


def test_a_subgroups_chapter_has_every_metric_and_its_largest_gap():
    p = make(n=80)
    sites = {i: "abcdefgh"[j % 8] if j < 79 else "Rom" for j, i in enumerate(p.ids.tolist())}
    text, report = page_of(p, subgroups={"site": sites})
    (found,) = report.subgroups
    page = Reader(text)
    assert page.faults == []
    chapter = text[text.index(">Subgroups by site</h2>") :]
    folded = re.search('<details class="more">(.*?)</details>', chapter, re.S)[1]
    assert "<summary>All 13 metrics by site</summary>" in folded
    tables = [Reader(t) for t in re.findall("<table.*?</table>", folded, re.S)]
    assert [table.rows[0][1:] for table in tables] == [
        ["all images", "Rom", *"abcd"],
        ["all images", *"efgh"],
    ]
    assert "<span>Every metric by site, with 95% intervals (2 of 2)</span>" in folded
    for table in tables:
        for at, value in enumerate(table.rows[0][1:], 1):
            of = {part.value: (part.n, part.metrics) for part in found.parts}
            n, metrics = of.get(value, (80, report.metrics))
            assert table.row("images")[at] == str(n)
            assert len(table.rows) == 15
            for metric, row in zip(metrics.values(), table.rows[2:], strict=True):
                positive = " (malignant)" if metric.positive else ""
                assert row[0] == metric.title + positive
                assert row[at] == with_interval(metric.value, metric.interval)
    lone = found.parts[0].metrics["auc"]
    assert lone.reason is not None
    assert f"Undefined for Rom: balanced accuracy, AUC ({lone.reason})." in page.text
    gaps = Reader(re.findall("<table.*?</table>", chapter, re.S)[3])
    assert [row[0] for row in gaps.rows[1:]] == [row[0] for row in tables[0].rows[2:]]
    for gap, row in zip(found.gaps.values(), gaps.rows[1:], strict=True):
        assert row[1:5] == [number(gap.value), gap.lowest, gap.highest, ends(gap.interval)]
    assert "p by 1000 shuffles of images of the same truth" in page.text


def test_the_positive_class_stands_beside_what_depends_on_it():
    page = Reader(full_page("binary"))
    captions = re.findall("<figcaption>(.*?)</figcaption>", full_page("binary"), re.S)
    about = [c for c in captions if re.search("Sensitivity|PPV|Net benefit|Counts", c)]
    assert len(about) == 4
    assert all("Positive class: malignant." in caption for caption in about)
    assert page.row("F1 (malignant)")
    assert "sensitivity (malignant)" in page.row("sex")
    assert page.text.index("Positive class: malignant.") < page.text.index("On 80 images")


def test_what_is_undefined_is_said_with_its_reason():
    text, report = page_of(make("multiclass", labels=np.array([0, 2] * 20)))
    page = Reader(text)
    assert page.row("AUC")[1:3] == ["undefined", "–"]
    assert math.isnan(report["auc"].value)
    assert "undefined (no image of class" in page.text
    assert "nan" not in re.sub('data:[^"]*', "", text).lower().replace("finan", "")


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_images_make_a_page_too(task, n):
    k = len(CLASSES[task])
    p = make(task, labels=np.zeros((n, k) if task == "multilabel" else n, np.int64))
    text, _ = page_of(p, record=record_of(p))
    page = Reader(text)
    assert page.faults == []
    assert ("nothing can be said" in page.text) == (n == 0)


CHAPTERS = {
    "ROC curve",
    "Precision and recall",
    "Thresholds",
    "Training",
    "The worst errors",
    "Data and licence",
    "Settings, seed and versions",
    "Subgroups by sex",
}


def test_chapters_appear_when_there_is_something_to_show():
    bare = set(Reader(page_of(make())[0]).chapters())
    assert bare >= {"Metrics", "Decisions", "Calibration", "What the numbers mean"}
    assert not bare & CHAPTERS
    assert set(Reader(full_page("binary")).chapters()) >= CHAPTERS
    assert "Each label" in Reader(full_page("multilabel")).chapters()


def test_the_page_tells_data_licence_settings_seed_and_versions():
    page = Reader(full_page("binary"))
    assert page.row("licence of the images")[1] == "CC BY 4.0"
    assert page.row("MD5 of the file")[1] == "750601b1f35ba3300ea97c75c52ff8f6"
    assert page.row("seed") == ["seed", "7"]
    assert page.row("optimizer.learning_rate") == ["optimizer.learning_rate", "0.001"]
    assert page.row("jax") == ["jax", "0.10.2"]
    assert page.row("trainable parameters")[1] == "11,168,706"
    assert "by where they are: training and test 1." in page.text
    assert '<a href="https://doi.org/10.5281/zenodo.10519652"' in full_page("binary")


def test_unknown_patients_and_synthetic_images_are_said_first():
    unknown = "Which images share a patient is not known"
    text = Reader(page_of(make())[0]).text
    assert text.count(unknown) == 1
    assert text.index(unknown) < text.index("Metrics")
    grouped = make(groups=np.array([f"p{i // 2}" for i in range(80)]))
    text = Reader(page_of(grouped)[0]).text
    assert unknown not in text
    assert "40 groups (patients)" in text
    source = Source("phantom", "test", "resnet18", synthetic=True)
    p = make("multiclass")
    text = Reader(page_of(p, source=source, record=record_of(p, synthetic=True))[0]).text
    assert unknown not in text
    assert "Synthetic images: the numbers say nothing about any disease" in text
    assert "phantom test (synthetic)" in text
    assert text.index("Synthetic images") < text.index("Metrics")


def test_a_collapsed_model_is_flagged_above_its_numbers():
    labels = np.array([0] * 20 + [1] * 60)
    p = make(labels=labels, skill=0.0)
    p = Predictions(**{**vars(p), "logits": np.tile([0.0, 3.0], (80, 1))})
    text, report = page_of(p)
    assert report.flags
    for flag in report.flags:
        assert Reader(text).text.index(flag) < Reader(text).text.index("Metrics")


@pytest.mark.parametrize(
    ("skill", "expected"),
    [(2.0, "lies above 0.5"), (0.0, "holds 0.5"), (-2.0, "lies below 0.5")],
)
def test_the_verdict_holds_the_auc_against_guessing(skill, expected):
    p = make(skill=skill, n=200)
    _, report = page_of(p)
    first, second, third = lead_sentences(report)
    auc, accuracy = report["auc"], report["accuracy"]
    assert f"{auc.value:.3f} (95% interval {auc.low:.3f} to {auc.high:.3f})" in first
    assert f"{accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f})" in first
    assert expected in second
    assert f"about {(accuracy.high - accuracy.low) / 2:.2g} either way" in third


def test_the_verdict_says_how_far_the_ideal_observer_is():
    _, report = page_of(make("multiclass"))
    _, best = page_of(make("multiclass", seed=1, skill=4))
    object.__setattr__(report, "ideal", best)
    said = lead_sentences(report)[-1]
    assert f"AUC {best['auc'].value:.3f} (this model " in said
    assert f"{best['auc'].value - report['auc'].value:.3f} below)" in said
    assert "luck" not in said
    object.__setattr__(best, "ideal", report)
    assert "What lies above it is luck" in lead_sentences(best)[-1]
    text = report_page(report, make("multiclass"), figures=NO_FIGURES)
    difference = report["auc"].value - best["auc"].value
    assert Reader(text).row("AUC")[3:5] == [number(best["auc"].value), f"{difference:+.4f}"]


def test_a_page_shows_its_parts_in_order():
    drawing = Drawing(precision_recall_figure([], title="t"), "a figure", "Positive class: a_b.")
    rows = [["", "a"], ["a.b_c", "0.9"], ["AUC", "0.875 (0.803 to 0.910)"]]
    page = Page(
        "a < b",
        lead=("It may not be claimed that a < b.",),
        facts=("Positive class: a_b.",),
        flags=("One image in two splits.",),
        sections=(
            Section("One", notes=("before",), drawings=(drawing,), after=("after",)),
            Section("Two", tables=(Table("Networks", rows),), folded=True),
            Section("Three", notes=("See https://doi.org/10.2307/2531595.",)),
        ),
        footer=("(https://example.org/a_(b))",),
    )
    text = render_page(page)
    read = Reader(text)
    assert read.faults == []
    assert read.row("a.b_c") == ["a.b_c", "0.9"]
    assert read.row("AUC") == ["AUC", "0.875 (0.803 to 0.910)"]
    assert read.chapters() == ["Before you use a number", "One", "Two", "Three"]
    parts = (
        "a < b",
        "claimed",
        "One image in two",
        "before",
        "Positive class",
        "after",
        "Networks",
    )
    places = [read.text.rindex(part) for part in parts if part != "a < b"]
    assert places == sorted(places)
    assert '<a href="https://doi.org/10.2307/2531595" rel="noreferrer">' in text
    assert text.count("<details open>") == 1
    assert "Before you use" not in render_page(Page("t", lead=()))


# ------------------------------------------------------------------------------ the worst errors


def test_the_worst_images_are_wrong_first_then_by_loss_then_by_id():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.45, 0.55], [0.45, 0.55], [0.51, 0.49]])
    labels = np.array([1, 1, 0, 0, 0])
    ids = np.array(["e", "d", "c", "b", "a"])
    p = Predictions.from_probabilities(scores, labels=labels, task="binary", ids=ids)
    assert p.ids[worst_images(p)].tolist() == ["e", "b", "c", "a", "d"]
    assert worst_images(p, 2).tolist() == [0, 3]
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(5)
        q = Predictions.from_probabilities(
            scores[order], labels=labels[order], task="binary", ids=ids[order]
        )
        assert q.ids[worst_images(q)].tolist() == ["e", "b", "c", "a", "d"]
    labelled = make("multilabel")
    wrong = ((labelled.probabilities > 0.5) != labelled.labels).any(axis=1)
    first = wrong[worst_images(labelled, 80)]
    assert first[: wrong.sum()].all()
    assert not first[wrong.sum() :].any()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_worst_errors_are_shown_as_they_are(channels):
    p = make()
    record = record_of(p, channels=channels)
    text, _ = page_of(p, record=record)
    shown = re.findall('<img src="data:image/png;base64,([^"]*)" alt="(image [^"]*)"', text)
    assert len(shown) == 5
    for (data, alt), name, pixels in zip(
        shown, record.thumbnails.ids, record.thumbnails.images, strict=True
    ):
        assert alt.startswith(f"image {name}, truth ")
        decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        expected = pixels if channels == 3 else pixels[:, :, 0]
        np.testing.assert_array_equal(decoded, expected)
    row = worst_images(p, 1)[0]
    truth, decided = int(p.labels[row]), 1 - int(p.labels[row])
    words = Reader(text).text
    assert f"truth: {p.classes[truth]} ({p.probabilities[row, truth]:.2f})" in words
    assert f"decided: {p.classes[decided]} ({p.probabilities[row, decided]:.2f})" in words
    assert ("the first is shown" in words) == (channels == 4)
    assert "licence of the data set holds for these images" in words


def test_the_errors_of_labels_name_what_was_missed_and_wrongly_found():
    p = make("multilabel")
    words = Reader(page_of(p, record=record_of(p))[0]).text
    assert "missed: finding" in words
    assert "wrongly found: finding" in words


def test_thumbnails_are_reduced_by_area_and_never_enlarged(tmp_path):
    from flaxmed.training.thumbnails import save_thumbnails, shrink

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (256, 384, 3), np.uint8)
    small = shrink(image)
    assert small.shape == (85, 128, 3)
    assert small.mean() == pytest.approx(image.mean(), abs=1)
    exact = shrink(image[:, :256], 128)
    np.testing.assert_array_equal(
        exact, np.rint(image[:, :256].reshape(128, 2, 128, 2, 3).mean(axis=(1, 3)))
    )
    np.testing.assert_array_equal(shrink(np.full((300, 200, 1), 77, np.uint8)), 77)
    np.testing.assert_array_equal(shrink(image[:128, :100]), image[:128, :100])
    p = make(n=30)
    images = rng.integers(0, 256, (30, 200, 160, 1), np.uint8)
    path = tmp_path / "thumbnails.npz"
    save_thumbnails(path, p, Split(images, p.labels, p.ids))
    kept = read_thumbnails(path)
    assert kept.images.shape == (24, 128, 102, 1)
    assert kept.ids.tolist() == p.ids[worst_images(p)].tolist()
    first = shrink(images[worst_images(p)[0]])
    np.testing.assert_array_equal(kept.images[0], first)
    assert [path.name for path in tmp_path.iterdir()] == ["thumbnails.npz"]
    small = tmp_path / "small.npz"
    save_thumbnails(small, p, Split(images[:, :28, :28], p.labels, p.ids))
    assert read_thumbnails(small).images.shape == (24, 28, 28, 1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "not an .npz archive, or a truncated one"),
        ({"ids": np.array(["a"])}, "lacks the array 'images'; expected ids and images"),
        (
            {"ids": np.array(["a"]), "images": np.zeros((1, 2, 2), np.uint8)},
            r"expected images uint8 \[m, h, w, c\]",
        ),
        (
            {"ids": np.array(["a"]), "images": np.zeros((2, 2, 2, 1), np.uint8)},
            "an id for each",
        ),
    ],
)
def test_spoilt_thumbnails_are_named(tmp_path, arrays, message):
    path = tmp_path / "thumbnails.npz"
    with pytest.raises(InputError, match=r"no such file; expected an \.npz archive"):
        read_thumbnails(path)
    if arrays is None:
        path.write_bytes(b"PK")
    else:
        np.savez(path, **arrays)
    with pytest.raises(InputError, match=message) as caught:
        read_thumbnails(path)
    assert "thumbnails.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------- run directories


def write_run(path, p, record, val=None):
    """A finished run's directory, as training leaves it."""
    (path / "predictions").mkdir(parents=True)
    p.save(path / "predictions" / "test.npz")
    if val is not None:
        val.save(path / "predictions" / "val.npz")
    about = {**record.dataset, "task": str(p.task), "positive": p.positive, "channels": 1}
    for name, values in (("config", record.settings), ("dataset", about), ("run", record.facts)):
        (path / f"{name}.json").write_text(json.dumps(values))
    kept = record.thumbnails
    np.savez(path / "thumbnails.npz", ids=kept.ids, images=kept.images)
    return path


def contents(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_run_is_reported_whole_or_not_at_all(tmp_path, monkeypatch):
    p = make()
    run = write_run(tmp_path / "run", p, record_of(p), val=make(seed=1))
    (tmp_path / "sex.csv").write_text(
        "id,sex\n" + "".join(f"{i},{v}\n" for i, v in SEXES["sex"].items())
    )
    before = contents(run)
    with monkeypatch.context() as patched:
        patched.setattr(runs, "model_card", lambda *a, **k: 1 / 0)  # what is made last
        with pytest.raises(ZeroDivisionError):
            evaluate_run(run)
    assert contents(run) == before
    with pytest.raises(InputError, match="level must lie between 0 and 1"):
        evaluate_run(run, level=1.5)
    with pytest.raises(InputError, match=r"no\.csv"):
        evaluate_run(run, subgroups=tmp_path / "no.csv")
    (run / "thumbnails.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"thumbnails\.npz: not an \.npz archive"):
        evaluate_run(run)
    assert contents(run).keys() == before.keys()
    np.savez(run / "thumbnails.npz", ids=np.array(["other"]), images=np.zeros((1, 2, 2, 1), "u1"))
    report = evaluate_run(run, subgroups=tmp_path / "sex.csv", level=0.9)
    page = Reader((run / "report.html").read_text(encoding="utf-8"))
    assert "The worst errors" not in page.chapters()
    assert page.chapters()[0] == "Before you use a number"
    assert set(page.chapters()) >= {"Thresholds", "Subgroups by sex", "Data and licence"}
    assert "identical" in page.text or "same pixels" in page.text
    assert "90% interval" in page.text
    assert report.level == 0.9
    assert json.loads((run / "report.json").read_text())["level"] == 0.9
    assert (run / "MODEL_CARD.md").read_text(encoding="utf-8").startswith("---\n")


# ----------------------------------------------------------------------------------------- curves


@pytest.mark.parametrize("task", CLASSES)
def test_precision_recall_agrees_with_scikit_learn(task):
    p = make(task, n=60)
    scores = np.round(p.probabilities, 1)  # with ties
    for c in range(min(3, len(p.classes))):
        members = p.labels[:, c] if task == "multilabel" else p.labels == c
        rank = -scores[:, 1] if task == "binary" and c == 0 else scores[:, c]
        curve = precision_recall_curve(p.labels, scores, task=task, of_class=c)
        assert curve.average_precision == sk.average_precision_score(members, rank)
        steps = np.diff(curve.recall) @ curve.precision[1:]
        assert steps == pytest.approx(curve.average_precision, abs=1e-12)
        assert curve.prevalence == members.mean()
        assert (np.diff(curve.recall) >= 0).all()
        assert (curve.recall[0], curve.recall[-1]) == (0, 1)
        at = len(curve.thresholds) // 2
        threshold = curve.thresholds[at]
        own = 1 - scores[:, 1] if task == "binary" and c == 0 else scores[:, c]
        called = own >= threshold - 1e-12
        assert curve.precision[at] == pytest.approx(members[called].mean())


def test_precision_recall_of_a_class_without_images():
    with pytest.warns(UndefinedMetricWarning, match="no image of class 'b'"):
        curve = precision_recall_curve(
            np.array([0, 0]), np.eye(3)[:2], task="multiclass", of_class=1, classes=("a", "b", "c")
        )
    assert math.isnan(curve.average_precision)
    assert curve.prevalence == 0
    with pytest.raises(InputError, match="class 3 is not among the 3 classes"):
        precision_recall_curve(np.array([0, 0]), np.eye(3)[:2], task="multiclass", of_class=3)


def test_the_bands_draws_are_those_of_scikit_learns_curves():
    p = make(n=40)
    band = roc_band(p, draws=40, seed=3)
    rng, heights = np.random.default_rng(3), []
    drawn = rng.integers(0, 40, (40, 40))
    for rows in drawn:
        curve = roc_curve(p.labels[rows], p.probabilities[rows], task="binary", of_class=0)
        full = sk.roc_curve(p.labels[rows] == 0, -p.probabilities[rows, 1], drop_intermediate=False)
        heights.append(np.interp(band.fpr, full[0], full[1]))
        assert np.interp(0.5, curve.fpr, curve.tpr) == pytest.approx(heights[-1][100])
    low, high = np.quantile(heights, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(band.low, low, atol=1e-12)
    np.testing.assert_allclose(band.high, high, atol=1e-12)


def test_a_band_of_doubled_images_is_no_narrower_where_their_groups_are_known():
    p = make(n=50)
    twice = np.repeat(np.arange(50), 2)
    ids = np.array([f"{i:03}" for i in range(100)])
    fields = {"labels": p.labels[twice], "logits": p.logits[twice], "task": p.task, "positive": 0}
    groups = np.array([f"p{i:03}" for i in twice])
    single = roc_band(p, draws=200)
    grouped = roc_band(Predictions(**fields, ids=ids, groups=groups), draws=200)
    naive = roc_band(Predictions(**fields, ids=ids), draws=200)
    np.testing.assert_allclose(grouped.low, single.low, atol=1e-12)
    np.testing.assert_allclose(grouped.high, single.high, atol=1e-12)
    assert (naive.high - naive.low).mean() < 0.8 * (single.high - single.low).mean()
    assert grouped.title == "95% band, pointwise\n200 draws of groups"


def test_bands_without_curves_say_why():
    band = roc_band(make(labels=np.zeros(5, np.int64)), draws=10)
    assert band.reason.startswith("every image is of class 'malignant'")
    assert np.isnan(band.low).all()
    few = roc_band(make("multiclass", labels=np.array([0, 1, 2, 0, 1])), draws=50)
    assert few.reason is None
    assert 0 < few.lost < 50
    with pytest.raises(InputError, match="class 5 is not among"):
        roc_band(make(), of_class=5)
    with pytest.raises(InputError, match="level must lie"):
        roc_band(make(), level=1.0)


def test_the_figure_of_precision_and_recall_names_the_undefined():
    p = make("multiclass")
    curves = [
        (name, precision_recall_curve(p.labels, p.probabilities, task=Task.MULTICLASS, of_class=c))
        for c, name in enumerate(p.classes)
    ]
    labels = np.array([0] * 10)
    with pytest.warns(UndefinedMetricWarning):
        none = precision_recall_curve(
            labels, np.full((10, 3), 1 / 3), task="multiclass", of_class=1
        )
    figure = precision_recall_figure([*curves[:2], ("none", none)], title="t", positive="adipose")
    (legend,) = figure.legends
    texts = [text.get_text().replace("\xa0", " ").replace("\n", " ") for text in legend.get_texts()]
    assert texts[0].startswith(
        f"adipose (positive): AP {curves[0][1].average_precision:.4f}, share"
    )
    assert texts[2] == "none: AP undefined"
    assert len(figure.axes[0].lines) == 2 * 2 + 1
