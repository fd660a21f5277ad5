"""Writes ``golden/proc.json`` anew, from R's pROC alone.

    python -m tests.oracles.make_proc_golden

from the repository's root. Needs Rscript and pROC.
"""

from __future__ import annotations

import json
import math
import os

from . import proc


def main() -> None:
    """Asks pROC, writes; what is no finite number goes as a string, which JSON can hold."""
    content = proc.live()
    content["cases"] = {
        name: {key: value if math.isfinite(value) else str(value) for key, value in found.items()}
        for name, found in content["cases"].items()
    }
    temporary = proc.GOLDEN.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, proc.GOLDEN)
    print(f"{proc.GOLDEN} {proc.GOLDEN.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
