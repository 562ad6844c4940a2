"""The search from a checkpoint to its files; tests/evaluation/test_pooling_search.py has what it finds."""

import json
from pathlib import Path

import pytest

from configs import search as search_config
from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.evaluation.evaluate import evaluate
from sew_jax.evaluation.pooling_search import Candidate
from sew_jax.evaluation.search import format_comparison, search
from tests.evaluation.test_tradeoff import point
from tests.runs import make_corpus

MODEL = Path(__file__).parents[1] / "released/wav2vec2_ctc"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("search"))


def searching(corpus, **changes):
    config = search_config.get_config()
    config.data, config.init_from, config.dev_split = str(corpus), f"hf:{MODEL}", "train"
    config.factors, config.trials, config.repeats, config.input.buckets = (1, 2), 6, 1, 1
    config.update_from_flattened_dict(changes)
    return config


def test_both_fronts_are_found_on_dev_and_reported_on_test(corpus, tmp_path, capfd, monkeypatch):
    def evaluated(config, workdir):
        assert (workdir / "search.json").exists()  # what took long is kept, whatever comes of the rest
        return evaluate(config, workdir)

    monkeypatch.setattr("sew_jax.evaluation.search.evaluate", evaluated)
    rows = search(searching(corpus), tmp_path)
    found = json.loads((tmp_path / "search.json").read_text())
    trials = found["trials"]
    assert found["dev_split"] == "train" and found["words"] == 12 and len(trials) == 6
    assert [t["setting"] for t in trials[:4]] == ["s1q1k1", "s1q1k2", "s1q2k1", "s1q2k2"]
    assert all(t["wer"] == t["errors"] / 12 and 0 < t["relative_macs"] <= 1 for t in trials)
    fronts = {t["setting"] for t in trials if t["on_front"] or t["on_uniform_front"]}
    assert {r.setting for r in rows} == fronts | {"s1q1k1"} and {r.split for r in rows} == {"test"}
    assert [r["setting"] for r in json.loads((tmp_path / "tradeoff.json").read_text())] == [r.setting for r in rows]
    assert "trial 6:" in capfd.readouterr().out


def test_the_comparison_sets_the_best_setting_of_no_more_cost_beside_each_uniform_one():
    per_layer = Compression(1, (1, 2), 1)
    uniform = [Candidate(Compression(1, 2, 1), 0.8, 30), Candidate(Compression(), 1.0, 10)]
    front = [uniform[0], Candidate(per_layer, 0.9, 9)]
    points = [point(c.setting.name) for c in (*uniform, *front)]
    others = [point(p.setting, 0.7, engine=("openvino", "float32")) for p in points]  # dev was measured by neither
    others += [point(p.setting, 0.8, decoder="lm") for p in points]
    lines = format_comparison(front, uniform, 100, [*points, *others]).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["uniform", "found"] * 2
    assert [line.split()[-1] for line in lines[1:]] == ["s1q2k1", "s1q2k1", "s1q1k1", "s1q1.2k1"]
    assert "9.00" in lines[4] and "0.900" in lines[4]
    assert all("10.00  s" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": (2, 4)}, "factors: .* 1 among them"),
        ({"trials": 0}, "trials: 0 must be at least 1"),
        ({"split": "test,train"}, "dev_split: 'train' is also a split to report on"),
        ({"dev_split": "nothing"}, "nothing"),
    ],
    ids=str,
)
def test_bad_input(corpus, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        search(searching(corpus, **changes), tmp_path)
