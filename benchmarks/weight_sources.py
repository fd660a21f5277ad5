"""Every format that weights are published in, made by the library itself from random values.

Each source writes a file with its library's own saver and gives that library's own network, which
says what the logits are. What a library does not offer to be built, MedMNIST's network, is put
together of torchvision's.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from oracles import published

from flaxmed.models.weights import convert_weights
from flaxmed.verify import torch_network
from flaxmed.verify.keras_network import KerasNetwork, import_packages, precision

# Given images [n, h, w, c], the library's logits; or without a head its last maps.
Run = Callable[[np.ndarray], np.ndarray]
CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Source:
    """A format, and whose network files of it are for.

    Attributes:
        format: what the file is.
        network: a name of ``flaxmed.list_models()``.
        packages: what has to be installed, the library first.
        make: given a folder and the side of the images, the file there and the library's network.
        channels: of the images.
        size: side of the images in pixels; None for the network's usual.
        head: whether the file has a classifier.
    """

    format: str
    network: str
    packages: tuple[str, ...]
    make: Callable[[Path, int], tuple[Path, Run]]
    channels: int = 3
    size: int | None = None
    head: bool = True

    def write(self, folder: Path, size: int) -> tuple[Path, Run]:
        """``make`` with the same random values whatever was made before."""
        torch_network.import_packages()[0].manual_seed(0)
        if "keras" in self.packages:
            import_packages().utils.set_random_seed(0)
        return self.make(folder, size)


# ------------------------------------------------------------------------------ torch's libraries


def runs(model: Any, call: Callable[[Any], Any] | None = None) -> Run:
    """A network of torch's as a function of arrays."""
    torch = torch_network.import_packages()[0]

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
            return (call or model.eval())(x).numpy()

    return run


def torchvision(network: str, save: Callable[[Any, Path], None], folder: Path, _: int) -> Any:
    """torchvision's or timm's network by its name, saved in some way."""
    model = published.reference(network)
    save(model.state_dict(), folder / "weights.pth")
    return folder / "weights.pth", runs(model)


def save_zip(state: Any, path: Path) -> None:
    """As torch writes files since 1.6."""
    torch_network.import_packages()[0].save(state, path)


def timm(network: str, folder: Path, _: int) -> Any:
    """timm's own network, saved as timm pushes it to the hub."""
    package = torch_network.import_packages()[2]
    model = published.randomise(package.create_model(network))
    package.models.save_for_hf(model, folder, safe_serialization=True)
    return folder / "model.safetensors", runs(model)


def smp(folder: Path, _: int) -> Any:
    """The Xception that segmentation-models-pytorch has from Cadene."""
    module = importlib.import_module("segmentation_models_pytorch.encoders._xception")
    model = published.randomise(module.Xception(CLASSES))
    published.save_safetensors(model.state_dict(), folder / "model.safetensors")
    model.last_linear = model.fc  # what its forward calls, and its makers rename
    return folder / "model.safetensors", runs(model)


def medmnist(size: int, folder: Path, _: int) -> Any:
    """A checkpoint of MedMNIST's training script, for 28 or for 224 pixels."""
    if size == 28:
        model, checkpoint = published.medmnist(9)
    else:
        model = published.reference("resnet18", 9)
        checkpoint = {"net": model.state_dict()}
    save_zip(checkpoint, folder / "weights.pth")
    return folder / "weights.pth", runs(model)


def torchxrayvision(folder: Path, _: int) -> Any:
    """Its DenseNet with operating points, of which some are NaN, as they are published."""
    models = importlib.import_module("torchxrayvision.models")
    torch = torch_network.import_packages()[0]
    model = published.randomise(models.DenseNet(weights=None))
    model.op_threshs = torch.tensor([0.1] * 14 + [float("nan")] * 4)
    save_zip(model.state_dict(), folder / "weights.pt")
    # the points, and a sigmoid, come after the logits
    return folder / "weights.pt", runs(model, lambda x: model.classifier(model.features2(x)))


def monai(folder: Path, _: int) -> Any:
    """MONAI's DenseNet121 for two dimensions."""
    nets = importlib.import_module("monai.networks.nets")
    model = published.randomise(nets.DenseNet121(spatial_dims=2, in_channels=1, out_channels=2))
    save_zip(model.state_dict(), folder / "weights.pt")
    return folder / "weights.pt", runs(model)


def flaxmeds(network: str, folder: Path, _: int) -> Any:
    """What flaxmed makes of another library's file, beside that library."""
    path, run = torchvision(network, save_zip, folder, 0)
    convert_weights(path, folder / "weights.safetensors")
    return folder / "weights.safetensors", run


# ------------------------------------------------------------------------------ Keras, KerasHub


