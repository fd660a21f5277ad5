"""How far flaxmed is from a reference: one number per tensor, by check.

Every function returns deviations by name; 0 is equality. The inputs and weights are random, but the
same in every process, and numbers that float32 can hold.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pytest

from . import keras_reference, torch_reference
from .cases import CASES, Case, Ours, Step, Tensors, images_and_labels, random_tensors
from .keras_reference import KerasReference
from .torch_reference import TorchReference

Deviations = dict[str, float]

FLOAT64_TOLERANCE = 1e-8  # relative L2, every tensor
LOGITS_TOLERANCE = 1e-4  # float32: of the spread (standard deviation) of the logits
GRADIENT_FACTOR = 2.0  # float32: of the reference's own float32 error
GRADIENT_DRAWS = 8  # and up to eight times as many, see GradientErrors
CLEAN = 1e-4  # a larger error of a float32 gradient is no rounding error
FLIP = 4e-2  # what one other decision of a ReLU was seen to do to a gradient of PyTorch's float32

EVALUATION_BATCH = 2
TRAINING_BATCH = 4
GRADIENT_BATCH = 2  # float32: fewer activations that may fall on either side of zero
# A tensor whose norm is below this part of the largest of its kind counts as zero but for rounding
# and is measured against this part instead: see relative_l2.
FLOOR = 1e-6


def require(package: str) -> None:
    """Skips a test whose reference is not installed; fails it if FLAXMED_REQUIRE_ORACLES=1."""
    reference = keras_reference if package == "keras" else torch_reference
    try:
        reference.import_packages()
    except ImportError as error:
        missing = f"the reference {package} cannot be imported: {error}"
        if os.environ.get("FLAXMED_REQUIRE_ORACLES") == "1":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)


def relative_l2(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> Deviations:
    """``|ours - theirs| / |theirs|`` (Euclidean norms) of every tensor.

    Where the exact value is zero, rounding alone is left and its relative error means nothing. So
    the divisor is at least FLOOR times the largest norm among ``theirs``: tensors of one kind, the
    gradients, say. Above that bound nothing is softened, and ``smallest_norm`` shows whether any
    tensor came near it.

    Raises:
        AssertionError: Names or shapes that differ.
    """
    assert set(ours) == set(theirs), f"names differ: {sorted(set(ours) ^ set(theirs))}"
    norms = {name: float(np.linalg.norm(value)) for name, value in theirs.items()}
    floor = FLOOR * max(norms.values())
    deviations = {}
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, (name, ours[name].shape, value.shape)
        difference = float(np.linalg.norm(np.asarray(ours[name], np.float64) - value))
        deviations[name] = difference / max(norms[name], floor)
    return deviations


def one_by_one(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> Deviations:
    """:func:`relative_l2` of tensors of different kinds: each is measured by itself alone."""
    assert set(ours) == set(theirs), f"names differ: {sorted(set(ours) ^ set(theirs))}"
    return {
        name: relative_l2({name: ours[name]}, {name: theirs[name]})[name] for name in sorted(ours)
    }


def smallest_norm(tensors: Mapping[str, np.ndarray]) -> float:
    """The smallest norm of a tensor, as a part of the largest."""
    norms = [float(np.linalg.norm(value)) for value in tensors.values()]
    return min(norms) / max(norms)


def worst(deviations: Deviations) -> float:
    """The largest deviation; NaN if there is one."""
    return float(np.max(list(deviations.values())))


def check(deviations: Deviations, tolerance: float) -> None:
    """Asserts that every deviation is within the tolerance; names the largest ones."""
    order = sorted(deviations, key=lambda n: np.nan_to_num(deviations[n], nan=np.inf), reverse=True)
    listed = ", ".join(f"{name}: {deviations[name]:.2e}" for name in order[:5])
    assert worst(deviations) <= tolerance, f"beyond {tolerance:.0e}: {listed}"


@dataclasses.dataclass(frozen=True)
class GradientErrors:
    """Float32 errors of every gradient in many draws of the images, and the reference's own.

    They have two sources. Rounding errors add up smoothly, to about 1e-5. And where an activation
    is zero to rounding, a ReLU or a pool may decide otherwise than in float64; one such decision
    moves the gradients before it by up to FLIP, and which side it hits in which draw is luck (both
    were seen to be hit in 13 to 15 of 16 draws of Xception). So rounding is judged tensor by tensor
    in the best draw, of which there must be one without such a decision on either side; the
    decisions by the size of the largest error.

    Attributes:
        ours: Relative L2 errors by tensor, of every draw.
        theirs: The reference's.
    """

    ours: list[Deviations]
    theirs: list[Deviations]

    @property
    def clean(self) -> bool:
        """Whether either side has a draw in which rounding is all."""
        return all(min(map(worst, side)) <= CLEAN for side in (self.ours, self.theirs))

    def ratios(self) -> Deviations:
        """Rounding errors of every gradient, as multiples of the reference's own."""
        ours, theirs = _smallest(self.ours), _smallest(self.theirs)
        return {name: ours[name] / theirs[name] for name in theirs}

    def check(self) -> None:
        """Asserts that no error is more than GRADIENT_FACTOR times the reference's."""
        check(self.ratios(), GRADIENT_FACTOR)
        largest = max(map(worst, self.theirs))
        for draw in self.ours:
            check(draw, GRADIENT_FACTOR * max(largest, FLIP))


def _smallest(draws: list[Deviations]) -> Deviations:
    return {name: min(draw[name] for draw in draws) for name in draws[0]}


