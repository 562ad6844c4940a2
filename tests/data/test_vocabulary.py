"""Vocabularies."""

# ruff: noqa: RUF001 (letters of many scripts)

import json
import random
import unicodedata

import pytest

from sew_jax.data.transcripts import choose_symbols, spell_transcripts
from sew_jax.data.vocabulary import LETTERS, Vocabulary, characters_vocabulary, open_vocabulary
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
    vocabulary = open_vocabulary("letters")
    ids = vocabulary.encode(" DON'T  STOP ")
    assert "".join(LETTERS[i] for i in ids) == "DON'T|STOP|"
    assert vocabulary.decode(ids) == "DON'T STOP"
    assert vocabulary.decode([0, 1, 2, 3, *ids]) == "DON'T STOP"
    assert vocabulary.encode("") == [] and vocabulary.decode([]) == ""


def test_unknown_characters_are_named():
    vocabulary = open_vocabulary("letters")
    with pytest.raises(UserError, match=r"transcript of utt-1 and 1 more utterances has '1' 'é'.*vocabulary=auto"):
        spell_transcripts(vocabulary, Texts("FINE", "É1é".replace("É", "E"), "9"))
    assert vocabulary.unknown("A|B") == {"|"}  # it would read as a space
    spell_transcripts(characters_vocabulary("é1 b c"), Texts("é1 b", "c"))


def test_file_round_trip(tmp_path):
    vocabulary = characters_vocabulary("жукA B")
    vocabulary.save(tmp_path)
    assert open_vocabulary(str(tmp_path / "vocab.json")) == vocabulary
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))["<pad>"] == 0


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 1}', '{"a": "x"}'])
def test_a_bad_file_is_a_clear_error(tmp_path, content):
    (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(UserError, match="not a vocabulary"):
        Vocabulary.load(tmp_path / "vocab.json")
    with pytest.raises(UserError, match="no such file"):
        Vocabulary.load(tmp_path / "missing.json")


SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "|")
UZBEK = Vocabulary((*SPECIAL, *"abdefghijklmnopqrstuvxyzc'", "sh", "ch", "ng", "o'", "g'"))


def longest_first(text, symbols):
    """As a tokenizer of transformers cuts a word: from the left, the longest symbol that begins there."""
    pieces = []
    while text:
        pieces.append(max((s for s in symbols if text.startswith(s)), key=len))
        text = text[len(pieces[-1]) :]
    return pieces


def test_symbols_of_several_characters_are_one():
    ids = UZBEK.encode("shahar choy o'g'il ishchi tong")
    expected = "sh a h a r | ch o y | o' g' i l | i sh ch i | t o ng |"
    assert [UZBEK.symbols[i] for i in ids] == expected.split()
    assert UZBEK.decode(ids) == "shahar choy o'g'il ishchi tong"
    draw, symbols = random.Random(0), [s for s in UZBEK.symbols if s not in SPECIAL]
    for _ in range(300):
        word = "".join(draw.choices("shcngo'", k=draw.randint(1, 8)))
        assert [UZBEK.symbols[i] for i in UZBEK.encode(word)[:-1]] == longest_first(word, symbols)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("text", ["tôi được rồi", "Ångström", "한국어 말", "ẹ́ ọ̀"])
def test_a_vocabulary_of_either_form_spells_text_of_either(form, text):
    symbols = sorted(set(unicodedata.normalize(form, text)) - {" "})
    vocabulary = Vocabulary((*SPECIAL, *symbols))
    spelt = [vocabulary.encode(unicodedata.normalize(other, text)) for other in ("NFC", "NFD")]
    assert spelt[0] == spelt[1] and vocabulary.decode(spelt[0]) == unicodedata.normalize("NFC", text)
    said = "".join(vocabulary.symbols[i] for i in spelt[0]).replace("|", " ").strip()
    assert said == unicodedata.normalize(form, text)  # each in the vocabulary's own form


