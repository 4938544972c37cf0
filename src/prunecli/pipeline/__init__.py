"""The stages of a run, each usable alone."""
