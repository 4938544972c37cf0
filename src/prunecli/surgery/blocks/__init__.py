"""Whole residual blocks: finding them, switching them off, and taking them out."""
