"""Solving the layers of a pruned network for what the dense one gave, in the order in which they run."""
