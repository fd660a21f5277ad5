"""Lets a coverage-guided fuzzer loose on the readers: needs atheris, which pip installs.

    python tests/fuzz_readers.py predictions -max_total_time=60

The first word is a name of ``readers.READERS``; what follows is libFuzzer's. It stops at the first
file that is neither read nor refused with one line, and leaves it as ``crash-...``, beside a folder
of what it tried.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["flaxmed", "json", "csv", "zipfile", "pickletools", "numpy.lib"]
):
    from readers import READERS

    from flaxmed.types import InputError


def main() -> None:
    """Fuzz one reader."""
    reader = READERS[sys.argv[1]]
    folder = Path(f"fuzzing-{reader.file}")
    path, corpus = folder / reader.file, folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for i, content in enumerate(reader.good):
        (corpus / str(i)).write_bytes(content)

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            reader.read(path)
        except InputError as error:
            if "\n" in str(error):
                raise AssertionError(f"more than one line: {error}") from error

    atheris.Setup([sys.argv[0], str(corpus), "-rss_limit_mb=4096", *sys.argv[2:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
