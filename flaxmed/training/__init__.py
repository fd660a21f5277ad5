"""Training: configuration, the step, the loop, checkpoints."""

# ruff: noqa: E402

from flaxmed.allocator import keep_freed_memory

keep_freed_memory()  # first: what is imported below starts threads

from flaxmed.training.augment import parse_augment
from flaxmed.training.config import AugmentConfig, FineTuneConfig, OptimizerConfig, TrainConfig
from flaxmed.training.loop import check_run, default_dir, train
from flaxmed.training.processes import join
from flaxmed.training.progress import Interrupted
from flaxmed.training.run import Run, load_model, load_run
from flaxmed.training.seeds import train_seeds

__all__ = [
    "AugmentConfig",
    "FineTuneConfig",
    "Interrupted",
    "OptimizerConfig",
    "Run",
    "TrainConfig",
    "check_run",
    "default_dir",
    "join",
    "load_model",
    "load_run",
    "parse_augment",
    "train",
    "train_seeds",
]
