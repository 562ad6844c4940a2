"""Alignments and what is counted on them."""

import random

import pytest

from sew_jax.metrics.confusions import align, count_confusions, word_errors, worst_utterances
from sew_jax.metrics.wer import count_errors


def sentences(count, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(["AB", "C", "DD", "E"], k=draw.randint(0, 6))) for _ in range(count)]


def test_an_alignment_holds_both_texts_and_the_counted_errors():
    references, hypotheses = sentences(200), sentences(200, seed=1)
    for reference, hypothesis, alignment in zip(references, hypotheses, align(references, hypotheses), strict=True):
        assert " ".join(word for word, _ in alignment if word) == reference
        assert " ".join(word for _, word in alignment if word) == hypothesis
        errors = count_errors(reference, hypothesis)
        assert sum(bool(r and h and r != h) for r, h in alignment) == errors.substitutions
        assert sum(not h for _, h in alignment) == errors.deletions
        assert sum(not r for r, _ in alignment) == errors.insertions
        assert word_errors(alignment) == errors.substitutions + errors.deletions + errors.insertions


def test_white_space_is_no_word():
    assert align([" A  B "], ["A B\n"]) == [[("A", "A"), ("B", "B")]]
    assert align(["", " "], ["", "X"]) == [[], [("", "X")]]
    assert align([], []) == []


def test_the_commonest_errors():
    alignments = align(
        ["ONE TWO", "ONE TWO", "ONE TWO", "ONE", "ONE TWO", "THREE FOUR"],
        ["ONE TOO", "ONE TOO", "WON TWO", "ONE OH", "ONE", "THREE FOUR"],
    )
    confusions = count_confusions(alignments)
    assert confusions.substitutions == [("TWO", "TOO", 2), ("ONE", "WON", 1)]
    assert confusions.deletions == [("TWO", 1)]
    assert confusions.insertions == [("OH", 1)]
    assert count_confusions(alignments, most=1).substitutions == [("TWO", "TOO", 2)]
    assert count_confusions([]) == ([], [], [])


def test_confusions_of_equal_frequency_have_one_order():
    references, hypotheses = sentences(60), sentences(60, seed=1)
    there = count_confusions(align(references, hypotheses), most=99)
    back = count_confusions(align(references[::-1], hypotheses[::-1]), most=99)
    assert there == back
    errors = [count_errors(r, h) for r, h in zip(references, hypotheses, strict=True)]
    assert sum(count for *_, count in there.substitutions) == sum(e.substitutions for e in errors)
    assert sum(count for *_, count in there.deletions) == sum(e.deletions for e in errors)
    assert sum(count for *_, count in there.insertions) == sum(e.insertions for e in errors)


def test_the_worst_have_most_errors_then_fewest_words():
    references = ["A B C D", "A B", "A", "A B C", "", "A B C"]
    hypotheses = ["X Y C D", "X Y", "A", "X B C", "X Y Z", "A B C"]
    assert worst_utterances(align(references, hypotheses)) == [4, 1, 0, 3]
    assert worst_utterances(align(references, hypotheses), most=2) == [4, 1]


def test_each_reference_needs_a_hypothesis():
    with pytest.raises(ValueError):
        align(["A", "B"], ["A"])
