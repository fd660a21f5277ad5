"""The commands about weights: ``convert-weights`` and ``verify-weights``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flaxmed.types import InputError, RunError


def add_weights(commands: Any) -> None:
    """Give the command line its commands about weights."""
    _add_convert(commands)
    _add_verify(commands)


def _add_convert(commands: Any) -> None:
    command = commands.add_parser(
        "convert-weights", help="weights of any format, or of a run, as safetensors"
    )
    command.add_argument(
        "source", help="a file, a run directory, a repository OWNER/NAME, or a published name"
    )
    command.add_argument("out", type=Path, metavar="OUT.safetensors")
    command.add_argument(
        "--naming",
        default="flaxmed",
        help="whose names the tensors get: flaxmed, torchvision, timm, medmnist or keras",
    )
    command.set_defaults(call=_convert_weights)


def _convert_weights(arguments: argparse.Namespace) -> None:
    from flaxmed.models.weights import convert_weights, save_weights

    if arguments.out.suffix != ".safetensors":
        raise InputError(f"{arguments.out}: expected a name that ends in .safetensors")
    if (Path(arguments.source) / "config.json").is_file():
        from flaxmed.training import load_model

        save_weights(load_model(arguments.source), arguments.out, naming=arguments.naming)
    else:
        convert_weights(arguments.source, arguments.out, naming=arguments.naming)
    print(f"written to {arguments.out}, with the names of {arguments.naming}")


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
