"""Writes what documentation pages say of commands, recipes, methods and files: `python -m prunecli.cli.reference`."""
