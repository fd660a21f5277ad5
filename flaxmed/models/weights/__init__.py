"""Published weights: where they are, what they need, how their files are read and written."""

from flaxmed.models.weights.known import describe_weights, list_weights
from flaxmed.models.weights.load import Weights, from_pretrained, load_weights, open_weights
from flaxmed.models.weights.save import convert_weights, save_weights, weights_of

__all__ = [
    "Weights",
    "convert_weights",
    "describe_weights",
    "from_pretrained",
    "list_weights",
    "load_weights",
    "open_weights",
    "save_weights",
    "weights_of",
]
