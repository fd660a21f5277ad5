"""Architecture diagrams of the networks, drawn from the model and its layer table alone."""

from flaxmed.diagram.drawing import draw
from flaxmed.diagram.files import diagram_paths, save_diagram

__all__ = ["diagram_paths", "draw", "save_diagram"]
