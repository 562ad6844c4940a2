"""Vocabularies."""

import json

import pytest

from sew_jax.data.transcripts import spell_transcripts
from sew_jax.data.vocabulary import LETTERS, Vocabulary, open_vocabulary
from sew_jax.errors import UserError


class Texts:
    name = "corpus"

    def __init__(self, *texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def id(self, i):
        return f"utt-{i}"

    def text(self, i):
        return self.texts[i]


def test_letters_are_fairseqs_with_hugging_faces_names():
    assert len(LETTERS) == 32 and len(set(LETTERS)) == 32
    assert LETTERS[:8] == ("<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A")


def test_words_end_with_a_bar_and_come_back():
    vocabulary = open_vocabulary("letters", [])
    ids = vocabulary.encode(" DON'T  STOP ")
    assert "".join(LETTERS[i] for i in ids) == "DON'T|STOP|"
    assert vocabulary.decode(ids) == "DON'T STOP"
    assert vocabulary.decode([0, 1, 2, 3, *ids]) == "DON'T STOP"
    assert vocabulary.encode("") == [] and vocabulary.decode([]) == ""


def test_unknown_characters_are_named():
    vocabulary = open_vocabulary("letters", [])
    with pytest.raises(UserError, match=r"transcript of utt-1 and 1 more utterances has '1' 'é'.*vocabulary=auto"):
        spell_transcripts(vocabulary, Texts("FINE", "É1é".replace("É", "E"), "9"))
    assert vocabulary.unknown("A|B") == {"|"}  # it would read as a space
    spell_transcripts(open_vocabulary("auto", ["é1", "b c"]), Texts("é1 b", "c"))


def test_file_round_trip(tmp_path):
    vocabulary = open_vocabulary("auto", ["жук", "A B"])
    vocabulary.save(tmp_path)
    assert open_vocabulary(str(tmp_path / "vocab.json"), []) == vocabulary
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))["<pad>"] == 0


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 1}', '{"a": "x"}'])
def test_a_bad_file_is_a_clear_error(tmp_path, content):
    (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(UserError, match="not a vocabulary"):
        Vocabulary.load(tmp_path / "vocab.json")
    with pytest.raises(UserError, match="no such file"):
        Vocabulary.load(tmp_path / "missing.json")
