"""How important a single weight is: one small file per method, listed in `prunecli.methods.sparse_index`."""
