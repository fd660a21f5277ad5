"""The commands about weights: ``weights``, ``convert-``, ``push-`` and ``verify-weights``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from flaxmed.types import InputError, RunError

_SOURCE = "a file, a run directory, a repository OWNER/NAME, or a published name"


def add_weights(commands: Any) -> None:
    """Give the command line its commands about weights."""
    _add_list(commands)
    _add_convert(commands)
    _add_push(commands)
    _add_verify(commands)


def _add_list(commands: Any) -> None:
    command = commands.add_parser("weights", help="the published weights that are known by name")
    command.add_argument("name", nargs="?", help="of weights, for all that is known; or a network")
    command.set_defaults(call=_list_weights)


def _list_weights(arguments: argparse.Namespace) -> None:
    from flaxmed.models import list_models
    from flaxmed.models.weights import describe_weights, list_weights

    if arguments.name in (None, *list_models()):
        rows = [_facts(describe_weights(name)) for name in list_weights(arguments.name)]
        shown = [
            key for key in rows[0] if key not in ("range", "resize", "classes", "file", "digest")
        ]
        table = [shown, *([row[key] for key in shown] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in table)
        print("\n".join(line.rstrip() for line in lines))
        print("\nalso: a file, and OWNER/NAME of the Hugging Face hub with a model.safetensors")
        return
    facts = _facts(describe_weights(arguments.name))
    width = max(map(len, facts))
    print("\n".join(f"{key.ljust(width)}  {value}" for key, value in facts.items()))


def _facts(known: Any) -> dict[str, str]:
    """What is known of published weights, by the head of the column."""
    from flaxmed.models import variant_constants
    from flaxmed.models.weights.known import HubFile

    file, own = known.file, known.preprocessing
    hub = isinstance(file, HubFile)
    ends = [(value - m) / s for m, s in zip(own.mean, own.std, strict=True) for value in (0, 1)]
    return {
        "name": known.name,
        "network": known.network,
        "variant": known.variant,
        **variant_constants(known.network, known.variant),
        "size": str(known.image_size),
        "crop": f"{known.crop:g}",
        "interpolation": known.interpolation,
        "mean": " ".join(f"{value:g}" for value in own.mean),
        "std": " ".join(f"{value:g}" for value in own.std),
        "licence": known.licence,
        "range": f"images of 0 to 1 become {min(ends):.3g} to {max(ends):.3g}",
        "resize": f"the shorter side to {round(known.image_size / known.crop)}, then the middle",
        "classes": "the 1,000 of ImageNet-1k",
        "file": f"{file.name} of {file.repo} on the Hugging Face hub" if hub else file.url,
        "digest": "SHA-256, which the hub says" if hub else _digest(file),
    }


def _digest(file: Any) -> str:
    return f"MD5 {file.md5}" if file.md5 else f"SHA-256, which begins {file.sha256}"


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
        help="whose names the tensors get: flaxmed, torchvision, timm, medmnist, keras, kerashub",
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
    from flaxmed.training.rundir import is_run

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
