"""Greedy CTC decoding against the definition, and words with times."""

import itertools

import numpy as np

from sew_jax.data.vocabulary import LETTERS, Vocabulary
from sew_jax.decoding.greedy import best_path, greedy, words_of_path


def test_collapse_then_drop_blanks():
    random, vocabulary = np.random.default_rng(0), Vocabulary(LETTERS)
    for _ in range(50):
        path = random.choice([0, 0, 4, 5, 6, 7], size=random.integers(0, 31))
        kept = [int(s) for s, _ in itertools.groupby(path) if s != 0]
        assert greedy(path, vocabulary) == " ".join("".join(LETTERS[s] for s in kept).replace("|", " ").split())


def test_encode_then_decode_a_path():
    vocabulary = Vocabulary(LETTERS)
    path = [x for s in vocabulary.encode("LET'S SEE") for x in (0, s, s)]  # blanks keep the double E apart
    assert greedy(np.array(path), vocabulary) == "LET'S SEE"


def test_words_of_a_path_have_its_text_times_and_confidence():
    random, vocabulary = np.random.default_rng(1), Vocabulary(LETTERS)
    for _ in range(50):
        logits = random.normal(size=(int(random.integers(0, 40)), len(LETTERS)))
        logits[:, [0, 4, 5, 6]] += 3
        log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        hypothesis = best_path(log_prob, vocabulary)
        assert hypothesis.text == greedy(log_prob.argmax(-1), vocabulary)
        assert hypothesis.text == " ".join(word.text for word in hypothesis.words)
        np.testing.assert_allclose(hypothesis.score, log_prob.max(-1).sum(), rtol=1e-6, atol=1e-6)
        ends = [0, *(t for word in hypothesis.words for t in (word.begin, word.end))]
        assert ends == sorted(ends) and ends[-1] <= len(logits)
        for word in hypothesis.words:  # its frames alone say it, and nothing else
            alone = best_path(log_prob[word.begin : word.end], vocabulary)
            assert alone.text == word.text and alone.words[0].confidence == word.confidence


def test_confidence_is_the_geometric_mean_of_the_symbols_best_frames():
    vocabulary = Vocabulary(LETTERS)
    e, t = LETTERS.index("E"), LETTERS.index("T")
    path = np.array([0, e, e, 0, t, vocabulary.word_end, e])
    words = words_of_path(path, np.log([0.9, 0.5, 0.8, 0.9, 0.2, 0.9, 0.3]), vocabulary)
    assert [(word.text, word.begin, word.end) for word in words] == [("ET", 1, 5), ("E", 6, 7)]
    np.testing.assert_allclose([word.confidence for word in words], [(0.8 * 0.2) ** 0.5, 0.3])
