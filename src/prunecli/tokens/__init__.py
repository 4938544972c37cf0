"""Tokens of vision transformers: which ones matter for an image, and leaving the others out while the network runs."""
