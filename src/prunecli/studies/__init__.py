"""Questions about a network that are answered by trying: what layers cost, which architectures work, what is inside."""
