"""Contenders take turns, and one that dies says why."""

import os
import sys
import time
from pathlib import Path

import pytest

from sew_jax.benchmarks.contest import Bench, Child, take_turns
from sew_jax.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def writing(log: str, name: str, cases: tuple[str, ...]) -> Bench:
    def run(case: str) -> None:
        time.sleep(0.25)  # long enough to be run once a turn
        with Path(log).open("a") as file:
            file.write(f"{name}.{case} ")

    return Bench({case: lambda case=case: run(case) for case in cases}, {case: {"of": name} for case in cases}, {})


def holding(megabytes: int) -> Bench:
    def run() -> None:
        b"x" * (megabytes * 2**20)  # written to, so that it is resident
        time.sleep(0.25)

    return Bench({"case": run}, {"case": {}}, {})


def failing(when: str) -> Bench:
    if when == "building":
        raise RuntimeError("no compiler for this chip")

    def run() -> None:
        if when == "killed":
            os.kill(os.getpid(), 9)
        raise RuntimeError("the device is lost")

    return Bench({"case": run}, {"case": {}}, {})


def test_each_round_goes_round_all(tmp_path, capfd):
    log = tmp_path / "log"
    with Child("a", writing, str(log), "a", ("x", "y")) as a, Child("b", writing, str(log), "b", ("z",)) as b:
        assert a.facts == {"x": {"of": "a"}, "y": {"of": "a"}}
        runs = take_turns([a, b], rounds=2)
    assert log.read_text().split() == ["a.x", "b.z", "a.y"] * 3  # the first time uncounted
    assert {key: len(of) for key, of in runs.items()} == {("a", "x"): 2, ("a", "y"): 2, ("b", "z"): 2}
    assert all(run.seconds > 0.25 for of in runs.values() for run in of)
    assert "round 2/2" in capfd.readouterr().out


def test_memory_is_the_peak_of_what_ran():
    peaks = []
    for megabytes in (1, 200):
        with Child("a", holding, megabytes) as child:
            peaks.append(child.run("case").peak_bytes)
    assert 150 * 2**20 < peaks[1] - peaks[0] < 250 * 2**20


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("building", "rival failed: .*no compiler for this chip"),
        ("running", "rival failed: .*the device is lost"),
        ("killed", "rival was ended by SIGKILL"),
    ],
)
def test_one_that_dies_says_why(when, words):
    with pytest.raises(UserError, match=words), Child("rival", failing, when) as child:
        child.run("case")
