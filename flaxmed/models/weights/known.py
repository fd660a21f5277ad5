"""The published weights that flaxmed knows by name: where they are, and what they were made for.

Preprocessing, image size, crop and interpolation are those of timm's ``pretrained_cfg``, of
torchvision's ``transforms`` and of Keras's ``preprocess_input``: a test compares them with these
libraries. flaxmed uses the preprocessing; the others say under which conditions the published
accuracy was reached.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from importlib import resources

from flaxmed.types import InputError, Preprocessing

IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Preprocessing((0.5,), (0.5,))  # [0, 1] to [-1, 1]
XRAY = Preprocessing((0.5,), (1 / 2048,))  # [0, 1] to [-1024, 1024]: torchxrayvision's range

# torchxrayvision's outputs (``default_pathologies``), whatever a network of it was trained on
XRAY_FINDINGS = (
    *("Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema"),
    *("Fibrosis", "Effusion", "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule"),
    *("Mass", "Hernia", "Lung Lesion", "Fracture", "Lung Opacity", "Enlarged Cardiomediastinum"),
)


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A file in a repository on the Hugging Face hub."""

    repo: str
    name: str = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class WebFile:
    """A file at an address, with its published digest: one of the two, SHA-256 in its first digits.

    torch's file names end in these digits.
    """

    url: str
    sha256: str | None = None
    md5: str | None = None


@dataclasses.dataclass(frozen=True)
class Known:
    """One set of published weights.

    Attributes:
        name: what ``create_model(weights=...)`` takes.
        network: a name of ``flaxmed.list_models()``.
        variant: the network's constants and padding that these weights were trained with.
        file: where they are.
        preprocessing: of the images, per channel.
        image_size: side in pixels of the images that they were evaluated on.
        crop: that side as a fraction of the resized image's shorter one.
        interpolation: of the resizing.
        licence: as published.
    """

    name: str
    network: str
    variant: str
    file: HubFile | WebFile
    preprocessing: Preprocessing
    image_size: int
    crop: float
    interpolation: str
    licence: str


def _timm_resnet(tag: str, size: int, crop: float, interpolation: str, licence: str) -> Known:
    name = f"timm/resnet18.{tag}"
    file = HubFile(name)
    return Known(
        name, "resnet18", "torchvision", file, IMAGENET, size, crop, interpolation, licence
    )


def _timm_densenet(tag: str) -> Known:
    name = f"timm/densenet121.{tag}"
    file = HubFile(name)
    return Known(
        name, "densenet121", "torchvision", file, IMAGENET, 224, 0.875, "bicubic", "apache-2.0"
    )


_TORCH = "https://download.pytorch.org/models"
_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_CADENE = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene"

_ALL = (
    Known(
        "torchvision/resnet18",
        "resnet18",
        "torchvision",
        WebFile(f"{_TORCH}/resnet18-f37072fd.pth", sha256="f37072fd"),
        IMAGENET,
        224,
        0.875,
        "bilinear",
        "bsd-3-clause",
    ),
    _timm_resnet("tv_in1k", 224, 0.875, "bilinear", "bsd-3-clause"),
    _timm_resnet("a1_in1k", 224, 0.95, "bicubic", "apache-2.0"),
    _timm_resnet("a2_in1k", 224, 0.95, "bicubic", "apache-2.0"),
    _timm_resnet("a3_in1k", 160, 0.95, "bicubic", "apache-2.0"),
    _timm_resnet("gluon_in1k", 224, 0.875, "bicubic", "apache-2.0"),
    _timm_resnet("fb_swsl_ig1b_ft_in1k", 224, 0.875, "bilinear", "cc-by-nc-4.0"),
    _timm_resnet("fb_ssl_yfcc100m_ft_in1k", 224, 0.875, "bilinear", "cc-by-nc-4.0"),
    Known(
        "torchvision/densenet121",
        "densenet121",
        "torchvision",
        WebFile(f"{_TORCH}/densenet121-a639ec97.pth", sha256="a639ec97"),
        IMAGENET,
        224,
        0.875,
        "bilinear",
        "bsd-3-clause",
    ),
    _timm_densenet("tv_in1k"),
    _timm_densenet("ra_in1k"),
    Known(
        "keras/densenet121",
        "densenet121",
        "keras",
        WebFile(
            f"{_KERAS}/densenet/densenet121_weights_tf_dim_ordering_tf_kernels.h5",
            md5="9d60b8095a5708f2dcce2bca79d332c7",
        ),
        IMAGENET,
        224,
        0.875,
        "bilinear",
        "apache-2.0",
    ),
    Known(
        "keras/xception",
        "xception",
        "keras",
        WebFile(
            f"{_KERAS}/xception/xception_weights_tf_dim_ordering_tf_kernels.h5",
            md5="0a58e3b7378bc2990ea3b43d5981f1f6",
        ),
        HALF,
        299,
        0.875,
        "bilinear",
        "apache-2.0",
    ),
    Known(
        "timm/legacy_xception.tf_in1k",
        "xception",
        "timm",
        WebFile(f"{_CADENE}/xception-43020ad28.pth", sha256="43020ad28"),
        HALF,
        299,
        0.8975,
        "bicubic",
        "apache-2.0",
    ),
    Known(
        "smp-hub/xception.imagenet",
        "xception",
        "timm",
        HubFile("smp-hub/xception.imagenet"),
        HALF,
        299,
        0.8975,
        "bicubic",
        "apache-2.0",
    ),
)

