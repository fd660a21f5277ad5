"""Keras's weight files beside the living Keras that wrote them; old spellings; malformed files."""

from __future__ import annotations

import importlib
import os
import re
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import compare
from oracles.cases import CASES, Ours, images_and_labels, random_tensors
from oracles.compare import EVALUATION_BATCH, LOGITS_TOLERANCE, check, require
from oracles.published import save_keras_older

from flaxmed.models import create_model
from flaxmed.models.pretrained import load_state, to_foreign
from flaxmed.models.weights import hdf5, open_weights
from flaxmed.models.weights.files import read_weights
from flaxmed.models.weights.keras_files import read_keras
from flaxmed.models.weights.keras_layers import DENSENET121, XCEPTION
from flaxmed.types import InputError
from flaxmed.verify import keras_network

# of torch's arrays, when Keras takes them for NumPy's
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MOST_MEMORY = 64 * 2**20  # bytes that refusing a file may take
NETWORKS = ("xception-keras", "densenet121-keras")
LIVING = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in NETWORKS]

try:
    import h5py
    import malformed_keras
    from malformed_keras import toy

    MALFORMED = malformed_keras.keras_files()
except ImportError:  # it writes the files; nothing of flaxmed needs it
    h5py, MALFORMED = None, []


@pytest.fixture
def writer():
    """h5py, or the test skips; with FLAXMED_REQUIRE_ORACLES=1 it fails."""
    if h5py is None and os.environ.get("FLAXMED_REQUIRE_ORACLES") == "1":
        pytest.fail("h5py cannot be imported", pytrace=False)
    return h5py or pytest.skip("h5py cannot be imported")


@pytest.fixture(scope="module", params=LIVING)
def living(request):
    """Keras's network with random weights, in a process in which other layers were numbered before.

    And its tensors by name, the unnamed layers numbered as in a fresh process.
    """
    require("keras")
    keras = compare.keras_reference.import_packages()
    for _ in range(11):
        keras.layers.Conv2D(1, 1)
        keras.layers.BatchNormalization()
    case = CASES[request.param]
    reference = compare.keras_reference.KerasReference(case, 3, np.float32, case.sizes[0])
    own = case.build(3, np.float32)
    reference.load(to_foreign(random_tensors(own), own, "keras"))
    return SimpleNamespace(
        keras=keras,
        case=case,
        reference=reference,
        model=reference.model,
        tensors=reference.tensors(),
    )


def same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], value, err_msg=name)


# ------------------------------------------------------------------------------ how Keras saves


SAVERS = {
    "x.weights.h5": lambda model, path: model.save_weights(path),
    "weights.h5": save_keras_older,
    "model.h5": lambda model, path: model.save(path),
}


@pytest.mark.slow
@pytest.mark.parametrize("file", SAVERS)
def test_what_keras_saves_is_read(living, tmp_path, file):
    unnamed = [layer.name for layer in living.model.layers if layer.name.startswith("conv2d")]
    assert "conv2d" not in unnamed
    SAVERS[file](living.model, tmp_path / file)
    same(read_keras(tmp_path / file), living.tensors)


@pytest.mark.slow
@pytest.mark.parametrize("file", SAVERS)
def test_without_a_head(living, tmp_path, file):
    part = living.keras.Model(living.model.input, living.model.layers[-3].output)
    SAVERS[file](part, tmp_path / file)
    found = read_keras(tmp_path / file)
    expected = {n: v for n, v in living.tensors.items() if not n.startswith("predictions/")}
    same(found, expected)


