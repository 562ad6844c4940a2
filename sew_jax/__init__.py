"""Stochastic wav2vec 2.0 in JAX: pre-train once, choose the compute afterwards (arXiv 2204.11934)."""

__version__ = "0.1.0"
