"""The vocabulary that every part of flaxmed shares. NumPy only: importing this loads no jax."""

from flaxmed.types.data import Dataset, DatasetInfo, Preprocessing, Split, Task
from flaxmed.types.errors import InputError, RunError
from flaxmed.types.predictions import Predictions, sigmoid, softmax

__all__ = [
    "Dataset",
    "DatasetInfo",
    "InputError",
    "Predictions",
    "Preprocessing",
    "RunError",
    "Split",
    "Task",
    "sigmoid",
    "softmax",
]

# tracebacks show the name under which users catch them
InputError.__module__ = RunError.__module__ = __name__
