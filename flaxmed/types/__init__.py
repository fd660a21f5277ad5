"""The vocabulary that every part of flaxmed shares. NumPy only: importing this loads no jax."""

from flaxmed.types.archive import Archive, Member
from flaxmed.types.data import Dataset, DatasetInfo, Preprocessing, Split, Task
from flaxmed.types.errors import InputError, RunError
from flaxmed.types.json_files import read_json, read_json_lines
from flaxmed.types.predictions import Predictions, sigmoid, softmax
from flaxmed.types.schema import check_shape, is_number

__all__ = [
    "Archive",
    "Dataset",
    "DatasetInfo",
    "InputError",
    "Member",
    "Predictions",
    "Preprocessing",
    "RunError",
    "Split",
    "Task",
    "check_shape",
    "is_number",
    "read_json",
    "read_json_lines",
    "sigmoid",
    "softmax",
]

# tracebacks show the name under which users catch them
InputError.__module__ = RunError.__module__ = __name__
