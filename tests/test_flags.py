"""The sentences that warn of a model that does not look, and of images in two splits."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from flaxmed.data import as_dataset
from flaxmed.data.splits import describe, image_digests
from flaxmed.evaluation.flags import collapse_flags, leak_flags
from flaxmed.types import Predictions


def answering(decided, labels, *, classes="abc", **rest):
    """Predictions that answer ``decided``."""
    k = len(classes)
    task = "binary" if k == 2 else "multiclass"
    logits = np.eye(k)[decided]
    return Predictions(labels=labels, logits=logits, task=task, classes=classes, **rest)


# ------------------------------------------------------------------------------------ collapse


def test_a_model_that_looks_gets_no_flag():
    labels = np.arange(150) % 3
    decided = np.where(np.arange(150) < 100, labels, 0)  # 117 of 150 right
    assert collapse_flags(answering(decided, labels)) == ()
    assert collapse_flags(answering(labels, labels)) == ()


def test_a_constant_model():
    labels = np.array([0] * 27 + [1] * 73)
    found = collapse_flags(answering(np.ones(100, int), labels, classes="ab"))
    assert found == (
        'The answer is "b" for 100 of 100 images, but only 73 are "b": the model may not tell the '
        "classes apart.",
        "The accuracy, 0.7300, is not clearly above 0.7300 (95% interval 0.6357 to 0.8073), which "
        'answering "b" to every image would reach.',
    )


def test_a_constant_answer_that_is_rarely_right():
    found = collapse_flags(answering(np.full(60, 2), np.arange(60) % 2))
    assert found[0].startswith('The answer is "c" for 60 of 60 images, but only 0 are "c"')
    assert "0.0000, is not clearly above 0.5000" in found[1]
    assert len(found) == 2


def test_an_almost_constant_model():
    labels = np.repeat([0, 1], [60, 140])
    decided = np.ones(200, int)
    decided[:4] = 0
    assert (
        "for 196 of 200 images, but only 140"
        in collapse_flags(answering(decided, labels, classes="ab"))[0]
    )
    decided[:5] = 0
    assert not any("The answer is" in f for f in collapse_flags(answering(decided, labels)))


def test_an_almost_constant_answer_to_images_almost_all_of_one_class_is_no_sign():
    """985 of 1000 healthy: the model finds 10 of the 15 others."""
    labels, decided = np.repeat([0, 1], [985, 15]), np.repeat([0, 1], [990, 10])
    assert collapse_flags(answering(decided, labels, classes="ab")) == ()


def test_images_all_of_one_class_are_no_sign():
    for n in (2, 10, 156, 1000):
        labels = np.zeros(n, int)
        assert collapse_flags(answering(labels, labels, classes="ab")) == ()


def test_an_accuracy_within_the_interval_of_the_majority():
    """Of 100 images 70 are of one class: 0.6042 to 0.7811."""
    labels = np.repeat([0, 1], [70, 30])
    decided = np.concatenate([np.repeat([0, 1], [60, 10]), np.repeat([1, 0], [18, 12])])
    (found,) = collapse_flags(answering(decided, labels, classes="ab"))
    assert found == (
        "The accuracy, 0.7800, is not clearly above 0.7000 (95% interval 0.6042 to 0.7811), which "
        'answering "a" to every image would reach.'
    )
    decided[0:2], decided[60:61] = 0, 0  # 79 right
    assert collapse_flags(answering(decided, labels, classes="ab")) == ()


def test_the_interval_of_the_majority_has_the_level_that_is_asked_for():
    labels = np.repeat([0, 1], [70, 30])
    decided = np.concatenate([np.repeat([0, 1], [60, 10]), np.repeat([1, 0], [18, 12])])
    assert collapse_flags(answering(decided, labels, classes="ab"), level=0.8) == ()
    (found,) = collapse_flags(answering(decided, labels, classes="ab"), level=0.99)
    assert "(99% interval" in found


def test_groups_widen_the_interval_of_the_majority():
    """Ten patients with ten images each, all of one class: the share is known far less well."""
    labels = np.repeat([0, 1], [70, 30])
    decided = np.where(np.arange(100) % 10 < 8, labels, 1 - labels)
    groups = (np.arange(100) // 10).astype(str)
    assert collapse_flags(answering(decided, labels, classes="ab")) == ()
    (found,) = collapse_flags(answering(decided, labels, classes="ab", groups=groups))
    assert "0.8000, is not clearly above 0.7000" in found


def test_classes_that_are_never_the_answer():
    labels = np.repeat([0, 1, 2, 3, 4], [50, 50, 5, 1, 0])
    decided = np.where(labels < 2, labels, 0)
    (found,) = collapse_flags(answering(decided, labels, classes="abcde"))
    assert found == 'Never the answer (images of the class): "c" (5), "d" (1).'


def test_labels_found_in_no_image_or_in_all():
    labels = np.array([[0, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 1]])
    logits = np.where(np.array([False, True, False, True]), 1.0, -1.0) * np.ones((4, 4))
    p = Predictions(labels=labels, logits=logits, task="multilabel", classes="abcd")
    assert collapse_flags(p) == (
        'Found in (almost) no image, at a threshold of 0.5 (images that have it): "a" (2).',
        'Found in all 4 images, at a threshold of 0.5 (images that have it): "b" (2).',
    )
    right = dataclasses.replace(p, logits=2.0 * labels - 1)
    assert collapse_flags(right) == ()


def test_three_images():
    labels = np.array([0, 1, 1])
    assert collapse_flags(answering(labels, labels, classes="ab")) == ()
    constant = collapse_flags(answering(np.ones(3, int), labels, classes="ab"))
    assert [flag.split(",")[0] for flag in constant] == [
        'The answer is "b" for 3 of 3 images',
        "The accuracy",
    ]


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_fewer_than_two_images_say_nothing(n, task):
    labels = np.ones((n, 2) if task == "multilabel" else n, int)
    p = Predictions(labels=labels, logits=np.tile([1.0, -1.0], (n, 1)), task=task)
    assert collapse_flags(p) == ()


def test_one_group_alone_has_no_interval_and_no_flag():
    labels = np.array([0, 0, 1, 0])
    p = answering(np.zeros(4, int), labels, classes="ab", groups=list("pppp"))
    assert collapse_flags(p) == ()


# --------------------------------------------------------------------------------------- leaks


def data(**splits):
    """A data set of images that are single numbers: by split ``(numbers, labels)``, and groups."""
    arrays = {}
    for name, (numbers, *rest) in splits.items():
        arrays[f"{name}_images"] = np.array(numbers, np.uint8).reshape(-1, 1, 1, 1)
        for what, values in zip(("labels", "groups"), rest, strict=False):
            arrays[f"{name}_{what}"] = np.array(values)
    return as_dataset(arrays)


def recorded(**splits):
    """What a run writes into dataset.json and reads again."""
    return json.loads(json.dumps(describe(data(**splits))))


PLAIN = answering([0, 1, 0, 1], [0, 1, 0, 1], classes="ab")


def test_digests_of_test_images_among_the_validation_images():
    test = dataclasses.replace(PLAIN, image_sha256=list("wxyz"))
    for val, found in {
        "abcd": (),
        "abcz": ("1 test image is identical to a validation image.",),
        "zzxb": ("2 test images are identical to a validation image.",),
    }.items():
        assert leak_flags(test, dataclasses.replace(PLAIN, image_sha256=list(val))) == found
    assert leak_flags(test, PLAIN) == leak_flags(PLAIN, test) == leak_flags(test) == ()


def test_digests_are_those_of_the_images():
    labels = [0, 1, 0, 1]
    dataset = data(
        train=([0, 1, 2, 3], labels),
        val=([10, 11, 12, 13], labels),
        test=([12, 13, 14, 15], labels),
    )
    val, test = (
        dataclasses.replace(PLAIN, image_sha256=image_digests(part))
        for part in (dataset.val, dataset.test)
    )
    assert leak_flags(test, val) == ("2 test images are identical to a validation image.",)


def test_groups_of_test_images_among_the_validation_images():
    test = dataclasses.replace(PLAIN, groups=list("ppqr"))
    one = dataclasses.replace(PLAIN, groups=list("pstu"))
    two = dataclasses.replace(PLAIN, groups=list("pqtu"))
    assert leak_flags(test, one) == ("1 group (patient) has images in validation and test.",)
    assert leak_flags(test, two) == ("2 groups (patients) have images in validation and test.",)
    assert leak_flags(test, dataclasses.replace(PLAIN, groups=list("stuv"))) == ()
    assert leak_flags(test, PLAIN) == leak_flags(test) == ()


def test_what_a_run_recorded_tells_of_all_splits():
    """Images 2 and 3 in training and test, 3 in validation too; 11 twice in training alone."""
    dataset = recorded(
        train=([0, 1, 2, 3, 11, 11], [0, 1, 0, 1, 0, 0]), val=([3], [1]), test=([2, 3], [1, 1])
    )
    found = leak_flags(PLAIN, None, dataset)
    assert sorted(found) == [
        "1 image occurs in training and test, the same in every pixel, with other labels for 1 of "
        "them.",
        "1 image occurs in training, validation and test, the same in every pixel.",
    ]


def test_several_images_and_differing_labels():
    dataset = recorded(
        train=([0, 1, 2, 3], [0, 1, 0, 1]), val=([20], [0]), test=([0, 1, 2], [0, 1, 1])
    )
    assert leak_flags(PLAIN, None, dataset) == (
        "3 images occur in training and test, the same in every pixel, with other labels for 1 of "
        "them.",
    )


def test_a_data_set_without_duplicates_has_no_flag():
    dataset = recorded(train=([0, 1], [0, 1]), val=([2], [0]), test=([3, 4], [0, 1]))
    test = dataclasses.replace(PLAIN, image_sha256=list("wxyz"), groups=list("pqrs"))
    assert leak_flags(test, test, dataset) == ()  # the record is believed, not the digests


def test_groups_that_a_run_recorded():
    dataset = recorded(
        train=([0, 1, 2], [0, 1, 0], ["p", "p", "q"]),
        val=([3, 4], [0, 1], ["q", "r"]),
        test=([5, 6], [0, 1], ["p", "q"]),
    )
    assert leak_flags(PLAIN, PLAIN, dataset) == (
        "1 group (patient) has images in training and test.",
        "1 group (patient) has images in training, validation and test.",
    )


def test_what_was_not_looked_for_is_taken_from_the_predictions():
    """A run without the search for duplicates, whose record has None, and one without a record."""
    test = dataclasses.replace(PLAIN, image_sha256=list("wxyz"), groups=list("pqrs"))
    found = data(train=([0, 1], [0, 1]), val=([2], [0]), test=([3, 4], [0, 1]))
    dataset = describe(found, duplicates=False)
    same = "4 test images are identical to a validation image."
    assert leak_flags(test, test, dataset) == (same,)
    patients = "4 groups (patients) have images in validation and test."
    assert leak_flags(test, test, {}) == leak_flags(test, test) == (same, patients)
