"""The index stream, and how batches are fetched along it.

Which images make up the batch of a step is a pure function of (seed, step). Whoever holds the
images gathers them by those rows: on the device when the split fits there (:func:`gather` says what
a batch is), or in grain's workers (:func:`stream`). The batches are the same, bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from flaxmed.types import InputError, Split

# grain imports jax when it is there, so it is imported inside the functions that use it


class Batch(NamedTuple):
    """The rows of one step.

    Attributes:
        rows: int32 ``[batch]``, row numbers of the split; padding repeats row 0.
        mask: bool ``[batch]``, False where the row is padding.
        epoch: how often the split has been gone through before.
        step: the step.
    """

    rows: np.ndarray
    mask: np.ndarray
    epoch: int
    step: int


@dataclasses.dataclass(frozen=True)
class IndexStream:
    """The batches of a run: ``stream[step]`` for any step from 0, without end.

    Each epoch visits every row once, in an order drawn anew from (seed, epoch); its last batch is
    filled up with masked rows. The position of a run is its step number and nothing else.

    Attributes:
        n: rows in the split.
        batch_size: rows in a batch, over all processes.
        seed: any whole number from 0.
        shuffle: False for the order of the split.
        width: length of the padded arrays, at least ``batch_size`` (its default): more where the
            batch must divide among devices.

    Raises:
        InputError: no rows, a batch size below 1, a negative seed, a width below the batch size.

    Example:
        >>> stream = IndexStream(n=5, batch_size=2, shuffle=False)
        >>> stream.steps_per_epoch, stream[2].rows.tolist(), stream[2].mask.tolist()
        (3, [4, 0], [True, False])
    """

    n: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    width: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.n < 2**31:
            raise InputError(f"an index stream needs between 1 and 2^31 - 1 rows, got {self.n}")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise InputError(f"seed must be a whole number from 0, got {self.seed}")
        if self.width is None:
            object.__setattr__(self, "width", self.batch_size)
        elif self.width < self.batch_size:
            raise InputError(f"width {self.width} does not hold a batch of {self.batch_size}")

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the partly filled one included."""
        return math.ceil(self.n / self.batch_size)

    def epoch_rows(self, epoch: int) -> Int32[np.ndarray, " n"]:
        """The order of the rows in an epoch."""
        if not self.shuffle:
            return np.arange(self.n, dtype=np.int32)
        return _permutation(self.n, self.seed, epoch)

    def __getitem__(self, step: int) -> Batch:
        if step < 0:
            raise IndexError(f"steps count from 0, got {step}")
        epoch, i = divmod(int(step), self.steps_per_epoch)
        rows = self.epoch_rows(epoch)[i * self.batch_size : (i + 1) * self.batch_size]
        return Batch(*_pad(rows, self.width or self.batch_size), epoch, int(step))

    def steps(
        self, start: int, stop: int
    ) -> tuple[
        Int32[np.ndarray, "steps batch"],
        Bool[np.ndarray, "steps batch"],
        Int32[np.ndarray, " steps"],
    ]:
        """Rows, masks and epochs of the steps ``start`` to ``stop - 1``, stacked for one scan.

        Example:
            >>> rows, mask, epochs = IndexStream(n=3, batch_size=2).steps(0, 4)
            >>> rows.shape, mask.sum(axis=1).tolist(), epochs.tolist()
            ((4, 2), [2, 1, 2, 1], [0, 0, 1, 1])
        """
        batches = [self[step] for step in range(start, stop)]
        shape = (len(batches), self.width or self.batch_size)
        return (
            np.array([b.rows for b in batches], np.int32).reshape(shape),
            np.array([b.mask for b in batches], bool).reshape(shape),
            np.array([b.epoch for b in batches], np.int32),
        )


@functools.lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """A uniformly random order of n rows, keyed by (seed, epoch).

    Sorting the raw words of a bit generator: NumPy promises these for good (NEP 19), which it does
    not for ``Generator.permutation``, so a run resumes on the same stream after an upgrade. grain's
    own shuffle costs about 10 µs per row: for a batch, as much as a step on an accelerator. Here an
    epoch of 100,000 rows costs about 10 ms.
    """
    words = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n)
    order = np.argsort(words, kind="stable").astype(np.int32)
    order.flags.writeable = False  # it is shared by all that ask for this epoch
    return order


