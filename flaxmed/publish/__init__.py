"""What leaves flaxmed for others: a network in a folder with its card, and that on the hub."""

from flaxmed.publish.folder import save_pretrained
from flaxmed.publish.push import push_to_hub

__all__ = ["push_to_hub", "save_pretrained"]
