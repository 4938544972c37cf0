"""Mixtures of experts: which layers are some, what their routers decide, and removing experts."""
