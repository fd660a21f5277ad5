"""Licences as the Hugging Face hub names them."""

from __future__ import annotations

from flaxmed.evaluation.front_matter import identifier

UNKNOWN = "unknown"

# What the hub takes for data and weights as "license": a card with any other is refused.
# https://huggingface.co/docs/hub/repositories-licenses
HUB_LICENCES = frozenset(
    [
        "apache-2.0",
        "mit",
        "openrail",
        "openrail++",
        "bigscience-openrail-m",
        "bigscience-bloom-rail-1.0",
        "creativeml-openrail-m",
        "bigcode-openrail-m",
        "afl-3.0",
        "artistic-2.0",
        "bsl-1.0",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "c-uda",
        "cc",
        "cc0-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cdla-sharing-1.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "wtfpl",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "etalab-2.0",
        "eupl-1.1",
        "agpl-3.0",
        "gfdl",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "isc",
        "lppl-1.3c",
        "ms-pl",
        "mpl-2.0",
        "odc-by",
        "odbl",
        "osl-3.0",
        "postgresql",
        "ofl-1.1",
        "ncsa",
        "unlicense",
        "zlib",
        "pddl",
        "lgpl-lr",
    ]
)


def hub_licence(licence: str) -> dict[str, str]:
    """A licence as the front matter of a card names it.

    Args:
        licence: the hub's identifier, however it is spelled, any other name, or "unknown".

    Example:
        >>> hub_licence("CC BY-NC 4.0")
        {'license': 'cc-by-nc-4.0'}
        >>> hub_licence("Our own terms, 2026")
        {'license': 'other', 'license_name': 'our-own-terms-2026'}
    """
    spelled = "-".join(licence.lower().split())
    if spelled in HUB_LICENCES or spelled == UNKNOWN:
        return {"license": spelled}
    return {"license": "other", "license_name": identifier(licence.lower())}
