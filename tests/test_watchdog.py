"""Synthetic histories and the sentence that each must draw."""

import pytest

from sew_jax.watchdog import Watchdog

HEALTHY = dict(
    step=0, loss=3.0, loss_contrastive=3.0, accuracy=0.4, code_perplexity=200.0, prob_perplexity=220.0, masked_frac=0.49,
    input_wait_frac=0.01,
)  # fmt: skip
TUNING = dict(step=0, loss=3.0, ctc_invalid_frac=0.0, blank_frac=0.8, input_wait_frac=0.0)


def history(watchdog, row, updates=150):
    return [sentence for step in range(updates) for sentence in watchdog.check(row | {"step": step})]


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
