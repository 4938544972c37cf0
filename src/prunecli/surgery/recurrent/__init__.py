"""Recurrent layers in a form whose layers and directions can have different widths."""
