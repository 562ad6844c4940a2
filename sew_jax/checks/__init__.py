"""What the keys of a config may be: a table for each mode, checked once, at the start and without JAX."""