@pytest.mark.slow
def test_an_optimiser_and_metrics_are_left_out(living, tmp_path):
    model = living.keras.models.clone_model(living.model)
    model.set_weights(living.model.get_weights())
    model.compile("adam", "mse", metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    for file in ("x.weights.h5", "model.h5"):
        SAVERS[file](model, tmp_path / file)
        same(read_keras(tmp_path / file), living.tensors)


@pytest.mark.slow
def test_a_network_within_another(living, tmp_path):
    """As in KerasHub's classifiers and in transfer learning: the head is outside."""
    keras, model = living.keras, living.model
    layers = keras.layers
    part = keras.Model(model.input, model.layers[-3].output)
    whole = keras.Sequential(
        [part, layers.GlobalAveragePooling2D(), layers.Dropout(0.5), layers.Dense(5)]
    )
    whole.layers[-1].set_weights(model.layers[-1].get_weights())
    whole.save_weights(tmp_path / "x.weights.h5")
    same(read_keras(tmp_path / "x.weights.h5"), living.tensors)


def keras_saves_again(keras, model, said, path, out):
    """Do what a message says."""
    words = {"FILE": repr(str(path)), "'OUT.weights.h5'": repr(str(out))}
    command = re.search(r"(?:in Keras|its weights): (.*OUT\.weights\.h5'\))", said)[1]
    for word, value in words.items():
        command = command.replace(word, value)
    for line in command.split("; "):
        eval(line, {"keras": keras, "model": model})
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("whole.keras", "a Keras archive of a whole model; save its weights: keras.saving"),
        ("model.h5", "is a network of its own, with"),
        ("weights.h5", "is a network of its own, with"),
    ],
)
@pytest.mark.parametrize("living", LIVING[1:], indirect=True)
@pytest.mark.filterwarnings("ignore:.*HDF5 file.*")
def test_what_is_refused_says_what_makes_it_readable(living, file, says, tmp_path):
    """A whole model, and the older layout of a network within another."""
    keras, model = living.keras, living.model
    layers = keras.layers
    part = keras.Model(model.input, model.layers[-3].output, name="inner")
    whole = keras.Sequential([part, layers.GlobalAveragePooling2D(), layers.Dense(5)])
    whole.layers[-1].set_weights(model.layers[-1].get_weights())
    savers = {**SAVERS, "whole.keras": SAVERS["model.h5"]}
    savers[file](whole, tmp_path / file)
    with pytest.raises(InputError) as error:
        read_weights(tmp_path / file)
    said = str(error.value)
    assert says in said
    assert "\n" not in said
    out = keras_saves_again(keras, whole, said, tmp_path / file, tmp_path / "out.weights.h5")
    same(read_weights(out).tensors, living.tensors)


@pytest.mark.slow
def test_logits_are_kerass(living, tmp_path):
    """From the file to the logits, in float32."""
    living.model.save_weights(tmp_path / "x.weights.h5")
    ours = Ours(living.case, 3, np.float32)
    ours.load(read_keras(tmp_path / "x.weights.h5"))
    images, _ = images_and_labels(living.case.sizes[0], 3, EVALUATION_BATCH)
    logits, _ = ours.evaluate(images)
    theirs, _ = living.reference.evaluate(images)
    deviation = float(np.abs(logits - theirs).max() / theirs.std())
    check({"logits": deviation}, LOGITS_TOLERANCE)


def kerashubs(model):
    """KerasHub's DenseNet: its paddings and its names, which put the layers in the same order."""
    keras = compare.keras_reference.import_packages()

    def renamed(layer):
        config = layer.get_config()
        found = re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(bn|conv)", config["name"])
        if found:
            stack, block, number, kind = found.groups()
            number = int(number) + (kind == "bn")
            config["name"] = f"stack{int(stack) - 1}_block{block}_{number}_{kind}"
        return type(layer).from_config(config)

    padded = keras_network._with_same_stem(keras, model)
    clone = keras.models.clone_model(padded, clone_function=renamed)
    clone.set_weights(model.get_weights())
    return keras, clone


