"""Beam search against the enumeration of all paths, and what it says of files that are none."""

import gzip
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from sew_jax.data.vocabulary import LETTERS, Vocabulary
from sew_jax.decoding import beam as beam_module
from sew_jax.decoding import beam_pool
from sew_jax.decoding.beam import Beam
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.decoding.beam_pool import BeamPool
from sew_jax.decoding.decoders import Decoders
from sew_jax.decoding.greedy import best_path, greedy
from sew_jax.decoding.lexicon import lm_words, open_lexicon, words_of_phrase
from sew_jax.decoding.ngram import arpa, estimate
from sew_jax.errors import UserError
from tests.ngrams import log10_of_sentence, read_arpa

KENLM = Path(__file__).parents[1] / "kenlm"
AB = Vocabulary(("<pad>", "|", "A", "B", "<unk>"))
BLANK, END = 0, 1
WORDS = ("A", "B", "AB", "BA", "BB")
WHOLE = dict(beam=20_000, nbest=20_000, threshold=1e4)  # nothing is dropped
TEXT = ["A B", "AB A", "BA B", "A AB", "B", "BB A"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("beam")
    (root / "lm.arpa").write_bytes((KENLM / "lm.arpa").read_bytes())
    (root / "symbols.arpa").write_text(arpa(estimate(["A | B |", "A B | A |", "B A |", "B |"], 3)))
    (root / "words.txt").write_text("\n".join(WORDS))
    return root


def noise(frames, seed=0, symbols=5):
    return np.log(np.random.default_rng(seed).dirichlet(np.ones(symbols), frames)).astype(np.float32)


def spoken(text, vocabulary, frames=2, sure=0.9):
    """Log-probabilities of symbols that stay for some frames each, with a blank between; `.` is a blank of its own."""
    path = []
    for symbol in text:
        path += [BLANK] if symbol == "." else [vocabulary.symbols.index(symbol)] * frames + [BLANK]
    probability = np.full((len(path), len(vocabulary)), (1 - sure) / (len(vocabulary) - 1))
    probability[np.arange(len(path)), path] = sure
    return np.log(probability).astype(np.float32)


def paths(log_prob, words=None):
    """Each path of symbols: (symbols without repeats and blanks, its words, log-probability, frames of the delimiter).

    flashlight begins as if a delimiter had just been: one in the first frame repeats it.
    """
    for path in itertools.product(range(log_prob.shape[1]), repeat=len(log_prob)):
        symbols = tuple(s for s, _ in itertools.groupby((END, *path)) if s != BLANK)[1:]
        said = AB.decode(symbols).split()
        if words is None or (AB.symbols.index("<unk>") not in path and all(word in words for word in said)):
            total = sum(float(log_prob[t, s]) for t, s in enumerate(path))
            yield symbols, tuple(said), total, path.count(END)


def oracle(log_prob, options, words=None, lm=None):
    """{text: score}: paths of the same words (without a lexicon: symbols) count as the best or as their sum."""
    found = {}
    for symbols, said, score, delimiters in paths(log_prob, words):
        key = said if words else symbols
        found.setdefault(key, []).append(score + options.sil_score * delimiters)
    texts = {}
    for key, scores in found.items():
        total = np.logaddexp.reduce(scores) if options.log_add else max(scores)
        labels = key if words else tuple(AB.symbols[s] for s in key)
        total += options.lm_weight * log10_of_sentence(lm, labels) if lm else 0
        total += options.word_score * len(key) if words else 0
        text = " ".join(key) if words else AB.decode(key)
        texts[text] = max(total, texts.get(text, -math.inf))
    return texts


@pytest.mark.parametrize("log_add", [False, True])
@pytest.mark.parametrize("sil_score", [0.0, 0.7, -0.4])
@pytest.mark.parametrize("kind", ["lexicon and words", "lexicon", "free", "symbols"])
def test_scores_are_those_of_all_paths(kind, sil_score, log_add, files):
    lm = {"lexicon and words": "lm.arpa", "symbols": "symbols.arpa"}.get(kind)
    words = WORDS if "lexicon" in kind else None
    options = BeamOptions(
        **WHOLE,
        lm=str(files / lm) if lm else "",
        lexicon=str(files / "words.txt") if kind == "lexicon" else "",
        lm_weight=1.7,
        word_score=-0.6,
        sil_score=sil_score,
        log_add=log_add,
    )
    for frames, seed in ((1, 0), (4, 1), (5, 2)):
        log_prob = noise(frames, seed)
        expected = oracle(log_prob, options, words, read_arpa((files / lm).read_text()) if lm else None)
        found = Beam(AB, options)(log_prob)
        assert {h.text for h in found} == set(expected) and len(found) == len(expected) > 1
        np.testing.assert_allclose([h.score for h in found], [expected[h.text] for h in found], rtol=1e-4, atol=1e-4)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert all(h.text == " ".join(word.text for word in h.words) for h in found)


HOT = ("A", "AB A", "BB", "A A")


def hot_counts(symbols, said):
    """Words of hot phrases that stand in words, or in a string of symbols between delimiters."""
    total = 0
    for phrase in HOT:
        string, sought = (said, tuple(phrase.split())) if said else ((END, *symbols, END), (END, *AB.encode(phrase)))
        total += len(phrase.split()) * sum(string[i : i + len(sought)] == sought for i in range(len(string)))
    return total


@pytest.mark.parametrize("boost", [1.3, -2.0])
@pytest.mark.parametrize("kind", ["lexicon and words", "lexicon", "free", "symbols"])
def test_hot_phrases_add_their_boost_wherever_they_stand_and_nothing_else(kind, boost, files):
    lm = {"lexicon and words": "lm.arpa", "symbols": "symbols.arpa"}.get(kind)
    options = BeamOptions(
        **WHOLE,
        lm=str(files / lm) if lm else "",
        lexicon=str(files / "words.txt") if kind == "lexicon" else "",
        lm_weight=1.7,
        hot_words=HOT,
        hot_boost=boost,
    )
    beam, words = Beam(AB, options), WORDS if "lexicon" in kind else None
    ngram = read_arpa((files / lm).read_text()) if lm else None
    for frames, seed in ((1, 0), (5, 2)):
        log_prob, expected, hot = noise(frames, seed), {}, False
        for symbols, said, score, _ in paths(log_prob, words):
            key = said if words else symbols
            labels = said if words else tuple(AB.symbols[s] for s in symbols)
            score += options.lm_weight * log10_of_sentence(ngram, labels) if ngram else 0
            score += options.word_score * len(key) if words else 0
            count = hot_counts(symbols, said if words else ())
            hot = hot or count > 0
            text = " ".join(said) if words else AB.decode(symbols)
            expected[text] = max(score + boost * count, expected.get(text, -math.inf))
        found = beam(log_prob)
        assert {h.text for h in found} == set(expected) and hot
        np.testing.assert_allclose([h.score for h in found], [expected[h.text] for h in found], rtol=1e-4, atol=1e-4)


def test_a_hot_word_is_found_that_the_lexicon_lacks_and_the_ear_doubts(tmp_path):
    letters = Vocabulary(LETTERS)
    (tmp_path / "words").write_text("TO\nSEE\n")
    log_prob = spoken("TO|SEW|", letters)
    log_prob[12, letters.symbols.index("E")] = np.log(0.3)
    plain, hot = (
        {"lexicon": str(tmp_path / "words"), "word_score": 0.0, **more} for more in ({}, {"hot_words": ("SEW",)})
    )
    assert Beam(letters, BeamOptions(**plain))(log_prob)[0].text != "TO SEW"
    assert Beam(letters, BeamOptions(**hot))(log_prob)[0].text == "TO SEW"
    with BeamPool(letters, BeamOptions(**hot), workers=0) as pool:
        assert pool.decode([log_prob])[0][0].text == "TO SEW"


def test_hot_words_are_known_however_they_are_written(tmp_path):
    """A lexicon's own word is meant by what is spelt alike, and what the normaliser drops is no word."""
    letters = Vocabulary(LETTERS, normalizer="upper,basic")
    (tmp_path / "lm.arpa").write_text(arpa(estimate(["TO SEE", "SO SEE"], 2)))
    log_prob = spoken("TO|SEE|", letters, sure=0.5)
    for more in ({"lm": str(tmp_path / "lm.arpa")}, {}):
        found = [
            Beam(letters, BeamOptions(**more, hot_words=(words,)))(log_prob)[0]
            for words in ("TO SEE", "to see", "TO & SEE", "to - see!")
        ]
        assert len(set(found)) == 1 and found[0].text == "TO SEE"
        assert found[0].score > Beam(letters, BeamOptions(**more))(log_prob)[0].score
    assert words_of_phrase(letters, "to see & so", {"to", "SEE"}) == ("to", "SEE", "SO")


@pytest.mark.parametrize("normalizer", ["lower", "basic", "lower,basic"])
def test_hypotheses_are_compared_as_the_best_path_is(normalizer):
    vocabulary = Vocabulary((*LETTERS, ",", "."), normalizer=normalizer)
    log_prob = spoken("HELLO,|WORLD|", vocabulary)
    with BeamPool(vocabulary, BeamOptions(nbest=2), workers=0) as pool:
        (found,) = pool.decode([log_prob])
    assert found[0].text == greedy(log_prob.argmax(-1), vocabulary) == vocabulary.normalize("HELLO, WORLD")


@pytest.mark.parametrize("kind", ["lexicon and words", "lexicon", "free", "symbols"])
def test_searches_with_other_hot_words_share_what_was_read_and_nothing_else(kind, files, monkeypatch):
    """Each finds what one finds that was opened for its hot words, one of which the lexicon lacks."""
    lm = {"lexicon and words": "lm.arpa", "symbols": "symbols.arpa"}.get(kind)
    files = {"lm": str(files / lm) if lm else "", "lexicon": str(files / "words.txt") if kind == "lexicon" else ""}
    asked = [BeamOptions(**files, nbest=9, hot_words=words) for words in ((), ("BAB", "AB A"), ("B", "ABA"))]
    asked.append(BeamOptions(**files, nbest=2, hot_words=("BAB",), hot_boost=-3.0))
    log_prob = noise(7, 3)
    expected = [Beam(AB, options)(log_prob) for options in asked]
    loaded = []
    load = beam_module._load
    monkeypatch.setattr(beam_module, "_load", lambda *arguments: loaded.append(1) or load(*arguments))
    decoders = Decoders(AB)
    for i in (1, 0, 2, 3, 1, 0):
        assert decoders(asked[i])(log_prob) == expected[i]
    assert len(loaded) == bool(lm) and decoders(asked[1]) is decoders(asked[1])
    said = [{word for h in found for word in h.text.split()} for found in expected]
    assert kind in ("free", "symbols") or ("BAB" in said[1] and "BAB" not in said[0] | said[2])
    assert decoders(None)(log_prob) == [best_path(log_prob, AB)]


def test_a_narrow_beam_finds_what_is_clear_and_keeps_to_nbest(files):
    log_prob = spoken("AB|A|", AB)
    beam = Beam(AB, BeamOptions(lm=str(files / "lm.arpa"), nbest=3))
    found = beam(log_prob)
    assert found[0].text == "AB A" and len({h.text for h in found}) == 3
    one = beam.with_options(BeamOptions(lm=str(files / "lm.arpa"), beam_tokens=2))(log_prob)
    assert [h.text for h in one] == ["AB A"]


@pytest.mark.parametrize("sil_score", [0.0, -0.5, 0.5])
@pytest.mark.parametrize("sure", [0.6, 1 - 1e-12])
def test_the_last_word_needs_no_delimiter(sil_score, sure, files):
    """Released models may emit none, and are sure of it."""
    for kind in ({"lm": str(files / "lm.arpa")}, {"lexicon": str(files / "words.txt")}, {}):
        beam = Beam(AB, BeamOptions(**kind, sil_score=sil_score, lm_weight=0.1, word_score=0.0))
        with_end, without = (beam(spoken(text, AB, sure=sure))[0] for text in ("A|BA|", "A|BA"))
        assert with_end.text == without.text == "A BA"
        if kind:
            silent = beam(spoken("...", AB, sure=sure))[0]
            assert silent.text == "" and silent.words == ()


def test_audio_that_ends_amid_a_word_keeps_the_words_before(tmp_path):
    letters = Vocabulary(LETTERS)
    (tmp_path / "words").write_text("HELLO\nSTRANGER\n")
    [found] = Beam(letters, BeamOptions(lexicon=str(tmp_path / "words")))(spoken("HEL.LO|STRA", letters, sure=1 - 1e-9))
    assert found.text == "HELLO" and found.score > -30


def test_words_are_where_their_symbols_are(files):
    log_prob = spoken("..AB|.A|", AB, frames=3)
    options = BeamOptions(lm=str(files / "lm.arpa"))
    ours, greedy = Beam(AB, options)(log_prob)[0], best_path(log_prob, AB)
    assert ours.words == greedy.words and [(w.text, w.begin) for w in ours.words] == [("AB", 2), ("A", 15)]


def test_the_language_model_decides_between_what_sounds_alike(tmp_path):
    letters = Vocabulary(LETTERS)
    (tmp_path / "lm.arpa").write_text(arpa(estimate(["TWO TO", "TWO TO", "TOO FAR", "TO"], 3)))
    log_prob = spoken("TO|TO|", letters)
    log_prob[2, letters.symbols.index("W")] = np.log(0.4)  # a blank, for which the model gives 0.9
    weak, strong = (BeamOptions(lm=str(tmp_path / "lm.arpa"), lm_weight=w, word_score=0.0) for w in (0.0, 6.0))
    assert Beam(letters, strong)(log_prob)[0].text == "TWO TO"
    assert Beam(letters, weak)(log_prob)[0].text == Beam(letters, BeamOptions())(log_prob)[0].text == "TO TO"


@pytest.mark.parametrize("kind", ["lm.arpa", ""])
def test_sure_blanks_between_change_times_alone(kind, files):
    # without an n-gram the second best are equal, and which of them flashlight gives changes from run to run
    options = BeamOptions(lm=str(files / kind), nbest=2, log_add=True) if kind else BeamOptions()
    beam = Beam(AB, options)
    short = spoken("AB|.A|.", AB, frames=2, sure=0.8)
    sure = np.log(np.array([1 - 4e-6, *[1e-6] * 4], np.float32))
    apart = np.concatenate(
        [np.tile(sure, (30, 1)), short[:6], np.tile(sure, (40, 1)), short[6:], np.tile(sure, (9, 1))]
    )
    found, expected = beam(apart), beam(np.concatenate([sure[None], short[:6], sure[None], short[6:], sure[None]]))
    assert [h.text for h in found] == [h.text for h in expected]
    np.testing.assert_allclose([h.score for h in found], [h.score + 76 * sure[0] for h in expected], atol=1e-4)
    for ours, theirs in zip(found, expected, strict=True):
        shifted = [(w.begin + (29 if w.begin < 7 else 68), w.end + (29 if w.end < 8 else 68)) for w in theirs.words]
        assert [(w.begin, w.end) for w in ours.words] == shifted


def test_no_frames(files):
    for options in (BeamOptions(), BeamOptions(lm=str(files / "lm.arpa"))):
        assert Beam(AB, options)(noise(0)) == [("", 0.0, ())]


def test_any_layout_and_width_of_numbers(files):
    beam, log_prob = Beam(AB, BeamOptions(lm=str(files / "lm.arpa"))), noise(30)
    expected = beam(log_prob)[0].text
    for other in (np.asfortranarray(log_prob), log_prob.astype(np.float64), np.repeat(log_prob, 2, 0)[::2]):
        assert beam(other)[0].text == expected
    log_prob[:, 4] = -np.inf
    assert np.isfinite(beam(log_prob)[0].score)


def test_processes_give_what_one_gives_in_order(files, capfd, monkeypatch, tmp_path):
    """Whatever is shared at once; and they import no main module, which may be a script that starts them."""
    (tmp_path / "script.py").write_text("raise SystemExit('the script ran again')")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "script.py"), raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(beam_pool, "_SHARED", 500)
    options = BeamOptions(lm=str(files / "lm.arpa"), nbest=2)
    log_probs = [noise(frames, seed) for seed, frames in enumerate((0, 9, 3, 40, 1, 17))]
    alone = Beam(AB, options)
    expected = [alone(log_prob) for log_prob in log_probs]
    with BeamPool(AB, options, workers=0) as pool:
        assert pool.decode(log_probs) == expected
    with BeamPool(AB, options, workers=2) as pool:
        assert pool.decode(log_probs) == expected
        other = BeamOptions(lm=options.lm, lm_weight=0.0, word_score=3.0)
        assert pool.decode(log_probs, other) == [alone.with_options(other)(x) for x in log_probs]
    assert not capfd.readouterr().err


