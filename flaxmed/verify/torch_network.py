"""torchvision's and timm's own networks: built, filled and run. Imports torch when one is built."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Tensors = Mapping[str, np.ndarray]

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
    return torch, torchvision, timm


class TorchNetwork:
    """ResNet-18 or DenseNet-121 of torchvision, or Xception of timm, in evaluation mode.

    Args:
        network: A name of ``flaxmed.list_models()``.
        stem: "imagenet", or for ResNet-18 "small": MedMNIST's.
        channels: Of the images.
        classes: How many logits.
        dtype: Of computation and parameters: float32 or float64.
    """

    def __init__(
        self, network: str, *, stem: str = "imagenet", channels: int, classes: int, dtype: type
    ):
        self.torch, torchvision, timm = import_packages()
        self.dtype = getattr(self.torch, np.dtype(dtype).name)
        if network == "xception":
            self.model = timm.create_model(
                "legacy_xception", num_classes=classes, in_chans=channels
            )
        else:
            self.model = getattr(torchvision.models, network)(weights=None, num_classes=classes)
            if stem == "small":
                medmnist_stem(self.torch, self.model, channels)
            elif channels != 3:
                imagenet_stem(self.torch, self.model, channels)
        self.model.to(self.dtype).eval()
        self._stages = _STAGES[network](self.torch)

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

    def evaluate(self, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits and the maps that flaxmed names, for normalised images ``[n, h, w, c]``."""
        maps: dict[str, np.ndarray] = {}
        hooks = [
            self.model.get_submodule(module).register_forward_hook(
                # cloned: torch overwrites some of them in place
                lambda _, __, out, stage=stage, after=after: maps.update(
                    {stage: _nhwc(after(out.clone()))}
                )
            )
            for stage, module, after in self._stages
        ]
        self.model.eval()
        with self.torch.no_grad():
            logits = self.model(self._nchw(images)).numpy()
        for hook in hooks:
            hook.remove()
        return logits, maps

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


_STAGES: dict[str, Callable[[Any], Stages]] = {
    "resnet18": _resnet,
    "densenet121": _densenet,
    "xception": _xception,
}
