"""Checkpoints of ours, and other people's weights."""

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
"""Endings of files that hold weights; here, because completion reads them without importing torch."""
