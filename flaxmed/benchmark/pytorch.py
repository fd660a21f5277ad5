"""PyTorch's side of the benchmark: the same networks by timm, channels last."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import time
import warnings
from collections.abc import Iterator
from typing import Any

from flaxmed.benchmark.setting import Setting
from flaxmed.types import InputError

_MODELS = {"resnet18": "resnet18", "densenet121": "densenet121", "xception": "legacy_xception"}
_libraries: list[Any] = []  # what is defined lasts as long as these


def pytorch_version() -> str:
    """Of the package that is installed.

    Example:
        >>> isinstance(pytorch_version(), str)
        True
    """
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def pytorch_packages() -> tuple[Any, Any]:
    """torch and timm.

    Raises:
        InputError: one of them cannot be imported.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages' own making, at import alone
        try:
            torch = importlib.import_module("torch")
            # torchvision, which timm imports, stops where it was built for another torch: at
            # operators for detection that no network here has.
            with contextlib.suppress(ImportError):
                try:
                    importlib.import_module("torchvision")
                except RuntimeError:
                    library = torch.library.Library("torchvision", "DEF")
                    for name in ("nms", "qnms"):
                        library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
                    _libraries.append(library)
            return torch, importlib.import_module("timm")
        except ImportError as error:
            raise InputError(
                f"the comparison with PyTorch needs the packages torch and timm: {error}"
            ) from None


class PyTorchNetwork:
    """One of timm's networks, trained by SGD with momentum; bfloat16 by autocast."""

    def __init__(self, network: str, setting: Setting, way: str):
        size, channels, classes = setting.size, setting.channels, setting.classes
        batch = setting.batch
        torch, timm = pytorch_packages()
        self._torch = torch
        self.name = f"PyTorch {way}"
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda":
            torch.backends.cudnn.benchmark = True  # XLA, too, tries what is fastest
            torch.cuda.reset_peak_memory_stats()
        last = torch.channels_last
        model = timm.create_model(_MODELS[network], num_classes=classes, in_chans=channels)
        if setting.stem == "small":
            _small_stem(torch, model, network, channels)
        model = model.to(self.device, memory_format=last)
        self.parameters = sum(p.numel() for p in model.parameters())
        self._optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        self._model = model
        self._call = _compiled(torch, model) if way == "compile" else model
        self._images = {
            n: torch.randn(n, channels, size, size).to(self.device, memory_format=last)
            for n in {1, batch}
        }
        self._batch = batch
        self._labels = torch.randint(0, classes, (batch,), device=self.device)
        self._autocast = lambda: torch.autocast(
            self.device, torch.bfloat16, enabled=setting.dtype == "bfloat16"
        )
        with _no_cache(torch) if way == "compile" else contextlib.nullcontext():
            start = time.perf_counter()
            self.train_step()
            middle = time.perf_counter()
        self.train_step()
        self.compile_seconds = max(0.0, 2 * middle - start - time.perf_counter())

    @property
    def peak(self) -> int | None:
        """The most bytes in use on an accelerator since this network was made, by all of torch."""
        return self._torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    def train_step(self) -> None:
        """One step on the same batch."""
        self.step(self._images[self._batch], self._labels)
        self.finish()

    def step(self, images: Any, labels: Any) -> None:
        """One step on a batch of the setting's size that is on the device, perhaps not finished."""
        self._model.train()
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            logits = self._call(images)
        self._torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        self._optimizer.step()

    def infer(self, images: int) -> None:
        """Logits of ``images`` images: one, or a batch."""
        self._model.eval()
        with self._torch.inference_mode(), self._autocast():
            self._call(self._images[images])
        self.finish()

    def finish(self) -> None:
        """Return when the device has done all that was asked of it."""
        if self.device == "cuda":
            self._torch.cuda.synchronize()


def _compiled(torch: Any, model: Any) -> Any:
    """The model under torch.compile: a program each for training, a batch and a single image.

    Shapes are static: with dynamic ones the single image's program would be made for any number.
    """
    torch.compiler.reset()  # what earlier networks compiled counts towards a limit
    return torch.compile(model, dynamic=False)


@contextlib.contextmanager
def _no_cache(torch: Any) -> Iterator[None]:
    """Without what torch.compile kept on disk, so that the first call compiles."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*force_disable_caches")  # it says what was asked for
        with torch.compiler.config.patch(force_disable_caches=True):
            yield


def _small_stem(torch: Any, model: Any, network: str, channels: int) -> None:
    """flaxmed's small stem: a 3x3 convolution of stride 1, no pool; Xception's two of stride 1."""

    def conv(i: int, o: int) -> Any:
        return torch.nn.Conv2d(i, o, 3, padding=1, bias=False)

    if network == "resnet18":
        model.conv1, model.maxpool = conv(channels, 64), torch.nn.Identity()
    elif network == "densenet121":
        model.features.conv0, model.features.pool0 = conv(channels, 64), torch.nn.Identity()
    else:
        model.conv1, model.conv2 = conv(channels, 32), conv(32, 64)
