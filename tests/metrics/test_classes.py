"""Macro F1 and its interval against counts by hand."""

import numpy as np
import pytest

from sew_jax.metrics.bootstrap import wer_interval
from sew_jax.metrics.classes import count_labels, macro_f1, macro_f1_interval
from sew_jax.metrics.wer import ErrorCounts

CLASSES = ("A", "B", "C", "D")


def by_hand(references, labels):
    """From precision and recall of each class, as textbooks have it."""
    scores = []
    for name in sorted({*references, *labels}):
        hits = sum(a == b == name for a, b in zip(references, labels, strict=True))
        precision, recall = hits / max(list(labels).count(name), 1), hits / max(list(references).count(name), 1)
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return np.mean(scores)


def one_each(labels):
    return [[label] for label in labels]


def drawn(seed, utterances=30):
    random = np.random.default_rng(seed)
    references = random.choice(CLASSES, utterances, p=(0.6, 0.2, 0.15, 0.05)).tolist()
    labels = [name if random.random() < 0.7 else random.choice(CLASSES).item() for name in references]
    return references, labels


def test_macro_f1_is_the_mean_over_classes():
    for seed in range(50):
        references, labels = drawn(seed, utterances=1 + seed)
        assert macro_f1(one_each(references), one_each(labels)) == pytest.approx(by_hand(references, labels))
    assert macro_f1(["A", "B"], ["A", "B"]) == 1 and macro_f1(["A", "A"], ["B", "B"]) == 0 == macro_f1([], [])


def frames(seed, utterances=12):
    """Labels of 0 to 39 frames of each, by the reference and as they were found."""
    random = np.random.default_rng(seed)
    drawn_U = [drawn(100 * seed + i, utterances=int(random.integers(0, 40))) for i in range(utterances)]
    return tuple(map(list, zip(*drawn_U, strict=True)))


def joined(utterances):
    return [label for labels in utterances for label in labels]


def test_frames_count_together_and_utterances_are_drawn():
    for seed in range(10):
        references, labels = frames(seed)
        assert macro_f1(references, labels) == pytest.approx(by_hand(joined(references), joined(labels)))
    low, high = macro_f1_interval(references, labels, resamples=2000)
    random = np.random.default_rng(1)
    draws = [random.integers(0, len(labels), len(labels)) for _ in range(1000)]
    f1 = [by_hand(joined([references[i] for i in draw]), joined([labels[i] for i in draw])) for draw in draws]
    assert [low, high] == pytest.approx(np.percentile(f1, (2.5, 97.5)), abs=0.03)


def test_the_interval_is_that_of_draws_by_hand():
    references, labels = drawn(0)
    low, high = macro_f1_interval(one_each(references), one_each(labels), resamples=2000)
    random = np.random.default_rng(1)
    draws = [random.integers(0, 30, 30) for _ in range(1000)]
    f1 = [by_hand([references[i] for i in draw], [labels[i] for i in draw]) for draw in draws]
    assert [low, high] == pytest.approx(np.percentile(f1, (2.5, 97.5)), abs=0.03)
    assert macro_f1_interval([["A"]], [["B"]]) == (0, 0) == macro_f1_interval([], [])


def test_labels_add_up_as_words_do():
    """Also those of several words, of which errors count once."""
    pairs = [("very happy", "very happy"), ("very happy", "very sad"), ("sad", "very sad")]
    total = sum((count_labels([a], [b]) for a, b in pairs), ErrorCounts())
    assert (total.wer, total.errors, total.words, total.utterances) == (2 / 3, 2, 3, 3)
    assert wer_interval([0, 1, 1], [1, 1, 1])[0] < total.wer
