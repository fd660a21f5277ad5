"""How long a program takes to be ready: compiled for the first time, and from the cache on disk."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    # jax itself changes this one when it opens a cache
    "jax_persistent_cache_min_entry_size_bytes",
)
_HIT = "/jax/compilation_cache/cache_hits"


class Compilation(NamedTuple):
    """What :func:`time_compilation` found.

    Attributes:
        program: the compiled program.
        seconds: tracing, lowering and compiling, with nothing in the cache.
        restart_seconds: the same again, with what the first time left in the cache; None where
            that was not asked for, as is ``cached``.
        cached: whether the second time found the program there.
    """

    program: Any
    seconds: float
    restart_seconds: float | None
    cached: bool | None


def time_compilation(compiled: Callable[[], Any], *, restart: bool = True) -> Compilation:
    """Compile a program into an empty cache on disk, forget it, and start again from the cache.

    The rest of jax's settings stay as they are, so that what training would not keep (by default
    a program that compiles within a second) is compiled anew here too. The second start happens in
    the same process: that a new one imports its packages first is not counted. All else that this
    process had compiled is forgotten as well.

    Args:
        compiled: traces, lowers and compiles, all three at each call.
        restart: whether there is a second start.

    Example:
        >>> found = time_compilation(lambda: jax.jit(lambda x: x + 1).lower(1.0).compile())
        >>> float(found.program(2.0)), found.restart_seconds > 0
        (3.0, True)
    """
    with _empty_cache():
        seconds, program = _timed(compiled)
        if not restart:
            return Compilation(program, seconds, None, None)
        jax.clear_caches()
        with _counting_hits() as hits:
            restart_seconds, _ = _timed(compiled)
    return Compilation(program, seconds, restart_seconds, bool(hits))


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


@contextlib.contextmanager
def _empty_cache() -> Iterator[None]:
    """A cache on disk that is empty and used; afterwards the process has its own again."""
    before = {name: getattr(jax.config, name) for name in _SETTINGS}
    with tempfile.TemporaryDirectory(prefix="flaxmed-bench-") as folder:
        try:
            jax.config.update("jax_compilation_cache_dir", folder)
            jax.config.update("jax_enable_compilation_cache", True)
            compilation_cache.reset_cache()  # jax opens the folder once, at its first use
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


@contextlib.contextmanager
def _counting_hits() -> Iterator[list[str]]:
    """A list that grows with every program that jax finds in its cache on disk."""
    hits: list[str] = []

    def note(event: str, **_: Any) -> None:
        if event == _HIT:
            hits.append(event)

    jax.monitoring.register_event_listener(note)
    try:
        yield hits
    finally:
        jax.monitoring.unregister_event_listener(note)
