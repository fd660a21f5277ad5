"""The phantom: synthetic images whose generating model, and so whose Bayes posterior, is known.

One lesion lies on a flat background under white Gaussian noise. Its size, elongation and contrast
are drawn from distributions that depend on the class and overlap; its position and orientation are
drawn uniformly, whatever the class. Every latent lives on a finite grid, so the posterior of an
image is a finite sum over templates. The noise is low: the lesion is easy to see. The overlap of
the classes is what bounds everybody, the ideal observer included (Barrett & Myers, *Foundations of
Image Science*, 2004, chapter 13).

Nothing here is medical data: the class names describe shapes and claim no diagnosis.
"""

from __future__ import annotations

import dataclasses
import math
import zlib

import numpy as np
from jaxtyping import Float, Int64, UInt8
from sklearn.metrics import roc_auc_score

from flaxmed.data.phantom_config import FAMILIES, PROFILES, PhantomClass, PhantomConfig
from flaxmed.types import Dataset, DatasetInfo, InputError, Split, Task, softmax

__all__ = [
    "FAMILIES",
    "PhantomClass",
    "PhantomConfig",
    "ideal_scores",
    "load_phantom",
    "posterior",
    "sample",
]

_BLOCK = 2**22  # pixels held in float64 at a time: 32 MB


def load_phantom(
    size: int | None = None,
    *,
    n_train: int = 2048,
    n_val: int = 512,
    n_test: int = 1024,
    seed: int = 0,
    config: PhantomConfig | str = "phantom",
) -> Dataset:
    """A synthetic data set with the ideal observer's posterior of each validation and test image.

    The splits come from separate random streams and each is a prefix of a longer one: changing one
    split's number changes no other split, and no image that both lengths have.

    Args:
        size: height and width in pixels, at least 16; the config's own (32) if not given.
        n_train: number of training images, at least 1.
        n_val: number of validation images, at least 1.
        n_test: number of test images, at least 1.
        seed: whole number, 0 or more.
        config: the generating model, or the name of one in :data:`FAMILIES`.

    Returns:
        uint8 images ``[n, size, size, 1]``; ``ideal`` holds float64 ``[n, classes]`` for "val" and
        "test". :func:`posterior` gives the training split's, if wanted.

    Raises:
        InputError: an unknown name, or a number out of range.

    Example:
        >>> data = load_phantom(n_train=4, n_val=4, n_test=6)
        >>> data.test.images.shape, data.ideal["test"].shape
        ((6, 32, 32, 1), (6, 3))
    """
    if isinstance(config, str):
        if config not in FAMILIES:
            raise InputError(f"unknown phantom {config!r}; expected one of {', '.join(FAMILIES)}")
        config = FAMILIES[config]
    if size is not None:
        config = dataclasses.replace(config, size=size)
    root = _seed_sequence(seed)
    splits = {}
    for number, (split, n) in enumerate((("train", n_train), ("val", n_val), ("test", n_test))):
        if n < 1:
            raise InputError(f"phantom: n_{split} must be at least 1, got {n}")
        images, labels, _ = sample(config, n, _child(root, number))
        splits[split] = Split(images, labels, np.array([f"{split}-{i:06d}" for i in range(n)]))
    # both at once: building the templates is much of the work for a few hundred images
    both = posterior(np.concatenate([splits["val"].images, splits["test"].images]), config)
    return Dataset(
        **splits,
        info=_info(config),
        ideal={"val": both[:n_val], "test": both[n_val:]},
        origin={"generator": config.name, "seed": int(seed), "config": dataclasses.asdict(config)},
    )


def sample(
    config: PhantomConfig, n: int, seed: int | np.random.SeedSequence = 0
) -> tuple[UInt8[np.ndarray, "n h w 1"], Int64[np.ndarray, " n"], dict[str, np.ndarray]]:
    """Draw images from the generating model.

    The first m of n images are those of a sample of m with the same seed.

    Args:
        config: the generating model.
        n: number of images, at least 1.
        seed: whole number, 0 or more, or a seed sequence.

    Returns:
        Images, uint8 ``[n, size, size, 1]``; labels ``[n]``; and the latents by name, float64
        ``[n]``: size, elongation, contrast, angle (radians), y, x, in the config's units.

    Raises:
        InputError: n below 1, or a negative seed.

    Example:
        >>> images, labels, latents = sample(PhantomConfig(), 5, seed=1)
        >>> images.shape, labels.shape, sorted(latents)
        ((5, 32, 32, 1), (5,), ['angle', 'contrast', 'elongation', 'size', 'x', 'y'])
    """
    if n < 1:
        raise InputError(f"phantom: the number of images must be at least 1, got {n}")
    # mixing in the name keeps two families of one seed from sharing their noise
    root = _child(_seed_sequence(seed), zlib.crc32(config.name.encode()))
    which, noise = (np.random.Generator(np.random.PCG64(_child(root, i))) for i in (0, 1))
    labels, latents = _draw_latents(config, which.random((n, 7)))
    images = np.empty((n, config.size, config.size, 1), np.uint8)
    for rows in _blocks(n, config):
        here = {name: values[rows] for name, values in latents.items()}
        lesion = here.pop("contrast")[:, None, None] * _heights(config, **here)
        lesion += config.background + config.noise * noise.standard_normal(lesion.shape)
        images[rows, :, :, 0] = np.clip(np.rint(lesion), 0, 255)
    return images, labels, latents


