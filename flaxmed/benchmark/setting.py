"""What `flaxmed bench` measures, the same for all contestants."""

from __future__ import annotations

import dataclasses

from flaxmed.types import InputError

PYTORCH = ("eager", "compile")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        size: side of the images, in pixels.
        channels: of the images.
        classes: logits.
        stem: ``"imagenet"`` or ``"small"``.
        batch: images per step; inference is also measured with one.
        dtype: of the computation, ``"float32"`` or ``"bfloat16"``.
        remat: whether flaxmed's training step computes norms twice to save memory.
        rounds: timings of each kind.
        restart: whether a second start, from the compilation cache, is timed as well.
        pytorch: PyTorch's ways to run beside: ``"eager"``, ``"compile"``, both or none.

    Raises:
        InputError: a number below 1, an unknown dtype or an unknown way.

    Example:
        >>> Setting(size=28, stem="small").batch
        64
    """

    size: int = 28
    channels: int = 3
    classes: int = 8
    stem: str = "small"
    batch: int = 64
    dtype: str = "float32"
    remat: bool = False
    rounds: int = 5
    restart: bool = True
    pytorch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("size", "channels", "classes", "batch", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")
        for way in self.pytorch:
            if way not in PYTORCH:
                raise InputError(f"pytorch must be of {', '.join(PYTORCH)}, got {way!r}")
