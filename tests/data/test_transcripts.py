"""What is told of transcripts before anything is trained on them."""

import numpy as np
import pytest

from sew_jax.data.transcripts import choose_symbols, impossible_pairs, spell_transcripts, text_notes
from sew_jax.data.vocabulary import LETTERS, Vocabulary, characters_vocabulary
from sew_jax.errors import UserError
from tests.data.test_vocabulary import Texts

VOCABULARY = Vocabulary(LETTERS)


def test_symbols_and_the_frames_that_ctc_needs():
    found = spell_transcripts(VOCABULARY, Texts("HELLO ALL", "", "AB", None))
    assert found.symbols_U.tolist() == [10, 0, 3, 0]
    assert found.frames_U.tolist() == [12, 0, 3, 0]  # a blank stands between L and L
    assert "text_normalizer=none; 32 symbols; '|' ends a word" in found.notes[0]


def test_impossible_pairs_are_counted_and_named():
    source = Texts("AABB", "A", "AABB", "AABB")
    found = spell_transcripts(VOCABULARY, source)
    (line,) = impossible_pairs(found, np.array([7, 1, 6, 6]), source, "at every setting")
    assert "3 transcripts have more symbols than their audio has frames, at every setting" in line
    assert "utt-1 (2 needed, 1 there), utt-2 (7 needed, 6 there), utt-3" in line and "utt-0" not in line
    assert not impossible_pairs(found, np.array([7, 2, 7, 7]), source, "")


def test_empty_ones_and_format_characters_are_counted():
    source = Texts("A\ufeffB", "", "...", "C\u200b\ufeffD", "E")
    notes = text_notes(VOCABULARY, source)
    assert "1 of 5 transcripts are empty (first: utt-1); they train silence" in notes[0]
    assert "3 format characters in 2 transcripts are dropped (first: utt-0): U+FEFF" in notes[1]
    assert "zero width space" in notes[1] and len(notes) == 2
    basic = text_notes(VOCABULARY.with_normalizer("basic"), source, empty="so they are")
    assert "2 of 5 transcripts are empty (first: utt-1); so they are" in basic[0]
    assert not text_notes(VOCABULARY, Texts("A", "B"))


def test_nothing_but_silence_is_an_error():
    with pytest.raises(UserError, match="no transcript has a word"):
        spell_transcripts(VOCABULARY, Texts("", ""))


def test_auto_lists_its_symbols_and_where_rare_ones_stand():
    source = Texts(*["AB BA"] * 5, "AB Q", "é B\u200b", "e\u0301")
    vocabulary, notes = choose_symbols(source, "")
    assert vocabulary == characters_vocabulary("ABQé ")
    assert "4 of the transcripts: A B Q é" in notes[0]
    assert "2 of them rare" in notes[1] and "'Q' in 1 (first: utt-5), 'é' in 2 (first: utt-6)" in notes[1]
    spell_transcripts(vocabulary, source)
    many, notes = choose_symbols(Texts(*[chr(0x4E00 + i) * 3 for i in range(300)]), "")
    assert "300 of the transcripts" in notes[0] and "and 200 more (vocab.json has all)" in notes[0] and len(many) == 305
    assert len(notes[1]) < 500


def test_a_mark_alone_is_shown_by_its_number():
    _, (line, _) = choose_symbols(Texts("x\u0323\u0327"), "")
    assert "U+0327" in line
