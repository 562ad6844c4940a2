"""What computes: the code's commit or version, the versions of what it is built upon, and the devices."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import jax

from sew_jax import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_ROOT = Path(__file__).parents[2]


def versions() -> dict[str, str]:
    """By name: `sew_jax` (with the commit, in a git checkout), packages, Python, and the kind of device."""
    found = {"sew_jax": f"{__version__} {_commit()}".strip()}
    found |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    return found | {"python": platform.python_version(), "device": jax.devices()[0].device_kind}


@functools.cache
def _commit() -> str:
    """Of a git checkout, with `-dirty` where files differ from it; else empty."""
    if not (_ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # without git, or a checkout of another user's
        return ""
