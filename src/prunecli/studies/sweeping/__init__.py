"""Sweeps: which cells there are, running them exactly once, and what they come to."""