@pytest.mark.slow
@pytest.mark.parametrize("living", LIVING[1:], indirect=True)  # Xception is the same in both
def test_kerashubs_densenet_pads_its_stem_as_there(living, tmp_path):
    keras, hub = kerashubs(living.model)
    part = keras.Model(hub.input, hub.layers[-3].output, name="dense_net_backbone")
    for name, network in (("whole", hub), ("backbone", part)):
        network.save_weights(tmp_path / f"{name}.weights.h5")
        weights = open_weights(tmp_path / f"{name}.weights.h5")
        assert (weights.variant, weights.kind.naming) == ("kerashub", "keras")
    images, _ = images_and_labels(living.case.sizes[0], 3, EVALUATION_BATCH)
    torch = importlib.import_module("torch")
    with compare.keras_reference.precision(keras, np.float32), torch.no_grad():
        theirs = hub(torch.tensor(images, dtype=torch.float32), training=False).numpy()
    found = {}
    for variant in (None, "keras"):
        model = create_model(
            "densenet121", weights=tmp_path / "whole.weights.h5", variant=variant, rngs=nnx.Rngs(0)
        )
        ours = nnx.jit(lambda model, x: model(x))(model, jnp.asarray(images, jnp.float32))
        found[variant] = float(np.abs(np.asarray(ours) - theirs).max() / theirs.std())
    check({"logits": found[None]}, LOGITS_TOLERANCE)
    assert found["keras"] > 100 * LOGITS_TOLERANCE


def kerashubs_resnet(keras, size):
    """KerasHub's ResNet-18, of Keras's layers: zeros around what is strided, torch's constants."""
    layers = keras.layers

    def conv_bn(x, name, width, side, stride=1):
        if stride > 1 and side > 1:
            x = layers.ZeroPadding2D(side // 2)(x)
        padding = "valid" if stride > 1 else "same"
        x = layers.Conv2D(
            width, side, strides=stride, padding=padding, use_bias=False, name=f"{name}_conv"
        )(x)
        return layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_bn")(x)

    x = inputs = layers.Input((size, size, 3))
    x = layers.ReLU()(conv_bn(x, "conv1", 64, 7, 2))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for stack, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            name, shortcut = f"stack{stack}_block{block}", x
            stride = 2 if stack and not block else 1
            if stride == 2:
                shortcut = conv_bn(x, f"{name}_0", width, 1, 2)
            x = layers.ReLU()(conv_bn(x, f"{name}_1", width, 3, stride))
            x = conv_bn(x, f"{name}_2", width, 3)
            x = layers.ReLU()(layers.Add()([shortcut, x]))
    backbone = keras.Model(inputs, x, name="res_net_backbone")
    outputs = layers.Dense(5, name="predictions")(layers.GlobalAveragePooling2D()(backbone(inputs)))
    return keras.Model(inputs, outputs)


@pytest.mark.slow
def test_kerashubs_resnet(tmp_path):
    require("keras")
    keras, torch = compare.keras_reference.import_packages(), importlib.import_module("torch")
    with compare.keras_reference.precision(keras, np.float32):
        theirs = kerashubs_resnet(keras, 64)
        rng = np.random.default_rng(0)
        for variable in theirs.variables:
            if variable.ndim == 1:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        theirs.save_weights(tmp_path / "x.weights.h5")
        images, _ = images_and_labels(64, 3, EVALUATION_BATCH)
        with torch.no_grad():
            expected = theirs(torch.tensor(images, dtype=torch.float32), training=False).numpy()
    weights = open_weights(tmp_path / "x.weights.h5")
    assert (weights.kind.naming, weights.variant) == ("kerashub", "torchvision")
    model = create_model("resnet18", weights=tmp_path / "x.weights.h5", rngs=nnx.Rngs(0))
    found = nnx.jit(lambda model, x: model(x))(model, jnp.asarray(images, jnp.float32))
    deviation = float(np.abs(np.asarray(found) - expected).max() / expected.std())
    check({"logits": deviation}, LOGITS_TOLERANCE)

    # versions that note no names: the order of the layers decides
    with h5py.File(tmp_path / "x.weights.h5", "a") as file:
        file.visititems(lambda name, item: item.attrs.pop("name", None) and None)
    same(read_keras(tmp_path / "x.weights.h5"), weights.tensors)


@pytest.mark.slow
def test_the_order_of_layers_is_kerass(living):
    network = {"xception": XCEPTION, "densenet121": DENSENET121}[living.model.name]
    named = [layer.name for layer in living.model.layers if layer.weights]
    ours = [name for _, name in network.layers] + ["predictions"]
    assert len(named) == len(ours)
    for name, expected in zip(named, ours, strict=True):
        if expected in network.numbered:
            assert name.rpartition("_")[0].startswith(expected.rstrip("_0123456789"))
        else:
            assert name == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "found"),
    [
        (
            "MobileNet",
            {"x.weights.h5": "14 convolutions, 27 norms, 13 other layers ('layers/depth"},
        ),
        (
            "ResNet50",
            {"x.weights.h5": "53 norms, 53 other layers ('layers/conv2d', 'layers/conv2d_1'"},
        ),
        (
            "ResNet50",
            {"weights.h5": "53 norms, 53 other layers ('conv1_conv', 'conv2_block1_1_conv'"},
        ),
    ],
)
def test_other_networks_of_keras_are_refused(other, found, tmp_path):
    require("keras")
    keras = compare.keras_reference.import_packages()
    network = getattr(keras.applications, other)
    model = network(weights=None, include_top=False, input_shape=(32, 32, 3))
    for file, says in found.items():
        SAVERS[file](model, tmp_path / file)
        refused(tmp_path / file, f"another network: {says}")