def test_a_lexicon_is_read_from_files_of_any_kind(files, tmp_path):
    entries = {word: tuple(AB.encode(word)) for word in WORDS}
    with gzip.open(tmp_path / "lm.arpa.gz", "wb") as file:
        file.write((files / "lm.arpa").read_bytes())
    for lm in (files / "lm.arpa", tmp_path / "lm.arpa.gz"):
        assert set(lm_words(str(lm))) == set(WORDS) and dict(open_lexicon(AB, str(lm), "").entries) == entries
    (tmp_path / "spelled").write_text("A\tA |\nOTHER B A |\nOTHER\tA B\nBB\tB B |\nX\tX |\nAB BA\nZOÉ A\n", "utf-8")
    spelled = open_lexicon(AB, "", str(tmp_path / "spelled"))
    assert set(spelled.entries) == {
        *((word, entries[word]) for word in ("A", "AB", "BA", "BB")),
        ("OTHER", (3, 2, 1)),
        ("OTHER", (2, 3, 1)),
    }
    assert set(spelled.left_out) == {"X", "ZOÉ"} and "2 with characters" in str(spelled)
    (tmp_path / "spelled").write_text("OTHER B A |\nX AB\n", "utf-8")
    [found] = Beam(AB, BeamOptions(lexicon=str(tmp_path / "spelled")))(spoken("BA|AB|", AB))
    assert [(w.text, w.begin) for w in found.words] == [("OTHER", 0), ("AB", 9)]  # as the word is written, not spelled
    assert open_lexicon(AB, str(files / "symbols.arpa"), "").entries == ()


