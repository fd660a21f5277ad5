"""Reference implementations of the three networks, and the comparison of flaxmed with them."""
