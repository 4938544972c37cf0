"""Checkpoints of this tool, and weights that other programs saved."""

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
"""Suffixes of weights files; defined in this module because completion reads them without importing torch."""
