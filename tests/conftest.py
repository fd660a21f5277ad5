"""The world in which the tests run: two CPU devices, no network, no caches but a temporary one.

All of it is set while this file is imported, before anything imports jax, and for the whole
process: doctests live outside this folder, where fixtures of this file do not reach.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib.util
import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

collect_ignore = ["fuzz_readers.py"]  # a program, of a package that tests do not need
if importlib.util.find_spec("h5py") is None:
    collect_ignore.append("malformed_keras.py")  # writes files with it

REAL_FILES = (
    "breastmnist.npz",
    "breastmnist_64.npz",
    "pneumoniamnist.npz",
    "retinamnist.npz",
)
DEVICES = "--xla_force_host_platform_device_count=2"


def _isolate() -> None:
    """Set the environment of this process and of those that tests start."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["MPLBACKEND"] = "agg"
    os.environ["FLAXMED_KEEP_MEMORY"] = "0"  # a worker runs many tests, and would only grow

    # A user's data folder must neither change a test's outcome nor be written to: only the fixture
    # real_data_dir leads there. Kept under another name because worker processes inherit it.
    real = os.environ.pop("FLAXMED_DATA_DIR", None)
    if real:
        os.environ["FLAXMED_TEST_DATA_DIR"] = str(Path(real).resolve())

    home = tempfile.mkdtemp(prefix="flaxmed-tests-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["HOME"] = home
    os.environ["XDG_CACHE_HOME"] = os.path.join(home, ".cache")
    # What is compiled, the functions in C++ and the programs of XLA, is shared with worker
    # processes: they inherit the places.
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ["FLAXMED_TEST_NATIVE"] = os.path.join(home, "native")
        os.mkdir(os.environ["FLAXMED_TEST_NATIVE"])
        os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(home, "xla")
    # Also those that compile in less than a second, jax's bound: there are thousands of them.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.makedirs(os.path.join(home, ".cache", "flaxmed"))
    os.symlink(os.environ["FLAXMED_TEST_NATIVE"], os.path.join(home, ".cache/flaxmed/native"))

    # Started processes are out of reach of the guard below; this proxy refuses every connection.
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        os.environ[name] = os.environ[name.upper()] = "http://127.0.0.1:9"
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1,::1"


def _is_loopback(host: Any) -> bool:
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        text = host.decode() if isinstance(host, bytes) else str(host)
        return ipaddress.ip_address(text.split("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse_network() -> None:
    """Connections and name look-ups stay on this machine; others fail as if there were no network.

    The error is an OSError, so the library answers it as it answers a missing network.
    """

    def guarded(name: str) -> Any:
        original = getattr(socket.socket, name)

        def connect(self: socket.socket, address: Any, *rest: Any) -> Any:
            internet = self.family in (socket.AF_INET, socket.AF_INET6)
            if internet and not _is_loopback(address[0]):
                raise OSError(f"tests may not reach the network: {address!r}")
            return original(self, address, *rest)

        return connect

    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, guarded(name))

    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_loopback(host):
            raise socket.gaierror(f"tests may not reach the network: {host!r}")
        return look_up(host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo


_isolate()
_refuse_network()


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """The folder with the original MedMNIST files, from the variable FLAXMED_DATA_DIR.

    Without it a test skips and says what is missing; with FLAXMED_REQUIRE_DATA=1 it fails.
    """
    folder = os.environ.get("FLAXMED_TEST_DATA_DIR")
    if not folder:
        missing = "FLAXMED_DATA_DIR is not set; it names the folder with breastmnist.npz"
    else:
        absent = [name for name in REAL_FILES if not (Path(folder) / name).is_file()]
        if not absent:
            return Path(folder)
        missing = f"FLAXMED_DATA_DIR={folder} lacks {', '.join(absent)}"
    if os.environ.get("FLAXMED_REQUIRE_DATA") == "1":
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


def pytest_report_header() -> str:
    """Which copy of the package is tested: the checkout, or an installed one."""
    spec = importlib.util.find_spec("flaxmed")
    return f"flaxmed: {spec.origin if spec else 'not found'}"


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Stops where ``--dist loadgroup`` would silently spread a group over the processes."""
    for item in session.items if getattr(session.config.option, "loadgroup", False) else ():
        if item.get_closest_marker("xdist_group") and "@" not in item.nodeid:
            raise pytest.UsageError("this pytest-xdist does not group tests under this pytest")


MOST_GROWTH = 3 * 2**29  # bytes
_size_before = 0


def _size() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@pytest.fixture(autouse=True)
def forget_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Drop what was compiled: after a test in an ``xdist_group``, which is a network, and whenever
    the process has grown by a gigabyte and a half.

    The programs of all tests take ten gigabytes. What is needed again comes from the cache on disk.
    """
    global _size_before
    yield
    grown = _size() - _size_before > MOST_GROWTH
    if "jax" in sys.modules and (grown or request.node.get_closest_marker("xdist_group")):
        sys.modules["jax"].clear_caches()
    if grown:
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):  # another libc has no such function
            ctypes.CDLL(None).malloc_trim(0)
        _size_before = _size()


@pytest.fixture(scope="session")
def data() -> Any:
    """A phantom of 27 training images: in batches of 8 the last of an epoch is padded, also over
    two devices."""
    from flaxmed.data.phantom import load_phantom

    return load_phantom(size=32, n_train=27, n_val=21, n_test=19)


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained under the name of ResNet-18 is a network that a test can train."""
    from tiny_runs import create

    from flaxmed.training import run

    monkeypatch.setattr(run, "create_model", create)


@pytest.fixture(scope="session")
def yaml() -> Any:
    """The reader of front matter that is not ours; required where all references are."""
    try:
        import yaml
    except ImportError:
        missing = "pyyaml is not installed (extra oracle)"
        if os.environ.get("FLAXMED_REQUIRE_ORACLES") == "1":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    return yaml
