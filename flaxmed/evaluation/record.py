"""What a run directory tells beside its predictions, as sentences and tables for its report.

A run of an older version, or one put together by hand, may lack any of it: what is not recorded is
left out, or called so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxmed.evaluation.tables import DASH, duration, whole
from flaxmed.evaluation.worst import Thumbnails

# what decides the steps of training, of which a linear probe takes none
_OF_STEPS = (
    *("epochs", "batch_size", "optimizer.", "augment.", "accumulate", "remat", "steps_per_call"),
    *("ema_decay", "early_stopping", "batch_norm_momentum", "fetch", "finetune."),
)
_SPLITS = {"train": "training", "val": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True, eq=False)
class RunRecord:
    """The files of a run directory, read; each may be empty.

    Attributes:
        settings: ``config.json``, versions and all.
        dataset: ``dataset.json``.
        facts: ``run.json``.
        thumbnails: ``thumbnails.npz``, or None.

    Example:
        >>> record = RunRecord(settings={"model": "resnet18", "optimizer": {"name": "adamw"}})
        >>> record.setting_rows()
        [['model', 'resnet18'], ['optimizer.name', 'adamw']]
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dataset: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    thumbnails: Thumbnails | None = None

    def setting_rows(self) -> list[list[str]]:
        """Every setting that mattered by its dotted name, versions left out."""
        unused = ("versions.", *(_OF_STEPS if self.facts.get("linear_probe") else ()))
        return [
            [name, self._weights() if name == "weights" and value else _text(value)]
            for name, value in _flatten(self.settings)
            if not name.startswith(unused)
        ]

    def _weights(self) -> str:
        """What the parameters began as; of a file or a run on this machine its name alone."""
        weights = str(self.settings.get("weights"))
        local = self.facts.get("started_from", {}).get("local")
        return Path(weights).name if local else _source(weights)

    def start(self) -> str:
        """With what values the parameters began."""
        weights = self.settings.get("weights")
        if not weights:
            return f"Parameters began at random, seed {self.settings.get('seed')}."
        begun = self.facts.get("started_from", {})
        sentence = f"Parameters began as those of {self._weights()}"
        if begun:
            sentence += f" (licence: {begun.get('licence')}; SHA-256 {begun.get('sha256')})"
        new = begun.get("new")
        return f"{sentence}; new, at random: {', '.join(new)}." if new else f"{sentence}."

    def choice(self) -> str:
        """How the network that was kept was chosen, without the full stop."""
        if self.facts.get("linear_probe"):
            return (
                "Only the classifier was fitted, by logistic regression on features of the network "
                "as it began, with the penalty of the lowest validation loss"
            )
        return (
            "Of its epochs the one with the best validation AUC was kept (where that is "
            "undefined, the lowest loss)"
        )

    def version_rows(self) -> list[list[str]]:
        """Python and the packages that decided the result."""
        return [[name, str(value)] for name, value in self.settings.get("versions", {}).items()]

    def data_rows(self) -> list[list[str]]:
        """Name, licence, source and digest of the data."""
        d = self.dataset
        origin = d.get("origin", {})
        shape = d.get("image_shape")
        rows = [
            ["data set", str(d.get("name", ""))],
            ["what it shows", str(d.get("description", ""))],
            ["kind", "synthetic: simulated images" if d.get("synthetic") else ""],
            ["task", str(d.get("task", ""))],
            ["licence of the images", str(d.get("licence", ""))],
            ["source", _source(str(d.get("source", "")))],
            ["file", str(origin.get("file", ""))],
            ["MD5 of the file", str(origin.get("md5", ""))],
            ["image size", "" if not shape else _shape(shape)],
        ]
        rows += [  # such as the seed of synthetic images, or what was held out for validation
            [f"origin: {name}", _text(value)]
            for name, value in origin.items()
            if name not in ("file", "md5", "size") and isinstance(value, str | int | float)
        ]
        return [row for row in rows if row[1]]

    def split_table(self) -> list[list[str]]:
        """Header and rows: images of each split, in all and by class; [] where not recorded."""
        splits = self.dataset.get("splits", {})
        names = [name for name in _SPLITS if name in splits]
        if not names:
            return []
        table = [["images", *(_SPLITS[name] for name in names)]]
        table.append(["all", *(whole(splits[name].get("images", 0)) for name in names)])
        for c, title in enumerate(self.dataset.get("classes", [])):
            counts = [splits[name].get("class_counts", []) for name in names]
            table.append([str(title), *(whole(n[c]) if c < len(n) else DASH for n in counts)])
        groups = [splits[name].get("groups") for name in names]
        known = [DASH if n is None else whole(n) for n in groups]
        return [*table, ["groups (patients)", *known]]

    def overlaps(self) -> list[str]:
        """What was found of images, and of patients, that occur more than once."""
        found = self.dataset.get("duplicates")
        if found is None:
            sentences = ["Identical images were not looked for."]
        elif not found.get("groups"):
            sentences = ["No two images are identical in every pixel."]
        else:
            differing = found.get("differing_labels", {})
            each = [
                f"{joined(names)} {count}"
                + (f" ({differing[names]} with differing labels)" if names in differing else "")
                for names, count in found.get("by_splits", {}).items()
            ]
            sentences = [
                f"Sets of images of the same pixels, by where they are: {'; '.join(each)}."
            ]
        return [*sentences, self.patients()]

    def patients(self) -> str:
        """Whether splits share patients, as far as known."""
        splits = self.dataset.get("splits", {})
        if self.dataset.get("synthetic"):
            return "Each synthetic image is drawn on its own: there are no patients to share."
        if not splits or any(split.get("groups") is None for split in splits.values()):
            return (
                "Patients are not recorded: whether splits, or images of one split, share some is "
                "not known."
            )
        shared = self.dataset.get("shared_groups") or {}
        if not shared:
            return "No group (patient) occurs in two splits."
        each = [f"{joined(names)} {count}" for names, count in shared.items()]
        return f"Groups (patients) that occur in several splits: {'; '.join(each)}."

    def fact_rows(self) -> list[list[str]]:
        """Parameters, training time, the epoch that was kept, memory, the device."""
        f = self.facts
        rows = []
        if "parameters" in f:
            every, trained = f["parameters"], f.get("trained_parameters", f["parameters"])
            some = ["trained parameters", f"{whole(trained)} of {whole(every)}"]
            rows.append(some if trained != every else ["trainable parameters", whole(every)])
        fitted = f.get("linear_probe")
        if fitted:
            rows.append(["penalties tried (scikit-learn's C)", _text(_each(fitted, "C"))])
            best = min(_each(fitted, "val_loss"), default=math.nan)
            rows.append(["lowest validation loss", f"{best:.4f}"])
        if "epochs" in f and not fitted:
            rows.append(["epochs trained", whole(f["epochs"])])
        if isinstance(f.get("best_epoch"), int) and not fitted:
            rows.append(["epoch that was kept", str(f["best_epoch"] + 1)])
        if isinstance(f.get("best_val_auc"), float):
            rows.append(["its validation AUC", f"{f['best_val_auc']:.4f}"])
        if "train_seconds" in f:
            rows.append(["training time", duration(f["train_seconds"])])
        if f.get("peak_memory_bytes"):
            rows.append(["peak memory", f"{f['peak_memory_bytes'] / 1e9:.2f} GB"])
        if "device" in f:
            rows.append(["device", str(f["device"])])
        return rows


def _each(fitted: Mapping[str, Any], name: str) -> list[float]:
    """One of the numbers of every penalty that was tried."""
    return [row[name] for row in fitted.get("tried", []) if isinstance(row.get(name), float)]


def joined(names: str) -> str:
    """Splits' names in words.

    Example:
        >>> joined("train+test"), joined("val")
        ('training and test', 'validation')
    """
    return " and ".join(_SPLITS.get(name, name) for name in names.split("+"))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((prefix + key, value))
    return flat


def _text(value: Any) -> str:
    """A setting as a reader would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _source(text: str) -> str:
    """Where the data are from; of a file on this machine its name alone."""
    return Path(text).name if Path(text).is_absolute() else text


def _shape(shape: Sequence[int]) -> str:
    if len(shape) != 3:
        return " x ".join(map(str, shape))
    h, w, c = shape
    colour = {1: "grey", 3: "colour"}.get(c, f"{c} channels")
    return f"{h} x {w} pixels, {colour}"
