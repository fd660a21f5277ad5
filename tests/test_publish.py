"""What leaves flaxmed for others: a network's weights, its folder, its repository on the hub."""

from __future__ import annotations

import errno
import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from flax import nnx
from hub_server import TOKEN, Hub

import flaxmed
from flaxmed.cli import main
from flaxmed.evaluation import evaluate_run
from flaxmed.evaluation.metrics import accuracy_score
from flaxmed.models import create_model
from flaxmed.models.pretrained import flatten
from flaxmed.models.weights import load, load_weights, open_weights, weights_of
from flaxmed.publish.card import split, stated_licence
from flaxmed.publish.licences import HUB_LICENCES, hub_licence
from flaxmed.types import DatasetInfo, InputError, Preprocessing, RunError, Task

# Where the package sends a file, it calls its own client in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

INFO = DatasetInfo("mine", Task.BINARY, ("benign", "malignant"), channels=1, positive=0)
EVIL = ('a: "b" # c', "- |pipe*star_", "---\nümlaut & <tag>\u2028\x07'", "```\n## no\n")
FILES = ["README.md", "config.json", "model.safetensors"]


def network(seed=0, info=INFO, **options):
    """A ResNet-18 for small grey images that knows its classes and its preprocessing."""
    options = {"in_channels": 1, "stem": "small", **options}
    model = create_model("resnet18", info.num_classes, rngs=nnx.Rngs(seed), **options)
    model.info, model.preprocessing = info, Preprocessing((0.3,), (0.2,))
    return model


@pytest.fixture(scope="module")
def model():
    """One network for the tests that change none; its running statistics are not the first ones."""
    found = network()
    rng = np.random.default_rng(0)
    for path, leaf in nnx.to_flat_state(nnx.state(found, nnx.BatchStat)):
        value = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        nnx.update(found, nnx.from_flat_state([(path, leaf.replace(value))]))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the real ResNet-18 on very few images, evaluated."""
    from flaxmed.data.phantom import load_phantom

    data = load_phantom(size=32, n_train=16, n_val=16, n_test=24)
    config = flaxmed.TrainConfig(stem="imagenet", epochs=1, batch_size=8)
    found = flaxmed.train(config, data, out=tmp_path_factory.mktemp("runs") / "one", progress=False)
    evaluate(found.dir)
    return found


@pytest.fixture
def copied(run, tmp_path):
    """The run's directory, to change."""
    return shutil.copytree(run.dir, tmp_path / "run")


def evaluate(run_dir):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluate_run(run_dir)


@pytest.fixture
def hub_package():
    """huggingface_hub, whose own reader of cards decides."""
    package = pytest.importorskip("huggingface_hub")
    for name in (
        "constants",
        "errors",
        "hf_api",
        "utils",
    ):  # what is not there before it is imported
        importlib.import_module(f"huggingface_hub.{name}")
    return package


def images(n=5, side=28):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 1), np.uint8)


def assert_same_weights(one, other):
    ours, theirs = flatten(nnx.state(one)), flatten(nnx.state(other))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(theirs[name], value, err_msg=name)


def assert_same_network(one, other, side=0):
    """Weights and description to the bit; what is predicted for images of that side, too."""
    assert_same_weights(one, other)
    for name in ("info", "preprocessing", "config", "stem_name", "in_channels", "num_classes"):
        assert getattr(one, name) == getattr(other, name), name
    if side:
        x = images(side=side)
        np.testing.assert_array_equal(flaxmed.predict(other, x), flaxmed.predict(one, x))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def front_matter(folder, yaml):
    text = (folder / "README.md").read_text(encoding="utf-8")
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.S)[1])


# ----------------------------------------------------------------------------- weights in memory


def test_the_weights_of_a_network_are_those_of_its_file(model, tmp_path):
    flaxmed.save_weights(model, tmp_path / "mine.safetensors", licence="mit")
    read = open_weights(tmp_path / "mine.safetensors")
    held = weights_of(model, read.source, licence="mit")
    for name, value in held.tensors.items():
        np.testing.assert_array_equal(read.tensors[name], value, err_msg=name)
    for name in ("source", "kind", "variant", "preprocessing", "info", "licence"):
        assert getattr(held, name) == getattr(read, name)


