"""Energy that this process's devices have taken: by the counters of GPUs or processors, else by a rating."""

import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax

from sew_jax.machines import machine_of

_POWERCAP = Path("/sys/class/powercap")
_NVML = "libnvidia-ml.so.1"
Counter = Callable[[], float]  # joules since some moment


class EnergyMeter:
    """Joules between two readings.

    `source` says of what: "nvml" (the GPUs of this process), "rapl" (the machine's processors, whoever uses them),
    "rating" (what the devices are rated at, times the time), or "" where nothing is known.
    """

    def __init__(self):
        self.source, self._counter = _find_counter()
        self._last = self._counter() if self._counter else 0.0

    def read(self) -> float | None:
        """Joules since the reading before, or since the start; None where nothing is known."""
        if not self._counter:
            return None
        before, self._last = self._last, self._counter()
        return self._last - before


def _find_counter() -> tuple[str, Counter | None]:
    devices = jax.local_devices()
    if devices[0].platform == "gpu" and (counter := nvml_counter(len(devices))):
        return "nvml", counter
    if devices[0].platform == "cpu" and (counter := rapl_counter(_POWERCAP)):
        return "rapl", counter
    machine = machine_of(devices[0].device_kind)
    if machine is None or machine.watts is None:
        return "", None
    count = os.cpu_count() or 1 if devices[0].platform == "cpu" else len(devices)
    watts = machine.watts * count
    return "rating", lambda: watts * time.monotonic()


def rapl_counter(folder: Path) -> Counter | None:
    """That of all processor packages; None where there is none, or it may not be read."""
    zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    try:
        last = {zone: _microjoules(zone) for zone in zones}
        ranges = {zone: int((zone / "max_energy_range_uj").read_text()) for zone in zones}
    except (OSError, ValueError):
        return None
    if not zones:
        return None
    total = 0

    def read() -> float:
        nonlocal total
        for zone in zones:
            with contextlib.suppress(OSError, ValueError):  # of one reading: the next one makes up for it
                now = _microjoules(zone)
                total += (now - last[zone]) % (ranges[zone] + 1)  # it begins at 0 again
                last[zone] = now
        return total / 1e6

    return read


def _microjoules(zone: Path) -> int:
    return int((zone / "energy_uj").read_text())


def nvml_counter(devices: int) -> Counter | None:
    """That of the first GPUs that this process may use; None without the driver's library, or before Volta."""
    try:
        nvml = ctypes.CDLL(_NVML)
    except OSError:
        return None
    if nvml.nvmlInit_v2():
        return None
    handles = [handle for name in _visible(devices) if (handle := _handle(nvml, name))]
    value = ctypes.c_ulonglong()

    def millijoules(handle) -> int | None:
        failed = nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
        return None if failed else value.value

    if len(handles) < devices or any(millijoules(handle) is None for handle in handles):
        return None
    return lambda: sum(millijoules(handle) or 0 for handle in handles) / 1000


def _visible(devices: int) -> list[str]:
    """Numbers or UUIDs of GPUs."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(i) for i in range(devices)])[:devices]


def _handle(nvml: ctypes.CDLL, name: str) -> ctypes.c_void_p | None:
    handle = ctypes.c_void_p()
    if name.isdigit():
        failed = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(name)), ctypes.byref(handle))
    else:
        failed = nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
    return None if failed else handle
