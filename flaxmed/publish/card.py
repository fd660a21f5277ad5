"""The README of published weights: front matter for the hub, how to use them, what is known."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flaxmed.evaluation.card import AUTHOR
from flaxmed.evaluation.front_matter import printable, yaml_lines
from flaxmed.evaluation.sentences import NOT_A_DEVICE
from flaxmed.evaluation.tables import escape, markdown
from flaxmed.models.weights import Weights
from flaxmed.publish.licences import UNKNOWN, hub_licence
from flaxmed.types import DatasetInfo, Task

TITLES = {"resnet18": "ResNet-18", "densenet121": "DenseNet-121", "xception": "Xception"}
_FRONT_MATTER = re.compile(r"\s*---\n(.*?)\n---[ \t]*(?:\n|$)", re.S)
_KEY = re.compile(r"""(["']?)([A-Za-z_][\w.-]*)\1[ \t]*:""")
_TEXT = re.compile(r"""[^:]*:\s*(?:"([^"\\]*)"|'([^']*)'|([\w.+-]+))\s*(?:#.*)?""")
_LOADED = re.compile(r'(flaxmed\.from_pretrained\()"(?:[^"\\\n]|\\.)*"')
_MOST_LISTED = 100  # classes

Blocks = dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Card:
    """What a README is made from.

    Attributes:
        weights: the network, and what it says of itself.
        size: height and width in pixels of the images it was trained on, where that is known.
        base_model: the repository of the hub that it was made from, where there is one.
        written: the card that a run or a folder has, else None.
    """

    weights: Weights
    size: tuple[int, int] | None = None
    base_model: str | None = None
    written: str | None = None

    def with_licence(self, licence: str) -> Card:
        """The card of weights under this licence; "unknown" leaves what is known of it: what the
        author wrote into the card, or else what the weights say."""
        if licence == UNKNOWN:
            licence = self.weights.licence
            stated = stated_licence(self.written or "")
            if stated != UNKNOWN and hub_licence(stated) != hub_licence(licence):
                licence = stated
        weights = dataclasses.replace(self.weights, licence=printable(licence))
        return dataclasses.replace(self, weights=weights)


def readme(card: Card, name: str) -> str:
    """The README, Markdown with front matter.

    Args:
        card: what is known.
        name: of the folder or the repository, for the lines that show how to load it.
    """
    if card.written is None:
        front, body = _own_blocks(card), _short_body(card, name)
    else:
        theirs, text = split(card.written)
        front = _merged(card, theirs)
        shown = _LOADED.search(text) is not None
        body = renamed(text, name) if shown else _with_usage(text, _usage(card, name))
    lines = [line for block in front.values() for line in block]
    return "\n".join(["---", *lines, "---", "", body.strip("\n")]) + "\n"


def renamed(text: str, name: str) -> str:
    """A README with its lines that load the network by the name of another folder or repository.

    Example:
        >>> renamed('model = flaxmed.from_pretrained("mine")', "me/mine")
        'model = flaxmed.from_pretrained("me/mine")'
    """
    return _LOADED.sub(lambda found: found[1] + _quoted(name), text)


# ------------------------------------------------------------------------------------ front matter


def split(text: str) -> tuple[Blocks, str]:
    """The front matter of a card, as the lines of each key at its top level, and what follows.

    Example:
        >>> split("---\\nlicense: mit\\ntags:\\n- a\\n---\\n# Title\\n")
        ({'license': ['license: mit'], 'tags': ['tags:', '- a']}, '# Title\\n')
    """
    found = _FRONT_MATTER.match(text)
    if found is None:
        return {}, text
    blocks: Blocks = {}
    at = ""
    for line in found[1].split("\n"):
        key = _KEY.match(line)
        at = key[2] if key else at
        blocks.setdefault(at, []).append(line)
    return blocks, text[found.end() :]


def stated_licence(text: str) -> str:
    """The licence that an author wrote into the front matter of a card; "unknown" if none.

    Example:
        >>> stated_licence('---\\nlicense: other\\nlicense_name: "our-terms"  # see below\\n---\\n')
        'our-terms'
    """
    blocks, _ = split(text)
    licence = _scalar(blocks.get("license", []))
    if licence == "other":
        licence = _scalar(blocks.get("license_name", []))
    return UNKNOWN if licence in ("", AUTHOR.replace(" ", "-")) else licence


def _scalar(block: Sequence[str]) -> str:
    """The plain or quoted text behind a key; "" where it is something else."""
    found = _TEXT.fullmatch("".join(block))
    return "" if found is None else next(filter(None, found.groups()), "")


def _own_blocks(card: Card) -> Blocks:
    weights = card.weights
    tags = ["jax", "flax", "image-classification", "not-a-medical-device", weights.kind.network]
    if weights.info is not None and weights.info.synthetic:
        tags.append("synthetic-data")
    values: dict[str, Any] = {
        **hub_licence(weights.licence),
        "library_name": "flaxmed",
        "pipeline_tag": "image-classification",
        "tags": tags,
    }
    if card.base_model is not None:
        values["base_model"] = card.base_model
    if weights.info is not None and _is_on_the_hub(weights.info.name):
        values["datasets"] = [weights.info.name]
    return _blocks(values)


def _merged(card: Card, theirs: Blocks) -> Blocks:
    """What the card says, with what is known of the licence and the base model.

    ``datasets`` are data sets of the hub, as which it would link them; others are not listed.
    """
    own, theirs = _own_blocks(card), dict(theirs)
    own.pop("datasets", None)
    stated = stated_licence(card.written or "")
    agreed = stated != UNKNOWN and hub_licence(stated) == hub_licence(card.weights.licence)
    for name in ("license", "license_name", "license_link"):
        (own if agreed else theirs).pop(name, None)
    if card.base_model is not None:
        theirs.pop("base_model", None)
    if "datasets" in theirs:
        theirs["datasets"] = _on_the_hub(theirs["datasets"])
    return {name: lines for name, lines in {**own, **theirs}.items() if lines}


def _blocks(values: Mapping[str, Any]) -> Blocks:
    return {name: yaml_lines({name: value}) for name, value in values.items()}


def _on_the_hub(block: Sequence[str]) -> list[str]:
    """The list of data sets without those that are none of the hub; empty if none is left."""
    kept = [line for line in block[1:] if _is_on_the_hub(line.strip().lstrip("- ").strip("\"'"))]
    return [block[0], *kept] if kept else []


def _is_on_the_hub(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII) is not None


# ------------------------------------------------------------------------------------------- body


def _with_usage(text: str, usage: Sequence[str]) -> str:
    """A card with the chapter of how to use the network before that of its intended use."""
    chapter = "\n".join(usage)
    before, heading, after = text.partition("\n## Intended use\n")
    return f"{before}\n{chapter}\n{heading.lstrip()}{after}" if heading else f"{text}\n{chapter}\n"


def _usage(card: Card, name: str) -> list[str]:
    weights = card.weights
    lines = ["## How to use", "", "```python", "import flaxmed  # pip install 'flaxmed[weights]'"]
    lines += ["import numpy as np"]
    opening, images = _images(card)
    if opening[0].startswith("image = "):
        lines.append("from PIL import Image")
    lines += ["", f"model = flaxmed.from_pretrained({_quoted(name)})"]
    if weights.preprocessing is None:
        lines += ["# not recorded: put here what the network was trained with"]
        lines += ["model.preprocessing = flaxmed.Preprocessing(mean=(0.5,), std=(0.5,))"]
    lines += [*opening, f"probabilities = flaxmed.predict(model, {images})"]
    known = "dict(zip(model.info.classes, probabilities[0]))"
    return [*lines, f"print({'probabilities' if weights.info is None else known})", "```", ""]


def _images(card: Card) -> tuple[list[str], str]:
    """Code that opens what the network takes, and what it is called there."""
    weights = card.weights
    channels = weights.kind.in_channels if weights.info is None else weights.info.channels
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        return [f'images = np.load("images.npy")  # uint8 [n, height, width, {channels}]'], "images"
    opened = f'image = Image.open("image.png").convert("{mode}")'
    if card.size is not None:
        height, width = card.size
        opened += f".resize(({width}, {height}))  # as in training"
    return [opened], "np.asarray(image)[None]"


def _short_body(card: Card, name: str) -> str:
    weights, info = card.weights, card.weights.info
    title = TITLES[weights.kind.network] + (f": {_plain(info.name)}" if info else "")
    lines = [f"# {title}", "", f"**{NOT_A_DEVICE}**", ""]
    lines += [*_usage(card, name), "## Model", "", *_words([["", "as recorded"], *_facts(card)])]
    lines += ["", "## Classes", "", *_classes(weights.kind.num_classes, info)]
    if info is not None:
        lines += ["", "## Data", "", *_data(info)]
    lines += ["", "## Evaluation", ""]
    lines += ["No test result is recorded with these weights: how good they are is not known here."]
    return "\n".join([*lines, "`flaxmed evaluate RUN` writes that into the card of a run."])


def _facts(card: Card) -> list[list[str]]:
    weights, kind = card.weights, card.weights.kind
    parameters = sum(
        value.size
        for name, value in weights.tensors.items()
        if name.rpartition(".")[2] not in ("mean", "var")
    )
    own, info = weights.preprocessing, weights.info
    rule = "not recorded"
    if own is not None:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (own.mean, own.std))
        rule = f"pixels x of 0 to 255 become (x / 255 - {mean}) / {std}, by channel"
    rows = [
        ["network", TITLES[kind.network]],
        ["constants and padding", weights.variant],
        ["stem", kind.stem],
        ["channels", str(kind.in_channels)],
        ["logits", str(kind.num_classes)],
        ["trainable parameters", f"{parameters:,}"],
        ["preprocessing", rule],
    ]
    if info is not None:
        rows.append(["task", str(info.task)])
    if card.size is not None:
        rows.append(["images in training", f"{card.size[0]} x {card.size[1]} pixels"])
    return rows + ([["made from", card.base_model]] if card.base_model else [])