def test_weights_in_memory_go_into_another_network(model):
    other = network(1)
    report = load_weights(other, weights_of(model))
    assert not report.kept
    assert_same_weights(model, other)


# --------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(
    "info",
    [
        INFO,
        DatasetInfo("x-ray", Task.MULTILABEL, ("a", "b", "c"), channels=1, synthetic=True),
        DatasetInfo(EVIL[0], Task.ORDINAL, EVIL, channels=1, description=EVIL[1], licence=EVIL[2]),
    ],
    ids=["binary", "multi-label", "any names"],
)
def test_a_folder_gives_the_network_back(info, tmp_path):
    model = network(info=info)
    folder = flaxmed.save_pretrained(model, tmp_path / "new" / "net")
    assert names(folder) == FILES
    again = flaxmed.from_pretrained(folder)
    assert_same_network(model, again, side=28 if info is INFO else 0)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["network"], config["variant"], config["stem"]) == (
        *("resnet18", "torchvision"),
        "small",
    )
    assert config["classes"] == list(info.classes)
    assert (config["task"], config["in_channels"]) == (str(info.task), 1)
    assert config["preprocessing"] == {"mean": [0.3], "std": [0.2]}
    assert (config["flaxmed_version"], config["licence"]) == (flaxmed.__version__, "unknown")


@pytest.mark.parametrize(("network_name", "variant"), [("xception", "timm"), ("densenet121", None)])
def test_other_networks_and_variants(network_name, variant, tmp_path):
    model = create_model(
        network_name, 4, stem="small", variant=variant, in_channels=2, rngs=nnx.Rngs(0)
    )
    again = flaxmed.from_pretrained(flaxmed.save_pretrained(model, tmp_path / "net"))
    assert_same_weights(model, again)
    assert (again.config, again.stem_name, again.in_channels) == (model.config, "small", 2)
    assert not hasattr(again, "info")


@pytest.mark.slow
def test_a_run_gives_the_network_of_its_best_epoch(run, tmp_path):
    folder = flaxmed.save_pretrained(run.dir, tmp_path / "net")
    assert_same_network(run.model, flaxmed.from_pretrained(folder), side=32)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["image_size"] == [32, 32]


def test_a_run_is_one_with_a_file_of_weights_in_its_folder(copied, run, tmp_path):
    flaxmed.save_weights(network(), copied / "model.safetensors")
    folder = flaxmed.save_pretrained(copied, tmp_path / "net")
    assert_same_weights(run.model, flaxmed.from_pretrained(folder))
    assert "model-index" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_network_of_another_precision_computes_as_it_did(tmp_path):
    import jax.numpy as jnp

    model = network(dtype=jnp.bfloat16)
    folder = flaxmed.save_pretrained(model, tmp_path / "net")
    assert_same_network(model, flaxmed.from_pretrained(folder, dtype=jnp.bfloat16), side=28)


def test_other_files_of_a_folder_are_left_alone(model, tmp_path):
    (tmp_path / "LICENSE").write_text("mine")
    (tmp_path / "README.md").write_text("old")
    flaxmed.save_pretrained(model, tmp_path)
    assert names(tmp_path) == sorted([*FILES, "LICENSE"])
    assert (tmp_path / "LICENSE").read_text() == "mine"
    assert "ResNet-18: mine" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("last", [True, False], ids=["at the weights", "at the card"])
@pytest.mark.parametrize("there", [True, False], ids=["replaced", "new"])
def test_a_full_disk_leaves_what_was_there(model, last, there, tmp_path, monkeypatch):
    folder = tmp_path / "a" / "net"
    if there:
        flaxmed.save_pretrained(network(1), folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    calls = []

    def full(*_):
        calls.append(1)
        if len(calls) == (3 if last else 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="could not be written: No space left") as error:
        flaxmed.save_pretrained(model, folder)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert folder.exists() == there


def test_what_cannot_be_saved(model, copied, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "odd" / "README.md").mkdir(parents=True)
    for source, folder, says in (
        (model, copied, "run: holds a run; expected a folder for the network alone"),
        (model, tmp_path / "file", "file: cannot create this folder: File exists"),
        (model, tmp_path / "file" / "net", "net: cannot create this folder: Not a directory"),
        (model, tmp_path / "odd", "README.md: a folder; expected a file, or none"),
        (tmp_path / "no", tmp_path / "x", "no such weights; expected a file"),
        (tmp_path / "odd", tmp_path / "x", "a folder without model.safetensors"),
    ):
        with pytest.raises(InputError) as error:
            flaxmed.save_pretrained(source, folder)
        assert says in str(error.value)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError, match=r"^base model 'timm': expected OWNER/NAME"):
        flaxmed.save_pretrained(model, tmp_path / "x", base_model="timm")


