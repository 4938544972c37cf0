"""Tasks: one module each, listed in `index.py`."""
