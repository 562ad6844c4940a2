"""Energy: counters that begin at 0 again, and what is said where there is none."""

import pytest

from sew_jax.runtime import energy
from sew_jax.runtime.energy import EnergyMeter, nvml_counter, rapl_counter


def zone(folder, name, microjoules):
    path = folder / name
    path.mkdir(exist_ok=True)
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text("9999999\n")
    return path


def test_packages_are_added_and_their_parts_are_not(tmp_path):
    zone(tmp_path, "intel-rapl:0", 1_000_000)
    zone(tmp_path, "intel-rapl:1", 9_000_000)
    zone(tmp_path, "intel-rapl:0:0", 500_000)
    read = rapl_counter(tmp_path)
    assert read() == 0
    zone(tmp_path, "intel-rapl:0", 3_000_000)
    zone(tmp_path, "intel-rapl:0:0", 2_000_000)
    assert read() == pytest.approx(2.0)
    zone(tmp_path, "intel-rapl:1", 500_000)  # past its end
    assert read() == pytest.approx(3.5)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    zone(tmp_path, "intel-rapl:1", 1_500_000)
    assert read() == pytest.approx(4.5)


def test_without_counters(tmp_path):
    assert rapl_counter(tmp_path) is None
    zone(tmp_path, "intel-rapl:0", "not a number")
    assert rapl_counter(tmp_path) is None


def test_without_a_driver(monkeypatch):
    monkeypatch.setattr(energy, "_NVML", "no_such_library.so")
    assert nvml_counter(1) is None


def test_the_rating_counts_where_nothing_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    clock = iter([10.0, 12.0, 15.0])
    monkeypatch.setattr(energy.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(energy.os, "cpu_count", lambda: 2)
    meter = EnergyMeter()
    assert meter.source == "rating"
    assert [meter.read(), meter.read()] == pytest.approx([2 * 2 * 4.4, 3 * 2 * 4.4])


def test_an_unknown_device_has_no_energy(monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "machine_of", lambda kind: None)
    meter = EnergyMeter()
    assert meter.source == "" and meter.read() is None
