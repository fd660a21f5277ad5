"""PyTorch's side of the epoch in benchmarks/gpu.py."""

from __future__ import annotations

import time
from typing import Any

from flaxmed.benchmark.pytorch import PyTorchNetwork, pytorch_packages
from flaxmed.benchmark.setting import Setting
from flaxmed.types import Split


def pytorch_epochs(split: Split, sizes: Any, classes: int) -> list[dict[str, Any]]:
    """Seconds of warm epochs of ResNet-18 for each way and number of worker processes.

    Images travel as bytes and become numbers on the device; workers stay between epochs.

    Args:
        split: images uint8 ``[n, h, w, c]`` and labels.
        sizes: of :mod:`gpu_rows`.
        classes: logits.
    """
    torch, _ = pytorch_packages()
    setting = Setting(
        size=sizes.epoch_size,
        classes=classes,
        stem="small",
        batch=sizes.epoch_batch,
        dtype=sizes.dtype,
    )
    data = torch.utils.data.TensorDataset(
        torch.from_numpy(split.images), torch.from_numpy(split.labels).long()
    )
    found = []
    for way in sizes.epoch_ways:
        network = PyTorchNetwork("resnet18", setting, way)
        for workers in sizes.workers:
            loader = torch.utils.data.DataLoader(
                data,
                batch_size=sizes.epoch_batch,
                shuffle=True,
                num_workers=workers,
                pin_memory=network.device == "cuda",
                persistent_workers=workers > 0,
                # a process with jax's threads in it must not be forked
                multiprocessing_context="spawn" if workers else None,
            )
            seconds = [_epoch(network, loader) for _ in range(1 + sizes.epochs)]
            seconds = [round(value, 5) for value in seconds[1:]]
            found.append({"way": way, "workers": workers, "seconds": seconds})
    return found


def _epoch(network: PyTorchNetwork, loader: Any) -> float:
    """Seconds of one pass over the data."""
    start = time.perf_counter()
    for images, labels in loader:
        images = images.to(network.device, non_blocking=True).permute(0, 3, 1, 2)
        labels = labels.to(network.device, non_blocking=True)
        network.step((images.float() / 255 - 0.5) / 0.5, labels)
    network.finish()
    return time.perf_counter() - start
