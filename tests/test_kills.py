"""A training process that is killed at random moments ends with the bits of one never touched."""

import pytest
from test_bench_scripts import script


@pytest.mark.slow
def test_five_kills_change_nothing(tmp_path):
    results = script("kills").survive(5, seed=1, folder=tmp_path)
    assert results["kills"] == 5
    assert results["kills_in_a_save"] >= 1
    assert [row["differs"] for row in results["rows"]] == [[]] * results["runs"]
