"""Which point of a trade-off a budget picks, against a search by hand."""

import dataclasses

import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.engines import run_times
from sew_jax.engines.run_times import need_runtime
from sew_jax.errors import UserError
from sew_jax.evaluation.budget import choose, chosen, chosen_setting, installed
from sew_jax.evaluation.outputs import format_table, write_tradeoff
from tests.evaluation.test_tradeoff import point

INT8 = [("s2q1k1", 0.121), ("s1q1k1", 0.1011), ("s1q2k1", 0.01)]
POINTS = [point(), point("s2q1k1", 0.12, 1.0), point("s3q1k1", 0.12, 0.9), point("s4q1k1", 0.2, 0.8)]


def test_no_point_that_fits_is_better():
    random = np.random.default_rng(0)
    for _ in range(100):
        points = [point(f"s{i + 1}q1k1", *random.integers(1, 8, 2) / 4) for i in range(5)]
        bound = random.integers(1, 8) / 4
        for budget, measure, other in (
            (f"{bound}", "relative_time", "wer"),
            (f"{100 * bound}%", "relative_time", "wer"),
            (f"rtf={bound / 50}", "rtf", "wer"),
            (f"wer={100 * bound}%", "wer", "relative_time"),
        ):
            limit = bound / 50 if measure == "rtf" else bound
            if measure == "wer" and bound > 1:
                continue
            fitting = [r for r in points if getattr(r, measure) <= limit]
            if not fitting:
                with pytest.raises(UserError, match="no setting has a"):
                    choose(points, budget)
                continue
            picked = choose(points, budget)
            assert picked in fitting and getattr(picked, other) == min(getattr(r, other) for r in fitting)
            equals = [r for r in fitting if getattr(r, other) == getattr(picked, other)]
            assert getattr(picked, measure) == min(getattr(r, measure) for r in equals)


def test_greedy_points_of_the_first_split_count():
    better = dataclasses.replace(point("s4q1k1", 0.01, 0.1), decoder="lm")
    other_split = point("s4q1k1", 0.01, 0.1)
    assert choose([better, *POINTS, other_split], "0.4") == POINTS[3]


def test_an_impossible_budget_says_what_is_possible():
    with pytest.raises(UserError, match=r"fastest point is s4q1k1 at 0\.4"):
        choose(POINTS, "0.1")
    with pytest.raises(UserError, match=r"fastest point is s4q1k1 at 0\.008"):
        choose(POINTS, "rtf=0.001")
    with pytest.raises(UserError, match=r"most accurate point is s1q1k1 at 0\.1"):
        choose(POINTS, "wer=5%")


@pytest.mark.parametrize("budget", ["fast", "wer=12", "0.5x", "-1", "mac=3", "wer="])
def test_what_is_no_budget_is_a_clear_error(budget):
    with pytest.raises(UserError, match="budget: "):
        choose(POINTS, budget)


def test_a_setting_or_a_budget(tmp_path):
    write_tradeoff(POINTS, tmp_path)
    assert chosen_setting("", "", "") == Compression()
    assert chosen_setting("", "", "", Compression(2)) == Compression(2)
    assert chosen_setting("s2q1k2", "", "") == Compression(2, 1, 2)
    for path in (tmp_path, str(tmp_path / "tradeoff.json")):
        assert chosen_setting("", "0.5", path) == Compression(3)
    (tmp_path / "finetune").mkdir()
    for model in (tmp_path, tmp_path / "finetune"):  # the table lies with the model, or above it
        assert chosen_setting("", "0.5", "", init_from=str(model)) == Compression(3)
    with pytest.raises(UserError, match="both given"):
        chosen_setting("s1q1k1", "0.5", "")
    with pytest.raises(UserError, match="needs a table"):
        chosen_setting("", "0.5", "", init_from="hf:name")
    with pytest.raises(UserError, match="needs a table"):
        chosen_setting("", "0.5", "")
    with pytest.raises(UserError, match=r"run configs/evaluate\.py first"):
        chosen_setting("", "0.5", tmp_path / "nowhere")


