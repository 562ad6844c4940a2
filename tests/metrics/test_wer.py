"""Error counts against the textbook algorithm."""

import random

import jiwer
import numpy as np
import pytest

from sew_jax.metrics.wer import ErrorCounts, count_errors


def distance(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
    return table[-1, -1]


def test_errors_are_the_edit_distance():
    draw = random.Random(0)
    for _ in range(200):
        reference, hypothesis = (" ".join(draw.choices(["AB", "C", "DD", "E"], k=draw.randint(0, 6))) for _ in range(2))
        errors = count_errors(reference, hypothesis)
        assert errors.substitutions + errors.deletions + errors.insertions == distance(
            reference.split(), hypothesis.split()
        )
        assert errors.character_errors == distance(reference, hypothesis)
        assert errors.words == len(reference.split()) and errors.characters == len(reference)
        assert errors.insertions - errors.deletions == len(hypothesis.split()) - len(reference.split())


def test_kinds_of_errors():
    assert count_errors("A B C", "A X C") == ErrorCounts(3, 1, 0, 0, 5, 1, 1)
    assert count_errors("A B", "A").deletions == 1
    assert count_errors("A", "A B").insertions == 1
    assert count_errors("", "A B").insertions == 2
    assert count_errors("", "A B") == ErrorCounts(insertions=2, character_errors=3, utterances=1, empty=1)
    assert count_errors(" A  B ", "A B") == count_errors("A B", "A B")


def test_a_corpus_is_divided_once():
    total = count_errors("A", "B") + count_errors("A B C D", "A B C D") + count_errors("", "X")
    assert total.wer == pytest.approx(2 / 5)  # not the mean of 1, 0 and infinity
    assert total.utterances == 3
    assert ErrorCounts().wer == 0


def test_empty_references_count_as_jiwer_counts_them():
    references, hypotheses = ["A B", "", "", "C"], ["A", "X Y", "", ""]
    total = sum((count_errors(r, h) for r, h in zip(references, hypotheses, strict=True)), ErrorCounts())
    theirs, characters = jiwer.process_words(references, hypotheses), jiwer.process_characters(references, hypotheses)
    assert (total.wer, total.cer) == (theirs.wer, characters.cer) and total.insertions == theirs.insertions == 2
    assert total.empty == 2 and total.utterances == 4
