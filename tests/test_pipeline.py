"""The index stream is a pure function of (seed, step); every way to fetch it gives equal bits."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest

from flaxmed.data.pipeline import (
    Batch,
    IndexStream,
    _Fetch,
    eval_batches,
    gather,
    process_slice,
    stream,
)
from flaxmed.types import InputError, Split


def make_split(n: int, *, labels: int = 0, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    shape = (n, labels) if labels else (n,)
    return Split(
        rng.integers(0, 256, (n, 6, 5, 3), np.uint8),
        rng.integers(0, 2, shape),
        np.arange(n).astype(str),
    )


def expected(split: Split, index_stream: IndexStream, step: int) -> dict:
    """A batch of resident images, gathered from the stacked rows as one scan would."""
    rows, mask, epochs = index_stream.steps(step, step + 1)
    return {
        "images": np.take(split.images, rows[0], axis=0),
        "labels": np.take(split.labels, rows[0], axis=0).astype(np.int32),
        "rows": rows[0],
        "mask": mask[0],
        "epoch": epochs[0],
        "step": step,
    }


def assert_same(batch: dict, reference: dict) -> None:
    assert batch.keys() == reference.keys()
    for key, value in reference.items():
        np.testing.assert_array_equal(batch[key], value, err_msg=key)
        if isinstance(value, np.ndarray):
            assert type(batch[key]) is np.ndarray
            assert batch[key].dtype == value.dtype


def test_the_stream_is_pinned():
    """A run resumes on the same images after any upgrade: these numbers may never change."""
    index_stream = IndexStream(n=546, batch_size=128, seed=3)
    assert index_stream[0].rows[:8].tolist() == [186, 20, 472, 320, 536, 166, 304, 258]
    assert index_stream[5].rows[:8].tolist() == [122, 323, 355, 123, 133, 451, 34, 14]
    assert IndexStream(5, 5, seed=0)[2].rows.tolist() == [0, 4, 3, 1, 2]
    assert IndexStream(5, 5, seed=2**40)[0].rows.tolist() == [3, 0, 1, 4, 2]


@pytest.mark.parametrize(
    ("n", "batch_size"), [(1, 1), (1, 4), (7, 3), (8, 4), (103, 16), (16, 103)]
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_covers_every_row_once(n, batch_size, shuffle):
    index_stream = IndexStream(n, batch_size, seed=1, shuffle=shuffle)
    assert index_stream.steps_per_epoch == -(-n // batch_size)
    for epoch in range(3):
        seen = []
        for i in range(index_stream.steps_per_epoch):
            step = epoch * index_stream.steps_per_epoch + i
            batch = index_stream[step]
            assert (batch.epoch, batch.step) == (epoch, step)
            assert batch.rows.shape == batch.mask.shape == (batch_size,)
            assert batch.rows.dtype == np.int32
            assert (batch.rows[~batch.mask] == 0).all()
            last = i == index_stream.steps_per_epoch - 1
            assert batch.mask.sum() == (n - i * batch_size if last else batch_size)
            seen += batch.rows[batch.mask].tolist()
        assert sorted(seen) == list(range(n))
        assert shuffle or seen == list(range(n))


def test_epochs_and_seeds_differ():
    orders = {
        (seed, epoch): tuple(IndexStream(100, 10, seed).epoch_rows(epoch).tolist())
        for seed in range(10)
        for epoch in range(10)
    }
    # seed 3 in epoch 4 is not seed 4 in epoch 3: no seed walks another one's epochs
    assert len(set(orders.values())) == 100


def test_orders_are_uniform():
    """All 24 orders of four rows are equally likely: chi-square, 23 degrees of freedom."""
    draws = 4800
    counts = Counter(
        tuple(IndexStream(4, 4, seed).epoch_rows(epoch).tolist())
        for seed in range(draws // 4)
        for epoch in range(4)
    )
    mean = draws / 24
    assert len(counts) == 24
    assert sum((count - mean) ** 2 / mean for count in counts.values()) < 49.7  # p = 0.001


def test_steps_are_stacked():
    index_stream = IndexStream(10, 4, seed=5)
    rows, mask, epochs = index_stream.steps(2, 9)
    assert rows.shape == mask.shape == (7, 4)
    for i, step in enumerate(range(2, 9)):
        np.testing.assert_array_equal(rows[i], index_stream[step].rows)
        np.testing.assert_array_equal(mask[i], index_stream[step].mask)
        assert epochs[i] == index_stream[step].epoch
    assert index_stream.steps(3, 3)[0].shape == (0, 4)


def test_orders_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        IndexStream(10, 4).epoch_rows(0)[0] = 1


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_take_contiguous_slices(count):
    index_stream = IndexStream(10, 4, seed=5)
    for step in range(6):
        parts = [process_slice(index_stream[step], i, count) for i in range(count)]
        assert all(len(part.rows) == 4 // count for part in parts)
        np.testing.assert_array_equal(
            np.concatenate([p.rows for p in parts]), index_stream[step].rows
        )
        np.testing.assert_array_equal(
            np.concatenate([p.mask for p in parts]), index_stream[step].mask
        )


@pytest.mark.parametrize(("n", "batch_size"), [(5, 2), (4, 2), (1, 8), (156, 128)])
@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_covers_every_image_exactly_once(n, batch_size, count):
    seen = [
        batch.rows[batch.mask].tolist()
        for step in zip(
            *(
                eval_batches(n, batch_size, process_index=i, process_count=count)
                for i in range(count)
            ),
            strict=True,
        )
        for batch in step
    ]
    assert list(itertools.chain(*seen)) == list(range(n))
    assert all(len(b.rows) == batch_size for b in eval_batches(n, batch_size))


@pytest.mark.parametrize(("threads", "prefetch"), [(0, 0), (1, 1), (2, 4), (4, 2), (2, 0)])
@pytest.mark.parametrize("start", [0, 3, 11])
def test_streamed_equals_resident(threads, prefetch, start):
    """Seven steps an epoch: these cross one or two reshufflings."""
    split, index_stream = make_split(103), IndexStream(103, 16, seed=5)
    batches = stream(split, index_stream, start, num_threads=threads, prefetch=prefetch)
    for step, batch in zip(range(start, start + 12), batches, strict=False):
        assert_same(batch, expected(split, index_stream, step))
    batches.close()


@pytest.mark.parametrize(("workers", "start"), [(1, 0), (2, 5)])
def test_worker_processes_change_nothing(workers, start, tmp_path):
    split, index_stream = make_split(103, labels=3), IndexStream(103, 16, seed=5)
    np.save(tmp_path / "images.npy", split.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    batches = stream(
        Split(mapped, split.labels, split.ids),
        index_stream,
        start,
        start + 9,
        num_workers=workers,
        num_threads=1,
        prefetch=2,
    )
    got = list(batches)
    assert len(got) == 9
    for step, batch in enumerate(got, start):
        assert_same(batch, expected(split, index_stream, step))


def test_stream_of_one_process_is_its_slice():
    split, index_stream = make_split(21), IndexStream(21, 8, seed=2)
    halves = [
        list(stream(split, index_stream, 1, 7, process_index=i, process_count=2)) for i in range(2)
    ]
    for step, (first, second) in enumerate(zip(*halves, strict=True), 1):
        whole = expected(split, index_stream, step)
        for key in ("images", "labels", "rows", "mask"):
            np.testing.assert_array_equal(np.concatenate([first[key], second[key]]), whole[key])


def test_stream_stops():
    split, index_stream = make_split(10), IndexStream(10, 4)
    assert [batch["step"] for batch in stream(split, index_stream, 2, 5)] == [2, 3, 4]
    assert list(stream(split, index_stream, 5, 5)) == list(stream(split, index_stream, 6, 5)) == []


def test_a_memory_map_travels_by_name(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (1000, 8, 8), np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r").reshape(1000, 8, 8, 1)
    labels, ids = np.zeros(1000, np.int64), np.arange(1000).astype(str)

    def fetch(images: np.ndarray) -> _Fetch:
        n = len(images)
        return _Fetch(Split(images, labels[:n], ids[:n]), IndexStream(n, 4), 0, 0, 1)

    sent = pickle.dumps(fetch(mapped))
    assert len(sent) < images.nbytes / 4
    again = pickle.loads(sent)
    assert isinstance(again.split.images, np.memmap)
    assert_same(again(7), fetch(mapped)(7))
    part = pickle.loads(pickle.dumps(fetch(mapped[10:20])))  # part of a file has no name
    assert_same(part(1), fetch(mapped[10:20])(1))


def test_gather_keeps_padding():
    split = make_split(5)
    batch = gather(split, Batch(np.array([4, 0], np.int32), np.array([True, False]), 0, 2))
    np.testing.assert_array_equal(batch["images"], split.images[[4, 0]])
    assert batch["mask"].tolist() == [True, False]
    assert batch["labels"].dtype == np.int32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IndexStream(0, 4), "between 1 and 2.31 - 1 rows, got 0"),
        (lambda: IndexStream(4, 0), "batch_size must be at least 1, got 0"),
        (lambda: IndexStream(4, 2, seed=-1), "seed must be a whole number from 0, got -1"),
        (lambda: process_slice(IndexStream(9, 9)[0], 0, 2), "batch_size 9 does not divide among 2"),
        (lambda: process_slice(IndexStream(8, 8)[0], 2, 2), "process_index 2 is not one of 2"),
        (lambda: stream(make_split(4), IndexStream(5, 2)), "is for 5 rows, the split has 4"),
        (lambda: stream(make_split(4), IndexStream(4, 2), -1), "start_step must be at least 0"),
        (
            lambda: stream(make_split(4), IndexStream(4, 3), process_count=2),
            "batch_size 3 does not divide among 2 processes",
        ),
    ],
)
def test_bad_numbers(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_no_step_before_the_first():
    with pytest.raises(IndexError, match="steps count from 0"):
        IndexStream(4, 2)[-1]
