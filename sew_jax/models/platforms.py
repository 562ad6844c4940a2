"""The form of a computation that a platform computes best.

`jax.lax.platform_dependent` traces and differentiates the forms of all platforms, some of them in each other. Where it
is known what is compiled for, one is enough, which is half the time of tracing and less (docs/scaling.md).
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
    if platform != "gpu":
        return compiled_for(platform)
    version = jax.devices()[0].client.platform_version
    return compiled_for(next((name for name in ("cuda", "rocm") if name in version), None))


def by_platform(*arguments: Any, default: Callable, **forms: Callable) -> Any:
    """What the form of the platform that is compiled for makes of the arguments; `default` is of all not named."""
    if _known.value:
        return forms.get(_known.value, default)(*arguments)
    return jax.lax.platform_dependent(*arguments, default=default, **forms)
