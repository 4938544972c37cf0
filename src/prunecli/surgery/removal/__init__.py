"""Taking channels out of a network, and making up for what they did."""
