"""A run's state before there is one: shapes and placement, which programs are compiled for."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sew_jax.runtime.sharding import bytes_per_device, tree_shardings
from sew_jax.training.step import OfRun, TrainState, new_state
from sew_jax.training.task import Task


class Template:
    """Shapes and placement of a run's state, before there is one.

    Attributes:
      of_run: on all devices.
      like: shapes of the state, with their shardings.
      parameters: of the model, counted.
    """

    def __init__(self, config: ConfigDict, task: Task, mesh: Mesh):
        self.mesh, self._task = mesh, task
        self.replicated = NamedSharding(mesh, PartitionSpec())
        of_run = jax.jit(
            lambda: OfRun(jax.random.key(config.seed), jnp.array(config.num_steps)), out_shardings=self.replicated
        )
        self.of_run = of_run()
        shapes = jax.eval_shape(self._make_state, self.of_run.key)
        self.shardings = tree_shardings(mesh, shapes)
        self.like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings
        )
        self.parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes.params))
        self.bytes_per_device = bytes_per_device(shapes, self.shardings)

    def _make_state(self, key: jax.Array) -> TrainState:
        variables = self._task.init(key)
        if teacher := self._task.teacher:
            averages = teacher.begin(variables.get("batch_stats", {}), variables["params"])
            variables = variables | {"batch_stats": averages}
        return new_state(variables, self._task.optimizer)

    def first_state(self) -> TrainState:
        """That of a run without checkpoints."""
        state = jax.jit(self._make_state, out_shardings=self.shardings)(self.of_run.key)
        params = jax.device_put(self._task.warm_start(state.params, self.replicated), self.shardings.params)
        if not (teacher := self._task.teacher):
            return state.replace(params=params)
        begin = jax.jit(teacher.begin, out_shardings=self.shardings.batch_stats)
        return state.replace(params=params, batch_stats=begin(state.batch_stats, params))
