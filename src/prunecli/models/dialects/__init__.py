"""Other people's names for the layers of networks in the catalogue: one file per network, listed in `index.py`."""
