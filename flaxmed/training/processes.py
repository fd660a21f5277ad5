"""Several processes as one job: all compute, process 0 reads and writes the run's files.

What process 0 finds in a folder it tells the others, its errors too, so that all go on together or
none does. Where there is one process, the usual case, every function here does what it says at
once. JAX's own runtime connects the processes (``jax.distributed``).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxmed.types import InputError, RunError

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

# A process that has not been heard of for so long is taken for dead, and the others end.
HEARTBEAT_SECONDS = 20
_GRACE_SECONDS = 2  # the end of one takes the others along: what they have to say comes first
_ERRORS = {"InputError": InputError, "RunError": RunError}
_KNOWN_TO_ALL: list[BaseException] = []


def join(
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    patience: int = 300,
) -> None:
    """Make this process one of a job's; before anything else of JAX.

    Under Slurm, Open MPI, a Kubernetes job or on a TPU pod nothing need be said: JAX finds out.

    Args:
        address: ``HOST:PORT`` at which process 0 listens.
        count: how many processes there are.
        index: which of them this is, from 0.
        patience: seconds to wait for the others; then JAX ends the process, with a message of its
            own.

    Raises:
        InputError: neither said nor found out, or said in part.
        RunError: JAX was in use already, or the address is not to be had.

    Example:
        >>> join("localhost:1234", 2)
        Traceback (most recent call last):
        flaxmed.types.InputError: a job needs the address, the count and the index of ...
    """
    said = [value is not None for value in (address, count, index)]
    if any(said) and not all(said):
        raise InputError(
            "a job needs the address, the count and the index of its processes, or none of them"
        )
    if index is not None and count is not None and not 0 <= index < count:
        raise InputError(f"process {index} is not one of {count}; they count from 0")
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(f"the address of a job is HOST:PORT, got {address!r}")
        print(
            f"process {index} of {count} waits for the others at {address}, {patience} s at most",
            file=sys.stderr,
            flush=True,
        )
    # it would take SIGTERM for itself, and do nothing
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=patience,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        raise InputError(
            f"no job of several processes was found here ({error}); "
            "say --distributed HOST:PORT COUNT INDEX"
        ) from None
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"this process could not join the job: {reason}") from None


def known_to_all(error: E) -> E:
    """Marks an error that every process of the job raises, so that all can end in order."""
    _KNOWN_TO_ALL.append(error)
    return error


def leave(code: int, error: BaseException) -> None:
    """End this process of a job with an exit code, so that none waits for it in vain.

    JAX would wait at exit until all have come to their end. So it shall where the error is one that
    all raise, or where there is no job: then this returns.
    """
    if not jax.distributed.is_initialized() or any(error is known for known in _KNOWN_TO_ALL):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(_GRACE_SECONDS)
    os._exit(code)


def is_first() -> bool:
    """Whether this process is the one that reads and writes files, and says what goes on."""
    return jax.process_index() == 0


def first_does(action: Callable[[], T]) -> T:
    """Call ``action`` in process 0 alone; all get what it returns, as JSON would, or its error.

    Example:
        >>> first_does(lambda: [1, "two"])
        [1, 'two']
    """
    if jax.process_count() == 1:
        return action()
    said: dict[str, Any] = {}
    if is_first():
        try:
            said = {"value": action()}
        except (InputError, RunError) as error:
            said = {"error": type(error).__name__, "message": str(error)}
        except OSError as error:
            message = f"{error.filename or 'system'}: {error.strerror or error}"
            said = {"error": "RunError", "message": message}
    said = json.loads(_broadcast(json.dumps(said).encode()))
    if "error" in said:
        raise known_to_all(_ERRORS[said["error"]](said["message"]))
    value: T = said["value"]
    return value


def from_first(make: Callable[[], T], like: T) -> T:
    """A tree of arrays that process 0 makes, on all processes, bit for bit.

    Args:
        make: called in process 0 alone.
        like: its structure, shapes and dtypes, known to all.

    Example:
        >>> from_first(lambda: {"a": jnp.ones(2)}, {"a": jnp.zeros(2)})["a"].tolist()
        [1.0, 1.0]
    """
    if jax.process_count() == 1:
        return make()
    found: list[Any] = []

    def made() -> None:
        found.append(make())

    first_does(made)
    leaves, structure = jax.tree.flatten(like)
    own = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found))
    data, arrays, start = _broadcast(own), [], 0
    for leaf in leaves:
        end = start + leaf.size * leaf.dtype.itemsize
        flat = np.frombuffer(data[start:end], leaf.dtype)
        arrays.append(jnp.asarray(flat.reshape(leaf.shape)))
        start = end
    tree: T = jax.tree.unflatten(structure, arrays)
    return tree


def check_alike(what: str, value: Any) -> None:
    """Raises InputError in all processes unless ``value``, JSON, is the same in all.

    Example:
        >>> check_alike("settings", {"epochs": 3})
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    others = [i for i, other in enumerate(np.asarray(digests)) if (other != digests[0]).any()]
    if others:
        listed = f"process{'es' * (len(others) > 1)} {', '.join(map(str, others))}"
        raise known_to_all(InputError(f"the {what} of {listed} are not those of process 0"))


def largest(number: int, mesh: Mesh) -> jax.Array:
    """The largest ``number`` that any process gives, without waiting for it.

    Example:
        >>> int(largest(3, Mesh(np.asarray(jax.devices()), ("data",))))
        3
    """
    spread = NamedSharding(mesh, PartitionSpec("data"))
    own = np.full(len(mesh.local_devices), number, np.int32)
    numbers = jax.make_array_from_process_local_data(spread, own, (mesh.size,))
    result: jax.Array = _largest(NamedSharding(mesh, PartitionSpec()))(numbers)
    return result


def _largest(everywhere: NamedSharding) -> Any:
    return jax.jit(jnp.max, out_shardings=everywhere)


def _broadcast(data: bytes) -> bytes:
    """Process 0's bytes. (JAX broadcasts by adding zeros, which as floats would lose -0's sign.)"""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    own = np.frombuffer(data, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(own), np.uint8).tobytes()