def posterior(
    images: UInt8[np.ndarray, "n h w 1"], config: PhantomConfig
) -> Float[np.ndarray, "n k"]:
    """The probability of each class given the image: the ideal observer's answer.

    For white Gaussian noise of variance v the likelihood of template t, relative to the bare
    background b, is exp((x - b)·t / v - t·t / 2v); it is summed over all grids of the latents,
    weighted with their probabilities in each class. Rounding to whole grey levels adds its variance
    of 1/12 (Sheppard's correction); against the exact probability of the rounded pixels that leaves
    an error in the posterior below 1e-3 from a noise of 1 grey level on, 1e-6 from 6 on.

    Args:
        images: uint8 ``[n, size, size, 1]``, drawn from this config.
        config: the generating model.

    Returns:
        float64 ``[n, classes]``, rows sum to 1.

    Raises:
        InputError: images of another size than the config's.

    Example:
        >>> images, labels, _ = sample(PhantomConfig(), 5)
        >>> posterior(images, PhantomConfig()).sum(axis=1).round(12).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    if images.shape[1:3] != (config.size, config.size):
        raise InputError(
            f"{config.name}: images must be {config.size} x {config.size} pixels, "
            f"got {images.shape[1]} x {images.shape[2]}"
        )
    log_weights = _log_weights(config)  # [k, shapes]
    out = np.empty((len(images), len(log_weights)))
    for rows in _blocks(len(images), config):
        evidence = _shape_evidence(config, np.asarray(images[rows], np.float64))
        joint = [_logsumexp(evidence + weights) for weights in log_weights]
        out[rows] = softmax(np.stack(joint, axis=1) + np.log(config.prior))
    return out


def ideal_scores(config: PhantomConfig, n: int = 10_000, seed: int = 0) -> dict[str, float]:
    """What the ideal observer reaches on this phantom, from n fresh images.

    Each image counts for every class with its posterior probability instead of the label drawn,
    which has the same mean and less sampling error (Rao-Blackwell).

    Args:
        config: the generating model.
        n: number of images; the error falls as its square root.
        seed: whole number, 0 or more.

    Returns:
        "accuracy" and "auc" (binary, or mean over classes of one against the rest) in [0, 1];
        "loss", the mean cross-entropy in nats.

    Example:
        >>> scores = ideal_scores(PhantomConfig(), n=200)
        >>> 0.5 < scores["accuracy"] < scores["auc"] < 1
        True
    """
    p = posterior(sample(config, n, seed)[0], config)
    hit = np.repeat([1, 0], n)
    aucs = [
        roc_auc_score(hit, np.tile(q, 2), sample_weight=np.concatenate([q, 1 - q])) for q in p.T
    ]
    return {
        "accuracy": float(p.max(axis=1).mean()),
        "auc": float(np.mean(aucs)),
        "loss": float(-(p * np.log(np.maximum(p, np.finfo(float).tiny))).sum(axis=1).mean()),
    }


def _info(config: PhantomConfig) -> DatasetInfo:
    return DatasetInfo(
        name=config.name,
        task=Task.BINARY if len(config.classes) == 2 else Task.MULTICLASS,
        classes=config.class_names,
        channels=1,
        flips=("horizontal", "vertical"),
        licence="CC0 1.0",
        source="generated by flaxmed.data.phantom",
        description="Synthetic lesions of known distribution; not medical images.",
        synthetic=True,
    )


def _seed_sequence(seed: int | np.random.SeedSequence) -> np.random.SeedSequence:
    if isinstance(seed, np.random.SeedSequence):
        return seed
    if seed < 0:
        raise InputError(f"phantom: the seed must be 0 or more, got {seed}")
    return np.random.SeedSequence(seed)


def _child(parent: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    # not parent.spawn, which counts its calls and would make the result depend on them
    return np.random.SeedSequence(parent.entropy, spawn_key=(*parent.spawn_key, number))


def _blocks(n: int, config: PhantomConfig) -> list[slice]:
    step = max(1, _BLOCK // config.size**2)
    return [slice(start, start + step) for start in range(0, n, step)]


def _draw_latents(
    config: PhantomConfig, uniform: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels and latents from seven uniform numbers per image, by inverting their distributions."""
    labels = _invert(np.tile(config.prior, (len(uniform), 1)), uniform[:, 0])
    latents = {}
    for column, (name, grid, weights) in enumerate(_class_latents(config), start=1):
        latents[name] = np.asarray(grid)[_invert(weights[labels], uniform[:, column])]
    for column, (name, values) in enumerate(_nuisance(config).items(), start=4):
        latents[name] = values[(uniform[:, column] * len(values)).astype(np.int64)]
    return labels, latents


