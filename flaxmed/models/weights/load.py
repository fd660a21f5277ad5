"""Networks with weights in them: what a file holds, fitted to what is wanted; all is named."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from flaxmed.models import DenseNet, ResNet, Xception, create_model
from flaxmed.models.pretrained import LoadReport, Tensors, load_state, table_of
from flaxmed.models.weights import hub, metadata
from flaxmed.models.weights.files import read_weights
from flaxmed.models.weights.known import HALF, XRAY, XRAY_FINDINGS, Known, imagenet_classes
from flaxmed.models.weights.recognise import Kind, recognise
from flaxmed.types import DatasetInfo, InputError, Preprocessing, Task

# Constants and padding go with the library that trained; those of a ResNet-18 are torchvision's.
_VARIANT = {"medmnist": "torchvision", "kerashub": "torchvision"}
_OF_KERAS = ("keras", "kerashub")
_FIRST_KERNEL = ("stem.conv.kernel", "stem.conv1.kernel")  # that of the first convolution


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a file of weights holds, and what is known of it.

    Attributes:
        source: the name or file they were asked for by.
        kind: network, naming, stem, channels, classes.
        variant: the network's constants and padding that they were trained with.
        tensors: by the names of the library that wrote them.
        preprocessing: of the images; None where nothing says.
        info: what the logits mean: task and class names; None where nothing says.
        licence: as published, or "unknown".
        published: their entry in flaxmed's table, with image size, crop and interpolation; None for
            others.
    """

    source: str
    kind: Kind
    variant: str
    tensors: Tensors = dataclasses.field(repr=False)
    preprocessing: Preprocessing | None
    info: DatasetInfo | None = None
    licence: str = "unknown"
    published: Known | None = None


def open_weights(source: str | os.PathLike[str]) -> Weights:
    """Read published weights, or a file of them.

    Args:
        source: a name of ``list_weights()``; a repository of the Hugging Face hub; or a file as
            torch, safetensors or Keras write it, of torchvision's, timm's, Keras's, KerasHub's,
            MedMNIST's, MONAI's or torchxrayvision's ResNet-18, DenseNet-121 or Xception, or of
            flaxmed's.

    Raises:
        InputError: no such weights; a file that cannot be read, or holds another network.

    Example:
        >>> open_weights("timm/xception41.tf_in1k")
        Traceback (most recent call last):
        flaxmed.types.InputError: timm/xception41.tf_in1k: xception41 is Google's aligned Xcepti...
    """
    path, known = hub.find(os.fspath(source))
    file = read_weights(path)
    own = metadata.parse(file.metadata, str(path))
    if own is not None:
        return Weights(os.fspath(source), tensors=file.tensors, **own)
    kind = recognise(file.tensors, str(path))
    if known is None:
        variant = _VARIANT.get(kind.naming, kind.naming)
        if file.format == "keras":
            variant = file.metadata["variant"]
        told = _preprocessing_told(kind, file.tensors), _findings_told(kind, file.tensors)
        return Weights(os.fspath(source), kind, variant, file.tensors, *told)
    return _published(os.fspath(source), known, kind, file.tensors)


def _preprocessing_told(kind: Kind, tensors: Tensors) -> Preprocessing | None:
    """What the tensors' names say of the images: MedMNIST's authors had one recipe, and
    torchxrayvision has one range."""
    if kind.naming == "medmnist":
        return HALF
    return XRAY if "op_threshs" in tensors else None


def _findings_told(kind: Kind, tensors: Tensors) -> DatasetInfo | None:
    """What the logits of torchxrayvision's networks stand for; one without an operating point was
    not trained."""
    points, outputs = tensors.get("op_threshs"), len(XRAY_FINDINGS)
    if points is None or points.shape != (outputs,) or kind.num_classes != outputs:
        return None
    trained = np.isfinite(points)
    names = (
        name if known else f"{name} (not trained)"
        for name, known in zip(XRAY_FINDINGS, trained, strict=True)
    )
    return DatasetInfo("torchxrayvision", Task.MULTILABEL, tuple(names), channels=kind.in_channels)


