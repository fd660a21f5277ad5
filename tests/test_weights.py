"""Published weights: each source's format, loaded and compared with its own library's logits."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import published as published_files
from oracles.cases import random_tensors
from oracles.compare import require
from oracles.published import cadene, monai, old_dots, reference

import flaxmed
from flaxmed.cli import main
from flaxmed.inference import normalise
from flaxmed.models import create_model
from flaxmed.models.pretrained import table_of, to_foreign
from flaxmed.models.weights import known, list_weights, load, load_weights, open_weights
from flaxmed.models.weights.files import read_weights
from flaxmed.models.weights.known import HALF, IMAGENET, KNOWN, HubFile, imagenet_classes
from flaxmed.models.weights.recognise import Kind, recognise
from flaxmed.types import DatasetInfo, InputError, Preprocessing, Task

TOLERANCE = 1e-4  # of the largest logit, in float32


@pytest.fixture
def torch():
    require("torchvision")
    return importlib.import_module("torch")


def images(n, side, channels=3):
    return np.random.default_rng(0).normal(size=(n, side, side, channels)).astype(np.float32)


def assert_same_logits(model, torch_model, x, torch):
    with torch.no_grad():
        expected = torch_model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    found = np.asarray(nnx.jit(lambda model, x: model(x))(model, jnp.asarray(x)))
    worst = np.abs(found - expected).max()
    print(f"max |difference of logits| {worst:.1e}, of logits up to {np.abs(expected).max():.1f}")
    assert worst <= TOLERANCE * np.abs(expected).max()


SPELLINGS = {
    "resnet18, torchvision": ("resnet18", dict, 64),
    "densenet121, torchvision": ("densenet121", dict, 64),
    "densenet121, the published file's dots": ("densenet121", old_dots, 64),
    "densenet121, MONAI": ("densenet121", monai, 64),
    "xception, timm": ("legacy_xception", dict, 96),
    "xception, Cadene": ("legacy_xception", cadene, 96),
}
WRITERS = {
    "zip": lambda state, path: importlib.import_module("torch").save(state, path),
    "legacy": published_files.save_legacy,
    "safetensors": published_files.save_safetensors,
}


FILES = [
    *((case, "zip") for case in SPELLINGS),
    ("resnet18, torchvision", "legacy"),
    ("resnet18, torchvision", "safetensors"),
    ("xception, Cadene", "safetensors"),
]


@pytest.mark.parametrize(("case", "writer"), FILES)
def test_logits_are_the_librarys_own(case, writer, torch, tmp_path, capsys):
    name, spell, side = SPELLINGS[case]
    torch_model = reference(name)
    path = tmp_path / "weights"
    WRITERS[writer](spell(torch_model.state_dict()), path)
    network = "xception" if name == "legacy_xception" else name
    model = create_model(network, weights=path, rngs=nnx.Rngs(0))
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"{path}: ")
    assert len(said) == 2  # the step counters, and nothing else
    assert "num_batches_tracked" in said[1]
    assert_same_logits(model, torch_model, images(2, side), torch)


# -------------------------------------------------------------- other sources, heads and channels


def test_a_checkpoint_of_medmnist(torch, tmp_path):
    torch_model, checkpoint = published_files.medmnist()
    torch.save(checkpoint, tmp_path / "resnet18_28_1.pth")
    model = create_model(
        "resnet18", 5, in_channels=1, weights=tmp_path / "resnet18_28_1.pth", rngs=nnx.Rngs(0)
    )
    assert model.stem_name == "small"
    assert model.preprocessing == HALF  # as in MedMNIST's training script
    assert_same_logits(model, torch_model, images(2, 28, 1), torch)


def test_a_state_of_torchxrayvision(torch, tmp_path, capsys):
    torch_model = reference("densenet121", 18, 1)
    points = torch.rand(18)
    points[14:] = torch.nan  # as published: outputs that were not trained have none
    state = {**torch_model.state_dict(), "op_threshs": points}
    torch.save(state, tmp_path / "nih.pt")
    model = create_model(
        "densenet121", 18, in_channels=1, weights=tmp_path / "nih.pt", rngs=nnx.Rngs(0)
    )
    said = capsys.readouterr().err
    assert "left out: op_threshs (torchxrayvision's operating points" in said
    black_and_white = np.asarray(
        normalise(jnp.array([[[[0], [255]]]], jnp.uint8), model.preprocessing)
    )
    assert black_and_white.ravel().tolist() == [-1024, 1024]  # its range
    assert model.info.task is Task.MULTILABEL
    assert model.info.classes[:2] == ("Atelectasis", "Consolidation")
    assert model.info.classes[14:16] == ("Lung Lesion (not trained)", "Fracture (not trained)")
    assert_same_logits(model, torch_model, images(2, 64, 1), torch)


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory):
    """torchvision's ResNet-18 with random values, as it is published."""
    require("torchvision")
    torch = importlib.import_module("torch")
    path = tmp_path_factory.mktemp("published") / "resnet18.pth"
    torch.save(reference("resnet18").state_dict(), path)
    return path


