"""Jobs of several processes with few devices each, on one machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEVICES = 4  # of a job
TINY = [
    "--config.model.width=64",
    "--config.model.layers=1",
    "--config.model.heads=2",
    "--config.model.ffn_width=64",
    "--config.model.pos_kernel=5",
    "--config.model.layerdrop=0.3",
    "--config.head.codes=8",
    "--config.head.negatives=5",
    "--config.input.batch_seconds=3",
    "--config.mesh.data=1",
    f"--config.mesh.fsdp={DEVICES}",
    "--config.compression.squeeze=(1,2)",
    "--config.compression.query_pool=(1,)",
    "--config.optim.warmup=0",  # else the first of so many updates would change nothing
    "--config.log_every=1",
    "--config.checkpoint_every=4",
    "--config.num_steps=50000",  # a signal ends it, however late that comes; of longer runs not each row is written
]


# What a program does before the command line's; APART: a mesh that keeps the devices of no process together
APART = """
import jax
from sew_jax.training import setup
make_mesh = setup.make_mesh
setup.make_mesh = lambda data, fsdp: make_mesh(data, fsdp, [jax.devices()[i] for i in (0, 2, 1, 3)])
"""
# JAX's key of a program is the same for all processes of a TPU slice, and another for each process on CPU
KEYS_AS_ON_TPU = """
import jax._src.cache_key as keys
keys._hash_accelerator_config = keys._hash_devices
"""
MAIN = """
import sys
from sew_jax.main import main
sys.exit(main())
"""


class Job:
    """Processes of the command line that train `corpus` in `workdir`."""

    def __init__(
        self, corpus, workdir, *, processes, config="pretrain", options=TINY, own=(), places=(), first="", **variables
    ):
        """Processes of one machine that differ as hosts may.

        Args:
          own: for each process, options of its own; places: its folder, which relative paths begin in.
          first: a program to run before.
          variables: of the environment; each value is for all processes, or one for each.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES // processes)}
        start = ["-c", first + MAIN] if first else ["-m", "sew_jax.main"]
        command = [sys.executable, *start, f"--config={ROOT}/configs/{config}.py", f"--config.data={corpus}"]
        command += [*options, f"--workdir={workdir}"]
        self.processes = []
        for number in range(processes):
            several = [f"--coordinator_address={address}", f"--num_processes={processes}", f"--process_id={number}"]
            given = {name: value if isinstance(value, str) else value[number] for name, value in variables.items()}
            self.processes.append(
                subprocess.Popen(
                    [*command, *(own[number] if own else []), *(several if processes > 1 else [])],
                    cwd=places[number] if places else ROOT,
                    env=environment | {"PYTHONPATH": str(ROOT)} | given,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )

    def wait_for(self, start):
        """Reads what the first process says up to a line."""
        for line in self.processes[0].stdout:
            if line.startswith(start):
                return
        raise AssertionError(f"ended before it said {start!r}: {self.processes[0].stderr.read()}")

    def end(self):
        """(exit status, stdout, stderr) of each process."""
        outputs = [process.communicate(timeout=300) for process in self.processes]
        return [(process.returncode, *output) for process, output in zip(self.processes, outputs, strict=True)]
