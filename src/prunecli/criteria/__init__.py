"""How important a channel is: one small file per criterion, found through `prunecli.methods.index`."""
