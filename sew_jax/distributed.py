"""Joins the processes of a job: argument-free on TPU slices and Slurm, nothing to do on one machine."""

import os

import jax

# One of these is set where JAX can find its coordinator without arguments
_CLUSTER = ("SLURM_NTASKS", "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS", "JAX_COORDINATOR_ADDRESS")


def initialize() -> None:
    """Calls `jax.distributed.initialize` where the environment describes more than one process."""
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1 or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if several or any(os.environ.get(name) for name in _CLUSTER[2:]):
        jax.distributed.initialize()
