"""Names of repositories on the Hugging Face hub."""

from __future__ import annotations

import re

from flaxmed.types import InputError

_PART = r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(f"{_PART}/{_PART}", re.ASCII)


def is_repository(name: str) -> bool:
    """Whether the hub could have a repository of this name.

    Example:
        >>> is_repository("me/breast-resnet18"), is_repository("me/a--b"), is_repository("mine")
        (True, False, False)
    """
    doubled = "--" in name or ".." in name
    return _NAME.fullmatch(name) is not None and not doubled and not name.endswith(".git")


def check_repository(name: str, what: str = "repository") -> None:
    """Raises InputError unless it could.

    Example:
        >>> check_repository("resnet18")
        Traceback (most recent call last):
        flaxmed.types.InputError: repository 'resnet18': expected OWNER/NAME, each of ...
    """
    if not is_repository(name):
        raise InputError(
            f"{what} {name!r}: expected OWNER/NAME, each of up to 96 letters, digits, '-', '_' and "
            "'.', none of '-' and '.' doubled or at an end"
        )