@pytest.fixture
def published(resnet_file, monkeypatch):
    """The file in the place of timm's, with what the table knows of it."""
    entry = KNOWN["timm/resnet18.tv_in1k"]
    monkeypatch.setattr(load.hub, "fetch", lambda file: resnet_file)
    return entry.name


def kernels(model):
    return {
        "stem": np.asarray(model.stem.conv.kernel[...]),
        "stage": np.asarray(model.stage1[0].conv1.kernel[...]),
        "head": np.asarray(model.classifier.kernel[...]),
    }


def test_another_number_of_classes_gets_a_new_head(published, capsys):
    whole = create_model("resnet18", weights=published, rngs=nnx.Rngs(0))
    model = create_model("resnet18", 2, weights=published, rngs=nnx.Rngs(0))
    said = capsys.readouterr().err
    assert "new: classifier.bias, classifier.kernel" in said
    assert "left out: fc.weight and 1 more like it (the file has 1000 classes" in said
    fresh = create_model("resnet18", 2, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(kernels(model)["head"], kernels(fresh)["head"])
    np.testing.assert_array_equal(kernels(model)["stage"], kernels(whole)["stage"])
    assert whole.info.classes == imagenet_classes()
    assert not hasattr(model, "info")
    assert model.preprocessing == whole.preprocessing == IMAGENET


def test_grey_images_are_repeated_where_channels_are_normalised_differently(published):
    model = create_model("resnet18", in_channels=1, weights=published, rngs=nnx.Rngs(0))
    assert model.in_channels == 3
    grey = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1), np.uint8)
    rgb = np.repeat(grey, 3, axis=-1)
    np.testing.assert_allclose(
        flaxmed.predict(model, grey), flaxmed.predict(model, rgb), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("channels", [1, 4])
def test_where_all_are_normalised_alike_the_first_kernel_is_summed(channels, resnet_file, torch):
    """Exact: grey copies give the logits that they gave before."""
    weights = open_weights(resnet_file)
    model = create_model("resnet18", in_channels=channels, weights=resnet_file, rngs=nnx.Rngs(0))
    assert model.in_channels == channels
    kernel = weights.tensors["conv1.weight"]
    np.testing.assert_allclose(
        kernels(model)["stem"][:, :, 0],
        kernel.sum(axis=1).transpose(1, 2, 0) / channels,
        rtol=1e-5,
        atol=1e-7,
    )
    grey = images(2, 64, 1)
    with torch.no_grad():
        rgb = torch.from_numpy(np.repeat(grey, 3, axis=-1).transpose(0, 3, 1, 2).copy())
        expected = reference("resnet18")(rgb).numpy()
    found = nnx.jit(lambda m, x: m(x))(model, jnp.asarray(np.repeat(grey, channels, axis=-1)))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max())


