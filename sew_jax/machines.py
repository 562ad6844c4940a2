"""What devices can compute and draw, by their makers' figures: for plans, and for energy that nothing measures."""

from typing import NamedTuple


class Machine(NamedTuple):
    """A device.

    Attributes:
      name: as in configs/plan.py.
      kinds: how JAX's `device_kind` begins.
      tflops: matrix products a second, in the 16-bit format that it is fastest in, dense, summed in float32.
      watts: its rating; None where its maker publishes none.
    """

    name: str
    kinds: tuple[str, ...]
    tflops: float
    watts: float | None

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
    Machine("h100", ("NVIDIA H100",), 989, 700),
    Machine("a100", ("NVIDIA A100",), 312, 400),
    Machine("v100", ("Tesla V100",), 125, 300),
    Machine("l4", ("NVIDIA L4",), 121, 72),
    Machine("t4", ("Tesla T4", "NVIDIA T4"), 65, 70),
    Machine("rtx4090", ("NVIDIA GeForce RTX 4090",), 165, 450),
    Machine("rtx3090", ("NVIDIA GeForce RTX 3090",), 71, 350),
    Machine("v4", ("TPU v4",), 275, 170),
    Machine("v5e", ("TPU v5 lite", "TPU v5e"), 197, None),
    Machine("v5p", ("TPU v5p", "TPU v5"), 459, None),
    Machine("v6e", ("TPU v6 lite", "TPU v6e"), 918, None),
    Machine("cpu_core", ("cpu",), 0.0885, 4.4),
)
MACHINE_NAMES = tuple(machine.name for machine in MACHINES)


def machine_named(name: str) -> Machine:
    """The machine of a name among `MACHINE_NAMES`."""
    return next(machine for machine in MACHINES if machine.name == name)


def machine_of(device_kind: str) -> Machine | None:
    """That of JAX's `device_kind`; None where it is not listed. Of two that fit the longer name counts."""
    fits = [(len(kind), machine) for machine in MACHINES for kind in machine.kinds if device_kind.startswith(kind)]
    return max(fits)[1] if fits else None
