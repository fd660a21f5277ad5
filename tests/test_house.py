"""The rules of the house, read from the source: who imports whom, what is public, what is said."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import socket
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import flaxmed

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flaxmed"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 450

# Which parts of the package each part may import; "flaxmed" is the lazy surface in __init__.py.
MAY_IMPORT = {
    "types": set(),
    "files": {"types"},
    "allocator": set(),
    "models": {"types", "files"},
    "data": {"types", "files"},
    "evaluation": {"types"},
    "saliency": {"types"},
    "summary": {"types", "models"},
    "diagram": {"types", "models", "summary"},
    "inference": {"types", "models"},
    "training": {"types", "files", "allocator", "models", "data", "evaluation", "inference"},
    "benchmark": {"types", "allocator", "models", "training", "summary"},
}
MAY_IMPORT["verify"] = {"types", "models"}
MAY_IMPORT["publish"] = {"types", "files", "models", "evaluation", "training"}
MAY_IMPORT["cli_weights"] = {"types", "models", "training", "verify", "publish"}
MAY_IMPORT["command"] = {"types", "allocator", "training"}
MAY_IMPORT["cli"] = {*MAY_IMPORT, "flaxmed"}
MAY_IMPORT["__main__"] = {"cli"}
MAY_IMPORT["flaxmed"] = {*MAY_IMPORT} - {"cli", "__main__"}

# These parts work where no accelerator library is installed.
FREE_OF_JAX = {"types", "files", "allocator", "data", "evaluation", "flaxmed"}
ACCELERATED = {"jax", "jaxlib", "flax", "optax", "orbax", "torch", "tensorflow", "keras"}


def module_name(path: Path) -> str:
    """``flaxmed.data.npz`` of ``flaxmed/data/npz.py``; packages by their folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The part of the house that a module belongs to: ``data`` of ``flaxmed.data.npz``."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "flaxmed"


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 11))


def imported_modules(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, int]]:
    """Every module that the code names in an import, at any depth, with its line.

    ``from flaxmed import X`` counts as an import of X's home, ``import_module("X")`` as one of X.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")
                package = package[: len(package) - node.level + is_package]
                base = ".".join([*package, *([base] if base else [])])
            for alias in node.names if base == "flaxmed" else ():
                home = flaxmed._MODULE_OF.get(alias.name)
                inside = (PACKAGE / alias.name).is_dir() or (PACKAGE / f"{alias.name}.py").is_file()
                if alias.name != "__version__":
                    yield home or (f"flaxmed.{alias.name}" if inside else "flaxmed"), node.lineno
            if base != "flaxmed":
                yield base, node.lineno
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            name = node.args[0]
            if called in ("import_module", "__import__") and isinstance(name, ast.Constant):
                yield str(name.value), node.lineno


def offences(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports in ``source`` that the house does not allow to ``module``."""
    part = part_of(module)
    found = []
    for name, line in imported_modules(ast.parse(source), module, is_package):
        root = name.split(".")[0]
        if root == "flaxmed" and part_of(name) not in MAY_IMPORT[part] | {part}:
            found.append(f"{module}:{line} imports {name}")
        if root in ACCELERATED and part in FREE_OF_JAX:
            found.append(f"{module}:{line} imports {name}")
    return found


def without(*modules: str) -> str:
    """Python code that makes an import of these modules fail."""
    return textwrap.dedent(f"""
        import sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {set(modules)!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)
        sys.meta_path.insert(0, Absent())
    """)


def run_python(code: str) -> str:
    """Runs ``code`` in a new interpreter that sees the package under test; returns its output."""
    start = f"import sys; sys.path.insert(0, {str(Path(flaxmed.__file__).parents[1])!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------------------- who imports whom


def test_every_part_has_a_place_in_the_house():
    assert {part_of(module_name(path)) for path in SOURCES} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_follow_the_house(path):
    source = path.read_text(encoding="utf-8")
    assert not offences(source, module_name(path), path.name == "__init__.py")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("flaxmed.models.resnet", "from flaxmed.data import npz"),
        ("flaxmed.models.resnet", "import flaxmed.training.loop as t"),
        ("flaxmed.models.resnet", "from ..evaluation import metrics"),
        ("flaxmed.models.resnet", "from .. import inference"),
        ("flaxmed.models.resnet", "def f():\n    from flaxmed import evaluate"),
        ("flaxmed.models.resnet", "import importlib\nimportlib.import_module('flaxmed.data')"),
        ("flaxmed.types", "from flaxmed.models import layers"),
        ("flaxmed.training.loop", "from flaxmed.cli import main"),
        ("flaxmed.training.loop", "import flaxmed"),
        ("flaxmed.inference", "from flaxmed.training.step import TrainState"),
        ("flaxmed.data.npz", "def f():\n    import jax.numpy as jnp"),
        ("flaxmed.evaluation.metrics", "if True:\n    from flax import nnx"),
    ],
)
def test_a_forbidden_import_is_seen(module, source):
    """The reader above must find what it is there to find, in each form that Python has."""
    assert len(offences(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("flaxmed.models.resnet", "from .layers import Conv\nfrom ..types import InputError"),
        ("flaxmed.training.loop", "from flaxmed import __version__\nimport jax"),
        ("flaxmed.cli", "import flaxmed\nfrom flaxmed import train\nimport flaxmed.summary"),
    ],
)
def test_an_allowed_import_passes(module, source):
    assert not offences(source, module)


