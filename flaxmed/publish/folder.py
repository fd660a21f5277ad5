"""A network in a folder, as the Hugging Face hub shows it and anyone can read it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import IO, Any

from flax import nnx

from flaxmed import __version__
from flaxmed.evaluation.metrics import accuracy_score, cross_entropy_loss
from flaxmed.files import made_dir, written_whole
from flaxmed.models.weights import Weights, open_weights, weights_of
from flaxmed.models.weights.known import KNOWN, HubFile
from flaxmed.models.weights.load import build_as_it_is
from flaxmed.models.weights.save import write_weights
from flaxmed.publish.card import Card, readme
from flaxmed.publish.names import check_repository, is_repository
from flaxmed.types import DatasetInfo, InputError, Predictions, check_shape, read_json

WEIGHTS, CONFIG, README = "model.safetensors", "config.json", "README.md"
FILES = (WEIGHTS, CONFIG, README)
_READ = {"image_size": ([int], None), "base_model": (str, None)}  # of a folder's config.json

Network = nnx.Module | str | os.PathLike[str]


def save_pretrained(
    source: Network,
    folder: str | os.PathLike[str],
    *,
    licence: str = "unknown",
    base_model: str | None = None,
) -> Path:
    """Write a network into a folder that can be used, shown and published as it is.

    ``flaxmed.from_pretrained(folder)`` reads it back, every value to the bit; the files:

    * ``model.safetensors``: the weights, as :func:`flaxmed.save_weights` writes them;
    * ``config.json``: what the network is: its kind, its classes by name, its preprocessing;
    * ``README.md``: the model card, with what the Hugging Face hub reads at its top. For a run
      that ``flaxmed evaluate`` went over that is its ``MODEL_CARD.md``, measured results, author's
      words and all; for a folder of this function the one there; otherwise a short one that tells
      what the network says of itself.

    A path on this machine, where the images came from, is left out of them.

    Args:
        source: one of the three networks; a run directory (its best epoch); or what
            ``flaxmed.open_weights`` takes.
        folder: made where it is not there. Where it is, its files of these names are replaced,
            others are left alone; nothing is written unless all can be.
        licence: of the weights: an identifier of the hub's (``"apache-2.0"``), or the name of any
            other. "unknown" leaves what the weights, or the author in ``MODEL_CARD.md``, say.
        base_model: the repository ``OWNER/NAME`` on the hub whose weights these began from. Known
            by itself where ``source`` is one, and for a run that began from a published name.

    Returns:
        The folder.

    Raises:
        InputError: no such run or weights; a network that is none of the published variants; a
            folder that holds a run, or cannot be written; a ``MODEL_CARD.md`` that is of other
            predictions than the run has now.
        RunError: the disk is full.

    Example:
        >>> import flaxmed, tempfile
        >>> model = flaxmed.create_model(
        ...     "resnet18", 2, in_channels=1, stem="small", rngs=nnx.Rngs(0)
        ... )
        >>> folder = save_pretrained(model, tempfile.mkdtemp(), licence="mit")
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json', 'model.safetensors']
        >>> flaxmed.from_pretrained(folder).num_classes
        2
    """
    folder = Path(folder)
    _check_target(folder)
    write_folder(describe(source, licence, base_model), folder, folder.resolve().name)
    return folder


def describe(source: Network, licence: str, base_model: str | None) -> Card:
    """What is known of the network that ``source`` names; for the rest as :func:`save_pretrained`.

    Raises:
        InputError: as :func:`save_pretrained`, of what is read.
    """
    from flaxmed.training.rundir import is_run

    if base_model is not None:
        check_repository(base_model, "base model")
    if isinstance(source, nnx.Module):
        card = Card(weights_of(source), base_model=base_model)
    elif is_run(Path(source)):
        card = _of_run(Path(source), base_model)
    else:
        card = _of_weights(os.fspath(source), base_model)
    card = card.with_licence(licence)
    return dataclasses.replace(card, weights=_without_paths(card.weights))


def write_folder(card: Card, folder: Path, name: str) -> None:
    """Write the files of a network, all or none.

    Args:
        card: the network, and what is known of it.
        folder: where.
        name: by which the README loads it.

    Raises:
        InputError: the folder cannot be made or written.
        RunError: the disk is full.
    """
    config = json.dumps(_config(card), indent=2, ensure_ascii=False) + "\n"
    with (
        made_dir(folder),
        written_whole(folder / README) as shown,
        written_whole(folder / CONFIG) as settings,
    ):
        _write(shown, readme(card, name))
        _write(settings, config)
        write_weights(card.weights, folder / WEIGHTS)


def _write(file: IO[bytes], text: str) -> None:
    file.write(text.encode())
    file.flush()
    os.fsync(file.fileno())  # a full disk may not show before


def _check_target(folder: Path) -> None:
    from flaxmed.training.rundir import is_run

    if is_run(folder):
        raise InputError(f"{folder}: holds a run; expected a folder for the network alone")
    for name in FILES:
        if (folder / name).is_dir():
            raise InputError(f"{folder / name}: a folder; expected a file, or none")


def _config(card: Card) -> dict[str, Any]:
    weights, kind, info = card.weights, card.weights.kind, card.weights.info
    own = weights.preprocessing
    return {
        "library_name": "flaxmed",
        "flaxmed_version": __version__,
        "network": kind.network,
        "variant": weights.variant,
        "stem": kind.stem,
        "in_channels": kind.in_channels,
        "num_classes": kind.num_classes,
        "image_size": card.size,
        "task": None if info is None else str(info.task),
        "classes": None if info is None else list(info.classes),
        "preprocessing": None if own is None else own.to_dict(),
        "dataset": None if info is None else info.to_dict(),
        "licence": weights.licence,
        "base_model": card.base_model,
    }


# ------------------------------------------------------------------------------- what it is read of


def _of_weights(source: str, base_model: str | None) -> Card:
    weights = open_weights(source)
    held = weights_of(build_as_it_is(weights), source, licence=weights.licence)
    if (Path(source) / CONFIG).is_file():
        return _of_folder(Card(held, base_model=base_model), Path(source))
    if base_model is None and not Path(source).exists():
        base_model = _repository(source)
    return Card(held, base_model=base_model)


def _repository(name: str) -> str | None:
    """The repository of the hub that weights of this name come from, if it is one."""
    known = KNOWN.get(name)
    if known is not None:
        return known.file.repo if isinstance(known.file, HubFile) else None
    return name if is_repository(name) else None


def _of_folder(card: Card, folder: Path) -> Card:
    """What a folder of :func:`save_pretrained` tells besides; its card goes along."""
    config = read_json(folder / CONFIG, wanted="what flaxmed.save_pretrained wrote")
    if config.get("library_name") != "flaxmed":
        return card
    check_shape(config, _READ, str(folder / CONFIG))
    size, readme = config.get("image_size"), folder / README
    return dataclasses.replace(
        card,
        size=(size[0], size[1]) if size and len(size) == 2 else None,
        base_model=card.base_model or config.get("base_model"),
        written=_text(readme) if readme.is_file() else None,
    )


def _of_run(run_dir: Path, base_model: str | None) -> Card:
    from flaxmed.training import load_model

    weights = weights_of(load_model(run_dir), str(run_dir))
    height, width, _ = read_json(run_dir / "dataset.json", wanted="a run")["image_shape"]
    begun = read_json(run_dir / CONFIG, wanted="a run").get("weights")
    if base_model is None and begun in KNOWN:
        base_model = _repository(begun)
    return Card(weights, (height, width), base_model, _written_card(run_dir))


def _written_card(run_dir: Path) -> str | None:
    """The ``MODEL_CARD.md`` of a run that is finished, and was evaluated as it is now."""
    path = run_dir / "MODEL_CARD.md"
    if not (path.is_file() and (run_dir / "run.json").is_file()):
        return None
    _check_results(run_dir)
    return _text(path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}; expected a model card") from None


def _check_results(run_dir: Path) -> None:
    """That the results in the card are those of the network: a run may have gone on since."""
    path = run_dir / "report.json"
    if not path.is_file():
        return
    report = read_json(path, wanted="what flaxmed evaluate wrote")
    check_shape(report, {"metrics": {...: {"value": (int, float, None)}}}, str(path))
    p = Predictions.load(run_dir / "predictions" / "test.npz")
    for name, metric in (("accuracy", accuracy_score), ("loss", cross_entropy_loss)):
        then = report.get("metrics", {}).get(name, {}).get("value")
        if then is None or not len(p.labels):
            continue
        now = metric(p.labels, p.probabilities, task=p.task)
        if not math.isclose(then, now, rel_tol=1e-9, abs_tol=1e-12):
            raise InputError(
                f"{run_dir / 'MODEL_CARD.md'}: tells of other predictions than the run has now "
                f"({name} {then:.6g}, now {now:.6g}); run flaxmed evaluate {run_dir} first"
            )


def _without_paths(weights: Weights) -> Weights:
    """Of a file on this machine that images came from, its name alone."""
    info = weights.info
    if info is None or not Path(info.source).is_absolute():
        return weights
    bare: DatasetInfo = dataclasses.replace(info, source=Path(info.source).name)
    return dataclasses.replace(weights, info=bare)
