"""Memory that a process keeps from step to step."""

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest
from tiny_runs import fit

from flaxmed.allocator import keep_freed_memory
from flaxmed.training.group import Group

PAGE_FAULTS = """
import resource
import flaxmed.training
from flaxmed.allocator import keep_freed_memory
import jax, jax.numpy as jnp

@jax.jit
def step(x):  # 80 MB between the transform and the sum
    return jnp.abs(jnp.fft.fft(x)).sum()

operands = (jnp.ones((200, 50_000)),)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

steps = []
for _ in range(15):
    before = faults()
    step(*operands).block_until_ready()
    steps.append(faults() - before)
print(int(keep_freed_memory()), min(steps[5:]))  # a step may begin before the last one's end
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
@pytest.mark.parametrize(("setting", "kept"), [("1", 1), ("0", 0)])
def test_what_a_step_frees_serves_the_next(setting, kept):
    env = os.environ | {"FLAXMED_KEEP_MEMORY": setting, "GLIBC_TUNABLES": ""}
    done = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS], env=env, capture_output=True, text=True, check=True
    )
    found, faults = map(int, done.stdout.split())
    assert found == kept
    pages = 80_000_000 // os.sysconf("SC_PAGE_SIZE")
    assert faults < pages / 20 if kept else faults > pages / 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("FLAXMED_KEEP_MEMORY", "0"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")],
)
def test_what_the_user_chose_stays(monkeypatch, name, value):
    monkeypatch.setenv("FLAXMED_KEEP_MEMORY", "1")
    monkeypatch.setenv(name, value)
    keep_freed_memory.cache_clear()
    try:
        assert keep_freed_memory() is False
    finally:
        keep_freed_memory.cache_clear()


def test_an_accelerators_memory_is_left_alone(monkeypatch):
    monkeypatch.setenv("FLAXMED_KEEP_MEMORY", "1")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "jax_plugins")
    keep_freed_memory.cache_clear()
    try:
        assert keep_freed_memory() is False
    finally:
        keep_freed_memory.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("fetch", ["resident", "streamed"])
@pytest.mark.usefixtures("tiny_network")
def test_nothing_grows_with_the_epochs(fetch, data, tmp_path, monkeypatch):
    """The soak in small: benchmarks/soak.py is the long one, with memory."""
    real, seen = Group.end_epoch, []

    def end_epoch(self, *args):
        real(self, *args)
        for record in self.records:  # files and threads of a save come and go
            record.last.wait()
            record.best.wait()
        arrays = jax.live_arrays()
        files = Path("/proc/self/fd")
        seen.append(
            {
                "arrays": len(arrays),
                "bytes": sum(array.nbytes for array in arrays),
                "files": len(list(files.iterdir())) if files.exists() else 0,
                "threads": threading.active_count(),
            }
        )

    monkeypatch.setattr(Group, "end_epoch", end_epoch)
    fit(data, tmp_path / "run", epochs=24, fetch=fetch)
    assert len(seen) == 24
    for name, first in seen[8].items():
        # not one more for each epoch; a queue may hold a batch more or less
        assert seen[-1][name] <= first + (8 if name != "bytes" else 2**20), (name, seen)
