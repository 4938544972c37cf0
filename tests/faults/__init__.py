"""Files that are hostile, damaged or cut short, and processes that are killed."""
