"""The suite runs on CPU with 8 virtual devices, whatever the machine has."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_modifyitems(items):
    for item in items:
        for platform in ("gpu", "tpu"):
            if item.get_closest_marker(platform):
                item.add_marker(pytest.mark.skip(reason=f"needs a {platform.upper()}; run it there by hand"))