def randomise(model: Any) -> Any:
    """Draws what Keras's batch normalisation begins with as zeros and ones; the model."""
    rng = np.random.default_rng(1)
    for variable in model.variables:
        kind = variable.path.rpartition("/")[2]
        if kind in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.75, 1.25, variable.shape))
        if kind in ("beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
    return model


def runs_keras(model: Any) -> Run:
    """A network of Keras's as a function of arrays."""
    keras, torch = import_packages(), torch_network.import_packages()[0]

    def run(images: np.ndarray) -> np.ndarray:
        with precision(keras, np.float32), torch.no_grad():
            return model(torch.from_numpy(images), training=False).numpy()

    return run


def save_keras(model: Any, path: Path) -> None:
    """As Keras 3 saves weights."""
    model.save_weights(path)


def keras(
    network: str, save: Callable[[Any, Path], None], head: bool, folder: Path, size: int
) -> Any:
    """A network of ``keras.applications``, with or without its head."""
    whole = KerasNetwork(network, channels=3, classes=CLASSES, size=size, dtype=np.float32)
    model = randomise(whole.model)
    if not head:  # behind the last maps are a pool and the classifier
        model = import_packages().Model(model.input, model.layers[-3].output)
    path = folder / ("x.weights.h5" if save is save_keras else "x.h5")
    save(model, path)
    return path, runs_keras(model)


def kerashub(network: str, folder: Path, size: int) -> Any:
    """KerasHub's classifiers, as they are in its presets."""
    models = import_packages() and importlib.import_module("keras_hub").models
    if network == "resnet18":
        backbone = models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 128, 256, 512],
            stackwise_num_blocks=[2, 2, 2, 2],
            stackwise_num_strides=[1, 2, 2, 2],
            block_type="basic_block",
            image_shape=(size, size, 3),
        )
        build = models.ResNetImageClassifier
    elif network == "densenet121":
        backbone = models.DenseNetBackbone([6, 12, 24, 16], image_shape=(size, size, 3))
        build = models.DenseNetImageClassifier
    else:
        entry = [[32, 64], [128, 128], [256, 256], [728, 728]]
        backbone = models.XceptionBackbone(
            [*entry, *([[728] * 3] * 8), [728, 1024], [1536, 2048]],
            [False, True, True, True, *([False] * 8), True, False],
            image_shape=(size, size, 3),
        )
        build = models.XceptionImageClassifier
    model = randomise(build(backbone=backbone, num_classes=CLASSES, activation=None))
    model.save_weights(folder / "x.weights.h5")
    return folder / "x.weights.h5", runs_keras(model)


# ------------------------------------------------------------------------------ all of them

_TORCH = ("torchvision", "torch")
_TIMM = ("timm", "torch")
_KERAS = ("keras", "h5py", "torch")
_HUB = ("keras_hub", *_KERAS)


def _keras_sources() -> list[Source]:
    made = []
    for network in ("densenet121", "xception"):
        for save, form in ((published.save_keras_older, ".h5"), (save_keras, ".weights.h5")):
            for head in (True, False):
                make = functools.partial(keras, network, save, head)
                name = f"Keras {form}" + ("" if head else ", no top")
                made.append(Source(name, network, _KERAS, make, head=head))
    return made


def _of(make: Any, *given: Any) -> Any:
    return functools.partial(make, *given)


def _dotted(state: Any, path: Path) -> None:
    published.save_legacy(published.old_dots(state), path)


SOURCES = [
    Source("torchvision .pth", "resnet18", _TORCH, _of(torchvision, "resnet18", save_zip)),
    Source(
        "torchvision .pth",
        "densenet121",
        _TORCH,
        _of(torchvision, "densenet121", _dotted),
    ),
    Source("timm safetensors", "resnet18", _TIMM, _of(timm, "resnet18")),
    Source("timm safetensors", "densenet121", _TIMM, _of(timm, "densenet121")),
    Source("timm legacy .pth", "xception", _TIMM, _of(torchvision, "legacy_xception", save_zip)),
    Source("smp-hub safetensors", "xception", ("segmentation_models_pytorch", "torch"), smp),
    *_keras_sources(),
    Source("KerasHub .weights.h5", "resnet18", _HUB, _of(kerashub, "resnet18")),
    Source("KerasHub .weights.h5", "densenet121", _HUB, _of(kerashub, "densenet121")),
    Source("KerasHub .weights.h5", "xception", _HUB, _of(kerashub, "xception")),
    Source("MedMNIST .pth, 28 px", "resnet18", _TORCH, _of(medmnist, 28), channels=1, size=28),
    Source("MedMNIST .pth, 224 px", "resnet18", _TORCH, _of(medmnist, 224)),
    Source(
        "torchxrayvision .pt",
        "densenet121",
        ("torchxrayvision", "torch"),
        torchxrayvision,
        channels=1,
    ),
    Source("MONAI .pt", "densenet121", ("monai", "torch"), monai, channels=1),
    Source("flaxmed safetensors", "resnet18", _TORCH, _of(flaxmeds, "resnet18")),
    Source("flaxmed safetensors", "densenet121", _TORCH, _of(flaxmeds, "densenet121")),
    Source("flaxmed safetensors", "xception", _TIMM, _of(flaxmeds, "legacy_xception")),
]
