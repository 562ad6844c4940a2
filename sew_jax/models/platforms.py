"""The form of a computation that a platform computes best.

`jax.lax.platform_dependent` traces and differentiates the forms of all platforms, some of them in each other: three
fifths of the time that a program's tracing takes. Where it is known what is compiled for, one is enough.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

_known = jax.make_user_context(default_value=None)  # part of what JAX's caches of traced functions go by


def compiled_for(platform: str | None) -> AbstractContextManager:
    """What this thread traces within is for one platform alone (`cpu`, `tpu`, `cuda`, `rocm`); None: for any."""
    return _known(platform)


def compiled_for_own_devices() -> AbstractContextManager:
    """The same for the devices of this process."""
    platform = jax.default_backend()
    if platform == "gpu":
        platform = "rocm" if "rocm" in jax.devices()[0].client.platform_version else "cuda"
    return compiled_for(platform)


def by_platform(*arguments: Any, default: Callable, **forms: Callable) -> Any:
    """What the form of the platform that is compiled for makes of the arguments; `default` is of all not named."""
    if _known.value:
        return forms.get(_known.value, default)(*arguments)
    return jax.lax.platform_dependent(*arguments, default=default, **forms)
