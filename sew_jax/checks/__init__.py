"""What the keys of a config may be: rules for each mode, checked once, at the start and without JAX."""