def test_a_symbol_that_unicode_never_composes_is_found():
    """Hindi's U+095C: NFC writes it as two characters, released vocabularies as one."""
    vocabulary = Vocabulary((*SPECIAL, "\u0921", "\u093c", "\u095c"))
    assert vocabulary.encode("\u095c") == vocabulary.encode("\u0921\u093c") == [7, 4]
    assert Vocabulary((*SPECIAL, "\u095c")).encode("\u0921\u093c") == [5, 4]


def test_joiners_are_spelt_where_the_vocabulary_has_them():
    with_it, without = Vocabulary((*SPECIAL, *"می\u200c")), Vocabulary((*SPECIAL, *"می"))
    text = "می\u200cم\ufeff"
    assert with_it.decode(with_it.encode(text)) == "می\u200cم" and without.decode(without.encode(text)) == "میم"
    assert not with_it.unknown(text) and not without.unknown(text)


def test_auto_takes_letters_and_leaves_out_what_is_none():
    vocabulary, _ = choose_symbols(Texts("tôi|\ufeff", unicodedata.normalize("NFD", "tôi")), "")
    assert vocabulary.symbols == (*SPECIAL, "i", "t", "ô") and vocabulary.unknown("t|") == {"|"}
    assert choose_symbols(Texts("Hi, you!"), "lower,basic")[0].symbols[5:] == ("h", "i", "o", "u", "y")


def write(folder, ids, tokenizer=None, **others):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids))
    if tokenizer is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name, content in others.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / "vocab.json"


def ids_of(*symbols):
    return {symbol: i for i, symbol in enumerate(symbols)}


def test_a_space_ends_words(tmp_path):
    ids = ids_of("<pad>", " ", "A", "B")
    for i, tokenizer in enumerate(({"word_delimiter_token": " "}, {}, None)):
        vocabulary = Vocabulary.load(write(tmp_path / str(i), ids, tokenizer))
        assert vocabulary.encode("AB A") == [2, 3, 1, 2, 1] and vocabulary.decode([0, 2, 3, 1, 1, 2, 1]) == "AB A"
        assert not vocabulary.unknown("AB A")


@pytest.mark.parametrize("letters", ["EFIV", "efiv"])
def test_small_letters_in_and_out(tmp_path, letters):
    path = write(tmp_path, ids_of("<pad>", "|", *letters), {"do_lower_case": True})
    vocabulary = Vocabulary.load(path)
    assert vocabulary.encode("five") == vocabulary.encode("FIVE") == [3, 4, 5, 2, 1]
    assert vocabulary.decode(vocabulary.encode("FIVE")) == "five" == vocabulary.normalize("FIVE")
    assert not vocabulary.unknown("five FIVE") and vocabulary.unknown("fix") in ({"X"}, {"x"})


PHONEMES = ids_of("<pad>", "<s>", "</s>", "<unk>", "f", "aɪ", "v", "iː", "t")


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"word_delimiter_token": None, "tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"},
        {"word_delimiter_token": "|", "tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"},
        {"word_delimiter_token": "|"},
        {},
    ],
)
def test_phonemes_are_words(tmp_path, tokenizer):
    vocabulary = Vocabulary.load(write(tmp_path, PHONEMES, tokenizer))
    assert vocabulary.delimiter is None and vocabulary.word_end is None
    assert vocabulary.encode("f aɪ  v") == [4, 5, 6] and vocabulary.decode([0, 4, 5, 6, 2]) == "f aɪ v"
    assert vocabulary.unknown("f five aɪ") == {"five"}  # not spelt by chance
    with pytest.raises(UserError, match=r"has 'faɪv'.*put spaces between phonemes.*vocabulary=auto"):
        spell_transcripts(vocabulary, Texts("faɪv"))


def test_characters_without_a_delimiter_are_words(tmp_path):
    vocabulary = Vocabulary.load(write(tmp_path, ids_of("[PAD]", "你", "好"), {"word_delimiter_token": None}))
    assert vocabulary.encode("你好 你") == [1, 2, 1] and vocabulary.normalize("你好 你") == "你 好 你"
    assert vocabulary.decode([1, 2, 1]) == "你 好 你"