@contextlib.contextmanager
def precision(dtype: type) -> Iterator[None]:
    """jax as it is for float32, with 64-bit types for float64."""
    with jax.enable_x64(True) if dtype is np.float64 else contextlib.nullcontext():
        yield


class Comparison:
    """flaxmed beside a reference, both with the same random weights and statistics.

    The reference and its results are kept, with what Keras compiled for it; flaxmed's are not,
    except for one float64 training step.

    Attributes:
        case: The network and its reference.
        ours_case: flaxmed's side of it: the same, unless :meth:`beside` put another there.
        channels: Of the images.
        size: Side of the images; the case's first if not given.
    """

    def __init__(self, name: str, channels: int = 3, size: int | None = None):
        self.case = self.ours_case = CASES[name]
        self.channels = channels
        self.size = size or self.case.sizes[0]
        self._references: dict[type, Any] = {}

    def beside(self, case: Case) -> Comparison:
        """The same reference beside another network of flaxmed: to see the comparison fail."""
        other = copy.copy(self)
        other.ours_case = case
        other.__dict__.pop("our_step", None)
        return other

    @functools.cached_property
    def weights(self) -> Tensors:
        """All tensors by foreign name, float64 numbers that float32 can hold."""
        ours = Ours(self.case, self.channels, np.float32)
        return ours.foreign(random_tensors(ours.model))

    def ours(self, dtype: type) -> Ours:
        """flaxmed's side with the weights loaded. Inside ``precision``."""
        ours = Ours(self.ours_case, self.channels, dtype)
        ours.load(self.weights)
        return ours

    def reference(self, dtype: type) -> Any:
        """The other side with the weights loaded. Inside ``precision``."""
        if dtype not in self._references:
            self._references[dtype] = (
                KerasReference(self.case, self.channels, dtype, self.size)
                if self.case.package == "keras"
                else TorchReference(self.case, self.channels, dtype)
            )
        self._references[dtype].load(self.weights)
        return self._references[dtype]

    @functools.cached_property
    def their_evaluation(self) -> tuple[np.ndarray, Tensors]:
        """Logits and maps of the reference in float64."""
        with precision(np.float64):
            return self.reference(np.float64).evaluate(self._images())

    @functools.cached_property
    def their_step(self) -> Step:
        """A training step of the reference in float64."""
        with precision(np.float64):
            return self.reference(np.float64).step(*self._batch())

    @functools.cached_property
    def our_step(self) -> Step:
        """A training step of flaxmed in float64."""
        with precision(np.float64):
            return self.ours(np.float64).step(*self._batch())

    def evaluation(self) -> Deviations:
        """Float64: relative L2 of the logits and of every named map in evaluation mode."""
        with precision(np.float64):
            logits, maps = self.ours(np.float64).evaluate(self._images())
        their_logits, their_maps = self.their_evaluation
        return one_by_one({"logits": logits, **maps}, {"logits": their_logits, **their_maps})

    def evaluation_float32(self) -> Deviations:
        """Float32: largest error of a logit, as a part of the logits' standard deviation.

        Measured against the reference's float64; the reference's own float32 error is no excuse.
        """
        logits, _ = self.ours(np.float32).evaluate(self._images())
        exact, _ = self.their_evaluation
        return {"logits": float(np.abs(logits - exact).max() / exact.std())}

    def training_logits(self) -> Deviations:
        """Float64: relative L2 of the logits and the loss in training mode."""
        ours, theirs = self.our_step, self.their_step
        return one_by_one(
            {"logits": ours.logits, "loss": ours.loss},
            {"logits": theirs.logits, "loss": theirs.loss},
        )

    def statistics(self) -> Deviations:
        """Float64: relative L2 of every running mean and variance after the step."""
        return relative_l2(self.our_step.statistics, self.their_step.statistics)

    def gradients(self) -> Deviations:
        """Float64: relative L2 of the gradient of every parameter."""
        return relative_l2(self.our_step.gradients, self.their_step.gradients)

    @functools.cached_property
    def their_sgd(self) -> Tensors:
        """All tensors of the reference after its steps of SGD, in float64."""
        with precision(np.float64):
            return self.reference(np.float64).sgd(*self._batch())

    def sgd(self) -> Deviations:
        """Float64: relative L2 of every tensor after five steps of SGD with momentum."""
        with precision(np.float64):
            return relative_l2(self.ours(np.float64).sgd(*self._batch()), self.their_sgd)

    def gradients_float32(self) -> GradientErrors:
        """Float32: errors of every gradient, ours and the reference's own, in several draws.

        Both are relative L2 errors against the reference's float64.
        """
        ours, theirs = self.ours(np.float32), self.reference(np.float32)
        errors = GradientErrors([], [])
        for seed in range(8 * GRADIENT_DRAWS):
            if seed >= GRADIENT_DRAWS and errors.clean:
                break
            batch = images_and_labels(self.size, self.channels, GRADIENT_BATCH, seed)
            with precision(np.float64):
                exact = self.reference(np.float64).step(*batch).gradients
            theirs.load(self.weights)
            errors.theirs.append(relative_l2(theirs.step(*batch).gradients, exact))
            errors.ours.append(relative_l2(ours.step(*batch).gradients, exact))
        return errors

    def _images(self) -> np.ndarray:
        return images_and_labels(self.size, self.channels, EVALUATION_BATCH)[0]

    def _batch(self) -> tuple[np.ndarray, np.ndarray]:
        return images_and_labels(self.size, self.channels, TRAINING_BATCH)
