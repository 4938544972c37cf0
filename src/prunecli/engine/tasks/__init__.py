"""What networks are trained and judged for: one module for each task, listed in `index.py`."""
