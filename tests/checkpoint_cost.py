"""What a checkpoint of wav2vec 2.0 base costs: parameters and both moments of Adam, 1.1 GiB, on one device of a CPU.

  python -m tests.checkpoint_cost --folder=/disk [--rounds=5]

Seconds that training would be held by a save, seconds until it is on disk, and memory beyond what was there before; a
restore with its checksums in a process of its own. Least and most of the rounds, and the load meanwhile. Needs Linux
and 6 GiB. It calls nothing but `Checkpoints`, so that it measures older commits, too (from their root, by its path).
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, os.getcwd())

import jax

from configs import pretrain
from sew_jax.checkpoints.checkpointer import Checkpoints
from sew_jax.training.setup import open_task
from sew_jax.training.step import new_state
from tests.runs import make_corpus

GIB = 2**30


def peak_bytes(reset: bool = False) -> int:
    """Resident memory at its most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def base_state(folder: Path):
    """A function of a key that gives the state of an untrained model."""
    if not (folder / "corpus").exists():
        make_corpus(folder / "corpus")
    config = pretrain.get_config("base")
    config.data, config.input.min_seconds = str(folder / "corpus"), 0.1
    task = open_task(config)
    return lambda key: new_state(task.init(key), task.optimizer)


def save(folder: Path, rounds: int) -> None:
    state = jax.block_until_ready(jax.jit(base_state(folder))(jax.random.key(0)))
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    checkpoints, rows = Checkpoints(folder), []
    getattr(checkpoints, "prepare", lambda state: None)(state)
    for step in range(1, rounds + 1):
        before, begin = peak_bytes(reset=True), time.monotonic()
        checkpoints.save(state, step, {"step": step})
        held = time.monotonic() - begin
        checkpoints.wait()
        rows.append((held, time.monotonic() - begin, (peak_bytes() - before) / GIB))
    checkpoints.close()
    print(f"state {size / GIB:.2f} GiB", told("held s", rows, 0), told("on disk s", rows, 1), told("more GiB", rows, 2))


def restore(folder: Path) -> None:
    shapes = jax.eval_shape(base_state(folder), jax.random.key(0))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    checkpoints = Checkpoints(folder)
    before, begin = peak_bytes(reset=True), time.monotonic()
    jax.block_until_ready(checkpoints.restore(like).state)
    print(f"{time.monotonic() - begin:.3f} {(peak_bytes() - before) / GIB:.3f}")


def told(name: str, rows: list[tuple[float, ...]], column: int) -> str:
    values = sorted(row[column] for row in rows)
    return f"| {name} {values[0]:.2f} ({values[0]:.2f}-{values[-1]:.2f}), the first {rows[0][column]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=("save", "restore"), help="one of the two, in this process")
    arguments = parser.parse_args()
    folder = arguments.folder / "checkpoint_cost"
    if arguments.part == "save":
        return save(folder, arguments.rounds)
    if arguments.part == "restore":
        return restore(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [
        sys.executable,
        os.path.abspath(__file__),
        f"--folder={arguments.folder}",
        f"--rounds={arguments.rounds}",
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    subprocess.run([*command, "--part=save"], env=environment, check=True)
    rows = []
    for _ in range(arguments.rounds):
        output = subprocess.run(
            [*command, "--part=restore"], env=environment, check=True, capture_output=True, text=True
        )
        rows.append(tuple(map(float, output.stdout.split()[-2:])))
    print("restore", told("s", rows, 0), told("more GiB", rows, 1))
    print(f"load {os.getloadavg()[0]:.1f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