# ------------------------------------------------------------------------------ older spellings

KERAS_1 = {
    "convolution": ("convolution2d", ["W"]),
    "separable convolution": ("separableconvolution2d", ["depthwise_kernel", "pointwise_kernel"]),
    "norm": ("batchnormalization", ["gamma", "beta", "running_mean", "running_std"]),
    "dense": ("dense", ["W", "b"]),
}


def rewritten(path, spell):
    """The toy in the older layout with other names: ``spell`` gives a layer's and its tensors'.

    Text is of one length, as older versions of h5py wrote it.
    """
    with h5py.File(path, "w") as root:
        listed = []
        for n, (kind, name) in enumerate(malformed_keras.LAYERS):
            layer, tensors = spell(kind, name)
            listed.append(layer)
            group = root.create_group(layer)
            group.attrs["weight_names"] = np.array([tensor.encode() for tensor in tensors])
            for k, (tensor, shape) in enumerate(
                zip(tensors, malformed_keras.SHAPES[kind], strict=True)
            ):
                group[tensor] = np.full(shape, n + k / 10, np.float32)
        root.attrs["layer_names"] = np.array([name.encode() for name in listed])
    return path


def keras_1(kind, name):
    """Every layer numbered from 1, its tensors right below it, as in the published Xception."""
    layer, tensors = KERAS_1[kind]
    number = 1 + [n for k, n in malformed_keras.LAYERS if k == kind].index(name)
    return f"{layer}_{number}", [f"{layer}_{number}_{tensor}:0" for tensor in tensors]


def shortcuts_of_keras_1(kind, name):
    """Only the shortcuts are numbered, and spelt as then."""
    if name in XCEPTION.numbered:
        number = 3 + int(name.rpartition("_")[2] if name[-1].isdigit() else 0)
        name = f"{KERAS_1[kind][0]}_{number}"
    return name, [f"{name}_{tensor}" for tensor in KERAS_1[kind][1]]


def keras_2(kind, name):
    """A slash in a name, as in DenseNet's stem, and the head called after its size."""
    name = {"block1_conv1": "block1/conv1", "predictions": "fc1000"}.get(name, name)
    return name, [f"{name}/{tensor}_1:0" for tensor in KERAS_1[kind][1]]


