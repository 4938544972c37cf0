"""Networks of other packages, with inputs they take: what `prune doctor --coverage` can try beside the catalogue."""