def _classes(number: int | None, info: DatasetInfo | None) -> list[str]:
    if info is None:
        return [f"What the {number} logits mean is not recorded."]
    said = f"{info.num_classes} classes, of which an image has one: softmax over the logits."
    if info.task is Task.MULTILABEL:
        said = f"{info.num_classes} labels, independent of one another: a sigmoid for each logit."
    if info.num_classes > _MOST_LISTED:
        return [f"{said} Their names are in `config.json`."]
    if info.positive is not None:
        said += f" Positive: {_plain(info.classes[info.positive])}."
    names = ([str(c), title] for c, title in enumerate(info.classes))
    return [said, "", *_words([["logit", "name"], *names])]


def _data(info: DatasetInfo) -> list[str]:
    rows = [
        ["data set", info.name],
        ["what it shows", info.description],
        ["kind", "synthetic: simulated images" if info.synthetic else ""],
        ["licence of the images", info.licence],
        ["source", info.source],
    ]
    return _words([["", "as recorded"], *(row for row in rows if row[1])])


def _words(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table of words: all columns to the left."""
    header, _, *body = markdown([[printable(cell) for cell in row] for row in rows])
    return [header, "|" + "---|" * len(rows[0]), *body]


def _plain(text: str) -> str:
    """Text on one line, none of which Markdown reads as its own."""
    return escape(printable(text))


def _quoted(text: str) -> str:
    """Text as Python and JSON write it."""
    return json.dumps(printable(text), ensure_ascii=False)
