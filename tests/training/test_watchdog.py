"""Synthetic histories and the sentence that each must draw."""

import time

import pytest

from sew_jax.runtime.stall_watch import StallWatch
from sew_jax.training.watchdog import Watchdog

HEALTHY = dict(
    step=0,
    setting="s1q1k1",
    bucket_s=8.0,
    steps_per_s=2.0,
    loss=3.0,
    loss_contrastive=3.0,
    accuracy=0.4,
    code_perplexity=200.0,
    prob_perplexity=220.0,
    masked_frac=0.49,
    input_wait_frac=0.01,
)
TUNING = dict(
    step=0,
    setting="s1q1k1",
    bucket_s=8.0,
    steps_per_s=2.0,
    loss=3.0,
    ctc_invalid_frac=0.0,
    blank_frac=0.8,
    input_wait_frac=0.0,
)


def history(watchdog, row, updates=150):
    return [sentence for step in range(updates) for sentence in watchdog.check(row | {"step": step}).values()]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, None),
        (dict(loss_contrastive=6.65, accuracy=0.011), "predictions are still uniform"),
        (
            dict(loss_contrastive=0.002, accuracy=1.0, code_perplexity=2.0, prob_perplexity=2.1),
            "codebook has collapsed",
        ),
        (dict(code_perplexity=40.0), "Gumbel noise decides"),
        (dict(masked_frac=0.2), "20% of frames are masked, 49% were expected"),
        (dict(input_wait_frac=0.5), "waits for input 50%"),
    ],
)
def test_pretraining(change, sentence):
    said = history(Watchdog(chance=6.658, codebook=640, groups=2, masked=0.49), HEALTHY | change)
    assert (sentence in said[0] and len(said) == 1) if sentence else not said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({}, None), (dict(ctc_invalid_frac=0.2), "20% of transcripts do not fit"), (dict(blank_frac=1.0), "blanks only")],
)
def test_finetuning(change, sentence):
    said = history(Watchdog(), TUNING | change)
    assert (sentence in said[0] and len(said) == 1) if sentence else not said


def test_a_sentence_is_repeated_after_a_while_only():
    watchdog = Watchdog()
    assert len(history(watchdog, TUNING | dict(blank_frac=1.0), 2500)) == 3


@pytest.mark.parametrize(("wait", "cause"), [(0.9, "it waited for audio"), (0.0, "something else used this machine")])
def test_an_update_that_takes_far_longer_than_its_like(wait, cause):
    watchdog = Watchdog()
    rows = [TUNING | {"step": step, "steps_per_s": 2.0 + step % 3} for step in range(20)]
    rows += [
        TUNING | {"step": 20 + step, "setting": "s4q1k1", "steps_per_s": 0.1} for step in range(20)
    ]  # slow, as usual
    assert not any(watchdog.check(row) for row in rows)
    said = watchdog.check(TUNING | {"step": 40, "steps_per_s": 0.25, "input_wait_frac": wait})
    assert (
        said["straggler"].startswith("update 40 took 4.0 s, 12 times the median of s1q1k1 at 8.0 s")
        and cause in said["straggler"]
    )
    assert not watchdog.check(TUNING | {"step": 41, "steps_per_s": 0.25})  # it has been said


def test_what_a_run_waits_for_when_nothing_is_finished():
    said, now = [], [0.0]
    stall = StallWatch(said.append, patience=300.0, clock=lambda: now[0])
    with stall.waiting_for("audio"):
        for seconds, sentences in ((299, 0), (301, 1), (599, 1), (601, 2), (1201, 3)):
            now[0] = seconds
            stall.check()
            assert len(said) == sentences
    assert said[1].startswith("no update was finished for 10 m 01 s: waiting for audio; is the storage of config.data")
    stall.progress()
    now[0] += 301
    stall.check()
    assert "waiting for the devices; another process may be late" in said[3]


def test_a_stalled_main_thread_is_noticed_by_another():
    said = []
    stall = StallWatch(said.append, patience=0.01)
    with stall.watching():
        deadline = time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said
