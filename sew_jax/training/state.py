"""What training carries from update to update; nothing random is in it, since every draw is made from (seed, step)."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """step: updates done; batch_stats: running statistics of BatchNorm heads (empty without)."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    batch_stats: Any


def new_state(variables: dict[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        params=variables["params"],
        opt_state=optimizer.init(variables["params"]),
        batch_stats=variables.get("batch_stats", {}),
    )