@pytest.mark.parametrize(
    ("symbols", "files", "pad_id", "blank"),
    [
        (("A", "|", "[PAD]"), {"tokenizer": {"pad_token": "[PAD]"}}, 0, 2),
        (("A", "|", "[PAD]"), {}, None, 2),
        (("A", "|", "<pad>"), {"tokenizer": {"pad_token": {"content": "<pad>"}}}, None, 2),
        (("_", "|", "A"), {}, 0, 0),
        (("A", "|", "_", "<pad>"), {}, 2, 2),  # config.json says what the loss used
        (("_", "|", "A"), {"tokenizer": {}, "special_tokens_map": {"pad_token": "_"}}, None, 0),
        (("_", "|", "A"), {"tokenizer": {"added_tokens_decoder": {}}, "special_tokens_map": {"pad_token": "_"}}, 2, 0),
        (("A", "|", "[PAD]"), {"tokenizer": {"pad_token": "<pad>"}}, None, 2),
    ],
)
def test_the_blank_is_found(tmp_path, symbols, files, pad_id, blank):
    vocabulary = Vocabulary.load(write(tmp_path, ids_of(*symbols), **files), pad_id=pad_id)
    assert vocabulary.blank == blank and vocabulary.decode([blank, symbols.index("A"), 1]) == "A"


@pytest.mark.parametrize(
    ("ids", "written", "read"),
    [
        ({"<pad>": 0, "|": 1, " ": 1, "A": 2}, "A", "A"),  # as a recipe leaves it that forgets to delete the space
        ({"<pad>": 0, "|": 1, "a": 2, "A": 2}, "A", "a"),
        ({"<pad>": 0, "[PAD]": 0, "|": 1, "A": 2}, "A", "A"),
    ],
)
def test_two_names_of_one_id_are_told(tmp_path, ids, written, read, capsys):
    vocabulary = Vocabulary.load(write(tmp_path / "a", ids))
    assert "share id" in capsys.readouterr().out
    assert vocabulary.encode(read) == [2, 1] and vocabulary.decode([0, 2, 1]) == written and len(vocabulary) == 3
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path / "vocab.json") == vocabulary


def test_an_id_without_a_name_is_never_read(tmp_path):
    vocabulary = Vocabulary.load(write(tmp_path, {"<pad>": 0, "|": 1, "A": 3}))
    assert len(vocabulary) == 4 and vocabulary.decode([2, 3, 2, 1]) == "A"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_as_windows_writes_them(tmp_path, encoding):
    (tmp_path / "vocab.json").write_text(json.dumps(ids_of("<pad>", "|", "ô"), ensure_ascii=False), encoding)
    assert Vocabulary.load(tmp_path / "vocab.json").symbols == ("<pad>", "|", "ô")


def test_a_vocabulary_of_languages_is_named(tmp_path):
    ids = {"deu": ids_of("<pad>", "|", "ä"), "eng": ids_of("<pad>", "|", "a")}
    with pytest.raises(UserError, match=r"2 languages \(deu, eng\); name one by --config.language, as target_lang"):
        Vocabulary.load(write(tmp_path / "a", ids))
    assert Vocabulary.load(write(tmp_path / "b", ids, {"target_lang": "deu"})).symbols[2] == "ä"
    assert Vocabulary.load(write(tmp_path / "c", {"eng": ids["eng"]})).symbols[2] == "a"  # there is but one


@pytest.mark.parametrize(
    "vocabulary",
    [
        UZBEK,
        Vocabulary(("<pad>", " ", "A"), delimiter=" "),
        Vocabulary(("<pad>", "|", "A"), lower_case=True, normalizer="lower,basic"),
        Vocabulary(("_", "a", "iː"), blank_symbol="_", delimiter=None, unknown_symbol=None),
    ],
)
def test_every_kind_goes_out_and_in(tmp_path, vocabulary):
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path / "vocab.json") == vocabulary
    assert list(json.loads((tmp_path / "vocab.json").read_text())) == list(vocabulary.symbols)
