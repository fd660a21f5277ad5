"""What the JSON files of a run directory hold, where they hold it; a file that differs is named.

A run of an older version, or one put together by hand, may lack any key; what is there has its
type.
"""

from __future__ import annotations

# shapes as ``flaxmed.types.check_shape`` takes them
NUMBER = (int, float)
COUNTS = {...: int}
CONFIG = {"model": str, "seed": int, "dataset": str, "versions": {...: str}}
DATASET = {
    **dict.fromkeys(("name", "description", "task", "licence", "source"), str),
    "synthetic": bool,
    "origin": {...: object},
    "image_shape": [int],
    "classes": [str],
    "splits": {...: {"images": int, "class_counts": [int], "groups": (int, None)}},
    "duplicates": (None, {"groups": int, "by_splits": COUNTS, "differing_labels": COUNTS}),
    "shared_groups": (None, COUNTS),
}
RUN = {
    **dict.fromkeys(("parameters", "trained_parameters", "epochs", "best_epoch"), int),
    **dict.fromkeys(("train_seconds", "evaluation_seconds"), NUMBER),
    "best_val_auc": (*NUMBER, None),
    "peak_memory_bytes": (int, None),
    "device": str,
    "linear_probe": {"tried": [{...: (*NUMBER, None)}]},  # an AUC may be undefined
    "started_from": {"licence": str, "sha256": str, "new": [str], "local": bool},
}