@pytest.mark.parametrize("spell", [keras_1, shortcuts_of_keras_1, keras_2])
def test_old_spellings(spell, writer, tmp_path):
    (tmp_path / "x.h5").write_bytes(toy("listed"))
    expected = read_keras(tmp_path / "x.h5")
    assert expected["block14_sepconv2_bn/moving_variance"] == pytest.approx(79.3)
    assert expected["conv2d_3/kernel"] == 74
    same(read_keras(rewritten(tmp_path / "old.h5", spell)), expected)


def test_shortcuts_are_known_by_their_width(writer, tmp_path):
    """Whatever the order in which they are listed."""
    widths = {"": 128, "_1": 256, "_2": 728, "_3": 1024}

    def change(root):
        for suffix, width in widths.items():
            for kind, shape in (("conv2d", (1, 1, 1, width)), ("batch_normalization", (width,))):
                group = root[f"{kind}{suffix}/{kind}{suffix}"]
                for name in list(group):
                    del group[name]
                    group[name] = np.full(shape, width, np.float32)
        listed = [name.decode() for name in root.attrs["layer_names"].astype("S")]
        shortcuts = iter(sorted((n for n in listed if n in XCEPTION.numbered), reverse=True))
        listed = [next(shortcuts) if name in XCEPTION.numbered else name for name in listed]
        root.attrs["layer_names"] = [name.encode() for name in listed]

    (tmp_path / "x.h5").write_bytes(malformed_keras.changed("listed", change))
    found = read_keras(tmp_path / "x.h5")
    for suffix, width in widths.items():
        assert set(found[f"conv2d{suffix}/kernel"].ravel()) == {width}
        assert set(found[f"batch_normalization{suffix}/gamma"].ravel()) == {width}


def test_names_beside_the_numbers_decide(writer, tmp_path):
    """Newer files of Keras 3 note every layer's own name, older ones do not."""
    (tmp_path / "x.weights.h5").write_bytes(toy("numbered"))
    expected = read_keras(tmp_path / "x.weights.h5")

    def unnamed(root):
        for group in root["layers"].values():
            del group["vars"].attrs["name"]

    (tmp_path / "x.weights.h5").write_bytes(malformed_keras.changed("numbered", unnamed))
    same(read_keras(tmp_path / "x.weights.h5"), expected)

    def exchanged(root):
        root.move("layers/batch_normalization_3", "layers/x")
        root.move("layers/batch_normalization_9", "layers/batch_normalization_3")
        root.move("layers/x", "layers/batch_normalization_9")

    (tmp_path / "x.weights.h5").write_bytes(malformed_keras.changed("numbered", exchanged))
    same(read_keras(tmp_path / "x.weights.h5"), expected)


@pytest.mark.parametrize("place", ["_layer_checkpoint_dependencies", "backbone/layers"])
def test_other_places_of_the_layers(writer, place, tmp_path):
    (tmp_path / "x.weights.h5").write_bytes(toy("numbered"))
    expected = read_keras(tmp_path / "x.weights.h5")

    def change(root):
        if place == "backbone/layers":
            root.move("layers/dense", "output_dense")
        root.move("layers", place)

    (tmp_path / "x.weights.h5").write_bytes(malformed_keras.changed("numbered", change))
    same(read_keras(tmp_path / "x.weights.h5"), expected)


