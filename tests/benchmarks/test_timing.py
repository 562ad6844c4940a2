"""What the tables of inference and updates say of each case; not how fast it is."""

import json
import sys

import pytest
from ml_collections import ConfigDict

from configs.benchmark import get_config
from sew_jax.benchmarks import peer
from sew_jax.benchmarks.benchmark import benchmark
from sew_jax.benchmarks.contest import Run
from sew_jax.benchmarks.overhead import saves_an_hour
from sew_jax.benchmarks.run_times import _engines, _rows
from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.models.cost import count_macs
from sew_jax.models.sizes import published

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def small():
    config = get_config()
    config.size, config.settings, config.batch, config.seconds = "demo", "s1q1k1,s4q1k1", "2", 2.0
    config.train_settings, config.train_batch, config.train_seconds = "s2q1k1", 2, 1.0
    config.rounds, config.peers = 1, False
    return config


def test_tables_of_a_small_model_without_a_peer(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = small()
    config.profile = config.peers = True
    report = benchmark(config, tmp_path)
    assert json.loads((tmp_path / "benchmark.json").read_text()) == report
    (inference,) = report["inference"]
    first, second = inference["settings"]
    backbone = published("demo")[0]
    macs = {name: count_macs(backbone, Compression.parse(name), 32_000).total for name in ("s1q1k1", "s4q1k1")}
    assert (first["setting"], first["speed_up"], first["kept"]) == ("s1q1k1", 1.0, 1.0)
    assert first["gflop"] == pytest.approx(2 * 2 * macs["s1q1k1"] / 1e9)
    assert second["promised_speed_up"] == pytest.approx(macs["s1q1k1"] / macs["s4q1k1"], rel=0.1)  # and an up-sampler
    assert second["kept"] == pytest.approx(second["speed_up"] / second["promised_speed_up"])
    (update,) = report["training"]["settings"]
    for row, seconds in ((first, 4.0), (second, 4.0), (update, 2.0)):
        assert 0 < row["mfu"] < 1.5 and row["compile_seconds"] > 0
        assert row["gflop"] / 2 < row["xla_gflop"] < 2 * row["gflop"]
        assert row["times_real_time"] == pytest.approx(seconds / row["seconds"]["median"])
        assert row["mfu"] == pytest.approx(row["gflop"] / row["seconds"]["median"] / inference["peak_gflops"])
        assert row["seconds"]["least"] <= row["seconds"]["median"] <= row["seconds"]["most"]
        assert row["peak_mb"] > 100  # Python and JAX alone
    for folder in ("inference_2/s1q1k1", "inference_2/s4q1k1", "training/s2q1k1"):
        assert list((tmp_path / "profile" / folder).rglob("*.xplane.pb"))
    out = capfd.readouterr().out
    assert "promised" in out and out.count("no peer: torch and transformers not installed") == 2
    assert "peer" not in inference and "peer" not in report["training"]


def test_overhead_of_a_small_model(tmp_path, capfd):
    config = small()
    config.parts, config.step_seconds, config.batch_seconds = "overhead", 0.05, 10.0
    overhead = benchmark(config, tmp_path)["overhead"]
    assert 0 < overhead["save_seconds"] <= overhead["written_seconds"]
    spent = overhead["seconds_an_hour"]
    saves = 3600 / 0.05 / config.recipe.checkpoint_every
    assert spent["saving"] == pytest.approx(saves * overhead["save_seconds"])
    assert spent["metrics"] == pytest.approx(3600 / 0.05 * overhead["row_seconds"])
    assert overhead["share"] == pytest.approx(sum(spent.values()) / 3600)
    assert 0 <= overhead["input_wait"] < 1
    assert "step 50/" not in capfd.readouterr().out  # what is timed is not shown


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("parts", "inference,speed", "parts: 'speed' is unknown"),
        ("size", "huge", "size: 'huge' is unknown"),
        ("settings", "s2", "s2"),
        ("settings", "s1q1.2k1", "12 layers|q1.2"),
        ("train_settings", "", "train_settings: no names given"),
        ("batch", "1,-4", "batch: '1,-4' must be numbers of at least 1"),
        ("batch", "", "batch is empty; write sizes of at least 1"),
        ("dtype", "float16", "dtype: 'float16' is unknown"),
        ("rounds", 0, "rounds: 0 must be at least 1"),
        ("train_seconds", 0.1, "train_seconds: 0.1 must be at least 0.3"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_runs(key, value, words, tmp_path):
    config = get_config()
    config[key] = value
    with pytest.raises(UserError, match=words):
        benchmark(config, tmp_path)


@pytest.mark.transformers
def test_the_peer_does_the_same_work(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config = small()
    config.size, config.peers, config.batch, config.seconds = "base", True, "1", 0.5
    config.settings = config.train_settings = "s1q1k1"
    config.train_seconds = 0.5
    report = benchmark(config, tmp_path)
    (inference,), training = report["inference"], report["training"]
    assert {row["case"] for row in inference["peer_cases"]} <= {"eager", "compiled"}
    assert training["peer_cases"][0]["class"] == "Wav2Vec2ForPreTraining"
    for table in (inference, training):
        ratio = table["peer_cases"][0]["ours_to_theirs"]["median"]
        ours, theirs = table["settings"][0]["seconds"]["median"], table["peer_cases"][0]["seconds"]["median"]
        assert ratio == pytest.approx(ours / theirs)


@pytest.mark.transformers
def test_a_device_that_torch_has_not_is_a_line():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    bench = peer.inference({}, "float32", 1, 8000, "tpu")
    assert not bench.cases and "has no tpu" in bench.about["problems"][0]


def test_run_times_are_compared_round_by_round():
    def runs(*seconds):
        return [Run(one, 2**20) for one in seconds]

    first, second, third, half = _rows(
        {
            ("transformers float32", "eager"): runs(4.0, 8.0, 4.0),
            ("jax float32", "s1q1k1"): runs(2.0, 2.0, 2.0),
            ("openvino bfloat16", "s1q1k1"): runs(1.0, 1.0, 4.0),
            ("openvino bfloat16", "s2q1k1"): runs(0.5, 0.5, 2.0),
        },
        "s1q1k1",
    )
    assert first["to_first"]["median"] == 1 and first["to_quickest"] == {"median": 4, "least": 1, "most": 8}
    assert second["to_first"] == {"median": 0.5, "least": 0.25, "most": 0.5}
    assert third["to_quickest"] == {"median": 1, "least": 1, "most": 1}
    assert half["to_quickest"] == {"median": 0.5, "least": 0.5, "most": 0.5} and half["peak_mb"] == 1


def test_run_times_that_are_not_installed_are_left_out(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert _engines(small()) == [("jax", "float32"), ("jax", "bfloat16"), ("jax", "int8")]
    assert "onnxruntime float32 is left out: onnx and onnxruntime not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("step", "expected"), [(1.0, 3 / 2000 * 3600), (5.0, 12 / 10_000 * 3600), (0.1, 36_000 / 2000)]
)
def test_saves_come_by_time_and_by_updates(step, expected):
    """At a second an update after 900, 1,800 and 2,000 of each 2,000; at five each 180, and after 2,000."""
    recipe = ConfigDict({"checkpoint_every": 2000, "checkpoint_minutes": 15.0, "log_every": 20})
    assert saves_an_hour(recipe, step) == pytest.approx(expected, rel=0.02)
