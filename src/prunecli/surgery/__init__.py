"""Channel groups: finding them, removing them, proving the result."""
