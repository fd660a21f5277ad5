"""The front matter of a model card: values as YAML, in the little of it that a card needs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def yaml_lines(value: Any, indent: str = "") -> list[str]:
    """Mappings, lists, text, truth values and finite numbers as the lines of a YAML document.

    All text is in JSON's double quotes, which are YAML's, but for what cannot be printed: that
    becomes a space. Keys are written as they are.

    Example:
        >>> print(*yaml_lines({"tags": ["a: b", "c"], "value": 1e-7, "none": []}), sep="\\n")
        tags:
          - "a: b"
          - "c"
        value: 1.0e-07
        none: []
    """
    lines: list[str] = []
    if isinstance(value, Mapping):
        for key, item in value.items():
            if item and isinstance(item, Mapping | list):
                lines += [f"{indent}{key}:", *yaml_lines(item, indent + "  ")]
            else:
                lines.append(f"{indent}{key}: {_scalar(item)}")
        return lines
    for item in value:
        if item and isinstance(item, Mapping | list):
            first, *rest = yaml_lines(item, indent + "  ")
            lines += [f"{indent}- {first.lstrip()}", *rest]
        else:
            lines.append(f"{indent}- {_scalar(item)}")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(printable(value), ensure_ascii=False)
    if isinstance(value, float):  # 1e-07 without a point would be text
        return re.sub(r"^(-?\d+)e", r"\1.0e", json.dumps(value))
    return json.dumps(value)


def printable(text: str) -> str:
    """``text`` on one line, with a space for every character that cannot be printed."""
    return "".join(c if c.isprintable() else " " for c in text)


def identifier(text: str) -> str:
    """``text`` as the hub takes a name: ASCII letters, digits, ``_``, ``-`` and ``.``.

    Example:
        >>> identifier("Müller's set, 28 px"), identifier("数据")
        ('M-ller-s-set-28-px', 'unnamed')
    """
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.") or "unnamed"
