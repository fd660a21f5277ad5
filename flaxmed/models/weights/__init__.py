"""Published weights: where they are, what they need, how their files are read and written."""

from flaxmed.models.weights.known import list_weights
from flaxmed.models.weights.load import Weights, load_weights, open_weights
from flaxmed.models.weights.save import convert_weights, save_weights, weights_of

__all__ = [
    "Weights",
    "convert_weights",
    "list_weights",
    "load_weights",
    "open_weights",
    "save_weights",
    "weights_of",
]
