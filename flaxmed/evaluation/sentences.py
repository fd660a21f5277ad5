"""What may be said about one run, in a few plain sentences computed from its report."""

from __future__ import annotations

import math

from flaxmed.evaluation.estimates import Metric
from flaxmed.evaluation.report import IDEAL, Report, group_note
from flaxmed.evaluation.tables import percent
from flaxmed.types import Task

NOT_A_DEVICE = (
    "For research and teaching. Not a medical device: nothing here may guide the care of a patient."
)

MEANINGS = {
    "accuracy": "share of the images that are decided rightly",
    "balanced_accuracy": "mean over the classes of the share of their images decided rightly",
    "loss": "mean of minus the natural logarithm of the probability given to the truth; 0 is best",
    "auc": "how often an image of the class is ranked above one of the others; 0.5 is guessing",
    "average_precision": "area under the precision-recall curve; guessing gives the class's share",
    "f1": "harmonic mean of sensitivity and PPV",
    "sensitivity": "of the images of the class, the share that is called so (recall)",
    "specificity": "of the other images, the share that is not called so",
    "ppv": "of the images called so, the share that is; at the prevalence of these images",
    "npv": "of the images not called so, the share that is not; at the same prevalence",
    "kappa": "agreement of decision and truth beyond chance; 0 is chance, 1 is full agreement",
    "mcc": "correlation of decision and truth, from -1 to 1",
    "brier": "mean squared error of the probabilities; 0 is best",
}
"""What each metric means, in a line."""


def lead_sentences(report: Report) -> tuple[str, ...]:
    """AUC and accuracy with their intervals, and how far they can be relied on.

    Args:
        report: of one run, or of predictions from anywhere.

    Example:
        >>> import numpy as np
        >>> from flaxmed.evaluation.report import evaluate
        >>> from flaxmed.types import Predictions
        >>> labels = np.arange(60) % 2
        >>> logits = np.stack([np.zeros(60), np.random.default_rng(0).normal(2 * labels - 1)], 1)
        >>> for sentence in lead_sentences(evaluate(Predictions(labels, logits, "binary")))[:2]:
        ...     print(sentence[:72])
        On 60 images the AUC is 0.971 (95% interval 0.914 to 0.991) and the accu
        The interval of the AUC lies above 0.5, the value of guessing: the order
    """
    if not report.n:
        return ("There are no images: nothing can be said.",)
    said = [_numbers(report), _guessing(report["auc"])]
    said += [_uncertainty(report)]
    if report.ideal is not None:
        said.append(_distance(report, report.ideal))
    return tuple(said)


def warnings_of(report: Report) -> tuple[str, ...]:
    """What a reader must know before any number: synthetic images, collapse, leaks, patients."""
    synthetic = report.source.synthetic
    first = ["Synthetic images: the numbers say nothing about any disease or patient."]
    patients = [] if synthetic and report.groups is None else [group_note(report.n, report.groups)]
    return (*(first if synthetic else []), *report.flags, *patients)


def positive_note(report: Report) -> str:
    """Which class the numbers are about, for the caption of a figure."""
    if report.positive is not None:
        return f"Positive class: {report.positive}."
    if report.task is Task.MULTILABEL:
        return "Each label for itself: images with it are the positive ones."
    return "Each class against the rest: its images are the positive ones."


def _numbers(report: Report) -> str:
    source = report.source
    kind = " ".join(filter(None, ("synthetic" if source.synthetic else "", source.split)))
    what = f"{report.n} {kind + ' ' if kind else ''}image{'s' if report.n != 1 else ''}"
    where = f" of {source.dataset}" if source.dataset else ""
    owner = f" of {source.model}" if source.model else ""
    auc, accuracy = (
        _stated(report[name], level) for name, level in (("auc", report.level), ("accuracy", None))
    )
    mean = {Task.BINARY: "", Task.MULTILABEL: " (mean over the labels)"}
    of = mean.get(report.task, " (mean over the classes)")
    return f"On {what}{where} the AUC{owner}{of} is {auc} and the accuracy {accuracy}."


def _stated(metric: Metric, level: float | None) -> str:
    """Such as ``0.875 (95% interval 0.803 to 0.923)``."""
    if math.isnan(metric.value):
        return f"undefined ({metric.reason})"
    if math.isnan(metric.low):
        return f"{metric.value:.3f} (no interval: {metric.interval.reason or 'not computed'})"
    word = "" if level is None else f"{percent(level)} interval "
    return f"{metric.value:.3f} ({word}{metric.low:.3f} to {metric.high:.3f})"


def _guessing(auc: Metric) -> str:
    if math.isnan(auc.low):
        return "Whether the ranking is better than guessing (an AUC of 0.5) cannot be said."
    if auc.low > 0.5:
        return (
            "The interval of the AUC lies above 0.5, the value of guessing: the order in which the "
            "model puts the images holds information about the truth."
        )
    if auc.high < 0.5:
        return (
            "The interval of the AUC lies below 0.5, the value of guessing: the model puts the "
            "images in the wrong order, as when two classes are exchanged."
        )
    return (
        "The interval of the AUC holds 0.5, the value of guessing: these images do not show that "
        "the model ranks better than chance."
    )


def _uncertainty(report: Report) -> str:
    accuracy = report["accuracy"]
    size = f"With {report.n} image{'s' if report.n != 1 else ''}"
    if math.isnan(accuracy.low):
        return f"{size} the error of these numbers cannot be estimated."
    half = (accuracy.high - accuracy.low) / 2
    beyond = "." if report.source.synthetic else ", not those of another scanner, clinic or year."
    return (
        f"{size} chance alone moves the accuracy by about {half:.2g} either way: the intervals "
        f"cover other images of exactly this kind, classified by this trained network{beyond}"
    )


def _distance(report: Report, ideal: Report) -> str:
    parts = []
    for name in ("auc", "accuracy"):
        below = ideal[name].value - report[name].value
        word = "below" if below >= 0 else "above"
        parts.append(
            f"{report[name].title} {ideal[name].value:.3f} (this model {abs(below):.3f} {word})"
        )
    text = (
        f"The {IDEAL}, who knows how the images were made, reaches on the same images "
        f"{' and '.join(parts)}; on average no method does better."
    )
    if any(report[name].value > ideal[name].value for name in ("auc", "accuracy")):
        text += " What lies above it is luck with these images."
    return text
