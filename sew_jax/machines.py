"""What devices can compute and draw, by their makers' figures: for plans, and for energy that nothing measures."""

import re
from typing import NamedTuple


class Machine(NamedTuple):
    """A device.

    Attributes:
      name: as in configs/plan.py.
      kinds: how JAX's `device_kind` begins.
      tflops: matrix products a second, in the 16-bit format that it is fastest in, dense, summed in float32.
      watts: its rating; None where its maker publishes none.
      memory_gib: of its own, of those whose slices are planned for.
      gb_per_second: between it and its memory.
    """

    name: str
    kinds: tuple[str, ...]
    tflops: float
    watts: float | None
    memory_gib: float | None = None
    gb_per_second: float | None = None

    def hours(self, flop: float, utilization: float) -> float:
        """Of one device for so many FLOP, where training reaches the part `utilization` of its speed."""
        return flop / (self.tflops * 1e12 * utilization) / 3600

    def flop(self, hours: float, utilization: float) -> float:
        """What `hours` buy."""
        return hours * 3600 * self.tflops * 1e12 * utilization


# Sources: NVIDIA's data sheets of each (the SXM form of A100 and H100; of GeForce cards the architecture white papers);
# Google Cloud's pages of TPU versions; watts of v4 as measured under load by Jouppi et al. 2023 (arXiv:2304.01433).
# A core: 2 with AVX2 reached 177 GFLOP/s in float32 here (docs/results.md); 280 W of AMD's EPYC 7763 by its 64 cores.
MACHINES = (
    Machine("h200", ("NVIDIA H200",), 989, 700),
    Machine("h100", ("NVIDIA H100",), 989, 700, 80, 3350),
    Machine("a100", ("NVIDIA A100",), 312, 400),
    Machine("v100", ("Tesla V100",), 125, 300),
    Machine("l4", ("NVIDIA L4",), 121, 72),
    Machine("t4", ("Tesla T4", "NVIDIA T4"), 65, 70),
    Machine("rtx4090", ("NVIDIA GeForce RTX 4090",), 165, 450),
    Machine("rtx3090", ("NVIDIA GeForce RTX 3090",), 71, 350),
    Machine("v4", ("TPU v4",), 275, 170),
    Machine("v5e", ("TPU v5 lite", "TPU v5e"), 197, None, 16, 819),
    Machine("v5p", ("TPU v5p", "TPU v5"), 459, None, 95, 2765),
    Machine("v6e", ("TPU v6 lite", "TPU v6e"), 918, None, 32, 1638),
    Machine("cpu_core", ("cpu",), 0.0885, 4.4),
)
MACHINE_NAMES = tuple(machine.name for machine in MACHINES)
_GRIDS = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}
_TOPOLOGIES = {"v5e": _GRIDS, "v6e": _GRIDS, "v5p": _CUBES}
_SLICE = re.compile(r"(v5e|v5p|v6e)-(\d+)|(h100)x(\d+)")


class Slice(NamedTuple):
    """Devices that work together.

    Attributes:
      topology: as libtpu names it; empty of GPUs.
    """

    machine: Machine
    devices: int
    topology: str


def slice_named(text: str) -> Slice | None:
    """The slice of a name: v5e-16, v6e-8, v5p-8 (which counts two cores a chip, as its maker does) or h100x8.

    None of a name among `MACHINE_NAMES`, which is of a device alone.

    Raises:
      ValueError: it is neither.
    """
    if text in MACHINE_NAMES:
        return None
    match = _SLICE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is unknown; choose one of {', '.join(MACHINE_NAMES)}, or a slice such as v5e-16")
    if match[3]:
        return Slice(machine_named(match[3]), max(int(match[4]), 1), "")
    name, shapes = match[1], _TOPOLOGIES[match[1]]
    cores = 2 if name == "v5p" else 1
    chips, left_over = divmod(int(match[2]), cores)
    if left_over or chips not in shapes:
        those = ", ".join(f"{name}-{cores * count}" for count in shapes)
        raise ValueError(f"{text} is no slice that is planned for; choose one of {those}")
    return Slice(machine_named(name), chips, f"{name}:{shapes[chips]}")


def machine_named(name: str) -> Machine:
    """The machine of a name among `MACHINE_NAMES`."""
    return next(machine for machine in MACHINES if machine.name == name)


def machine_of(device_kind: str) -> Machine | None:
    """That of JAX's `device_kind`; None where it is not listed. Of two that fit the longer name counts."""
    fits = [(len(kind), machine) for machine in MACHINES for kind in machine.kinds if device_kind.startswith(kind)]
    return max(fits)[1] if fits else None
