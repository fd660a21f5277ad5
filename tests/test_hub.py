"""Weights from the Hugging Face hub and from addresses: fetched whole, verified, or refused."""

from __future__ import annotations

import functools
import hashlib

import pytest
from hub_server import Hub

from flaxmed.models.weights import hub
from flaxmed.models.weights.known import HubFile, WebFile
from flaxmed.types import InputError

huggingface_hub = pytest.importorskip("huggingface_hub")
DATA = bytes(range(256)) * 400


@pytest.fixture
def server(tmp_path, monkeypatch):
    found = Hub()
    with found.running():
        get = functools.partial(
            huggingface_hub.hf_hub_download, endpoint=found.address, cache_dir=tmp_path / "hub"
        )
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", get)
        yield found


def test_a_file_arrives_once(server):
    server.files["timm/resnet18.tv_in1k/model.safetensors"] = DATA
    path, known = hub.find("timm/resnet18.tv_in1k")
    assert path.read_bytes() == DATA
    assert known.network == "resnet18"
    assert hub.find("timm/resnet18.tv_in1k")[0] == path
    assert sum(line.startswith("GET") for line in server.asked) == 1


def test_a_repository_that_is_not_in_the_table(server):
    server.files["someone/my-net/model.safetensors"] = DATA
    path, known = hub.find("someone/my-net")
    assert path.read_bytes() == DATA
    assert known is None


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("short", "model.safetensors could not be downloaded: peer closed connection"),
        ("wrong", "has SHA-256 .*; the hub says .*; it was removed"),
        ("gated", "access must be asked for"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(fault, says, server, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library's between its tries
    server.files["a/b/model.safetensors"] = DATA
    server.faults["a/b"] = fault
    with pytest.raises(InputError, match=f"^a/b: .*{says}") as error:
        hub.find("a/b")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("model.safetensors"))


def test_what_is_not_there(server):
    with pytest.raises(InputError, match="a/b: no such repository on the Hugging Face hub"):
        hub.find("a/b")
    with pytest.raises(InputError, match=r"private.*; did you mean timm/resnet18\.tv_in1k"):
        hub.find("timm/resnet18.tv_in1K")
    server.files["a/b/config.json"] = b"{}"
    with pytest.raises(InputError, match=r"a/b: the repository has no model\.safetensors"):
        hub.find("a/b")


def test_a_damaged_copy_is_fetched_again(server):
    server.files["a/b/model.safetensors"] = DATA
    path, _ = hub.find("a/b")
    path.resolve().write_bytes(DATA[:-1] + b"?")
    assert hub.find("a/b")[0].read_bytes() == DATA
    server.faults["a/b"] = "wrong once"
    path.resolve().unlink()
    assert hub.find("a/b")[0].read_bytes() == DATA


def test_without_a_network_the_cache_serves(server, monkeypatch):
    server.files["a/b/model.safetensors"] = DATA
    path, _ = hub.find("a/b")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.find("a/b")[0] == path
    with pytest.raises(InputError, match="cannot be reached, and no copy is in its cache"):
        hub.find("a/c")


def test_a_file_from_an_address(server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "cache_dir", lambda: tmp_path / "flaxmed")
    server.files["a/b/net-1.pth"] = DATA
    url = f"{server.address}/a/b/resolve/main/net-1.pth"
    digest = hashlib.sha256(DATA).hexdigest()
    path = hub.fetch(WebFile(url, sha256=digest[:8]))
    assert path == tmp_path / "flaxmed" / "weights" / "net-1.pth"
    assert hub.fetch(WebFile(url, sha256=digest[:8])) == path
    assert len(server.asked) == 1
    path.write_bytes(DATA[:-1])
    assert hub.fetch(WebFile(url, sha256=digest[:8])).read_bytes() == DATA
    path.unlink()
    with pytest.raises(
        InputError, match=r"has SHA-256 .* expected 00000000; or fetch it elsewhere"
    ):
        hub.fetch(WebFile(url, sha256="00000000"))
    assert not list((tmp_path / "flaxmed").rglob("*.pth"))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'flaxmed\[weights\]'"):
        hub.fetch(HubFile("a/b"))
