"""Where networks come from: one file per source, found through `prunecli.models.catalog`."""