@pytest.mark.parametrize("part", ["types", "evaluation", "data"])
def test_loads_where_jax_is_not_installed(part):
    names = [module_name(path) for path in SOURCES if part_of(module_name(path)) == part]
    assert names
    code = without("jax", "jaxlib", "flax") + "".join(f"import {name}\n" for name in names)
    run_python(code)


def test_importing_the_package_is_light():
    loaded = run_python("import flaxmed; print(*sys.modules)").split()
    heavy = {"jax", "flax", "numpy", "sklearn", "matplotlib", "grain", "tensorflow_datasets"}
    assert not heavy & {name.split(".")[0] for name in loaded}


# -------------------------------------------------------------------------------- what is public


def test_the_surface_says_what_it_has():
    assert flaxmed.__all__ == sorted(set(flaxmed.__all__))
    assert dir(flaxmed) == sorted(flaxmed.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        flaxmed.no_such_name  # noqa: B018


def test_type_checkers_see_the_whole_surface():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == flaxmed._MODULE_OF


@pytest.mark.parametrize("name", [name for name in flaxmed.__all__ if name != "__version__"])
def test_public_name_is_importable_and_documented(name):
    value = getattr(flaxmed, name)
    assert value is getattr(importlib.import_module(flaxmed._MODULE_OF[name]), name)
    own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert own, f"flaxmed.{name} has no docstring of its own"
    assert not own.startswith(f"{name}("), f"flaxmed.{name} has only the one dataclasses write"
    if not (inspect.isclass(value) and issubclass(value, Exception)):
        assert ">>> " in own, f"flaxmed.{name} shows no example"


def undocumented(tree: ast.AST, prefix: str = "") -> Iterator[str]:
    """Public functions and classes, and public methods of public classes, without a docstring."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"{prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node, f"{prefix}{node.name}.")


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_everything_public_has_a_docstring(path):
    tree = parse(path)
    assert ast.get_docstring(tree) or not tree.body, "the module has no docstring"
    assert not list(undocumented(tree))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_modules_stay_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines; split the module"


# ---------------------------------------------------------------------------------- what is said


def shipped_files() -> list[Path]:
    """What git tracks or would track; without git, the source folders."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    try:
        listed = subprocess.run(
            [*command, "--exclude-standard"], capture_output=True, text=True, check=True
        ).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        folders = ("flaxmed", "tests", "examples", "benchmarks")
        paths = [*ROOT.glob("*.*"), *(p for name in folders for p in (ROOT / name).rglob("*"))]
    return [path for path in paths if path.is_file() and "__pycache__" not in path.parts]


# Put together from pieces so that this file does not contain what it forbids.
FORBIDDEN = re.compile(
    "|".join(
        [
            r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|home/\w+|Us" + r"ers)/",
            r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
            r"py" + r"pi\.org|python" + r"hosted|np" + r"mjs\.org|deb\.deb" + r"ian",
        ]
    )
)


def test_no_file_names_a_machine_or_leaves_work_undone():
    found = []
    for path in shipped_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if match := FORBIDDEN.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    assert not found


@pytest.mark.parametrize("line", ["see /wo" + "rk/main", "# TO" + "DO: later", "'/ho" + "me/me/x'"])
def test_a_forbidden_word_is_seen(line):
    assert FORBIDDEN.search(line)


def test_every_python_file_is_python_3_11():
    files = [path for path in shipped_files() if path.suffix == ".py"]
    assert PACKAGE / "__init__.py" in files
    for path in files:
        parse(path)


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    source = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert re.search(r'^__version__ = "(.*)"$', source, re.M)[1] == flaxmed.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r'^version: "?([^"\n]*)"?$', citation, re.M)[1] == flaxmed.__version__
    assert project["project"]["license"] == "Apache-2.0"
    assert re.search(r"^license: (.*)$", citation, re.M)[1] == "Apache-2.0"


# --------------------------------------------------------------- the world that conftest.py makes


def test_no_test_reaches_the_network():
    for address in ("192.0.2.1", "example.org"):
        with pytest.raises(OSError, match="tests may not reach the network"):
            socket.create_connection((address, 80), timeout=1)
    code = "import urllib.request as r; r.urlopen('https://example.org', timeout=5)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Connection refused" in done.stderr


def test_loopback_is_open():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_two_devices_and_a_home_of_its_own():
    import jax

    assert jax.device_count() >= 2 or jax.default_backend() != "cpu"
    assert "flaxmed-tests-" in str(Path.home())
    assert "FLAXMED_DATA_DIR" not in os.environ


# ------------------------------------------------------------------------------ files from outside

UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def dangers(source: str) -> list[str]:
    """What could run, or write anywhere, what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in UNPICKLERS]
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        refuses = getattr(given.get("allow_pickle"), "value", None) is False
        if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile"):
            found.append(node.func.id)
        if isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            if name in ("np.load", "numpy.load", "np.lib.format.read_array") and not refuses:
                found.append(f"{name} without allow_pickle=False")
            if node.func.attr in ("extractall", "extract", "unpack_archive") or name == "os.system":
                found.append(name)
        if "allow_pickle" in given and not refuses:
            found.append("allow_pickle")
        if getattr(given.get("shell"), "value", None) is True:
            found.append("shell=True")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_file_is_unpickled_unpacked_or_given_to_a_shell(path):
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.savez(path, allow_pickle=True)",
        "zipfile.ZipFile(path).extractall(folder)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "eval(text)",
    ],
)
def test_that_would_be_seen(source):
    assert dangers(source)
