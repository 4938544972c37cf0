"""Removing channels from a network, and compensating for what they contributed."""