def test_a_binary_is_read_as_its_arpa(tmp_path):
    assert arpa(estimate(TEXT, 3)) == (KENLM / "lm.arpa").read_text()
    log_prob, whole = noise(12), {**WHOLE, "nbest": 50}
    expected = Beam(AB, BeamOptions(**whole, lm=str(KENLM / "lm.arpa")))(log_prob)
    for name in ("probing.binary", "trie.binary"):
        binary = KENLM / name
        assert set(lm_words(str(binary))) == set(WORDS)
        found = Beam(AB, BeamOptions(**whole, lm=str(binary)))(log_prob)
        assert [h.text for h in found] == [h.text for h in expected]
        np.testing.assert_allclose([h.score for h in found], [h.score for h in expected], rtol=1e-5)
        for cut in (60, 110, 400, -30, -3, -1):
            (tmp_path / "cut.binary").write_bytes(binary.read_bytes()[:cut])
            with pytest.raises(UserError, match="is no n-gram"):
                Beam(AB, BeamOptions(lm=str(tmp_path / "cut.binary")))


def test_a_binary_without_words_needs_a_lexicon(files):
    hashes, words = str(KENLM / "hashes.binary"), str(files / "words.txt")
    with pytest.raises(UserError, match="holds no words, only their hashes; name a list"):
        Beam(AB, BeamOptions(lm=hashes))
    log_prob = noise(12)
    found, expected = (Beam(AB, BeamOptions(lm=lm, lexicon=words))(log_prob) for lm in (hashes, str(files / "lm.arpa")))
    assert found[0].text == expected[0].text and found[0].score == pytest.approx(expected[0].score)


