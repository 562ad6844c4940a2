"""Layers one after the other; on TPUs those of equal factors as one body of a loop over their stacked parameters.

XLA's compiler for TPUs takes 29 CPU-seconds for each layer of base that is written out (with its gradients), and no
more for the loop. CPUs and GPUs compile a layer in one or two, so layers stay written out and nothing is copied there.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sew_jax.models.platforms import by_platform

# (parameters, state, of_layer, setting) -> state
LayerFunction = Callable[[Any, Any, Any, Any], Any]


def run_layers(
    function: LayerFunction,
    params: Sequence[Any],
    state: Any,
    of_layers: Sequence[Any],
    settings: Sequence[Any],
    loops: bool,
) -> list[Any]:
    """The state after each layer.

    Args:
      function: a layer.
      params: of each layer, trees of equal shapes.
      of_layers: what else each layer has of its own, trees of equal shapes.
      settings: static, of each layer; equal ones give a state of the shapes that they are given.
      loops: whether loops are wanted.
    """
    states: list[Any] = []
    for setting, group in itertools.groupby(range(len(params)), key=lambda i: settings[i]):
        run = list(group)
        arguments = state, [params[i] for i in run], [of_layers[i] for i in run]
        layer = functools.partial(_written_out, function, setting)
        if len(run) == 1 or not loops:
            states += layer(*arguments)
        else:
            loop = functools.partial(_as_a_loop, function, setting)
            states += by_platform(*arguments, tpu=loop, default=layer)
        state = states[-1]
    return states


def _written_out(function: LayerFunction, setting, state, params, of_layers):
    states = []
    for of_params, of_layer in zip(params, of_layers, strict=True):
        state = function(of_params, state, of_layer, setting)
        states.append(state)
    return states


def _as_a_loop(function: LayerFunction, setting, state, params, of_layers):
    def body(state, each):
        state = function(each[0], state, each[1], setting)
        return state, state

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(params, of_layers, strict=True))
    last, states = jax.lax.scan(body, state, stacked)
    return [*(jax.tree.map(lambda x, i=i: x[i], states) for i in range(len(params) - 1)), last]
