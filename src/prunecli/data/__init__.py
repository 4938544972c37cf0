"""Image data sets: one file per kind, found through `prunecli.data.catalog`."""
