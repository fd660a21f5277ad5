"""torchvision's and timm's networks, called like ``cases.Ours``. Imports torch when it is built."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from flaxmed.verify import torch_network
from flaxmed.verify.torch_network import TorchNetwork, imagenet_stem, medmnist_stem

from .cases import CLASSES, LEARNING_RATE, MOMENTUM, STEPS, Case, Step, Tensors

__all__ = ["TorchReference", "imagenet_stem", "import_packages", "medmnist_stem"]


@functools.cache
def import_packages() -> tuple[Any, Any, Any]:
    """torch, torchvision and timm.

    Raises:
        ImportError: One of them is not installed.
    """
    packages = torch_network.import_packages()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The threads of several processes would wait for each other at every barrier: with two of
        # them on two cores a backward pass of half a second takes minutes.
        packages[0].set_num_threads(1)
    return packages


class TorchReference(TorchNetwork):
    """A network of torchvision or timm in one precision, which trains too."""

    def __init__(self, case: Case, channels: int, dtype: type, classes: int = CLASSES):
        import_packages()
        super().__init__(
            case.network.__name__.lower(),
            stem=case.options.get("stem", "imagenet"),
            channels=channels,
            classes=classes,
            dtype=dtype,
        )

    @property
    def parameter_count(self) -> int:
        """Number of trainable values."""
        return sum(p.numel() for p in self.model.parameters())

    def tensors(self) -> Tensors:
        """Every parameter and running statistic by name."""
        return {
            name: value.numpy().copy()
            for name, value in self.model.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }

    def step(self, images: np.ndarray, labels: np.ndarray) -> Step:
        """One training step without the update: gradients, and the statistics it moves."""
        self.model.train()
        self.model.zero_grad()
        logits = self.model(self._nchw(images))
        loss = self.torch.nn.functional.cross_entropy(logits, self.torch.tensor(labels))
        loss.backward()
        self.model.eval()
        gradients = {name: p.grad.numpy().copy() for name, p in self.model.named_parameters()}
        statistics = {name: v for name, v in self.tensors().items() if "running_" in name}
        return Step(logits.detach().numpy(), loss.detach().numpy(), gradients, statistics)

    def sgd(self, images: np.ndarray, labels: np.ndarray) -> Tensors:
        """All tensors after STEPS steps of SGD with momentum on one batch."""
        optimizer = self.torch.optim.SGD(
            self.model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM
        )
        for _ in range(STEPS):
            self.step(images, labels)
            optimizer.step()
        return self.tensors()