def _published(source: str, known: Known, kind: Kind, tensors: Tensors) -> Weights:
    if kind.network != known.network:
        raise InputError(f"{source}: holds {kind.network}, expected {known.network}")
    info, classes = None, imagenet_classes()
    if kind.num_classes == len(classes):
        info = DatasetInfo("ImageNet-1k", Task.MULTICLASS, classes, channels=kind.in_channels)
    return Weights(
        source, kind, known.variant, tensors, known.preprocessing, info, known.licence, known
    )


def variant_for(weights: Weights, wanted: str | None) -> str:
    """The variant in which to build a network for the weights, where ``wanted`` was asked for.

    Keras's and KerasHub's DenseNet-121 have the same tensors: which of the two a file is for may be
    said, where the file itself gave it no name.

    Raises:
        InputError: the weights are for another one.
    """
    told_apart = weights.kind.naming != "keras" or weights.preprocessing is not None
    if wanted in (None, weights.variant) or (wanted in _OF_KERAS and not told_apart):
        return wanted or weights.variant
    raise InputError(f"{weights.source}: made for the variant {weights.variant!r}, not {wanted!r}")


def build(
    weights: Weights,
    network: Any,
    num_classes: int | None,
    in_channels: int,
    stem: str | None,
    **options: Any,
) -> Any:
    """A network of class ``network`` with the weights in it, for images of ``in_channels``.

    The arguments are those of ``flaxmed.create_model``.
    """
    kind = weights.kind
    classes = kind.num_classes if num_classes is None else num_classes
    if classes is None:
        raise InputError(f"{weights.source}: has no classifier; num_classes is needed")
    model = network(
        classes,
        in_channels=channels_for(weights, in_channels),
        stem=stem or kind.stem,
        **options,
    )
    _say(weights, load_weights(model, weights))
    if weights.info is not None and kind.num_classes == classes:
        model.info = dataclasses.replace(weights.info, channels=in_channels)
    return model


def from_pretrained(
    source: str | os.PathLike[str], *, dtype: Any = jnp.float32
) -> ResNet | DenseNet | Xception:
    """The whole network that a folder, a repository of the hub or a file holds, ready to use.

    Args:
        source: a folder of ``flaxmed.save_pretrained``, a repository ``OWNER/NAME`` of the Hugging
            Face hub, flaxmed's or another library's, or whatever else :func:`open_weights` takes.
        dtype: of the computation; see the network's class. A network that was trained in
            another type gives its own logits in that.

    Returns:
        The network with its own classes, channels and stem, every value as it is in the file, in
        evaluation mode; with ``preprocessing`` and ``info`` where they are known, as ours are, so
        that ``flaxmed.predict(model, images)`` answers. What was loaded is said on stderr.

    Raises:
        InputError: what :func:`open_weights` refuses; weights without a classifier.

    Example:
        >>> import tempfile
        >>> from flaxmed.models.weights import save_weights
        >>> folder = tempfile.mkdtemp()
        >>> model = create_model("resnet18", 2, in_channels=1, stem="small", rngs=nnx.Rngs(0))
        >>> save_weights(model, f"{folder}/model.safetensors")
        >>> from_pretrained(folder).in_channels
        1
    """
    return build_as_it_is(open_weights(source), dtype=dtype)


def build_as_it_is(weights: Weights, *, dtype: Any = jnp.float32) -> Any:
    """The network that the file holds, with its own classes, channels and stem.

    Raises:
        InputError: it has no classifier; or what :func:`load_weights` refuses.
    """
    kind = weights.kind
    if kind.num_classes is None:
        raise InputError(f"{weights.source}: has no classifier, and is no whole network")
    model: Any = create_model(
        kind.network,
        kind.num_classes,
        in_channels=kind.in_channels,
        stem=kind.stem,
        variant=weights.variant,
        dtype=dtype,
        rngs=nnx.Rngs(0),
    )
    _say(weights, load_weights(model, weights))
    if weights.info is not None:
        model.info = weights.info
    return model


def _say(weights: Weights, report: LoadReport) -> None:
    print(*report_lines(weights, report), sep="\n", file=sys.stderr)


