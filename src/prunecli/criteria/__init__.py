"""How important a channel is: one small file per criterion, listed in `prunecli.criteria.index`."""
