"""Detectors of other packages, behind one protocol."""