def channels_for(weights: Weights, in_channels: int) -> int:
    """With how many channels a network has to be built for images of ``in_channels``.

    Grey images are repeated for weights whose channels are normalised differently, as with
    ImageNet's means: only so is every one normalised as it was in training. Where all are
    normalised alike, the kernels of the first convolution are summed instead.
    """
    repeated = in_channels == 1 and not _normalised_alike(weights)
    return weights.kind.in_channels if repeated else in_channels


def _normalised_alike(weights: Weights) -> bool:
    """Whether all channels have one mean and one standard deviation, as far as is known."""
    own = weights.preprocessing
    return own is None or (len(set(own.mean)) == 1 and len(set(own.std)) == 1)


def preprocessing_for(weights: Weights, in_channels: int) -> Preprocessing | None:
    """The weights' own, for a network with ``in_channels``: per channel where they are as many,
    else the means over all."""
    own = weights.preprocessing
    if own is None or len(own.mean) in (1, in_channels):
        return own
    return Preprocessing((float(np.mean(own.mean)),), (float(np.mean(own.std)),))


def fit_channels(tensors: Tensors, model: Any, naming: str) -> Tensors:
    """Tensors whose first convolution takes the model's number of channels.

    For images whose channels are all alike, as a grey image's copies are, the convolution gives
    what it gave: every channel gets the sum over the kernel's channels, divided by their new
    number (computed in float64). For one channel that is the sum.
    """
    path = next(p for p in _FIRST_KERNEL if _has(model, p))
    name, axes = table_of(model, naming).foreign(path) or (path, None)
    kernel = tensors.get(name)
    axis = 2 if axes is None else axes[2]
    if kernel is None or kernel.ndim != 4 or kernel.shape[axis] == model.in_channels:
        return tensors
    mean = kernel.astype(np.float64).sum(axis=axis, keepdims=True) / model.in_channels
    return {**tensors, name: np.repeat(mean, model.in_channels, axis=axis).astype(kernel.dtype)}


def _has(model: Any, path: str) -> bool:
    at = model
    for part in path.split("."):
        at = getattr(at, part, None)
    return at is not None


def load_weights(
    model: nnx.Module, source: str | os.PathLike[str] | Weights, *, keep: Sequence[str] = ()
) -> LoadReport:
    """Give a network published weights: every tensor of both sides is used, or named in the report.

    The classifier is left as it is where the file's has another number of classes, or there is
    none. The first convolution is fitted to the network's channels (:func:`fit_channels`). Another
    stem than the file's is refused, but for Xception's, whose two stems have the same kernels: the
    report notes that they were trained at another stride.

    Args:
        model: the network, changed in place; unchanged where something does not fit. Its
            ``preprocessing`` becomes the weights' own, where they have one.
        source: as for :func:`open_weights`, or what that returned.
        keep: own paths, or their beginnings (``"stem"``), to leave as they are.

    Returns:
        What was loaded, what was left out and why, and what stayed as it was.

    Raises:
        InputError: as :func:`open_weights`; another network or stem; tensors that are missing, that
            nothing takes or that have another shape: one message lists them all.

    Example:
        >>> import pathlib, tempfile
        >>> from flaxmed.models import create_model
        >>> from flaxmed.models.weights import save_weights
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "five.safetensors"
        >>> save_weights(create_model("resnet18", 5, stem="small", rngs=nnx.Rngs(0)), path)
        >>> model = create_model("resnet18", 2, stem="small", rngs=nnx.Rngs(1))
        >>> load_weights(model, path).kept  # another number of classes: the head is its own
        ('classifier.bias', 'classifier.kernel')
    """
    weights = source if isinstance(source, Weights) else open_weights(source)
    network: Any = model
    _check_network(network, weights, keep)
    tensors = fit_channels(weights.tensors, network, weights.kind.naming)
    same_head = weights.kind.num_classes == network.num_classes
    kept = [*keep] if same_head else [*keep, "classifier"]
    try:
        report = load_state(network, tensors, weights.kind.naming, keep=kept)
    except InputError as error:
        raise InputError(f"{weights.source}: {error}") from None
    if not same_head:
        report = _explain_head(report, weights.kind.num_classes, network.num_classes)
    notes = []
    if network.stem_name != weights.kind.stem and "stem" not in keep:  # of Xception alone
        notes.append(_other_stem(weights.kind.stem))
    first_taken = any(path in report.loaded for path in _FIRST_KERNEL)
    if network.in_channels != weights.kind.in_channels and first_taken:
        notes.append(_other_channels(weights, network.in_channels))
    report = dataclasses.replace(report, notes=tuple(notes))
    if (own := preprocessing_for(weights, network.in_channels)) is not None:
        network.preprocessing = own
    return report


