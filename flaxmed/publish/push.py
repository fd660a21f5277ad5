"""A network on the Hugging Face hub: its folder, sent as one commit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from flaxmed import __version__
from flaxmed.publish.folder import Network, describe, write_folder
from flaxmed.publish.names import check_repository
from flaxmed.types import InputError

# By these names of theirs, or of their bases, errors say that the other side was not reached.
_NOT_REACHED = {"TransportError", "ConnectionError", "Timeout"}


def push_to_hub(
    source: Network,
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    licence: str = "unknown",
    base_model: str | None = None,
    message: str = f"Weights of flaxmed {__version__}",
) -> str:
    """Publish a network on the Hugging Face hub, as :func:`save_pretrained` writes it.

    The repository is made where it is not there; its other files are left alone.
    ``flaxmed.from_pretrained(repository)`` reads the network back, every value to the bit. Needs
    ``pip install 'flaxmed[weights]'``. The hub's address is that of the variable ``HF_ENDPOINT``.

    Args:
        source: as for :func:`save_pretrained`. The card of a folder that it wrote goes along, with
            the repository's name where it shows how to load the network.
        repository: ``OWNER/NAME``.
        private: whether a new repository can be seen by its owner alone; without it the owner's
            own rule holds, "public" where there is none.
        token: that may write there; None for the one of ``hf auth login``, or ``HF_TOKEN``.
        licence, base_model: as for :func:`save_pretrained`.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        InputError: what :func:`save_pretrained` refuses; a name that the hub has not; no package,
            no token, one that was refused, no network; ``private`` for a repository that is public.
            Nothing is sent before all that can be seen here was. A repository that was made before
            the sending failed stays, empty.
        RunError: the disk is full.

    Example:
        >>> push_to_hub("runs/mine", "my breast net")
        Traceback (most recent call last):
        flaxmed.types.InputError: repository 'my breast net': expected OWNER/NAME, each of ...
    """
    check_repository(repository)
    api = _api(repository, token)
    card = describe(source, licence, base_model)
    with tempfile.TemporaryDirectory(prefix="flaxmed-") as folder:
        write_folder(card, Path(folder), repository)
        try:
            return _send(api, Path(folder), repository, private, message)
        except InputError:
            raise
        except Exception as error:  # of many types, by the version of the package
            raise InputError(f"{repository}: {_reason(error, repository)}") from None


def _api(repository: str, token: str | None) -> Any:
    """huggingface_hub's client, where there is what it takes to send anything."""
    try:
        from huggingface_hub import HfApi, constants, get_token
    except ImportError:
        raise InputError(
            f"{repository}: the Hugging Face hub needs a package: pip install 'flaxmed[weights]'"
        ) from None
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{repository}: HF_HUB_OFFLINE is set, so that nothing can be sent")
    token = token or get_token()
    if token is None:
        raise InputError(f"{repository}: not logged in; use hf auth login, HF_TOKEN or token=...")
    return HfApi(token=token, library_name="flaxmed", library_version=__version__)


def _send(api: Any, folder: Path, repository: str, private: bool, message: str) -> str:
    address = str(api.create_repo(repository, private=private or None, exist_ok=True))
    if private and not api.model_info(repository).private:
        raise InputError(f"{repository}: is there already, and public; nothing was sent")
    api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    return address


def _reason(error: Exception, repository: str) -> str:
    """One line for what huggingface_hub raises."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    responses = [cause.response for cause in causes if hasattr(cause, "response")]
    status = getattr(responses[-1], "status_code", None) if responses else None
    owner = repository.partition("/")[0]
    if status == 401:
        return "the token was refused (401); use hf auth login, or another token"
    if status == 403:
        return f"the token may not write there (403); expected one with write access to {owner}"
    if status == 404:
        return "no such repository, or the token has no access to it (404)"
    if kinds & _NOT_REACHED:
        return "the Hugging Face hub cannot be reached, or broke off"
    said = " ".join(str(error).split()) or type(error).__name__
    if type(error) is RuntimeError and causes[1:]:  # it names the file alone
        said += f" {' '.join(str(causes[-1]).split())}"
    return f"could not be sent: {said}"
