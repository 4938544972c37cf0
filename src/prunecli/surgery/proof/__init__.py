"""Comparing a pruned network with the original with removed channels masked."""
