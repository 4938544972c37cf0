"""Networks as files that other programs run: one module for each format."""