def test_other_channels_than_the_files_are_said(tmp_path, capsys):
    """Whether they are summed, and whether the images are then normalised as they were."""
    path, summed = tmp_path / "w.safetensors", "note: the first convolution's kernels are summed"
    theirs = create_model("resnet18", 2, stem="small", rngs=nnx.Rngs(1))
    for own, channels, said in (
        (None, 1, f"{summed} over the file's 3 channels"),
        (HALF, 4, f"{summed} over the file's 3 channels and divided among 4"),
        (
            IMAGENET,
            4,
            f"{summed} over the file's 3 channels and divided among 4; these have one mean for "
            "all, not the file's 3: a start for training",
        ),
        (IMAGENET, 1, None),  # the images are repeated
        (None, 3, None),
    ):
        theirs.preprocessing = own
        flaxmed.save_weights(theirs, path)
        create_model("resnet18", in_channels=channels, weights=path, rngs=nnx.Rngs(0))
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == said or (said is None and "note" not in last), (own, channels)
    report = load_weights(network := _one_channel(), path, keep=["stem"])
    assert not report.notes
    assert network.in_channels == 1


def _one_channel():
    return create_model("resnet18", 2, in_channels=1, stem="small", rngs=nnx.Rngs(0))


def test_more_channels_take_the_mean_preprocessing(published):
    model = create_model("resnet18", 2, in_channels=4, weights=published, rngs=nnx.Rngs(0))
    assert model.preprocessing == Preprocessing(
        (float(np.mean(IMAGENET.mean)),), (float(np.mean(IMAGENET.std)),)
    )


# ------------------------------------------------------------------------------ what is refused


def test_another_stem_is_refused_unless_it_is_to_be_new(published):
    with pytest.raises(InputError, match=r'made for stem="imagenet" \(7x7, stride 2\)'):
        create_model("resnet18", 2, stem="small", weights=published, rngs=nnx.Rngs(0))
    model = create_model("resnet18", 2, stem="small", rngs=nnx.Rngs(0))
    before = kernels(model)
    report = load_weights(model, published, keep=["stem"])
    assert "stem.conv.kernel" in report.kept
    np.testing.assert_array_equal(kernels(model)["stem"], before["stem"])
    assert not np.array_equal(kernels(model)["stage"], before["stage"])


@pytest.mark.parametrize("own", ["imagenet", "small"])
def test_xceptions_other_stem_takes_the_kernels_and_it_is_said(own, tmp_path, capsys):
    other = {"imagenet": "small", "small": "imagenet"}[own]
    path = tmp_path / "xception.safetensors"
    theirs = create_model("xception", 2, stem=own, rngs=nnx.Rngs(1))
    flaxmed.save_weights(theirs, path)
    create_model("xception", weights=path, stem=own, rngs=nnx.Rngs(0))
    assert "note:" not in capsys.readouterr().err
    model = create_model("xception", weights=path, stem=other, rngs=nnx.Rngs(0))
    assert model.stem_name == other
    kernels = [np.asarray(m.stem.conv1.kernel[...]) for m in (model, theirs)]
    np.testing.assert_array_equal(*kernels)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f'note: the stem\'s kernels were trained in stem="{own}" (stride ')
    assert f'serve in stem="{other}"' in said
    report = load_weights(model, path, keep=["stem"])
    assert not report.notes
    assert "stem.conv1.kernel" in report.kept


def spoiled(tensors, **changes):
    result = {**tensors, **changes}
    return {name: value for name, value in result.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layer1.0.conv1.weight": None}, "missing 1: layer1.0.conv1.weight"),
        ({"layer5.weight": np.zeros(2)}, "unexpected 1: layer5.weight"),
        ({"layer1.0.bn1.bias": np.zeros(3)}, "misshapen 1: layer1.0.bn1.bias 3 (expected 64)"),
        (
            {"layer1.0.bn1.bias": None, "more": np.zeros(1)},
            "missing 1: layer1.0.bn1.bias; unexpected 1: more",
        ),
        ({"conv1.weight": np.zeros((64, 3, 7))}, "conv1.weight has shape (64, 3, 7)"),
        ({"fc.weight": np.zeros(1000)}, "fc.weight has shape (1000,)"),
        ({"layer1.0.conv3.weight": np.zeros(1)}, "holds a ResNet of bottleneck blocks"),
        ({"layer1.2.conv1.weight": np.zeros(1)}, "a ResNet with more blocks than ResNet-18's"),
    ],
)
def test_what_does_not_fit_is_listed(changes, says, resnet_file, published, monkeypatch):
    file = read_weights(resnet_file)
    other = dataclasses.replace(file, tensors=spoiled(file.tensors, **changes))
    monkeypatch.setattr(load, "read_weights", lambda path: other)
    with pytest.raises(InputError) as error:
        create_model("resnet18", 1000, weights=published, rngs=nnx.Rngs(0))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("timm/xception41.tf_in1k", "xception41 is Google's aligned Xception"),
        ("weights.pth", "no such weights; expected a file, a repository OWNER/NAME, or one of"),
        ("a/b/c", "no such weights; expected a file"),
    ],
)
def test_unknown_names(source, says, monkeypatch):
    monkeypatch.setattr(load.hub, "_from_hub", lambda file: pytest.fail("asked the hub"))
    with pytest.raises(InputError) as error:
        open_weights(source)
    assert says in str(error.value)