KNOWN: dict[str, Known] = {known.name: known for known in _ALL}

# Networks that bear the name of one of ours, or nearly, and are others.
_OTHERS = {
    "xception41": "Google's aligned Xception, for segmentation",
    "xception65": "Google's aligned Xception, for segmentation",
    "xception71": "Google's aligned Xception, for segmentation",
}


def list_weights(network: str | None = None) -> list[str]:
    """The names that ``create_model(weights=...)`` knows, besides files and other repositories.

    Args:
        network: only those of one network.

    Example:
        >>> list_weights("xception")
        ['keras/xception', 'timm/legacy_xception.tf_in1k', 'smp-hub/xception.imagenet']
    """
    return [known.name for known in _ALL if network in (None, known.network)]


def describe_weights(name: str) -> Known:
    """What is known of published weights: where they are and what they were made for.

    Args:
        name: one of ``list_weights()``.

    Raises:
        InputError: an unknown name.

    Example:
        >>> found = describe_weights("timm/legacy_xception.tf_in1k")
        >>> found.preprocessing, found.image_size, found.crop, found.interpolation
        (Preprocessing(mean=(0.5,), std=(0.5,)), 299, 0.8975, 'bicubic')
        >>> found.variant, found.licence
        ('timm', 'apache-2.0')
    """
    if name not in KNOWN:
        listed = did_you_mean(name) or f"expected one of {', '.join(KNOWN)}"
        raise InputError(f"{name}: no such weights; {listed}")
    return KNOWN[name]


def refuse_others(name: str) -> None:
    """Raises InputError for a name that belongs to another network than one of the three.

    Example:
        >>> refuse_others("timm/xception41.tf_in1k")
        Traceback (most recent call last):
        flaxmed.types.InputError: timm/xception41.tf_in1k: xception41 is Google's aligned Xcept...
    """
    for other, what in _OTHERS.items():
        if other in name:
            raise InputError(
                f"{name}: {other} is {what}, another network than Xception; "
                f"expected one of {', '.join(list_weights('xception'))}"
            )


def did_you_mean(name: str) -> str:
    """The known name that a mistyped one is near, as a question; empty if there is none.

    Example:
        >>> did_you_mean("timm/resnet18.tv_in1K")
        'did you mean timm/resnet18.tv_in1k?'
    """
    near = difflib.get_close_matches(name, KNOWN, 1, cutoff=0.8)
    return f"did you mean {near[0]}?" if near else ""


def suggestion(name: str) -> str:
    """What may have been meant, for the line that says that a name is unknown.

    Example:
        >>> suggestion("resnet.pth")[:48]
        'expected a file, a repository OWNER/NAME, or one'
    """
    listed = f"expected a file, a repository OWNER/NAME, or one of {', '.join(KNOWN)}"
    return did_you_mean(name) or listed


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of the 1,000 classes of ImageNet-1k, in the order of the logits.

    They are torchvision's (``ResNet18_Weights.IMAGENET1K_V1.meta["categories"]``).

    Example:
        >>> len(imagenet_classes()), imagenet_classes()[0]
        (1000, 'tench')
    """
    text = resources.files(__package__).joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())