def test_what_is_not_the_networks_is_left_out(writer, tmp_path):
    """In some versions of Keras 3 metrics, and dropout's generators, keep arrays in the file."""
    (tmp_path / "x.weights.h5").write_bytes(toy("numbered"))
    expected = read_keras(tmp_path / "x.weights.h5")

    def change(root):
        root["optimizer/vars/0"] = 7
        root["metrics/mean/vars/0"] = np.float32(0.5)
        root["layers/dropout/seed_generator/vars/0"] = np.array([1, 2], np.uint32)

    (tmp_path / "x.weights.h5").write_bytes(malformed_keras.changed("numbered", change))
    same(read_keras(tmp_path / "x.weights.h5"), expected)


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [("<f2", "float16"), (">f4", "float32"), ("<f8", "float64"), ("bfloat16", "float32")],
)
def test_floating_point_types(writer, dtype, becomes, tmp_path):
    values = np.array([1.5, -2.0, 2.0**-20, np.nan], np.float32).reshape(1, 1, 2, 2)
    kind = importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype

    def change(root):
        malformed_keras.tensor(values.astype(kind))(root)
        if dtype == "bfloat16":  # as Keras's store does it
            root[malformed_keras.STORED].attrs["dtype"] = dtype

    (tmp_path / "x.weights.h5").write_bytes(malformed_keras.changed("numbered", change))
    found = read_keras(tmp_path / "x.weights.h5")["block1_conv1/kernel"]
    assert found.dtype == becomes
    assert found.dtype.isnative
    assert found.flags.writeable
    np.testing.assert_array_equal(found, values.astype(kind).astype(becomes))


def test_long_lists_come_in_pieces(writer, tmp_path):
    """Keras divides an attribute of more than 64,512 bytes."""
    (tmp_path / "x.h5").write_bytes(toy("listed"))
    expected = read_keras(tmp_path / "x.h5")

    def change(root):
        names = list(root.attrs["layer_names"])
        del root.attrs["layer_names"]
        for i, piece in enumerate((names[:50], names[50:])):
            root.attrs[f"layer_names{i}"] = piece

    (tmp_path / "x.h5").write_bytes(malformed_keras.changed("listed", change))
    same(read_keras(tmp_path / "x.h5"), expected)


# ------------------------------------------------------------------------------ malformed files


def refused(path, says):
    """One line that names the file, in little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            read_keras(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert says in line
    assert "\n" not in line
    assert peak < MOST_MEMORY + 2 * path.stat().st_size  # the file, and its arrays


def test_there_are_sixty_cases(writer):
    names = [case.name for case in MALFORMED]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in MALFORMED])
def test_malformed(case, tmp_path):
    (tmp_path / "x.h5").write_bytes(case.content)
    refused(tmp_path / "x.h5", case.says)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"absent\.h5: cannot be read: No such file"):
        read_keras(tmp_path / "absent.h5")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_keras(tmp_path)
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(InputError, match=r"pipe\.h5: expected a file on disk"):
        read_keras(tmp_path / "pipe.h5")


def test_sizes_are_bounded(writer, tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    path.write_bytes(toy("listed"))
    monkeypatch.setattr(hdf5, "MOST_BYTES", 900)
    refused(path, "x.h5: more than")
    monkeypatch.setattr(hdf5, "_read", Path.read_bytes)
    refused(path, "its arrays declare more than")


def test_links_are_bounded(writer, tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(malformed_keras.changed("numbered", malformed_keras.many(15_000)))
    with pytest.raises(InputError, match="more groups, arrays and names than any network"):
        read_keras(path)


def test_no_library_is_asked(writer, tmp_path, monkeypatch):
    """Reading does not need h5py: the C library below it can be made to end the process."""
    (tmp_path / "x.h5").write_bytes(toy("listed"))
    monkeypatch.setattr(h5py, "File", None)
    assert len(read_keras(tmp_path / "x.h5")) == 236


def test_the_networks_tables_know_every_name(writer, tmp_path):
    """What is read is what ``load_state`` takes, up to the toy's shapes."""
    (tmp_path / "x.h5").write_bytes(toy("listed"))
    own = CASES["xception-keras"].build(3, np.float32)
    with pytest.raises(InputError) as error:
        load_state(own, read_keras(tmp_path / "x.h5"), "keras")
    assert "misshapen 236" in str(error.value)
    assert "missing" not in str(error.value)