def test_the_wrong_network_is_refused_by_name(published):
    with pytest.raises(InputError, match="weights of resnet18, not of xception"):
        create_model("xception", 2, weights=published, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="made for the variant 'torchvision', not 'keras'"):
        create_model("resnet18", 2, weights=published, variant="keras", rngs=nnx.Rngs(0))


# ---------------------------------------------------------------------------------- the table


def test_the_table_says_what_timm_says(torch):
    """Where they are, what they were made for, under which licence."""
    require("timm")
    models = importlib.import_module("timm.models")
    checked = 0
    for entry in KNOWN.values():
        if not entry.name.startswith("timm/"):
            continue
        cfg = models.get_pretrained_cfg(entry.name.removeprefix("timm/"))
        if isinstance(entry.file, HubFile):
            assert entry.file.repo == cfg.hf_hub_id
        else:
            assert entry.file.url == cfg.url
        size = cfg.input_size[1:]
        assert size == (entry.image_size, entry.image_size)
        assert entry.crop == cfg.crop_pct
        assert entry.interpolation == cfg.interpolation
        assert entry.licence == cfg.license
        mean = entry.preprocessing.mean * (3 // len(entry.preprocessing.mean))
        std = entry.preprocessing.std * (3 // len(entry.preprocessing.std))
        assert (mean, std) == (tuple(cfg.mean), tuple(cfg.std))
        checked += 1
    assert checked == 10


def test_the_table_says_what_torchvision_says(torch):
    models = importlib.import_module("torchvision").models
    for name, found in (
        ("torchvision/resnet18", models.ResNet18_Weights.IMAGENET1K_V1),
        ("torchvision/densenet121", models.DenseNet121_Weights.IMAGENET1K_V1),
    ):
        entry, transforms = KNOWN[name], found.transforms()
        assert entry.file.url == found.url
        assert f"-{entry.file.sha256}." in found.url
        assert transforms.crop_size == [entry.image_size]
        assert transforms.crop_size[0] / transforms.resize_size[0] == entry.crop
        assert transforms.interpolation.value == entry.interpolation
        assert (entry.preprocessing.mean, entry.preprocessing.std) == (
            tuple(transforms.mean),
            tuple(transforms.std),
        )
        assert tuple(found.meta["categories"]) == imagenet_classes()


def test_the_command_lists_what_is_known(capsys):
    assert main(["weights"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()[: 1 + len(KNOWN)]
    assert " ".join(head.split()) == (
        "name network variant epsilon padding size crop interpolation mean std licence"
    )
    assert [row.split()[0] for row in rows] == list_weights()
    found = {row.split()[0]: " ".join(row.split()[1:]) for row in rows}
    assert found["keras/xception"] == (
        "xception keras 0.001 SAME 299 0.875 bilinear 0.5 0.5 apache-2.0"
    )
    assert found["timm/densenet121.ra_in1k"].startswith("densenet121 torchvision 1e-05 symmetric ")
    assert main(["weights", "xception"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("keras/xception")


def test_the_command_says_all_of_one(capsys):
    said = {}
    for name in KNOWN:
        assert main(["weights", name]) == 0
        lines = capsys.readouterr().out.splitlines()
        said[name] = dict(line.split(maxsplit=1) for line in lines)
        assert said[name]["name"] == name
        assert said[name]["licence"] == KNOWN[name].licence
    cadenes = said["timm/legacy_xception.tf_in1k"]
    assert cadenes["range"] == "images of 0 to 1 become -1 to 1"
    assert cadenes["resize"] == "the shorter side to 333, then the middle"
    assert cadenes["file"].endswith("/xception-43020ad28.pth")
    assert cadenes["digest"] == "SHA-256, which begins 43020ad28"
    assert said["keras/xception"]["digest"] == "MD5 0a58e3b7378bc2990ea3b43d5981f1f6"
    assert main(["weights", "keras/Xception"]) == 2
    assert "no such weights; did you mean keras/xception?" in capsys.readouterr().err


def test_every_name_is_a_networks():
    assert set(list_weights()) == set(KNOWN)
    for network in flaxmed.list_models():
        for name in list_weights(network):
            entry = KNOWN[name]
            assert entry.network == network
            assert entry.variant in flaxmed.list_variants(network)
    assert known.HALF == HALF == Preprocessing((0.5,), (0.5,))


def test_a_copy_of_a_published_file_is_known_by_its_digest(resnet_file, tmp_path, monkeypatch):
    copy = tmp_path / "resnet18-f37072fd.pth"
    copy.write_bytes(resnet_file.read_bytes())
    assert open_weights(copy).published is None  # of that name, but not that file
    entry = KNOWN["torchvision/resnet18"]
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()[:8]
    same = dataclasses.replace(entry, file=dataclasses.replace(entry.file, sha256=digest))
    monkeypatch.setitem(KNOWN, entry.name, same)
    weights = open_weights(copy)
    assert (weights.published, weights.preprocessing) == (same, IMAGENET)
    assert weights.source == str(copy)
    assert weights.info.classes == imagenet_classes()


# ------------------------------------------------------------------------------ written again


@pytest.mark.parametrize("naming", ["flaxmed", "torchvision"])
def test_conversion_is_exact_both_ways(naming, resnet_file, torch, tmp_path, capsys):
    """From torch's file to ours or to their names, and into torchvision's own network."""
    path = tmp_path / "converted.safetensors"
    assert main(["convert-weights", str(resnet_file), str(path), "--naming", naming]) == 0
    assert "left out: bn1.num_batches_tracked and 19 more like it" in capsys.readouterr().err
    weights = open_weights(path)
    assert weights.kind.naming == naming
    back = tmp_path / "back.safetensors"
    assert main(["convert-weights", str(path), str(back), "--naming", "torchvision"]) == 0
    state = importlib.import_module("safetensors.torch").load_file(back)
    fresh = importlib.import_module("torchvision").models.resnet18(weights=None)
    assert not fresh.load_state_dict(state, strict=True).missing_keys
    for name, value in reference("resnet18").state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(fresh.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("name", "spell", "naming"),
    [("densenet121", old_dots, "torchvision"), ("legacy_xception", cadene, "timm")],
)
def test_what_is_converted_to_ours_and_back_is_what_it_was(name, spell, naming, torch, tmp_path):
    """The published spelling goes in, the one of today comes out."""
    own, back = tmp_path / "own.safetensors", tmp_path / "back.safetensors"
    theirs = reference(name)
    published_files.save_legacy(spell(theirs.state_dict()), tmp_path / "in.pth")
    flaxmed.convert_weights(tmp_path / "in.pth", own)
    flaxmed.convert_weights(own, back, naming=naming)
    state = importlib.import_module("safetensors.torch").load_file(back)
    expected = {n: v for n, v in theirs.state_dict().items() if "num_batches" not in n}
    assert set(state) == set(expected)
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
    copy.deepcopy(theirs).load_state_dict(state)


def test_a_file_of_ours_says_what_it_takes_to_use_it(tmp_path):
    path, rngs = tmp_path / "mine.safetensors", nnx.Rngs(0)
    model = create_model("xception", 2, in_channels=1, stem="small", variant="timm", rngs=rngs)
    model.info = DatasetInfo("mine", Task.BINARY, ("benign", "malignant"), channels=1, positive=0)
    model.preprocessing = Preprocessing((0.3,), (0.2,))
    flaxmed.save_weights(model, path, licence="CC BY 4.0")
    again = create_model("xception", weights=path, in_channels=1, rngs=nnx.Rngs(1))
    assert (again.info, again.preprocessing) == (model.info, model.preprocessing)
    assert (again.stem_name, again.num_classes, again.config) == ("small", 2, model.config)
    assert open_weights(path).licence == "CC BY 4.0"
    grey = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
    np.testing.assert_array_equal(flaxmed.predict(again, grey), flaxmed.predict(model, grey))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["OUT.pth"], "OUT.pth: expected a name that ends in .safetensors"),
        (["OUT.safetensors", "--naming", "keras"], "unknown naming 'keras' for ResNet18"),
        (["no/OUT.safetensors"], "no: cannot write here: No such file or directory"),
    ],
)
def test_what_cannot_be_converted(words, says, resnet_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert-weights", str(resnet_file), *words]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("flaxmed: error: ")
    assert says in err
    assert not list(tmp_path.iterdir())


class Payload:
    """What an unrestricted unpickler would run."""

    def __reduce__(self):
        return (os.mkdir, ("ran",))


def lying(content):
    """A header of safetensors whose first tensor claims the bytes of the second."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first, second = [entry["data_offsets"] for name, entry in header.items() if name[0] != "_"][:2]
    first[:] = second
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    return length.to_bytes(8, "little") + text + content[8 + length :]


BAD = {
    "truncated.pth": "a truncated or damaged archive",
    "truncated.safetensors": "truncated",
    "shape.pth": "misshapen 1: fc.bias 999 (expected 1000)",
    "nan.pth": "values that are not finite in layer1.0.bn1.bias",
    "more.pth": "unexpected 1: layer5.bias",
    "payload.pth": "refers to posix.mkdir, which is neither a tensor nor",
    "lying.safetensors": "damaged or truncated (Error while deserializing header: invalid offset",
}


@pytest.fixture(scope="module")
def bad_files(resnet_file, tmp_path_factory):
    """The published file, wrong in one way each, as the libraries' own savers write it."""
    torch = importlib.import_module("torch")
    folder = tmp_path_factory.mktemp("bad")
    state, whole = dict(reference("resnet18").state_dict()), resnet_file.read_bytes()
    published_files.save_safetensors(state, folder / "whole.safetensors")
    safe = (folder / "whole.safetensors").read_bytes()
    (folder / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "truncated.safetensors").write_bytes(safe[: len(safe) // 2])
    (folder / "lying.safetensors").write_bytes(lying(safe))
    changes = {
        "shape.pth": {"fc.bias": torch.zeros(999)},
        "nan.pth": {"layer1.0.bn1.bias": torch.full((64,), torch.nan)},
        "more.pth": {"layer5.bias": torch.zeros(3)},
        "payload.pth": {"fc.bias": Payload()},
    }
    for name, change in changes.items():
        torch.save({**state, **change}, folder / name)
    return folder


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_and_leaves_nothing(name, bad_files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = bad_files / name
    assert main(["convert-weights", str(path), "OUT.safetensors"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"flaxmed: error: {path}: ")
    assert BAD[name] in line
    assert not list(tmp_path.iterdir())
    assert not list(bad_files.glob("*.tmp*"))


# ------------------------------------------------------------------------- told from the tensors


@pytest.mark.parametrize(
    ("network", "naming", "stem"),
    [
        ("resnet18", "torchvision", "imagenet"),
        ("resnet18", "torchvision", "small"),
        ("resnet18", "medmnist", "small"),
        ("resnet18", "kerashub", "imagenet"),
        ("densenet121", "torchvision", "imagenet"),
        ("densenet121", "keras", "imagenet"),
        ("xception", "timm", "imagenet"),
        ("xception", "keras", "imagenet"),
    ],
)
def test_network_and_names_are_told_from_the_tensors(network, naming, stem):
    model = nnx.eval_shape(
        lambda: create_model(network, 7, in_channels=2, stem=stem, rngs=nnx.Rngs(0))
    )
    tensors = to_foreign(random_tensors(model), model, naming)
    assert recognise(tensors, "file") == Kind(network, naming, stem, 2, 7)
    head = {"classifier.kernel", "classifier.bias"}
    table = table_of(model, naming)
    bare = {name: value for name, value in tensors.items() if table.own(name)[0] not in head}
    assert len(bare) == len(tensors) - 2
    assert recognise(bare, "file").num_classes is None
