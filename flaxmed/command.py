"""What all commands share, and scripts that take arguments as they do: errors, exit codes, jobs."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from flaxmed.allocator import keep_freed_memory
from flaxmed.types import InputError, RunError

keep_freed_memory()  # before a command, or a program that parses as this one does, starts threads


class Parser(argparse.ArgumentParser):
    """argparse, with its errors as the one line that every other bad input gets.

    Example:
        >>> Parser(prog="p").parse_args(["--size"])
        Traceback (most recent call last):
        flaxmed.types.InputError: unrecognized arguments: --size (see p --help)
    """

    def error(self, message: str) -> NoReturn:
        """Raises InputError."""
        raise InputError(f"{message} (see {self.prog} --help)")


def run_command(command: Callable[[], Any]) -> int:
    """Call ``command`` and turn what it raises into one line on stderr and an exit code."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Undefined")  # the printed report says it
            command()
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        return _end(error)


def _end(error: BaseException) -> int:
    """Say what went wrong; the exit code. What nobody foresaw is raised again."""
    line, code = f"error: {' '.join(str(error).split())}", 1
    if isinstance(error, InputError):
        code = 2
    elif isinstance(error, KeyboardInterrupt):
        # a second Ctrl-C, or one outside training, has nothing to say
        line, code = str(error) or "interrupted", 128 + getattr(error, "signal", 2)
    elif isinstance(error, OSError):
        line = f"error: {error.filename or 'system'}: {error.strerror or error}"
    elif not isinstance(error, RunError):
        if not _in_a_job() or isinstance(error, SystemExit):
            raise error
        line = traceback.format_exc()
    print(f"flaxmed: {line}", file=sys.stderr)
    if _in_a_job():
        from flaxmed.training.processes import leave

        leave(code, error)
    return code


def _in_a_job() -> bool:
    """Whether this is one of several processes that train together."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def add_distributed(parser: argparse.ArgumentParser) -> None:
    """Give a command that trains the option to do so in several processes."""
    parser.add_argument(
        "--distributed",
        nargs="*",
        metavar="WORD",
        help="one of several processes: HOST:PORT COUNT INDEX, or nothing where JAX finds out "
        "(Slurm, Open MPI, Kubernetes, TPU pods)",
    )


def join_job(arguments: argparse.Namespace) -> None:
    """Make this process one of a job's, if asked to; before anything else of JAX."""
    if (words := arguments.distributed) is None:
        return
    from flaxmed.training import join

    if not words:
        join()
    elif len(words) == 3 and all(word.isdecimal() for word in words[1:]):
        join(words[0], int(words[1]), int(words[2]))
    else:
        raise InputError(
            f"--distributed: expected nothing, or HOST:PORT COUNT INDEX, got {' '.join(words)}"
        )
