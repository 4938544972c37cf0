"""Tests that run in several processes at once."""