def _pad(rows: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    padded = np.zeros(width, np.int32)
    padded[: len(rows)] = rows
    return padded, np.arange(width) < len(rows)


def process_slice(batch: Batch, process_index: int, process_count: int) -> Batch:
    """The contiguous part of a global batch that one process feeds to its devices.

    Raises:
        InputError: a batch that does not divide among the processes.

    Example:
        >>> process_slice(IndexStream(8, 4, shuffle=False)[0], 1, 2).rows.tolist()
        [2, 3]
    """
    size = len(batch.rows)
    if process_count < 1 or size % process_count:
        raise InputError(f"batch_size {size} does not divide among {process_count} processes")
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index {process_index} is not one of {process_count} processes")
    part = slice(
        process_index * (size // process_count), (process_index + 1) * (size // process_count)
    )
    return batch._replace(rows=batch.rows[part], mask=batch.mask[part])


def eval_batches(
    n: int, batch_size: int, *, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Batches that cover every row exactly once, in order, the last one padded and masked.

    Example:
        >>> [b.rows[b.mask].tolist() for b in eval_batches(5, 2)]
        [[0, 1], [2, 3], [4]]
    """
    order = IndexStream(n, batch_size, shuffle=False)
    for step in range(order.steps_per_epoch):
        yield process_slice(order[step], process_index, process_count)


def gather(split: Split, batch: Batch) -> dict[str, Any]:
    """What a batch is: the images and labels of its rows, padding included.

    Returns:
        ``images`` uint8 ``[b, h, w, c]``, ``labels`` int32 ``[b]`` or ``[b, labels]``, ``rows``
        int32 ``[b]``, ``mask`` bool ``[b]``, ``epoch`` and ``step``.
    """
    return {
        "images": np.asarray(split.images[batch.rows]),
        "labels": split.labels[batch.rows].astype(np.int32),
        **batch._asdict(),
    }


def stream(
    split: Split,
    index_stream: IndexStream,
    start_step: int = 0,
    stop_step: int | None = None,
    *,
    num_workers: int = 0,
    num_threads: int = 2,
    prefetch: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Batches in the order of the index stream, fetched ahead by grain.

    Args:
        split: where images and labels come from. Memory maps are opened anew in every worker
            process; arrays in memory are copied there, so prefer threads for these.
        index_stream: which rows make up each batch.
        start_step: the first step; a resumed run starts at its step number.
        stop_step: the step before which to stop; None goes on without end.
        num_workers: processes; 0 fetches in this process.
        num_threads: threads per process that fetch batches; 0 fetches when asked.
        prefetch: batches that each process keeps ready.
        process_index, process_count: each process gets its contiguous slice of every batch.

    Yields:
        What :func:`gather` returns, bit for bit, whatever the number of workers. Close the iterator
        (``.close()``) to end the workers early.

    Raises:
        InputError: split and index stream of different lengths, or negative numbers.
    """
    if len(split) != index_stream.n:
        raise InputError(
            f"the index stream is for {index_stream.n} rows, the split has {len(split)}"
        )
    numbers = {
        "start_step": start_step,
        "num_workers": num_workers,
        "num_threads": num_threads,
        "prefetch": prefetch,
    }
    for name, value in numbers.items():
        if value < 0:
            raise InputError(f"{name} must be at least 0, got {value}")
    process_slice(index_stream[0], process_index, process_count)  # refuse bad numbers here, now
    fetch = _Fetch(split, index_stream, start_step, process_index, process_count)
    steps = 2**62 if stop_step is None else max(0, stop_step - start_step)
    return _iterate(fetch, steps, num_workers, num_threads, prefetch)


def _iterate(
    fetch: _Fetch, steps: int, num_workers: int, num_threads: int, prefetch: int
) -> Iterator[dict[str, Any]]:
    import grain
    from absl import flags

    batches = (
        grain.MapDataset.range(steps)
        .map(fetch)
        .to_iter_dataset(
            grain.ReadOptions(num_threads=min(num_threads, prefetch), prefetch_buffer_size=prefetch)
        )
    )
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl flags, which only absl's app parses
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=num_workers, per_worker_buffer_size=max(1, prefetch)
            )
        )
    iterator = iter(batches)
    try:
        for batch in iterator:
            # worker processes answer in shared memory, whose lifetime is grain's affair: copy it
            yield _plain(batch) if num_workers else batch
    finally:
        iterator.close()


def _plain(batch: dict[str, Any]) -> dict[str, Any]:
    return {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}


@dataclasses.dataclass(frozen=True)
class _Fetch:
    """Step number to batch: what grain maps over, here or in a worker."""

    split: Split
    index_stream: IndexStream
    start_step: int
    process_index: int
    process_count: int

    def __call__(self, i: int) -> dict[str, Any]:
        batch = self.index_stream[self.start_step + int(i)]
        return gather(self.split, process_slice(batch, self.process_index, self.process_count))

    def __reduce__(self) -> Any:
        # a pickled memory map would carry its whole contents: send the file's name instead
        return _reopen_fetch, (
            _Portable.of(self.split.images),
            self.split.labels,
            self.index_stream,
            self.start_step,
            self.process_index,
            self.process_count,
        )


@dataclasses.dataclass(frozen=True)
class _Portable:
    """Images in a form that can be sent to another process."""

    images: Any
    file: str | None = None

    @classmethod
    def of(cls, images: Any) -> _Portable:
        file = getattr(images, "filename", None) if isinstance(images, np.memmap) else None
        if file is None or not str(file).endswith(".npy"):
            return cls(images)
        whole = np.load(file, mmap_mode="r", allow_pickle=False)
        # a map of part of the file cannot be told by its name; it is sent as it is
        same = (
            whole.size == images.size and whole.dtype == images.dtype and images.flags.c_contiguous
        )
        return cls(images.shape, str(file)) if same else cls(images)

    def open(self) -> Any:
        if self.file is None:
            return self.images
        return np.load(self.file, mmap_mode="r", allow_pickle=False).reshape(self.images)


def _reopen_fetch(images: _Portable, labels: np.ndarray, *rest: Any) -> _Fetch:
    # ids are not part of a batch
    split = Split(images.open(), labels, np.arange(len(labels)).astype(str))
    return _Fetch(split, *rest)
