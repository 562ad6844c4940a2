"""Decoding bit by bit gives what decoding of the whole gives."""

import itertools

import numpy as np

from sew_jax.data.vocabulary import LETTERS, Vocabulary
from sew_jax.decoding.greedy import Hypothesis, best_path
from sew_jax.decoding.incremental import SegmentDecoder

VOCABULARY = Vocabulary(LETTERS)


def log_probs(random, frames):
    logits = random.normal(size=(frames, len(LETTERS))).astype(np.float32)
    logits[:, [0, 4]] += 2.5
    logits[:, [5, 6]] += 1.5
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_greedy_is_that_of_the_whole_and_segments_are_short():
    random = np.random.default_rng(0)
    for _ in range(50):
        whole, parts = log_probs(random, int(random.integers(0, 800))), []

        def decode(part, parts=parts):
            assert part.flags.c_contiguous and part.dtype == np.float32
            parts.append(part)
            return [best_path(part, VOCABULARY)]

        decoder = SegmentDecoder(decode, VOCABULARY, frames=100)
        for part in np.split(whole, np.sort(random.integers(0, len(whole) + 1, 9))):
            decoder.add(part)
        soon, _ = decoder.partial(), parts.pop()  # which closes nothing
        (found,), expected = decoder.finish(), best_path(whole, VOCABULARY)
        assert soon == found
        assert found.text == expected.text and found.words == expected.words
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        for part in parts:
            symbols = [s for s in part.argmax(-1)[:100]]
            after = {t + 1 for t in range(50, 100) if t < len(symbols) and said_before(symbols[: t + 1]) in ("|", "")}
            assert len(part) <= 100 or not after  # longer only where no word ends in its second half


def test_phonemes_bit_by_bit():
    """Where each symbol is a word, a segment may end in any silence, and never within a symbol."""
    vocabulary, random = Vocabulary(LETTERS[:4] + LETTERS[5:], delimiter=None), np.random.default_rng(1)
    for _ in range(30):
        whole = log_probs(random, int(random.integers(0, 600)))[:, 1:]
        decoder = SegmentDecoder(lambda part: [best_path(part, vocabulary)], vocabulary, frames=60)
        for part in np.split(whole, np.sort(random.integers(0, len(whole) + 1, 9))):
            decoder.add(part)
        (found,), expected = decoder.finish(), best_path(whole, vocabulary)
        assert found.text == expected.text and found.words == expected.words


def said_before(symbols):
    said = [LETTERS[s] for s in symbols if s > 3]
    return said[-1] if said else ""


def test_it_waits_where_no_word_ends():
    """One word without a pause is decoded as one."""
    path = np.tile([5, 0, 6, 0], 100)
    log_prob = np.log(np.eye(len(LETTERS), dtype=np.float32)[path] * 0.9 + 0.001)
    decoder = SegmentDecoder(lambda part: [best_path(part, VOCABULARY)], VOCABULARY, frames=50)
    for part in np.split(log_prob, 10):
        decoder.add(part)
    assert [h.text for h in decoder.finish()] == ["ET" * 100]


def test_the_best_of_several_segments_are_the_best_sums_of_theirs():
    """Against all choices of a hypothesis a segment; equal texts count once, by their best."""
    vocabulary, random = Vocabulary(LETTERS[:4] + LETTERS[5:], delimiter=None), np.random.default_rng(2)
    whole, segments = log_probs(random, 200)[:, 1:], []

    def decode(part):
        scores = -np.sort(random.uniform(0, 4, 3))
        texts = ("A", "B", "A") if len(segments) == 1 else ("A", "", "C")  # a segment's own texts differ but for here
        segments.append([Hypothesis(text, score, ()) for text, score in zip(texts, scores.tolist(), strict=True)])
        return segments[-1]

    decoder = SegmentDecoder(decode, vocabulary, frames=60, nbest=4)
    decoder.add(whole)
    found = decoder.finish()
    assert len(segments) >= 3
    every: dict[str, float] = {}
    for parts in itertools.product(*segments):
        text, score = " ".join(p.text for p in parts if p.text), sum(p.score for p in parts)
        every[text] = max(score, every.get(text, -np.inf))
    best = sorted(every.items(), key=lambda item: -item[1])
    assert 2 <= len(found) <= 4
    for hypothesis, (text, score) in zip(found, best, strict=False):
        assert hypothesis.text == text and abs(hypothesis.score - score) < 1e-6