def _invert(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Per row the first index at which the cumulative weight exceeds the uniform number."""
    # without the last sum, which rounding can leave below 1
    return (np.cumsum(weights, axis=1)[:, :-1] <= uniform[:, None]).sum(axis=1)


def _class_latents(
    config: PhantomConfig,
) -> list[tuple[str, tuple[float, ...], np.ndarray]]:
    """Name, grid ``[g]`` and probabilities ``[k, g]`` of the latents that depend on the class."""
    found = []
    for name, grid in (
        ("size", config.sizes),
        ("elongation", config.elongations),
        ("contrast", config.contrasts),
    ):
        mean, sd = np.array([getattr(c, name) for c in config.classes]).T[:, :, None]
        found.append((name, grid, softmax(-(((np.array(grid) - mean) / sd) ** 2) / 2)))
    return found


def _nuisance(config: PhantomConfig) -> dict[str, np.ndarray]:
    """Grids of the latents that are uniform in every class."""
    positions = np.asarray(config.positions)
    return {
        "angle": np.arange(config.angles) * np.pi / config.angles,
        "y": positions,
        "x": positions,
    }


def _heights(
    config: PhantomConfig,
    size: np.ndarray,
    elongation: np.ndarray,
    angle: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
) -> np.ndarray:
    """Lesions of unit height, ``[n, h, w]``, from latents ``[n]``."""
    pixel = (np.arange(config.size) - (config.size - 1) / 2) / config.size
    dy, dx = pixel[:, None] - y[:, None, None], pixel[None, :] - x[:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    size, stretch = size[:, None, None], np.sqrt(elongation)[:, None, None]
    along = (cos * dx + sin * dy) / (size * stretch)
    across = (cos * dy - sin * dx) / (size / stretch)
    return PROFILES[config.profile](along**2 + across**2)


def _shape_evidence(config: PhantomConfig, images: np.ndarray) -> np.ndarray:
    """Log-likelihood of each size, elongation and contrast, position and angle summed out.

    Returns ``[n, shapes]``, relative to the likelihood of the bare background, the shapes in the
    order of :func:`_log_weights`.
    """
    pixels = images.reshape(len(images), -1) - config.background
    variance = config.noise**2 + 1 / 12  # the noise, and the rounding to whole grey levels
    nuisance = {
        name: grid.ravel()
        for name, grid in zip(
            _nuisance(config), np.meshgrid(*_nuisance(config).values(), indexing="ij"), strict=True
        )
    }
    count = len(nuisance["angle"])
    evidence = []
    for size in config.sizes:
        for elongation in config.elongations:
            templates = _heights(
                config, size=np.full(count, size), elongation=np.full(count, elongation), **nuisance
            ).reshape(count, -1)
            match, energy = pixels @ templates.T, (templates**2).sum(axis=1)
            for contrast in config.contrasts:
                log_ratio = (contrast * match - contrast**2 / 2 * energy) / variance
                evidence.append(_logsumexp(log_ratio) - math.log(count))
    return np.stack(evidence, axis=1)


def _logsumexp(values: np.ndarray) -> np.ndarray:
    """log of the sum of exp over the last axis; overwrites its argument (scipy's makes copies)."""
    top = values.max(axis=-1)
    values -= top[..., None]
    return np.log(np.exp(values, out=values).sum(axis=-1)) + top


def _log_weights(config: PhantomConfig) -> np.ndarray:
    """Log-probability of each shape (size, elongation, contrast) in each class, ``[k, shapes]``."""
    with np.errstate(divide="ignore"):  # a shape that a class never has: log 0
        size, elongation, contrast = (np.log(weights) for _, _, weights in _class_latents(config))
    joint = size[:, :, None, None] + elongation[:, None, :, None] + contrast[:, None, None, :]
    return joint.reshape(len(config.classes), -1)
