"""The commands about weights: ``convert-weights``, ``push-weights`` and ``verify-weights``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from flaxmed.types import InputError, RunError

_SOURCE = "a file, a run directory, a repository OWNER/NAME, or a published name"


def add_weights(commands: Any) -> None:
    """Give the command line its commands about weights."""
    _add_convert(commands)
    _add_push(commands)
    _add_verify(commands)


def _add_convert(commands: Any) -> None:
    command = commands.add_parser(
        "convert-weights", help="weights of any format, or of a run, as safetensors"
    )
    command.add_argument("source", help=_SOURCE)
    command.add_argument(
        "out",
        metavar="OUT.safetensors|FOLDER/",
        help="a file; or a folder for the network with its model card, as push-weights sends it",
    )
    command.add_argument(
        "--naming",
        default="flaxmed",
        help="whose names the tensors get: flaxmed, torchvision, timm, medmnist or keras",
    )
    _add_licence(command)
    command.set_defaults(call=_convert_weights)


def _add_licence(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--licence",
        default="unknown",
        help="of the weights, such as apache-2.0; default: their own",
    )


def _convert_weights(arguments: argparse.Namespace) -> None:
    source, out, naming = arguments.source, arguments.out, arguments.naming
    if out.endswith(("/", os.sep)) or Path(out).is_dir():
        _to_folder(source, Path(out), naming, arguments.licence)
        return
    from flaxmed.models.weights import convert_weights, save_weights
    from flaxmed.publish.folder import is_run

    if Path(out).suffix != ".safetensors":
        raise InputError(f"{out}: expected a name that ends in .safetensors, or a folder's in /")
    if is_run(Path(source)):
        from flaxmed.training import load_model

        save_weights(load_model(source), out, naming=naming, licence=arguments.licence)
    else:
        convert_weights(source, out, naming=naming, licence=arguments.licence)
    print(f"written to {out}, with the names of {naming}")


def _to_folder(source: str, folder: Path, naming: str, licence: str) -> None:
    from flaxmed.publish import save_pretrained

    if naming != "flaxmed":
        raise InputError(f"--naming {naming}: a folder has flaxmed's names; expected a file")
    print(f"written to {save_pretrained(source, folder, licence=licence)}")


def _add_push(commands: Any) -> None:
    command = commands.add_parser(
        "push-weights", help="a network and its model card to the Hugging Face hub"
    )
    command.add_argument("source", help=f"{_SOURCE}; or a folder of convert-weights")
    command.add_argument("repository", metavar="OWNER/NAME")
    command.add_argument(
        "--private", action="store_true", help="only its owner sees a new repository"
    )
    _add_licence(command)
    command.add_argument(
        "--base-model", metavar="OWNER/NAME", help="whose weights these began from"
    )
    command.set_defaults(call=_push_weights)


def _push_weights(arguments: argparse.Namespace) -> None:
    from flaxmed.publish import push_to_hub

    address = push_to_hub(
        arguments.source,
        arguments.repository,
        private=arguments.private,
        licence=arguments.licence,
        base_model=arguments.base_model,
    )
    print(f"published at {address}")


def _add_verify(commands: Any) -> None:
    command = commands.add_parser(
        "verify-weights", help="run the library that weights come from beside flaxmed"
    )
    command.add_argument("source", help="a file, a repository OWNER/NAME, or a published name")
    command.add_argument("--size", type=int, help="image side in pixels; the network's usual")
    command.add_argument("--images", type=int, default=2)
    command.set_defaults(call=_verify_weights)


def _verify_weights(arguments: argparse.Namespace) -> None:
    from flaxmed.verify import verify_weights

    for name in ("size", "images"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise InputError(f"--{name}: expected 1 or more, got {value}")
    found = verify_weights(arguments.source, size=arguments.size, images=arguments.images)
    print(found)
    if not found.holds:
        raise RunError(f"{arguments.source}: not equal to {found.library}")
