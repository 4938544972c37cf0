"""From YAML and flags to a complete plan."""
