"""Whether weights give here what they give in the library that they come from, stage by stage."""

from flaxmed.verify.verification import Verification, verify_weights

__all__ = ["Verification", "verify_weights"]
