"""Packages of spiking neurons, one file each; `prunecli.measure.neurons` has their table."""
