"""Single weights and spikes held at zero; no shape changes."""
