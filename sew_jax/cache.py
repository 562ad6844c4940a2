"""The user's cache: what can be made again, and is better not."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$SEW_JAX_CACHE`, else `$XDG_CACHE_HOME/sew_jax`, else `~/.cache/sew_jax`."""
    if own := os.environ.get("SEW_JAX_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sew_jax"