BAD = {
    "missing": ({"lm": "missing"}, "lm: .*missing cannot be read"),
    "directory": ({"lm": ""}, "lm: .* cannot be read"),
    "empty": ({"lm": b""}, "is no n-gram"),
    "text": ({"lm": b"hello world\n" * 300}, "is no n-gram"),
    "noise": ({"lm": np.random.default_rng(0).bytes(5000)}, "is no n-gram"),
    "gzip of text": ({"lm": gzip.compress(b"hello")}, "is no n-gram"),
    "half a gzip": ({"lm": gzip.compress(b"\\data\\\n" * 9)[:20]}, "is no n-gram|cannot be read"),
    "damaged gzip": ({"lm": b"\x1f\x8b\x08\x00" + bytes(range(200))}, "is no n-gram|cannot be read"),
    "no 2-grams": (
        {"lm": b"\\data\\\nngram 1=3\nngram 2=1\n\n\\1-grams:\n-1 <s> 0\n-1 </s>\n-1 A 0\n"},
        "is no n-gram",
    ),
    "lower case": ({"lm": arpa(estimate(["ab ba", "a b"], 2)).encode()}, "spells 0 of its 4 words .*'AB': write"),
    "other alphabet": ({"lm": arpa(estimate(["яблоко"], 2)).encode()}, "does not match .* use one of the same"),
    "head of a binary": ({"lm": b"mmap lm http://kheafield.com/code format version 5\n\0"}, "is no n-gram"),
    "missing lexicon": ({"lexicon": "missing"}, "lexicon: .*missing cannot be read"),
    "lexicon in bytes": ({"lexicon": b"\xff\xfe\x00"}, "is no text"),
    "empty lexicon": ({"lexicon": b"\n"}, "holds no word"),
    "lexicon of another language": ({"lexicon": b"hello\nworld\n"}, "spells 0 of its 2 words"),
    "lexicon of another model": ({"lm": arpa(estimate(["ab ba"], 2)).encode(), "lexicon": b"AB\n"}, "has no word of"),
    "no beam": ({"beam": 0}, "beam=0"),
    "more than the beam": ({"nbest": 51}, "nbest=51"),
    "no number": ({"lm_weight": math.nan}, "lm_weight=nan"),
    "hot words in small letters": ({"hot_words": ("ab",)}, "hot_words: 'ab' has 'a', .*; write it 'AB'"),
    "no hot word": ({"hot_words": (" ",)}, "hot_words: ' ' has no word"),
    "hot words without a weight": ({"hot_words": ("AB",), "lm_weight": 0.0}, "lm_weight must not be 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path, capfd):
    given, message = BAD[case]
    options = {}
    for name, value in given.items():
        if isinstance(value, bytes):
            (tmp_path / name).write_bytes(value)
            value = str(tmp_path / name)
        options[name] = str(tmp_path / value) if isinstance(value, str) else value
    with pytest.raises(UserError, match=message) as error:
        Beam(AB, BeamOptions(**options))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500 and not capfd.readouterr().err


def test_hot_words_in_any_form_are_a_tuple():
    wanted = BeamOptions(hot_words=("A", "B A"))
    assert {BeamOptions(hot_words=["A", "B A"]), BeamOptions(hot_words="A, B A")} == {wanted}


def test_an_error_in_a_process_is_the_same_line(tmp_path):
    (tmp_path / "lm").write_bytes(BAD["no 2-grams"][0]["lm"])
    options = BeamOptions(lm=str(tmp_path / "lm"))
    with BeamPool(AB, options, workers=2) as pool, pytest.raises(UserError, match="is no n-gram"):
        pool.decode([noise(3)])


def test_output_that_is_no_number():
    with pytest.raises(UserError, match="NaN"):
        Beam(AB, BeamOptions())(np.full((3, 5), np.nan, np.float32))


def test_a_no_break_space_is_part_of_an_n_grams_word(tmp_path):
    """KenLM parts words by ASCII's white space: the entry is one word to it, and two of ours."""
    word = "A\u00a0BB"
    text = arpa(estimate(["A\u2060X B", "A\u2060X AB", "B"], 2)).replace("A\u2060X", word)
    (tmp_path / "lm.arpa").write_text(text, encoding="utf-8")
    assert word in lm_words(str(tmp_path / "lm.arpa"))
    lexicon = open_lexicon(AB, str(tmp_path / "lm.arpa"), "")
    assert dict(lexicon.entries)[word] == (2, 1, 3, 3, 1)
    (tmp_path / "words.txt").write_text(f"{word}\nB\n", encoding="utf-8")
    assert dict(open_lexicon(AB, "", str(tmp_path / "words.txt")).entries).keys() == {word, "B"}
    (found,) = Beam(AB, BeamOptions(lm=str(tmp_path / "lm.arpa"), lm_weight=0.1))(spoken("A|B.B|B|", AB))
    assert found.text == "A BB B" and [w.text for w in found.words] == ["A", "BB", "B"]


def test_words_of_an_n_gram_and_a_lexicon_in_another_form_of_unicode(tmp_path):
    composed, apart = "\u00e9", "e\u0301"
    vocabulary = Vocabulary(("<pad>", "|", "a", composed))
    (tmp_path / "lm.arpa").write_text(arpa(estimate([f"a{apart} a", f"{apart}\u200ba"], 2)), encoding="utf-8")
    lexicon = open_lexicon(vocabulary, str(tmp_path / "lm.arpa"), "")
    assert set(dict(lexicon.entries).values()) == {(2, 3, 1), (2, 1), (3, 2, 1)} and not lexicon.left_out
    beam = Beam(vocabulary, BeamOptions(lm=str(tmp_path / "lm.arpa"), lm_weight=0.1))
    assert beam(spoken(f"a{composed}|a|", vocabulary))[0].text == f"a{composed} a"
    (tmp_path / "words.txt").write_text(f"\ufeffa{apart}\ta {apart} |\r\n", encoding="utf-8")
    assert open_lexicon(vocabulary, "", str(tmp_path / "words.txt")).entries == ((f"a{apart}", (2, 3, 1)),)


@pytest.mark.parametrize("line", ["AB A B |", "AB\tA B", "AB"])
def test_a_lexicon_of_a_vocabulary_whose_delimiter_is_a_space(line, tmp_path):
    vocabulary = Vocabulary(("<pad>", " ", "A", "B"), delimiter=" ")
    (tmp_path / "words.txt").write_text(line)
    assert open_lexicon(vocabulary, "", str(tmp_path / "words.txt")).entries == (("AB", (2, 3, 1)),)
    (found,) = Beam(vocabulary, BeamOptions(lexicon=str(tmp_path / "words.txt")))(spoken("AB ", vocabulary))
    assert found.text == "AB"


def test_phonemes_are_searched_without_a_delimiter(tmp_path):
    vocabulary = Vocabulary(("<pad>", "a", "i:", "t"), delimiter=None)
    log_prob = spoken(["t", "i:", "a", "t"], vocabulary)
    (found,) = Beam(vocabulary, BeamOptions())(log_prob)
    assert found.text == "t i: a t" == best_path(log_prob, vocabulary).text and len(found.words) == 4
    (tmp_path / "lm.arpa").write_text(arpa(estimate(["t i: t a t", "t i: t"], 2)))
    options = BeamOptions(lm=str(tmp_path / "lm.arpa"), lm_weight=1.0, **WHOLE)
    unsure = noise(5, 3, symbols=4)
    found = Beam(vocabulary, options)(unsure)
    table = read_arpa((tmp_path / "lm.arpa").read_text())
    best: dict[tuple[str, ...], float] = {}
    for path in itertools.product(range(4), repeat=5):
        said = tuple(vocabulary.symbols[s] for s, _ in itertools.groupby(path) if s)
        score = float(unsure[range(5), path].sum())
        best[said] = max(best.get(said, -math.inf), score)
    expected = {" ".join(said): score + log10_of_sentence(table, said) for said, score in best.items()}
    assert {h.text for h in found} == set(expected)
    np.testing.assert_allclose([h.score for h in found], [expected[h.text] for h in found], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="has no delimiter to end them by"):
        Beam(vocabulary, BeamOptions(lexicon=str(tmp_path / "lm.arpa")))