def _explain_head(report: LoadReport, theirs: int | None, ours: int) -> LoadReport:
    """Say why the file's classifier was left out; ``load_state`` knows only that it was."""
    reason = f"the file has {theirs} classes, the network {ours}"
    dropped = {
        name: reason if said.startswith("the model keeps its own classifier.") else said
        for name, said in report.dropped.items()
    }
    return dataclasses.replace(report, dropped=dropped)


def _other_stem(trained: str) -> str:
    """What to say where Xception's stem takes kernels that were trained in its other stem."""
    strides = {"imagenet": "stride 2, unpadded", "small": "stride 1, padded"}
    used = next(stem for stem in strides if stem != trained)
    return (
        f'the stem\'s kernels were trained in stem="{trained}" ({strides[trained]}) and serve in '
        f'stem="{used}" ({strides[used]}): a start for training, no network that was published'
    )


def _other_channels(weights: Weights, in_channels: int) -> str:
    """What to say where the first convolution takes another number of channels than the file's."""
    theirs = weights.kind.in_channels
    among = "" if in_channels == 1 else f" and divided among {in_channels}"
    note = f"the first convolution's kernels are summed over the file's {theirs} channels{among}"
    if _normalised_alike(weights):
        return note
    return f"{note}; these have one mean for all, not the file's {theirs}: a start for training"


def _check_network(model: Any, weights: Weights, keep: Sequence[str]) -> None:
    network = type(model).__name__
    if network.lower() != weights.kind.network:
        raise InputError(f"{weights.source}: weights of {weights.kind.network}, not of {network}")
    # Xception's stems have kernels of the same shapes, with other strides
    if model.stem_name != weights.kind.stem and network != "Xception" and "stem" not in keep:
        sides = {"imagenet": "7x7, stride 2", "small": "3x3, stride 1"}
        raise InputError(
            f'{weights.source}: made for stem="{weights.kind.stem}" ({sides[weights.kind.stem]}), '
            f'the network has stem="{model.stem_name}", whose kernels these are not; use '
            f'stem="{weights.kind.stem}", or load_weights(..., keep=["stem"]) for a new one'
        )


def report_lines(weights: Weights, report: LoadReport) -> list[str]:
    """What to tell of a load: how many tensors were taken, and every one that was not, by reason.

    Example:
        >>> kind = Kind("resnet18", "torchvision", "imagenet", 3, 1000)
        >>> weights = Weights("timm/resnet18.tv_in1k", kind, "torchvision", {}, None)
        >>> dropped = {"bn1.num_batches_tracked": "a step counter", "fc.weight": "a new head"}
        >>> report = LoadReport(("stem.conv.kernel",), dropped, ("classifier.kernel",))
        >>> for line in report_lines(weights, report):
        ...     print(line)
        timm/resnet18.tv_in1k: 1 tensor loaded
        left out: bn1.num_batches_tracked (a step counter)
        left out: fc.weight (a new head)
        new: classifier.kernel
    """
    lines = [f"{weights.source}: {_count(len(report.loaded), 'tensor')} loaded"]
    reasons: dict[str, list[str]] = {}
    for name, reason in report.dropped.items():
        reasons.setdefault(reason, []).append(name)
    for reason, left in reasons.items():
        shown = left[0] if len(left) == 1 else f"{left[0]} and {len(left) - 1} more like it"
        lines.append(f"left out: {shown} ({reason})")
    if report.kept:
        lines.append(f"new: {', '.join(report.kept)}")
    return lines + [f"note: {note}" for note in report.notes]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
