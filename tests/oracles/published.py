"""Networks of the other libraries with random values, and files of them as they are published.

No published file can be had where tests run. What is here has the published names, shapes and
quirks: the networks are the libraries' own, and so are the savers.
"""

from __future__ import annotations

import copy
import functools
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import torch_reference

State = Mapping[str, Any]


@functools.cache
def reference(name: str, classes: int = 1000, channels: int = 3) -> Any:
    """A network of torchvision's, or timm's ``legacy_xception``, with random values."""
    torch, torchvision, timm = torch_reference.import_packages()
    torch.manual_seed(0)
    if name == "legacy_xception":
        model = timm.create_model(name, num_classes=classes, in_chans=channels)
    else:
        model = getattr(torchvision.models, name)(weights=None, num_classes=classes)
        if channels != 3:
            torch_reference.imagenet_stem(torch, model, channels)
    return randomise(model)


def randomise(model: Any) -> Any:
    """Draws what batch normalisation begins with as zeros and ones; the model, in evaluation."""
    torch = torch_reference.import_packages()[0]
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.75)
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model.eval()


def respelled(state: State, *changes: tuple[str, str]) -> dict[str, Any]:
    """A state dict with other names: regular expressions, and what replaces them."""
    result = {}
    for name, value in state.items():
        for pattern, new in changes:
            name = re.sub(pattern, new, name)
        result[name] = value
    return result


def old_dots(state: State) -> dict[str, Any]:
    """As in the published densenet121-a639ec97.pth."""
    return respelled(state, (r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2"))


def monai(state: State) -> dict[str, Any]:
    """torchvision's DenseNet under MONAI's names."""
    return respelled(
        state, (r"(denselayer\d+)\.", r"\1.layers."), (r"^classifier\.", "class_layers.out.")
    )


def cadene(state: State) -> dict[str, Any]:
    """timm's Xception under Cadene's name for the head."""
    return respelled(state, (r"^fc\.", "last_linear."))


def medmnist(classes: int = 5, channels: int = 1) -> tuple[Any, dict[str, Any]]:
    """MedMNIST's ResNet-18 for 28 pixels, and its checkpoint: torchvision's blocks with a 3x3 stem,
    its own names for shortcuts and head, under "net"."""
    torch = torch_reference.import_packages()[0]
    model = copy.deepcopy(reference("resnet18", classes))
    torch_reference.medmnist_stem(torch, model, channels)
    randomise(model)  # a new stem brings new values
    state = respelled(model.state_dict(), (r"downsample", "shortcut"), (r"^fc\.", "linear."))
    return model, {"net": state}


def save_legacy(state: State, path: Path) -> None:
    """As torch wrote files before 1.6."""
    torch = torch_reference.import_packages()[0]
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_safetensors(state: State, path: Path) -> None:
    """With the safetensors package, as on the Hugging Face hub."""
    package = importlib.import_module("safetensors.torch")
    package.save_file({name: value.contiguous() for name, value in state.items()}, path)


def save_keras_older(model: Any, path: Path) -> None:
    """What ``save_weights`` of Keras wrote before Keras 3: the layout of ``keras.applications``."""
    h5py = importlib.import_module("h5py")
    saver = importlib.import_module("keras.src.legacy.saving.legacy_h5_format")
    with h5py.File(path, "w") as file:
        saver.save_weights_to_hdf5_group(file, model)