def test_a_budget_picks_among_run_times(tmp_path):
    int8 = point("s1q1k1", 0.101, 0.8, engine=("onnxruntime", "int8"))
    half = point("s2q1k1", 0.125, 0.7, engine=("openvino", "bfloat16"))
    write_tradeoff([*POINTS, int8, half], tmp_path)
    assert choose([*POINTS, int8, half], "0.5") == int8
    assert chosen("", "0.5", tmp_path) == (Compression(), ("onnxruntime", "int8"))
    assert chosen("", "wer=13%", tmp_path) == (Compression(2), ("openvino", "bfloat16"))
    assert chosen("", "0.5", tmp_path, runtimes=["jax", "openvino"]) == (Compression(3), ("jax", "float32"))
    assert chosen("", "0.5", tmp_path, dtype="bfloat16").engine == ("openvino", "bfloat16")
    assert chosen("s2q1k1", "", tmp_path) == (Compression(2), None)
    assert chosen_setting("", "0.5", tmp_path) == Compression(3)  # by JAX
    served = {"settings": (Compression(), Compression(4))}
    assert chosen_setting("", "0.5", tmp_path, **served) == Compression(4)
    with pytest.raises(UserError, match="none of jax at s5q1k1; run"):
        chosen_setting("", "0.5", tmp_path, settings=[Compression(5)])
    with pytest.raises(UserError, match="none of jax in bfloat16; run"):  # those of OpenVINO say nothing of it
        chosen_setting("", "0.5", tmp_path, dtype="bfloat16")
    with pytest.raises(UserError, match="jax float32, onnxruntime int8, openvino bfloat16, none of jax in int8; run"):
        chosen("", "0.5", tmp_path, runtimes=["jax"], dtype="int8")


def test_no_budget_picks_8_bits_that_say_something_else(tmp_path, capsys):
    """By 0.1 absolute of WER at most, and only where that is known."""
    beside, moved, alone = (point(name, wer, 0.5, engine=("jax", "int8")) for name, wer in INT8)
    write_tradeoff([*POINTS, moved, alone, beside], tmp_path)
    assert chosen("", "0.3", tmp_path) == (Compression(2), ("jax", "int8"))
    said = capsys.readouterr().out
    assert "not offered: s1q1k1 by jax int8, int8 moves WER by 0.11" in said
    assert "not offered: s1q2k1 by jax int8, int8 without floats beside it" in said and "s2q1k1 by jax int8," in said
    shown = format_table([*POINTS, moved, beside])
    assert shown.count("no budget picks it") == 1 and "(int8 moves WER by 0.11: no budget picks it)" in shown
    write_tradeoff([*POINTS, moved], tmp_path)
    with pytest.raises(UserError, match=r"no point may be picked, since int8 moves WER by 0\.11 at s1q1k1"):
        chosen("", "0.3", tmp_path, dtype="int8")


def test_what_is_not_installed_is_not_picked(monkeypatch, tmp_path):
    monkeypatch.setattr(run_times.importlib.util, "find_spec", lambda name: name != "openvino")
    assert installed("") == ["jax", "onnxruntime"]
    assert installed("openvino") == ["openvino"]  # whoever names it is told what to install
    write_tradeoff([*POINTS, point("s1q1k1", 0.1005, 0.8, engine=("openvino", "int8"))], tmp_path)
    monkeypatch.setattr(run_times.importlib.util, "find_spec", lambda name: name != "nncf")
    assert installed("openvino") == ["openvino"]
    assert chosen("", "0.5", tmp_path) == (Compression(3), ("jax", "float32"))
    assert chosen("", "0.5", tmp_path, dtype="int8").engine == ("openvino", "int8")
    with pytest.raises(UserError, match="runtime: openvino int8 needs what is not installed; pip install nncf"):
        need_runtime("openvino", "runtime", "int8")


def labelled(setting, accuracy, seconds):
    interval = {"accuracy_low": accuracy, "accuracy_high": accuracy, "macro_f1_low": 0.5, "macro_f1_high": 0.5}
    return dataclasses.replace(point(setting, 1 - accuracy, seconds), accuracy=accuracy, macro_f1=0.5, **interval)


def test_of_labels_more_is_better():
    """The least accuracy that is asked for, however 1 less it rounds; in a time, the highest."""
    points = [labelled("s1q1k1", 0.95, 2.0), labelled("s2q1k1", 0.9, 1.0), labelled("s4q1k1", 0.7, 0.5)]
    assert choose(points, "accuracy=90%") == points[1] and choose(points, "accuracy=0.91") == points[0]
    assert choose(points, "0.5") == points[1] and choose(points, "rtf=0.006") == points[2]
    with pytest.raises(UserError, match=r"an accuracy of 0\.99 or more; the most accurate point is s1q1k1 at 0\.95"):
        choose(points, "accuracy=99%")
    with pytest.raises(UserError, match=r"does not fit the table, which has accuracy; write accuracy=90%"):
        choose(points, "wer=10%")
    with pytest.raises(UserError, match=r"does not fit the table, which has word error rate; write wer=12%"):
        choose(POINTS, "accuracy=90%")
