"""torchvision's and timm's networks, called like ``cases.Ours``. Imports torch when it is built."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .cases import CLASSES, LEARNING_RATE, MOMENTUM, STEPS, Case, Step, Tensors

# torchvision's wheel is linked to the CUDA build of torch. Beside a CPU build its operators are
# absent and the import stops at their schemas; the networks use none of them.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_LIBRARIES: list[Any] = []  # a torch.library.Library takes its definitions along when it goes


@functools.cache
def import_packages() -> tuple[Any, Any, Any]:
    """torch, torchvision and timm.

    Raises:
        ImportError: One of them is not installed.
    """
    torch = importlib.import_module("torch")
    with warnings.catch_warnings():
        # of the packages' own making, at import alone
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        try:
            torchvision = importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            library = torch.library.Library("torchvision", "DEF")
            for schema in _SCHEMAS:
                library.define(schema)
            _LIBRARIES.append(library)
            torchvision = importlib.import_module("torchvision")
        timm = importlib.import_module("timm")
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The threads of several processes would wait for each other at every barrier: with two of
        # them on two cores a backward pass of half a second takes minutes.
        torch.set_num_threads(1)
    return torch, torchvision, timm


class TorchReference:
    """A network of torchvision or timm in one precision."""

    def __init__(self, case: Case, channels: int, dtype: type, classes: int = CLASSES):
        self.torch, torchvision, timm = import_packages()
        self.dtype = {np.float32: self.torch.float32, np.float64: self.torch.float64}[dtype]
        network = case.network.__name__
        if case.package == "timm":
            self.model = timm.create_model(
                "legacy_xception", num_classes=classes, in_chans=channels
            )
        else:
            build = {"ResNet18": "resnet18", "DenseNet121": "densenet121"}[network]
            self.model = getattr(torchvision.models, build)(weights=None, num_classes=classes)
            if case.options.get("stem") == "small":
                medmnist_stem(self.torch, self.model, channels)
            elif channels != 3:
                imagenet_stem(self.torch, self.model, channels)
        self.model.to(self.dtype).eval()
        self.stages = {"ResNet18": _resnet, "DenseNet121": _densenet, "Xception": _xception}[
            network
        ]

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

    def load(self, tensors: Tensors) -> None:
        """Takes all parameters and statistics; torch refuses what does not fit."""
        state = {
            name: self.torch.tensor(np.ascontiguousarray(value), dtype=self.dtype)
            for name, value in tensors.items()
        }
        counters = {
            name: self.torch.tensor(0)
            for name in self.model.state_dict()
            if name.endswith("num_batches_tracked")
        }
        self.model.load_state_dict(state | counters, strict=True)

    def evaluate(self, images: np.ndarray) -> tuple[np.ndarray, Tensors]:
        """Logits and the maps that flaxmed names."""
        maps: Tensors = {}
        hooks = [
            self.model.get_submodule(module).register_forward_hook(
                # cloned: torch overwrites some of them in place
                lambda _, __, out, stage=stage, after=after: maps.update(
                    {stage: _nhwc(after(out.clone()))}
                )
            )
            for stage, module, after in self.stages(self.torch)
        ]
        self.model.eval()
        with self.torch.no_grad():
            logits = self.model(self._nchw(images)).numpy()
        for hook in hooks:
            hook.remove()
        return logits, maps

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

    def _nchw(self, images: np.ndarray) -> Any:
        return self.torch.tensor(images.transpose(0, 3, 1, 2).copy(), dtype=self.dtype)


def _nhwc(tensor: Any) -> np.ndarray:
    return tensor.numpy().transpose(0, 2, 3, 1)


def imagenet_stem(torch: Any, model: Any, channels: int) -> None:
    """Another number of input channels than torchvision's three."""
    stem = torch.nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    if hasattr(model, "features"):
        model.features.conv0 = stem
    else:
        model.conv1 = stem


def medmnist_stem(torch: Any, model: Any, channels: int) -> None:
    """MedMNIST's ResNet-18: a 3x3 stem without a pool, torch's own initial values throughout."""
    model.conv1 = torch.nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


Stages = list[tuple[str, str, Callable[[Any], Any]]]


def _plain(out: Any) -> Any:
    return out


def _resnet(torch: Any) -> Stages:
    stages = [(f"stage{i}", f"layer{i}", _plain) for i in range(1, 5)]
    return [("stem", "maxpool", _plain), *stages, ("final", "layer4", _plain)]


def _densenet(torch: Any) -> Stages:
    return [
        ("stem", "features.pool0", _plain),
        *((f"stage{i}", f"features.denseblock{i}", _plain) for i in range(1, 5)),
        *((f"transition{i}", f"features.transition{i}", _plain) for i in range(1, 4)),
        ("final", "features", torch.relu),  # the last ReLU is a function call in forward
    ]


def _xception(torch: Any) -> Stages:
    own = [*(f"entry{i}" for i in range(1, 4)), *(f"middle{i}" for i in range(1, 9)), "exit1"]
    blocks = [(stage, f"block{i}", _plain) for i, stage in enumerate(own, start=1)]
    tail = [("exit2", "act3", _plain), ("exit3", "act4", _plain), ("final", "act4", _plain)]
    return [("stem", "act2", _plain), *blocks, *tail]
