"""Which positions of which tensors are one channel, found by following one run of the model."""
