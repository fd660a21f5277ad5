"""Files that were changed at random: read, or refused with one line; never anything else."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from readers import READERS

from flaxmed.training.config import TrainConfig
from flaxmed.types import DatasetInfo, InputError, Preprocessing, Task

MOST_MEMORY = 64 * 2**20
QUIETLY = settings(
    max_examples=200,
    deadline=5000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# A change: where (a fraction of the length), how many bytes go, and what comes in their place.
CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from([0, 0, 1, 1, 2, 4, 8, 64, 10**6]),
        st.one_of(
            st.binary(max_size=8),
            st.sampled_from([b"\xff" * 4, b"\x00" * 8, b"-1", b"1e999", b"{", b"]", b'"', b"PK"]),
        ),
    ),
    min_size=1,
    max_size=6,
)


def changed(data, changes):
    for at, gone, new in changes:
        start = int(at * len(data))
        data = data[:start] + new + data[start + gone :]
    return data


def refusal(read, *values):
    """The one line with which what was given is refused, or None."""
    try:
        read(*values)
    except InputError as error:
        line = str(error)
    else:
        return None
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", READERS)
@QUIETLY
@given(changes=CHANGES, draw=st.data())
def test_a_changed_file_is_read_or_refused(name, tmp_path, changes, draw):
    reader = READERS[name]
    path = tmp_path / reader.file
    path.write_bytes(changed(draw.draw(st.sampled_from(reader.good)), changes))
    tracemalloc.start()
    try:
        line = refusal(reader.read, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert line is None or reader.file in line
    assert peak < MOST_MEMORY


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def with_names(cls_values):
    """Objects whose names are known ones, so that the values are looked at."""
    return st.dictionaries(st.sampled_from(sorted(cls_values)), JSON, max_size=4)


@QUIETLY
@example({"\n": None})
@given(with_names(TrainConfig().to_dict()) | st.dictionaries(st.text(max_size=8), JSON))
def test_any_settings_are_taken_or_refused(values):
    if refusal(TrainConfig.from_dict, values) is None:
        config = TrainConfig.from_dict(values)
        assert TrainConfig.from_dict(config.to_dict()) == config


GROUPS = TrainConfig(preprocessing=Preprocessing()).to_dict()


@pytest.mark.parametrize("group", ["optimizer", "augment", "finetune", "preprocessing"])
@QUIETLY
@given(draw=st.data())
def test_any_group_of_settings_is_taken_or_refused(group, draw):
    values = draw.draw(with_names(GROUPS[group]))
    refusal(TrainConfig.from_dict, {group: values})


DESCRIBED = DatasetInfo("mine", Task.BINARY, ("a", "b"), channels=1).to_dict()


@QUIETLY
@given(with_names(DESCRIBED))
def test_any_description_is_taken_or_refused(tmp_path, values):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({**DESCRIBED, "image_shape": [8, 8, 1], **values}))
    refusal(READERS["description"].read, path)
