"""Comparing a smaller network with the original whose removed channels are masked."""
