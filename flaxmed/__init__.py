"""flaxmed: ResNet-18, DenseNet-121 and Xception for medical images, in JAX with Flax NNX.

The names below are the public surface. They load on first use (PEP 562), so that
``import flaxmed.evaluation`` needs no jax.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "flaxmed.types": (
        "Dataset",
        "DatasetInfo",
        "InputError",
        "Predictions",
        "Preprocessing",
        "RunError",
        "Split",
        "Task",
    ),
    "flaxmed.models": (
        "DenseNet121",
        "ResNet18",
        "Xception",
        "create_model",
        "list_models",
        "list_variants",
    ),
    "flaxmed.models.weights": (
        "convert_weights",
        "describe_weights",
        "from_pretrained",
        "list_weights",
        "load_weights",
        "open_weights",
        "save_weights",
    ),
    "flaxmed.data": ("list_datasets", "load_dataset"),
    "flaxmed.training": (
        "FineTuneConfig",
        "Run",
        "TrainConfig",
        "load_model",
        "train",
        "train_seeds",
    ),
    "flaxmed.inference": ("predict",),
    "flaxmed.publish": ("push_to_hub", "save_pretrained"),
    "flaxmed.evaluation": ("Comparison", "Report", "compare", "evaluate"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted([*_MODULE_OF, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'flaxmed' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
