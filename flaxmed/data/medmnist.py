"""MedMNIST's twelve 2D sets at 28, 64, 128 and 224 px, read from the published .npz files.

Jiancheng Yang et al., "MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical
image classification", Scientific Data 10, 41 (2023). https://doi.org/10.1038/s41597-022-01721-8
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from flaxmed.data.arrays import REQUIRED, SPLITS, from_arrays
from flaxmed.data.npz import MAP_ABOVE, file_md5, read_arrays
from flaxmed.files import cache_dir, is_writable
from flaxmed.files import download as fetch
from flaxmed.types import Dataset, DatasetInfo, InputError, Task

ADDRESS = "https://zenodo.org/records/10519652/files/{file}?download=1"
SIZES = (28, 64, 128, 224)

_BOTH = ("horizontal", "vertical")
_SIDEWAYS = ("horizontal",)
_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)


@dataclasses.dataclass(frozen=True)
class MedMNISTSet:
    """One of the sets.

    Attributes:
        info: names, task, licence.
        splits: number of images by split.
        md5: digest of the published file by image size.
    """

    info: DatasetInfo
    splits: Mapping[str, int]
    md5: Mapping[int, str]


def _entry(
    name: str,
    task: Task,
    classes: tuple[str, ...],
    *,
    channels: int,
    splits: tuple[int, int, int],
    md5: tuple[str, str, str, str],
    flips: tuple[str, ...],
    description: str,
    positive: int | None = None,
    licence: str = "CC BY 4.0",
) -> MedMNISTSet:
    info = DatasetInfo(
        name,
        task,
        classes,
        channels,
        positive=positive,
        flips=flips,
        licence=licence,
        source="https://doi.org/10.5281/zenodo.10519652",
        description=description,
    )
    return MedMNISTSet(
        info, dict(zip(SPLITS, splits, strict=True)), dict(zip(SIZES, md5, strict=True))
    )


# Flips are allowed where a mirror image is as plausible as the original; the reason stands beside.
_TABLE = (
    _entry(
        "pathmnist",
        Task.MULTICLASS,
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        channels=3,
        splits=(89996, 10004, 7180),
        md5=(
            "a8b06965200029087d5bd730944a56c1",
            "55aa9c1e0525abe5a6b9d8343a507616",
            "ac42d08fb904d92c244187169d1fd1d9",
            "2c51a510bcdc9cf8ddb2af93af1eadec",
        ),
        flips=_BOTH,  # a tissue section has no right way up
        description="Colorectal cancer histology, nine tissues; the test set is another clinic's.",
    ),
    _entry(
        "chestmnist",
        Task.MULTILABEL,
        (
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural",
            "hernia",
        ),
        channels=1,
        splits=(78468, 11219, 22433),
        md5=(
            "02c8a6516a18b556561a56cbdd36c4a8",
            "9de6cd0b934ebb5b7426cfba5efbae16",
            "db107e5590b27930b62dbaf558aebee3",
            "45bd33e6f06c3e8cdb481c74a89152aa",
        ),
        flips=(),  # the heart lies on the left; a mirrored film shows situs inversus
        description="Frontal chest X-rays, fourteen findings mined from reports (NIH-ChestXray14).",
    ),
    _entry(
        "dermamnist",
        Task.MULTICLASS,
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        channels=3,
        splits=(7007, 1003, 2005),
        md5=(
            "0744692d530f8e62ec473284d019b0c7",
            "b70a2f5635c6199aeaa28c31d7202e1f",
            "2defd784463fa5243564e855ed717de1",
            "8974907d8e169bef5f5b96bc506ae45d",
        ),
        licence="CC BY-NC 4.0",
        flips=_BOTH,  # the dermatoscope is held at any angle
        description="Dermatoscopic images of pigmented skin lesions, seven diseases (HAM10000).",
    ),
    _entry(
        "octmnist",
        Task.MULTICLASS,
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        channels=1,
        splits=(97477, 10832, 1000),
        md5=(
            "c68d92d5b585d8d81f7112f81e2d0842",
            "e229e9440236b774d9f0dfef9d07bdaf",
            "0a97e76651ace45c5d943ee3f65b63ae",
            "abc493b6d529d5de7569faaef2773ba3",
        ),
        flips=_SIDEWAYS,  # mirrored, the other eye; upside down, the vitreous would lie below
        description="Optical coherence tomography of the retina, four diagnoses.",
    ),
    _entry(
        "pneumoniamnist",
        Task.BINARY,
        ("normal", "pneumonia"),
        channels=1,
        splits=(4708, 524, 624),
        md5=(
            "28209eda62fecd6e6a2d98b1501bb15f",
            "8f4eceb4ccffa70c672198ea285246c6",
            "05b46931834c231683c68f40c47b2971",
            "d6a3c71de1b945ea11211b03746c1fe1",
        ),
        positive=1,
        flips=(),  # as for ChestMNIST
        description="Paediatric chest X-rays, pneumonia against normal.",
    ),
    _entry(
        "retinamnist",
        Task.ORDINAL,
        ("0", "1", "2", "3", "4"),
        channels=3,
        splits=(1080, 120, 400),
        md5=(
            "bd4c0672f1bba3e3a89f0e4e876791e4",
            "afda852cc34dcda56f86ad2b2457dbcc",
            "e48e916a24454daf90583d4e6efb1a18",
            "eae7e3b6f3fcbda4ae613ebdcbe35348",
        ),
        flips=_SIDEWAYS,  # mirrored, the fellow eye; upside down, the macula would lie too high
        description="Fundus images, five grades of diabetic retinopathy (DeepDRiD).",
    ),
    _entry(
        "breastmnist",
        Task.BINARY,
        ("malignant", "normal, benign"),
        channels=1,
        splits=(546, 78, 156),
        md5=(
            "750601b1f35ba3300ea97c75c52ff8f6",
            "742edef2a1fd1524b2efff4bd7ba9364",
            "363e4b3f8d712e9b5de15470a2aaadf1",
            "b56378a6eefa9fed602bb16d192d4c8b",
        ),
        positive=0,  # malignant, the disease, is class 0
        flips=_SIDEWAYS,  # mirrored, the probe turned round; but shadows fall downwards
        description="Breast ultrasound, malignant against normal or benign.",
    ),
    _entry(
        "bloodmnist",
        Task.MULTICLASS,
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
        channels=3,
        splits=(11959, 1712, 3421),
        md5=(
            "7053d0359d879ad8a5505303e11de1dc",
            "2b94928a2ae4916078ca51e05b6b800b",
            "adace1e0ed228fccda1f39692059dd4c",
            "b718ff6835fcbdb22ba9eacccd7b2601",
        ),
        flips=_BOTH,  # cells lie on the slide in any orientation
        description="Single normal blood cells, eight types.",
    ),
    _entry(
        "tissuemnist",
        Task.MULTICLASS,
        (
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
        channels=1,
        splits=(165466, 23640, 47280),
        md5=(
            "ebe78ee8b05294063de985d821c1c34b",
            "123ece2eba09d0aa5d698fda57103344",
            "61b955355d7425a89687b06cca3ce0c2",
            "b077128c4a949f0a4eb01517f9037b9c",
        ),
        flips=_BOTH,  # single cells, in any orientation
        description="Human kidney cortex cells, eight types (BBBC051).",
    ),
    _entry(
        "organamnist",
        Task.MULTICLASS,
        _ORGANS,
        channels=1,
        splits=(34561, 6491, 17778),
        md5=(
            "68e3f8846a6bd62f0c9bf841c0d9eacc",
            "2dcccc29b88e6da5a01161ef20cda288",
            "eeae80d0a227a8d099027e1b3cfd3b60",
            "50747347e05c87dd3aaf92c49f9f3170",
        ),
        flips=(),  # classes such as femur-left differ by side, and axial views show both
        description="Abdominal CT, axial crops of eleven organs (LiTS).",
    ),
    _entry(
        "organcmnist",
        Task.MULTICLASS,
        _ORGANS,
        channels=1,
        splits=(12975, 2392, 8216),
        md5=(
            "b9ceb9546e10131b32923c5bbeaea2b1",
            "3ce34a8724ea6f548e6db4744d03b6a9",
            "773c1f009daa3fe5d9a2a201b2a7ed94",
            "050f5e875dc056f6768abf94ec9995d1",
        ),
        flips=(),  # as for OrganAMNIST, in coronal views
        description="Abdominal CT, coronal crops of eleven organs (LiTS).",
    ),
    _entry(
        "organsmnist",
        Task.MULTICLASS,
        _ORGANS,
        channels=1,
        splits=(13932, 2452, 8827),
        md5=(
            "9ab87b696fb54e2a387ebe992d6ed5f1",
            "53a6d115339d874c25e309a994ff46d3",
            "ded0c5fa01a95dc4978b956f613e9b8e",
            "b354719e553fbbb2513d5533f52a4cb1",
        ),
        flips=(),  # seen from the side: front, back, head and feet all differ
        description="Abdominal CT, sagittal crops of eleven organs (LiTS).",
    ),
)

SETS: Mapping[str, MedMNISTSet] = {entry.info.name: entry for entry in _TABLE}


def load(
    name: str,
    size: int = 28,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    map_above: int = MAP_ABOVE,
) -> Dataset:
    """Load one of the sets, fetching its file if it is not on this machine.

    Args:
        name: such as ``"breastmnist"``.
        size: 28, 64, 128 or 224 px.
        data_dir: looked into first; then ``FLAXMED_DATA_DIR`` and ``~/.cache/flaxmed``. A download
            goes to the first of these that was named and is writable, else to the cache.
        download: False to use only what is on this machine.
        map_above: arrays that exceed this many bytes together are memory-mapped.

    Raises:
        InputError: an unknown name or size, a wrong or damaged file, no network.
    """
    if name not in SETS:
        raise InputError(f"unknown MedMNIST set {name!r}; expected one of {', '.join(SETS)}")
    if size not in SIZES:
        raise InputError(f"{name}: no size {size}; MedMNIST has {', '.join(map(str, SIZES))} px")
    file = file_name(name, size)
    path = find(file, data_dir)
    if path is None:
        path = _target(file, data_dir)
        hint = (
            f"put it at {path} (its address is {ADDRESS.format(file=file)}), or use "
            "--dataset phantom, which works offline"
        )
        if not download:
            raise InputError(f"{file}: not found in {_places(data_dir)}; {hint}")
        fetch(ADDRESS.format(file=file), path, md5=SETS[name].md5[size], hint=hint)
    return read(path, name, size, map_above=map_above)


def read(path: Path, name: str, size: int, *, map_above: int = MAP_ABOVE) -> Dataset:
    """Read the published file of a set and check it against what is known.

    Raises:
        InputError: another MD5, or contents that are not those of the set.
    """
    known = SETS[name]
    digest = file_md5(path)
    if digest != known.md5[size]:
        raise InputError(
            f"{path}: MD5 {digest}; expected {known.md5[size]}, that of the published "
            f"{file_name(name, size)} (your own data go under another file name)"
        )
    arrays = read_arrays(path, REQUIRED, map_above=map_above, digest=digest)
    dataset = from_arrays(
        arrays,
        name=name,
        source=str(path),
        origin={"file": path.name, "md5": digest, "size": size},
        info=known.info,
    )
    for split, expected in known.splits.items():
        shape = dataset.splits[split].images.shape
        if shape[:3] != (expected, size, size):
            raise InputError(
                f"{path}: {split}_images: {shape[0]} images of {shape[1]} x {shape[2]} px; "
                f"expected {expected} of {size} x {size} px"
            )
    return dataset


def file_name(name: str, size: int) -> str:
    """The published file's name.

    Example:
        >>> file_name("breastmnist", 28), file_name("breastmnist", 64)
        ('breastmnist.npz', 'breastmnist_64.npz')
    """
    return f"{name}.npz" if size == 28 else f"{name}_{size}.npz"


def identify(md5: str) -> tuple[str, int] | None:
    """Name and size of the set whose published file has this digest, or None."""
    for name, known in SETS.items():
        for size, digest in known.md5.items():
            if digest == md5:
                return name, size
    return None


def called(file: str) -> tuple[str, int] | None:
    """Name and size of the set whose published file is called so, or None."""
    for name in SETS:
        for size in SIZES:
            if file_name(name, size) == file:
                return name, size
    return None


def find(file: str, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """The first copy of a file in ``data_dir``, ``FLAXMED_DATA_DIR`` and the cache, or None."""
    for folder in (*_named(data_dir), cache_dir()):
        if (folder / file).is_file():
            return folder / file
    return None


def _named(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """The folders that the user named, first things first."""
    named = [data_dir, os.environ.get("FLAXMED_DATA_DIR")]
    return [Path(folder).expanduser() for folder in named if folder]


def _target(file: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """Where a download goes."""
    for folder in _named(data_dir):
        if is_writable(folder):
            return folder / file
    return cache_dir() / file


def _places(data_dir: str | os.PathLike[str] | None) -> str:
    return ", ".join(str(folder) for folder in (*_named(data_dir), cache_dir()))
