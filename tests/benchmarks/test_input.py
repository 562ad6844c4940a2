"""The benchmark measures what it says; how fast things are is for it to say, not for a test."""

import json
import sys

import pytest

from configs.benchmark import get_config
from sew_jax.benchmarks.benchmark import benchmark
from sew_jax.benchmarks.start import measure_start
from sew_jax.errors import UserError
from tests.runs import make_corpus


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_reports_each_part(tmp_path, capfd):
    config = get_config()
    config.data = str(make_corpus(tmp_path / "corpus"))
    config.utterances, config.batches, config.read_seconds, config.batch_seconds = 3000, 40, 0.2, 3.0
    config.rounds, config.parts = 1, "input"
    report = benchmark(config, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text()) == report
    assert 2900 < report["plan"]["utterances"] <= 3000 and report["plan"]["peak_mb"] >= report["plan"]["imports_mb"] > 0
    ways = {(row["data"], row["workers"], row["threads"]) for row in report["reading"]}
    assert len(ways) == 10 and {("soundfile", 2, 1), ("files", 0, 1), ("records", 2, 1)} <= ways
    assert all(row["hours_per_s"] > 0 and row["hours_per_core_s"] > 0 for row in report["reading"])
    plain = report["reading"][:2]  # two readers are compared with two processes of plain decoding
    for row in report["reading"]:
        least, ratio, most = row["relative_hours_per_s"]
        readers = max(row["workers"], row["threads"])
        assert least == ratio == most == pytest.approx(row["hours_per_s"] / plain[readers - 1]["hours_per_s"])
    assert [row["batches"] for row in report["memory"]] == [4, 20, 40] and all(
        row["mb"] > 0 for row in report["memory"]
    )
    screen = capfd.readouterr().out
    assert "plan of" in screen and "hours of audio a second" in screen and "memory after 40 batches" in screen


def test_a_second_start_finds_its_programs(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    small = ["--config.pretrain.model.layers=1", "--config.compression.squeeze=1", "--config.compression.query_pool=1"]
    small += ["--config.pretrain.model.width=32", "--config.pretrain.model.ffn_width=32"]
    small += [f"--config.data={make_corpus(tmp_path / 'corpus')}"]
    report = measure_start(tmp_path, *small)
    assert (
        report["cold_programs"] == report["warm_programs"] == report["warm_cached"] == 1 and not report["cold_cached"]
    )
    assert report["times_quicker"] == report["cold_seconds"] / report["warm_seconds"]
    assert 0 < report["warm_compile_seconds"] < report["warm_seconds"]
    with pytest.raises(UserError, match=r"did not reach its first update: .*no split nowhere"):
        measure_start(tmp_path / "other", *small, "--config.pretrain.split=nowhere")
