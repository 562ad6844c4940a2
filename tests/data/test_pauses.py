"""Long recordings: cut in pauses, not in words."""

import numpy as np
import pytest

from sew_jax.data.audio import read
from sew_jax.data.demo_corpus import ensure_demo_corpus
from sew_jax.data.pauses import cut_at_pauses
from sew_jax.rates import SAMPLE_RATE

LONGEST, SHORTEST = 30 * SAMPLE_RATE, 5 * SAMPLE_RATE


@pytest.fixture(scope="module")
def utterances():
    paths = sorted((ensure_demo_corpus() / "dev").rglob("*.flac"))
    return [read(path) for path in paths]


def joined(utterances, seconds, shortest_pause, noise, seed=0):
    """A recording of so many seconds, and where in it each utterance lies."""
    random = np.random.default_rng(seed)
    pieces, spans, at = [], [], 0
    while at < seconds * SAMPLE_RATE:
        pause = np.zeros(int(random.uniform(shortest_pause, 3 * shortest_pause) * SAMPLE_RATE))
        speech = utterances[random.integers(len(utterances))]
        pieces += [pause, speech]
        spans.append((at + len(pause), at + len(pause) + len(speech)))
        at = spans[-1][1]
    wave = np.concatenate(pieces)
    return np.round(wave + noise * random.normal(size=len(wave))).clip(-(2**15), 2**15 - 1).astype(np.int16), spans


def pieces_of(wave, block=160_000, longest=LONGEST, shortest=SHORTEST):
    blocks = (wave[i : i + block] for i in range(0, len(wave), block))
    return list(cut_at_pauses(blocks, longest, shortest))


@pytest.mark.parametrize("noise", [0, 20])
@pytest.mark.parametrize("shortest_pause", [0.2, 0.5])
def test_no_piece_begins_within_an_utterance(utterances, shortest_pause, noise):
    wave, spans = joined(utterances, 600, shortest_pause, noise)
    pieces = pieces_of(wave)
    begins = np.array([begin for begin, _ in pieces])
    assert len(pieces) >= 20 and not any(((begins > first) & (begins < last)).any() for first, last in spans)
    # no longer than they may be, and not much shorter, since pauses are many
    assert all(SHORTEST <= len(piece) <= LONGEST for _, piece in pieces)
    assert np.mean([len(piece) for _, piece in pieces]) > LONGEST / 2
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), wave)
    np.testing.assert_array_equal(begins, np.cumsum([0, *(len(piece) for _, piece in pieces)])[:-1])


@pytest.mark.parametrize("samples", [1, LONGEST, LONGEST + 1, LONGEST + SHORTEST, 2 * LONGEST + 12_345])
def test_pieces_have_their_lengths_where_nobody_pauses(samples):
    wave = np.random.default_rng(0).integers(-5000, 5000, samples).astype(np.int16)
    pieces = pieces_of(wave)
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), wave)
    assert all(min(SHORTEST, samples) <= len(piece) <= LONGEST for _, piece in pieces)


def test_blocks_change_nothing(utterances):
    wave, _ = joined(utterances, 120, 0.3, 10)
    whole = [begin for begin, _ in pieces_of(wave, len(wave))]
    for block in (SAMPLE_RATE, 7 * SAMPLE_RATE + 5):
        assert [begin for begin, _ in pieces_of(wave, block)] == whole


def test_memory_does_not_grow_with_the_recording():
    """Of a day in blocks, no more is asked for than a piece needs."""
    asked = 0

    def blocks():
        nonlocal asked
        while True:
            asked += 1
            yield np.zeros(10 * SAMPLE_RATE, np.int16)

    for count, (begin, piece) in enumerate(cut_at_pauses(blocks(), LONGEST, SHORTEST), 1):
        assert 10 * asked * SAMPLE_RATE <= begin + len(piece) + LONGEST
        if count == 100:
            break
