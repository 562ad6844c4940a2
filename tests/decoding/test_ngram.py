"""An n-gram against counts by hand: probabilities that sum to one, and what KenLM makes of its file."""

import collections
import math

import numpy as np
import pytest

from configs import lm as lm_config
from sew_jax.decoding.beam import sentence_log10
from sew_jax.decoding.build_lm import build_lm
from sew_jax.decoding.ngram import arpa, estimate
from sew_jax.errors import UserError
from tests.ngrams import log10_of_sentence, log10_of_word, read_arpa
from tests.runs import WORDS, make_corpus

TINY = ["A B A C", "B A", "A B A B", "C", "D A B"]
LARGE = [" ".join(line) for line in np.random.default_rng(0).zipf(1.5, (300, 6)).clip(max=60).astype(str)]


def kneser_ney(sentences, order):
    """(context, word) -> probability, by dictionaries and recursion, for the discounts that the counts give."""
    said = [("<s>", *s.split(), "</s>") for s in sentences]
    grams = {
        k: collections.Counter(s[i : i + k] for s in said for i in range(len(s) - k + 1)) for k in range(1, order + 1)
    }
    vocabulary = {"<unk>"} | {w for s in said for w in s} - {"<s>"}
    counts = {}
    for k in range(1, order + 1):
        for gram, count in grams[k].items():
            preceding = sum(longer[1:] == gram for longer in grams[k + 1]) if k < order else count
            counts[gram] = count if gram[0] == "<s>" else preceding
    counts[("<s>",)] = 0
    discounts = {}
    for k in range(1, order + 1):
        n = collections.Counter(c for gram, c in counts.items() if len(gram) == k)
        discounts[k] = (0.5, 1.0, 1.5)
        if n[1] and n[2] and n[3] and n[4]:
            y = n[1] / (n[1] + 2 * n[2])
            found = tuple(j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3))
            discounts[k] = found if min(found) > 0 else discounts[k]

    def probability(context, word):
        context = context[max(0, len(context) - order + 1) :]
        lower = probability(context[1:], word) if context else 1 / len(vocabulary)
        here = {gram[-1]: c for gram, c in counts.items() if gram[:-1] == context and c}
        if not here:
            return lower
        taken = {w: discounts[len(context) + 1][min(c, 3) - 1] for w, c in here.items()}
        share = here[word] - taken[word] if word in here else 0
        return (share + sum(taken.values()) * lower) / sum(here.values())

    return probability, sorted(vocabulary)


@pytest.mark.parametrize(("sentences", "order"), [(TINY, 2), (TINY, 3), (TINY, 4), (LARGE[:120], 3)])
def test_it_is_kneser_ney(sentences, order):
    table = read_arpa(arpa(estimate(sentences, order)))
    probability, vocabulary = kneser_ney(sentences, order)
    contexts = [("<s>",), ("<s>", "A"), ("A",), ("A", "B"), ("B", "A", "B"), ("1", "2"), ("D", "D"), ("<unk>", "A")]
    for context in contexts:
        for word in vocabulary[:12]:
            expected = probability(context[-order + 1 :], word)
            assert 10 ** log10_of_word(table, context[-order + 1 :], word) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("sentences", "order"), [(TINY, 2), (TINY, 4), (["A"], 2), (LARGE, 4)])
def test_probabilities_sum_to_one_in_any_context(sentences, order):
    model = estimate(sentences, order)
    table = read_arpa(arpa(model))
    random, words = np.random.default_rng(0), [w for w in model.words if w != "<s>"]
    seen = [gram for gram in table if len(gram) < order and gram[-1] not in ("</s>", "<unk>")]
    contexts = [(), *(seen[i] for i in random.permutation(len(seen))[:40])]
    contexts += [tuple(random.choice(model.words, order - 1)) for _ in range(20)]
    for context in contexts:
        assert sum(10 ** log10_of_word(table, context, word) for word in words) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("sentences", "order"), [(TINY, 2), (TINY, 4), (["A"], 2), (LARGE, 3), (LARGE, 6)])
def test_kenlm_reads_the_same_probabilities(sentences, order, tmp_path):
    text = arpa(estimate(sentences, order))
    (tmp_path / "lm.arpa").write_text(text)
    asked = [*sentences[:20], "A D C", "B B B B B B B", "7 5 1 1 3", "NEVER", "A NEVER B", ""]
    expected = [log10_of_sentence(read_arpa(text), sentence.split()) for sentence in asked]
    np.testing.assert_allclose(sentence_log10(str(tmp_path / "lm.arpa"), asked), expected, rtol=1e-5)


def test_discounts_are_told_by_enough_text_and_fixed_for_little():
    assert estimate(TINY, 3).undiscounted and not estimate(LARGE, 3).undiscounted
    assert len(estimate(["A B", "C"], 6).orders) == 4  # <s> A B </s> is the longest there is


def test_a_model_of_transcripts_and_text(tmp_path, capfd):
    config = lm_config.get_config()
    config.data, config.order, config.eval_split = str(make_corpus(tmp_path / "corpus")), 2, "test"
    config.text = str(tmp_path / "text")
    (tmp_path / "text").write_text("FOUR  FIVE\n\n FOUR\n")
    path = build_lm(config, tmp_path / "lm")
    table = read_arpa(path.read_text())
    assert {gram[0] for gram in table if len(gram) == 1} == {"<unk>", "<s>", "</s>", *WORDS, "FOUR", "FIVE"}
    printed = capfd.readouterr()
    assert not printed.err and "train: 12 transcripts" in printed.out and "2 lines" in printed.out
    asked = [WORDS[i % 3] for i in range(5)]  # of the test split
    perplexity = 10 ** (-sum(log10_of_sentence(table, [word]) for word in asked) / 10)
    assert f"perplexity {perplexity:.1f} of test: 5 words and 5 ends; 0 words" in printed.out
    assert math.isfinite(perplexity) and [p.name for p in (tmp_path / "lm").iterdir()] == ["lm.arpa"]
    for text in (tmp_path / "corpus").rglob("test/**/*.trans.txt"):  # what was said is nothing
        text.write_text("".join(f"{line.split()[0]} \n" for line in text.read_text().splitlines()))
    build_lm(config, tmp_path / "lm")
    assert "perplexity none: test holds no words" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ""}, "text: there is none to count"),
        ({"data": "", "text": "missing"}, "text: missing cannot be read"),
        ({"data": "", "text": "TEXT", "order": 1}, "order: 1 must be 2 to 6"),
        ({"data": "", "text": "TEXT", "order": 7}, "order: 7 must be 2 to 6"),
        ({"data": "", "text": "SPECIAL"}, "'A <s> B' holds <s>"),
        ({"data": "", "text": "BYTES"}, "is no text in UTF-8"),
        ({"data": "missing"}, "data: missing does not exist"),
        ({"data": "", "text": "TEXT", "eval_split": "test"}, "data is empty"),
    ],
    ids=str,
)
def test_bad_input(changes, message, tmp_path):
    (tmp_path / "TEXT").write_text("A B\n")
    (tmp_path / "SPECIAL").write_text("A <s> B\n")
    (tmp_path / "BYTES").write_bytes(b"A \xff\xfe B\n")
    config = lm_config.get_config()
    config.update({k: str(tmp_path / v) if str(v).isupper() else v for k, v in changes.items()})
    with pytest.raises(UserError, match=message):
        build_lm(config, tmp_path / "lm")
