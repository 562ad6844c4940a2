"""A tiny study from its command to its page; what it plans, compares and concludes against hand calculations."""

import csv
import errno
import itertools
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from configs import study as study_config
from sew_jax.compression import Compression, sandwich_draws, uniform_draws
from sew_jax.errors import UserError
from sew_jax.metrics.bootstrap import relative_difference
from sew_jax.models.cost import count_update_flop
from sew_jax.models.sizes import published
from sew_jax.study.claims import Claims
from sew_jax.study.plan import Work, equal_updates, flop_of_update, make_plan
from sew_jax.study.report import write_report
from sew_jax.study.results import Results
from sew_jax.study.study import study
from sew_jax.study.verdicts import Comparison, Scores, compare_arms, judge, verdict_a, verdict_b, verdict_c
from sew_jax.training.train import Summary
from tests.runs import make_corpus

ROOT = Path(__file__).parents[2]
_TABLE = {"squeeze": (1, 2), "query_pool": (1,), "kv_pool": (1,)}
_MODEL = {"width": 16, "layers": 1, "heads": 2, "ffn_width": 16, "pos_kernel": 5}
_HEAD = {"codes": 4, "code_width": 8, "final_width": 8, "negatives": 3}
SIZES = {
    **{f"compression.{key}": value for key, value in _TABLE.items()},
    "settings": "s2q1k1",
    "seeds": "0,1",
    "arms": "stochastic,specialised,dedicated",
    "equal": "updates",
    "log_every": 2,
    "checkpoint_every": 2,
    **{f"pretrain.model.{key}": value for key, value in _MODEL.items()},
    **{f"pretrain.head.{key}": value for key, value in _HEAD.items()},
    "pretrain.num_steps": 2,
    "pretrain.input.batch_seconds": 1.5,
    "pretrain.input.crop_seconds": 0.7,
    "pretrain.eval.split": "",
    "finetune.num_steps": 2,
    "finetune.input.batch_seconds": 1.5,
    "finetune.input.buckets": 1,
    "finetune.eval.split": "",
    "evaluate.repeats": 1,
    "evaluate.input.buckets": 1,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = make_corpus(tmp_path_factory.mktemp("study"))
    shutil.copytree(root / "test", root / "dev")
    return root


def tiny(corpus, **changes):
    config = study_config.get_config()
    config.update_from_flattened_dict(SIZES)
    config.data = str(corpus)
    config.update_from_flattened_dict(changes)
    return config


def start(corpus, workdir, *flags):
    """The command in a process of its own, with one device."""
    command = [sys.executable, "-m", "sew_jax.main", "--config=configs/study.py", f"--workdir={workdir}"]
    command += [f"--config.data={corpus}", *(f"--config.{key}={value}" for key, value in SIZES.items()), *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def begun(output):
    return re.findall(r"^\[\d+/\d+\] (\S+)$", output, re.MULTILINE)


def test_two_processes_share_a_study_that_a_kill_interrupts(corpus, tmp_path):
    first = start(corpus, tmp_path)
    head = ""
    while "1/pretrain" not in head:  # in the middle: the first seed is done
        line = first.stdout.readline()
        assert line, head
        head += line
    first.send_signal(signal.SIGKILL)
    first.communicate()
    finished = {path.stem for path in (tmp_path / "results").iterdir()}
    assert "all" in head and "stochastic pretrain" in head.split("[1/")[0]  # the cost comes before the first run
    assert "stochastic.0.finetune" in finished and len(finished) == 5

    both = [start(corpus, tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    done = list(itertools.chain(*map(begun, outputs)))
    assert len(done) == len(set(done))  # nothing twice
    left = {f"{name}/1/{kind}" for name in ("stochastic", "dedicated-s2q1k1") for kind in ("pretrain", "finetune")}
    left |= {"specialised-s2q1k1/1/finetune", "time"}
    assert {key for key in done if not key.startswith("report-")} == left and len(done) == len(left) + 1
    assert all("done: study.html" in output for output in outputs)

    found = json.loads((tmp_path / "study.json").read_text())
    with (tmp_path / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["rows"]) == (2 + 1 + 1) * 2 * 3  # settings of arms, splits; two seeds and their mean
    for row in rows:
        assert float(row["wer"]) == pytest.approx(float(row["errors"]) / float(row["words"]))
    verdicts = {v["claim"]: v["verdict"] for v in found["verdicts"]}
    assert verdicts["C"] == "not tested" and {verdicts["A"], verdicts["B"]} <= {"holds", "does not hold", "not decided"}
    assert (tmp_path / "study.html").exists() and (tmp_path / "study.png").exists()


def test_the_rate_of_each_model_is_chosen_on_dev_and_kept_for_other_seeds(corpus, tmp_path, capfd):
    changes = {"arms": "random", "compression.names": "s2q1k1", "rates": "1e-3,1e30"}
    # a second rate that diverges
    changes |= {"finetune.num_steps": 4, "finetune.optim.max_skipped": 1, "finetune.eval.split": "auto"}
    study(tiny(corpus, **changes), tmp_path)
    out = capfd.readouterr().out
    assert "the best by WER on dev" in out and "random/0/finetune-1e+30" in out and "! training diverged" in out
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert {row["rate"] for row in rows} == {1e-3} and {row["pretrain_updates"] for row in rows} == {0}
    assert not (tmp_path / "random/1/finetune-1e+30").exists() and (tmp_path / "random/1/finetune-0.001").exists()

    study(tiny(corpus, **changes), tmp_path)
    assert "nothing to do" in capfd.readouterr().out
    with pytest.raises(UserError, match=r"config\.rates='1e-3,1e30', this one has '1e-3'"):
        study(tiny(corpus, **changes | {"rates": "1e-3"}), tmp_path)


def test_equal_flop_against_a_hand_calculation(corpus, tmp_path):
    changes = {"arms": "stochastic,dedicated,sandwich", "settings": "", "pretrain.num_steps": 1000, "equal": "flop"}
    plan = make_plan(tiny(corpus, **changes), tmp_path)
    updates = {s.model.name: s.updates for s in plan.stages if s.kind == "pretrain" and s.seed == 0}
    flop = {s.model.name: s.flop for s in plan.stages if s.kind == "pretrain" and s.seed == 0}
    assert updates["stochastic"] == 1000
    assert updates["dedicated-s1q1k1"] < 1000 < updates["dedicated-s2q1k1"] and updates["sandwich"] < 1000
    assert list(flop.values()) == pytest.approx([flop["stochastic"]] * 4, rel=2e-3)  # whole updates

    # by hand: settings that cost 3 and 1 alone, 3.5 together, share the 2,000 that 1,000 draws of either cost
    assert equal_updates(1000, 2.0, 3.0) == 667
    assert equal_updates(1000, 2.0, 1.0) == 2000
    assert equal_updates(1000, 2.0, 3.5) == 571
    assert equal_updates(1, 1.0, 9.0) == 1


def test_an_update_costs_the_mean_of_what_it_may_draw():
    backbone = published("base")[0]
    table = [Compression(1), Compression(2), Compression(4)]
    work = Work(backbone, 16_000 * 10, 30.0)  # three utterances an update
    each = [count_update_flop(backbone, setting, work.samples) for setting in table]
    assert flop_of_update(work, uniform_draws(table)) == pytest.approx(3 * sum(each) / 3)
    (draw,) = sandwich_draws(table, lambda setting: -setting.squeeze)
    together = count_update_flop(backbone, table[0], work.samples, table[1:])
    assert flop_of_update(work, [draw]) == pytest.approx(3 * together)


def made_up(plan, results, settings):
    """Results of runs that were never made: word errors fall with time, and dedicated models err a fifth more often."""
    random = np.random.default_rng(0)
    wer = {setting: 0.3 + 0.2 * i for i, setting in enumerate(settings)}
    for stage in plan.stages:
        result = {"updates": stage.updates, "flop": stage.flop, "seconds": 60.0, "rate": 1e-3}
        if stage.kind == "finetune":
            worse = {"dedicated": 1.2, "random": 1.4, "distilled": 0.9}.get(stage.model.arm, 1.0)
            scores = []
            for setting, split in itertools.product(map(str, stage.model.table), ("dev", "test")):
                errors = random.binomial(10, wer[setting] * worse, 300)
                counts = {"errors": errors.tolist(), "character_errors": (3 * errors).tolist()}
                scores.append({"split": split, "setting": setting, **counts})
            utterances = {"ids": [f"u{i}" for i in range(300)], "words": [10] * 300, "characters": [50] * 300}
            result |= {"scores": scores, "splits": {"dev": utterances, "test": utterances}}
        if stage.kind == "time":
            timed = {"split": "test", "device": "none", "dtype": "float32"}
            rows = [
                timed | {"setting": setting, "relative_time": 1 / (i + 1), "relative_macs": 1 / (i + 1)}
                for i, setting in enumerate(settings)
            ]
            result["rows"] = [*rows, *(row | {"relative_time": 9.0} for row in rows)]  # by beam search, say
        results.write(stage.key, result)


def test_the_report_holds_all_arms(corpus, tmp_path, capfd):
    arms = "stochastic,dedicated,specialised,random,sandwich,distilled"
    config = tiny(corpus, arms=arms, settings="", **{"compression.squeeze": (1, 2, 3), "mesh.data": -1})
    plan, results = make_plan(config, tmp_path), Results(tmp_path / "results")
    made_up(plan, results, ["s1q1k1", "s2q1k1", "s3q1k1"])
    write_report(config, plan, results, tmp_path)

    found = json.loads((tmp_path / "study.json").read_text())
    assert {v["claim"]: v["verdict"] for v in found["verdicts"]} == dict.fromkeys("ABC", "holds")
    assert "A on test: holds." in capfd.readouterr().out
    compared = {(c["first"], c["second"]): c for c in found["comparisons"] if c["setting"] == "s1q1k1"}
    assert len(compared) == 7 and compared["stochastic", "dedicated"]["difference"] == pytest.approx(
        1 / 1.2 - 1, abs=0.05
    )
    means = {(r["arm"], r["setting"]): r for r in found["rows"] if (r["split"], r["seed"]) == ("test", "mean")}
    seeds = [r["wer"] for r in found["rows"] if (r["arm"], r["setting"], r["split"]) == ("random", "s2q1k1", "test")][
        :2
    ]
    assert means["random", "s2q1k1"]["wer"] == pytest.approx(sum(seeds) / 2)
    page = (tmp_path / "study.html").read_text()
    assert not re.search("__[A-Z]+__", re.sub(r"base64,[^\"]*", "", page))
    for text in (
        "Claim A, on test",
        "distilled less stochastic",
        f"{100 * means['random', 's2q1k1']['wer']:.1f}",
        "<script",
    ):
        assert (text in page) == (text != "<script")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_paired_relative_differences_against_brute_force():
    random = np.random.default_rng(1)
    errors, other = random.integers(0, 4, (3, 40)), random.integers(1, 6, (2, 40))
    difference, low, high = relative_difference(errors, other, resamples=2000)
    assert difference == pytest.approx((errors.sum() / 3) / (other.sum() / 2) - 1)
    brute = []
    for _ in range(4000):
        drawn = [random.integers(40) for _ in range(40)]
        brute.append(
            sum(errors[s][u] for s in range(3) for u in drawn)
            / 3
            / (sum(other[s][u] for s in range(2) for u in drawn) / 2)
            - 1
        )
    assert (low, high) == pytest.approx(np.percentile(brute, (2.5, 97.5)), abs=0.03)
    assert relative_difference([[2, 4, 6]], [[1, 2, 3]]) == (1.0, 1.0, 1.0)  # pairing leaves nothing to chance
    assert relative_difference([[0, 0]], [[0, 0]]) == (0.0, 0.0, 0.0)
    assert relative_difference([[1, 1]], [[0, 0]])[0] == np.inf


def scores(errors):
    errors = np.array(errors)
    return Scores(errors, errors, np.full(errors.shape[1], 10), np.full(errors.shape[1], 50), [0], [1e-3], {})


def test_arms_are_compared_where_both_were_run():
    table = {
        ("stochastic", "test", "s1q1k1"): scores([[2, 4]]),
        ("dedicated", "test", "s1q1k1"): scores([[1, 2]]),
        ("random", "test", "s2q1k1"): scores([[1, 1]]),
    }
    assert compare_arms(table, "test", ["s1q1k1", "s2q1k1"]) == [
        Comparison("stochastic", "dedicated", "test", "s1q1k1", 1.0, 1.0, 1.0)
    ]


@pytest.mark.parametrize(
    ("intervals", "bound", "verdict"),
    [
        ([(-0.1, 0.04), (0.0, 0.05)], 0.05, "holds"),
        ([(-0.1, 0.04), (0.0, 0.06)], 0.05, "not decided"),
        ([(-0.1, 0.04), (0.06, 0.2)], 0.05, "does not hold"),
        ([(-0.1, 0.04), (-0.2, 0.0)], 0.0, "not decided"),
        ([(-0.1, -0.01), (-0.2, 0.0)], 0.0, "holds"),
    ],
)
def test_verdicts(intervals, bound, verdict):
    def found(first, second):
        return [
            Comparison(first, second, "test", f"s{i + 1}q1k1", (low + high) / 2, low, high)
            for i, (low, high) in enumerate(intervals)
        ]

    assert judge(found("a", "b"), bound) == verdict
    if bound:
        a = verdict_a(found("stochastic", "dedicated"), "test")
        assert a.verdict == verdict and "s2q1k1" in a.numbers
    else:
        assert verdict_b(found("specialised", "dedicated"), "test").verdict == verdict
        assert verdict_c(found("s1q1k1", "s2q1k1"), "test").verdict == verdict
    assert verdict_a(found("sandwich", "dedicated"), "test").verdict == "not tested"
    assert verdict_c([], "test").verdict == "not tested"


def test_claims_outlive_no_owner(tmp_path):
    mine = Claims(tmp_path, beat=0.05, silence=0.4)
    claim = mine.take("a/0/pretrain")
    (file,) = tmp_path.iterdir()
    assert claim and mine.take("a/0/pretrain") is None
    far = Claims(tmp_path, beat=0.05, silence=0.4, me={"host": "far", "machine": "another", "pid": "1", "started": "1"})
    assert far.take("a/0/pretrain") is None  # it has just been seen
    silent_until = time.monotonic() + 0.6
    while time.monotonic() < silent_until:
        stamp = file.stat().st_mtime_ns
        while file.stat().st_mtime_ns == stamp:
            time.sleep(0.01)
        assert far.take("a/0/pretrain") is None  # and it lives
    claim.release()
    taken = far.take("a/0/pretrain")
    assert taken and mine.take("a/0/pretrain") is None and "far" in mine.owner("a/0/pretrain")
    taken._ended.set()  # as if its machine had gone
    taken._thread.join()
    assert mine.take("a/0/pretrain") is None
    time.sleep(0.6)
    assert mine.take("a/0/pretrain")


def test_the_claim_of_a_process_that_is_gone_is_free_at_once(tmp_path):
    code = "import pathlib, sys; from sew_jax.study.claims import Claims; "
    code += "assert Claims(pathlib.Path(sys.argv[1])).take('x')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)
    assert Claims(tmp_path).take("x") and not Claims(tmp_path).take("x")


def test_an_owner_that_was_taken_for_dead_is_told(tmp_path):
    lost = queue.Queue()
    claims = Claims(tmp_path, beat=0.02, lost=lost.put)
    claims.take("x")
    (tmp_path / "x.2").write_text("{}")
    assert lost.get(timeout=60) == "x"


def test_an_owner_whose_storage_failed_for_a_moment_is_told_too(tmp_path, monkeypatch):
    lost, failed, stat = queue.Queue(), threading.Event(), os.stat

    def flaky(path, *arguments, **options):
        if threading.current_thread() is not threading.main_thread() and not failed.is_set():
            failed.set()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", flaky)
    Claims(tmp_path, beat=0.02, lost=lost.put).take("x")
    assert failed.wait(60)
    (tmp_path / "x.2").write_text("{}")
    assert lost.get(timeout=60) == "x"


def test_a_stopped_run_ends_the_study_and_is_free_for_others(corpus, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("sew_jax.study.study.train", lambda config, workdir: Summary(2, {}, 1, True, 1.0))
    study(tiny(corpus), tmp_path)
    assert capfd.readouterr().out.endswith("the same command goes on from there\n")
    assert not list((tmp_path / "results").iterdir()) and Claims(tmp_path / "claims").take("stochastic/0/pretrain")


def test_a_signal_outside_a_training_loop_lets_the_claim_go(corpus, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("sew_jax.study.study.train", lambda config, workdir: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        study(tiny(corpus), tmp_path)
    assert Claims(tmp_path / "claims").take("stochastic/0/pretrain")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": "stochastic,best"}, "arms: 'best' is unknown; choose of stochastic, dedicated"),
        ({"settings": "s1q1k1,s3q1k1"}, r"settings: s3q1k1 is not in the table \(s1q1k1 s2q1k1\)"),
        ({"settings": "s1"}, "setting 's1' is unknown"),
        (
            {"compression.names": "s1q1k1", "settings": "", "arms": "sandwich"},
            "arms: sandwich takes a table of several",
        ),
        ({"dev_split": ""}, "dev_split is empty"),
        ({"dev_split": "test"}, "dev_split: 'test' is also a split to report on"),
        ({"dev_split": "train"}, "dev_split: 'train' is also a split to train on"),
        ({"dev_split": "absent"}, "absent"),
        ({"equal": "time"}, "equal: 'time' is unknown; choose updates or flop"),
        ({"seeds": "0,one"}, "seeds: '0,one' is no list of numbers"),
        ({"rates": "1e-3,fast"}, "rates: '1e-3,fast' is no list of numbers"),
    ],
)
def test_bad_input_is_one_line(corpus, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        study(tiny(corpus, **changes), tmp_path)
    assert "\n" not in str(error.value)