# ----------------------------------------------------------------------------------------- cards


def test_the_card_of_a_network_is_what_the_hub_reads(yaml, hub_package, tmp_path):
    info = DatasetInfo(EVIL[0], Task.MULTICLASS, EVIL, channels=1, synthetic=True)
    folder = flaxmed.save_pretrained(
        network(info=info),
        tmp_path / "net",
        licence="CC BY 4.0",
        base_model="timm/a1",
    )
    values = front_matter(folder, yaml)
    assert values == {
        "license": "cc-by-4.0",
        "library_name": "flaxmed",
        "pipeline_tag": "image-classification",
        "tags": [
            *("jax", "flax", "image-classification", "not-a-medical-device", "resnet18"),
            "synthetic-data",
        ],
        "base_model": "timm/a1",
    }
    assert hub_package.metadata_load(folder / "README.md") == values
    card = hub_package.ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == values
    assert card.text.lstrip().startswith("# ResNet-18: a: ")


def test_class_names_stay_in_their_cells(tmp_path):
    info = DatasetInfo("mine", Task.MULTICLASS, EVIL, channels=1)
    folder = flaxmed.save_pretrained(network(info=info), tmp_path / "net")
    text = (folder / "README.md").read_text(encoding="utf-8")
    rows = text.partition("| logit | name |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) == len(EVIL)
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 3
        assert not re.search(r"(?<!\\)[<`*]", row)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert len(re.findall(r"^```", text, re.M)) == 2


def test_the_card_of_a_run_is_its_own(run, yaml, hub_package, tmp_path):
    folder = flaxmed.save_pretrained(run.dir, tmp_path / "net", licence="apache-2.0")
    values = front_matter(folder, yaml)
    assert hub_package.metadata_load(folder / "README.md") == values
    assert (values["license"], values["library_name"]) == ("apache-2.0", "flaxmed")
    assert not {"license_name", "datasets"} & values.keys()
    assert "synthetic-data" in values["tags"]
    card = hub_package.ModelCard.load(folder / "README.md")
    p = run.predictions["test"]
    found = {result.metric_type: result for result in card.data.eval_results}
    measured = accuracy_score(p.labels, p.probabilities, task=p.task)
    assert found["accuracy"].metric_value == measured
    assert found["accuracy"].dataset_type == "phantom"
    theirs = (run.dir / "MODEL_CARD.md").read_text(encoding="utf-8")
    ours = (folder / "README.md").read_text(encoding="utf-8")
    usage = re.search(r"\n## How to use\n.*?(?=\n## Intended use)", ours, re.S)[0]
    assert split(ours)[1].replace(usage, "").strip() == split(theirs)[1].strip()


def test_what_an_author_wrote_stays(copied, yaml, tmp_path):
    path = copied / "MODEL_CARD.md"
    text = path.read_text(encoding="utf-8")
    text = text.replace('license: "other"\nlicense_name: "author-to-complete"\n', "license: mit\n")
    text = text.replace("datasets:\n", "language: en\ndatasets:\n  - me/lesions\n")
    text = text.replace("*Author to complete.*", "Ours.", 1)
    path.write_text(text, encoding="utf-8")
    folder = flaxmed.save_pretrained(copied, tmp_path / "net")
    values = front_matter(folder, yaml)
    assert (values["license"], values["language"]) == ("mit", "en")
    assert values["datasets"] == ["me/lesions"]
    assert "Ours." in (folder / "README.md").read_text(encoding="utf-8")
    assert open_weights(folder).licence == "mit"
    other = flaxmed.save_pretrained(copied, tmp_path / "other", licence="cc0-1.0")
    assert front_matter(other, yaml)["license"] == "cc0-1.0"


def test_a_folder_keeps_its_card_when_it_is_saved_again(run, yaml, tmp_path):
    first = flaxmed.save_pretrained(run.dir, tmp_path / "one", base_model="me/before")
    second = flaxmed.save_pretrained(first, tmp_path / "two", licence="mit")
    assert front_matter(first, yaml)["license"] == "unknown"
    values = front_matter(second, yaml)
    assert (values["license"], values["base_model"]) == ("mit", "me/before")
    old, new = ((f / "README.md").read_text(encoding="utf-8") for f in (first, second))
    assert split(new)[1] == split(old)[1].replace('pretrained("one")', 'pretrained("two")')
    config = json.loads((second / "config.json").read_text())
    assert (config["image_size"], config["base_model"]) == ([32, 32], "me/before")
    assert config["licence"] == open_weights(second).licence == "mit"
    assert_same_weights(run.model, flaxmed.from_pretrained(second))


def test_a_run_that_began_from_published_weights_names_them(run, yaml, tmp_path):
    shutil.copytree(run.dir, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    published = "timm/resnet18.a1_in1k"
    for weights, expected in ((published, published), ("my/run", None)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": weights}))
        folder = flaxmed.save_pretrained(tmp_path / "run", tmp_path / "saved")
        assert front_matter(folder, yaml).get("base_model") == expected


def test_a_licence_is_what_was_said_last(model, yaml, tmp_path):
    """The argument, else what an author wrote into the card, else what the weights say."""
    folder = flaxmed.save_pretrained(model, tmp_path / "one", licence="Our own terms")
    path = folder / "README.md"
    terms = 'license_name: "our-own-terms"\n'
    path.write_text(path.read_text().replace(terms, f"{terms}license_link: LICENSE\n"))
    again = flaxmed.save_pretrained(folder, tmp_path / "two")
    assert front_matter(again, yaml)["license_link"] == "LICENSE"
    assert open_weights(again).licence == "Our own terms"
    path.write_text(path.read_text().replace('"our-own-terms"', '"others"'))
    assert open_weights(flaxmed.save_pretrained(folder, tmp_path / "two")).licence == "others"
    last = flaxmed.save_pretrained(folder, tmp_path / "two", licence="mit")
    values = front_matter(last, yaml)
    assert values["license"] == open_weights(last).licence == "mit"
    assert not {"license_name", "license_link"} & values.keys()


def test_a_card_of_other_predictions_is_refused(copied, tmp_path):
    path = copied / "report.json"
    report = json.loads(path.read_text())
    report["metrics"]["loss"]["value"] += 1e-3
    path.write_text(json.dumps(report))
    with pytest.raises(InputError, match=r"MODEL_CARD\.md: tells of other predictions .* \(loss"):
        flaxmed.save_pretrained(copied, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_run_that_goes_on_has_no_results_yet(copied, yaml, tmp_path):
    (copied / "run.json").unlink()  # as when settings are changed
    folder = flaxmed.save_pretrained(copied, tmp_path / "net")
    assert "model-index" not in front_matter(folder, yaml)
    assert "No test result is recorded" in (folder / "README.md").read_text()


def test_where_the_images_lie_on_this_machine_is_nobodys_business(tmp_path):
    info = DatasetInfo(
        "mine", Task.BINARY, ("a", "b"), channels=1, source=str(tmp_path / "ward 7" / "mine.npz")
    )
    folder = flaxmed.save_pretrained(network(info=info), tmp_path / "net")
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    assert flaxmed.from_pretrained(folder).info.source == "mine.npz"


@pytest.mark.parametrize("kind", ["network", "run", "nothing known", "two channels"])
def test_the_code_in_the_card_runs(kind, model, run, tmp_path, monkeypatch, capsys):
    from PIL import Image

    source = {"network": model, "run": run.dir}.get(kind)
    if source is None:
        channels = 2 if kind == "two channels" else 3
        source = create_model("resnet18", 2, in_channels=channels, stem="small", rngs=nnx.Rngs(0))
    folder = flaxmed.save_pretrained(source, tmp_path / "a net")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(images(1, 40)[0, ..., 0]).save("image.png")
    np.save("images.npy", np.zeros((1, 28, 28, 2), np.uint8))
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out
    for name in {"network": INFO.classes, "run": run.model.info.classes}.get(kind, ("[[",)):
        assert name in said


@pytest.mark.parametrize(
    ("licence", "hub"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CC BY-NC 4.0", {"license": "cc-by-nc-4.0"}),
        ("unknown", {"license": "unknown"}),
        ("GPL-2.0-or-later", {"license": "other", "license_name": "gpl-2.0-or-later"}),
        ('our: "terms"\n', {"license": "other", "license_name": "our-terms"}),
    ],
)
def test_licences(licence, hub, yaml, model, tmp_path):
    assert hub_licence(licence) == hub
    folder = flaxmed.save_pretrained(model, tmp_path / "net", licence=licence)
    assert front_matter(folder, yaml).items() >= hub.items()
    assert json.loads((folder / "config.json").read_text())["licence"] == licence.replace("\n", " ")
    assert {known.licence for known in load.hub.KNOWN.values()} <= HUB_LICENCES


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        ("license: mit", "mit"),
        ("license: 'cc-by-4.0'  # chosen", "cc-by-4.0"),
        ("license: other\nlicense_name: our-terms\nlicense_link: LICENSE", "our-terms"),
        ('license: "other"\nlicense_name: "author-to-complete"', "unknown"),
        ("license:\n  - mit\n  - apache-2.0", "unknown"),
        ("tags:\n- a", "unknown"),
    ],
)
def test_the_licence_that_a_card_states(lines, licence):
    assert stated_licence(f"---\n{lines}\n---\n# T\n") == licence


# --------------------------------------------------------------------------------------- the hub


@pytest.fixture
def server(hub_package, tmp_path, monkeypatch):
    found = Hub()
    with found.running():
        monkeypatch.setattr(hub_package.constants, "HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the package's between its tries
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        point(monkeypatch, found.address)
        get = functools.partial(
            hub_package.hf_hub_download, endpoint=found.address, cache_dir=tmp_path / "cache"
        )
        monkeypatch.setattr(hub_package, "hf_hub_download", get)
        yield found


def point(patch, address):
    """Let the package send what it sends to another hub."""
    package = importlib.import_module("huggingface_hub")
    api = functools.partial(package.hf_api.HfApi, endpoint=address)
    patch.setattr(package, "HfApi", api)


def test_a_network_goes_to_the_hub_and_back(server, model):
    address = flaxmed.push_to_hub(model, "me/breast", licence="mit", message="The first")
    assert address == f"{server.address}/me/breast"
    assert sorted(server.files) == [f"me/breast/{name}" for name in FILES]
    assert server.commits == ["The first"]
    assert server.private == {"me/breast": False}
    assert_same_network(model, flaxmed.from_pretrained("me/breast"), side=28)
    assert b'flaxmed.from_pretrained("me/breast")' in server.files["me/breast/README.md"]


def test_runs_and_folders_go_too(server, run, tmp_path):
    flaxmed.push_to_hub(run.dir, "me/run", private=True)
    assert server.private == {"me/run": True}
    assert_same_network(run.model, flaxmed.from_pretrained("me/run"))
    folder = flaxmed.save_pretrained(run.dir, tmp_path / "net")
    (folder / "notes.txt").write_text("not for others")
    flaxmed.push_to_hub(folder, "me/run", private=True)
    flaxmed.push_to_hub(folder, "me/folder")
    assert "me/folder/notes.txt" not in server.files
    for name in FILES:
        same = server.files[f"me/run/{name}"].replace(b"me/run", b"me/folder")
        assert server.files[f"me/folder/{name}"] == same
    assert sum(line.startswith("PUT") for line in server.asked) == 1  # the same weights, once


def test_what_the_hub_has_is_the_base_of_what_is_made_of_it(server, model, tmp_path, yaml):
    flaxmed.push_to_hub(model, "me/breast", licence="mit")
    values = front_matter(flaxmed.save_pretrained("me/breast", tmp_path / "net"), yaml)
    assert (values["base_model"], values["license"]) == ("me/breast", "mit")


@pytest.mark.parametrize("name", ["breast", "me/a/b", "me/", "me/a b", "me/a--b", "me/.a", "me/ä"])
def test_a_bad_name_is_refused_before_anything_is_sent(name, server, hub_package, model):
    with pytest.raises(InputError, match=f"^repository '{name}': expected OWNER/NAME"):
        flaxmed.push_to_hub(model, name)
    assert not server.asked
    if "/" in name[:-1]:
        with pytest.raises(hub_package.errors.HFValidationError):
            hub_package.utils.validate_repo_id(name)


def no_package(patch, server):
    patch.setitem(sys.modules, "huggingface_hub", None)


def no_token(patch, server):
    patch.delenv("HF_TOKEN")


def wrong_token(patch, server):
    patch.setenv("HF_TOKEN", "hf_of_another")


def offline(patch, server):
    patch.setattr(sys.modules["huggingface_hub"].constants, "HF_HUB_OFFLINE", True)


def no_network(patch, server):
    point(patch, "http://127.0.0.1:9")


def bad_card(patch, server):
    server.faults["me/net"] = "bad card"


def broken_off(patch, server):
    server.faults["me/net"] = "cut"


def full_storage(patch, server):
    server.faults["me/net"] = "full"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (no_package, r"the Hugging Face hub needs a package: pip install 'flaxmed\[weights\]'"),
        (no_token, "not logged in; use hf auth login, HF_TOKEN or token=..."),
        (wrong_token, r"the token was refused \(401\); use hf auth login"),
        (offline, "HF_HUB_OFFLINE is set, so that nothing can be sent"),
        (no_network, "the Hugging Face hub cannot be reached"),
        (bad_card, r'could not be sent: Invalid metadata in README\.md\. - "license" must be one'),
        (broken_off, "the Hugging Face hub cannot be reached, or broke off"),
        (full_storage, r"could not be sent: LFS batch \w+ returned errors: .*storage is full"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(fault, says, server, model, monkeypatch):
    fault(monkeypatch, server)
    with pytest.raises(InputError, match=f"^me/net: {says}") as error:
        flaxmed.push_to_hub(model, "me/net")
    assert "\n" not in str(error.value)
    assert "hf_of" not in str(error.value)
    assert not server.files
    assert not server.commits


def test_another_owners_name_needs_rights_there(server, model):
    with pytest.raises(InputError, match=r"^you/net: the token may not write there \(403\).* you$"):
        flaxmed.push_to_hub(model, "you/net")


def test_private_weights_do_not_go_where_all_see_them(server, model):
    flaxmed.push_to_hub(model, "me/net")
    with pytest.raises(InputError, match="me/net: is there already, and public; nothing was sent"):
        flaxmed.push_to_hub(network(1), "me/net", private=True)
    assert_same_weights(model, flaxmed.from_pretrained("me/net"))


# ------------------------------------------------------------------------------ the command line


def test_the_command_line_writes_the_folder(run, tmp_path, capsys):
    folder = tmp_path / "net"
    words = ["convert-weights", str(run.dir), f"{folder}/", "--licence", "mit"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"written to {folder}\n"
    assert names(folder) == FILES
    assert open_weights(folder).licence == "mit"
    again = tmp_path / "again.safetensors"  # a folder has a config.json, and is no run
    assert main(["convert-weights", str(folder), str(again), "--licence", "cc0-1.0"]) == 0
    assert open_weights(again).licence == "cc0-1.0"
    assert main(["convert-weights", str(folder), f"{folder}2/", "--naming", "timm"]) == 2
    assert "--naming timm: a folder has flaxmed's names" in capsys.readouterr().err
    assert not (tmp_path / "net2").exists()


def test_the_command_line_publishes(server, model, tmp_path):
    """In a process of its own, as users have it: the hub is where HF_ENDPOINT says."""
    folder = flaxmed.save_pretrained(model, tmp_path / "net")
    environment = {**os.environ, "HF_ENDPOINT": server.address, "HF_HUB_DISABLE_XET": "1"}
    words = ["push-weights", str(folder), "me/net", "--private", "--licence", "mit"]
    code = f"import sys; from flaxmed.cli import main; sys.exit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"published at {server.address}/me/net"
    assert server.private == {"me/net": True}
    assert_same_network(model, flaxmed.from_pretrained("me/net"))


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    assert main(["push-weights", str(tmp_path), "mine"]) == 2
    assert capsys.readouterr().err.startswith("flaxmed: error: repository 'mine': expected OWNER/")
