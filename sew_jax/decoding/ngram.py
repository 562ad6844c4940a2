"""An n-gram of words by interpolated modified Kneser-Ney smoothing, as an ARPA file.

After Chen and Goodman (1998) and Heafield et al. (2013).
All of the text's n-grams are arrays: one of an order is a number, made of that of its first words and its last word.
"""

import array
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from sew_jax.errors import UserError

SPECIAL = ("<unk>", "<s>", "</s>")  # their numbers are 0, 1, 2
_UNKNOWN, _BEGIN, _END = range(3)
_LONGEST = 6  # that KenLM is built for
_FALLBACK = (0.0, 0.5, 1.0, 1.5)  # discounts where the text is too small to tell them, as KenLM's


class Grams(NamedTuple):
    """The N n-grams of one order: word numbers, natural probability, and weight of backing off from them."""

    words_Nxk: np.ndarray
    probability_N: np.ndarray
    backoff_N: np.ndarray


class NGram(NamedTuple):
    """An n-gram model: words by number, and the n-grams of order 1, 2, ..."""

    words: list[str]
    orders: list[Grams]
    undiscounted: list[int]  # orders whose discounts the text could not tell


def estimate(sentences: Iterable[str], order: int) -> NGram:
    """The model of some sentences, words separated by white space; of a lower order where none of them is long enough.

    Raises:
      UserError: there are none, or the order is none that KenLM reads.
    """
    if not 2 <= order <= _LONGEST:
        raise UserError(f"order: {order} must be 2 to {_LONGEST}")
    words, word_T, place_T = _number(sentences)
    size = len(words)
    # of each order: where the n-gram without its last word, and without its first, stand in the order below
    gram_T, firsts, lasts, rests, counts = word_T, [np.zeros(size, int)], [np.arange(size)], [np.zeros(size, int)], []
    counts.append(np.bincount(word_T, minlength=size))
    for k in range(2, order + 1):
        ends = np.flatnonzero(place_T >= k - 1)
        if not len(ends):
            break
        # one number an n-gram: where its first words stand in the order below, and its last word
        number_T = gram_T[ends - 1] * size + word_T[ends]
        keys, place, which, count = np.unique(number_T, return_index=True, return_inverse=True, return_counts=True)
        firsts.append(keys // size)
        lasts.append(keys % size)
        rests.append(gram_T[ends[place]])  # gram_T still holds the order below
        counts.append(count)
        gram_T = np.full(len(word_T), -1)  # of each word of the text, the n-gram that it ends
        gram_T[ends] = which

    grams, undiscounted = [], []
    begins = np.arange(size) == _BEGIN  # whether it starts with <s>
    lower = np.full(1, 1 / (size - 1))  # any word but <s>
    rows = np.zeros((1, 0), np.int64)
    for k, (first, last, rest, count) in enumerate(zip(firsts, lasts, rests, counts, strict=True), 1):
        if k > 1:
            begins = begins[first]
        if k < len(counts):  # Kneser-Ney: how many words precede it, in place of how often it stands there
            count = np.where(begins, count, np.bincount(rests[k], minlength=len(count)))
        if k == 1:
            count[_BEGIN] = 0  # it is never predicted
        discounts = _discounts(count)
        if discounts is None:
            undiscounted.append(k)
            discounts = np.array(_FALLBACK)
        discount = discounts[np.minimum(count, 3)]
        contexts = len(lower) if k == 1 else len(grams[-1].probability_N)
        total = np.bincount(first, count, contexts)
        seen = total > 0
        # what the discounts take from a context's n-grams goes to the lower order, in proportion to it
        left = np.where(seen, np.bincount(first, discount, contexts) / np.where(seen, total, 1), 1.0)
        probability = (count - discount) / total[first] + left[first] * lower[rest]
        if k > 1:
            grams[-1] = grams[-1]._replace(backoff_N=left)
        rows = np.column_stack([rows[first], last])
        grams.append(Grams(rows, probability, np.ones(len(probability))))
        lower = probability
    return NGram(words, grams, undiscounted)


def arpa(model: NGram) -> str:
    """The model in the format that KenLM, SRILM and flashlight read."""
    parts = ["\\data\\\n", *(f"ngram {k}={len(g.probability_N)}\n" for k, g in enumerate(model.orders, 1))]
    for k, grams in enumerate(model.orders, 1):
        parts.append(f"\n\\{k}-grams:\n")
        probability, backoff = np.log10(grams.probability_N).tolist(), np.log10(grams.backoff_N).tolist()
        if k == 1:
            probability[_BEGIN] = -99.0  # never predicted
        for row, p, b in zip(grams.words_Nxk.tolist(), probability, backoff, strict=True):
            parts.append(f"{p:.7g}\t{' '.join(model.words[i] for i in row)}")
            parts.append("\n" if k == len(model.orders) else f"\t{b:.7g}\n")
    return "".join([*parts, "\n\\end\\\n"])


def _number(sentences: Iterable[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Words by number; the number of each word of the text, <s> and </s> too, and its place in its sentence."""
    numbers = {word: i for i, word in enumerate(SPECIAL)}
    text, places = array.array("q"), array.array("q")
    for sentence in sentences:
        words = sentence.split()
        if not words:
            continue
        if not numbers.keys().isdisjoint(words) and (special := set(SPECIAL) & set(words)):
            raise UserError(
                f"text: {' '.join(words)[:60]!r} holds {special.pop()}, which means something else to an n-gram"
            )
        text.extend([_BEGIN, *(numbers.setdefault(word, len(numbers)) for word in words), _END])
        places.extend(range(len(words) + 2))
    if not text:
        raise UserError("text: there is none to count; name transcripts by data and split, or a file by text")
    return list(numbers), np.frombuffer(text, np.int64), np.frombuffer(places, np.int64)


def _discounts(count_N: np.ndarray) -> np.ndarray | None:
    """What is taken from counts of 0, 1, 2, and 3 and more; None where the text is too small to tell."""
    n1, n2, n3, n4 = (np.count_nonzero(count_N == k) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return None
    y = n1 / (n1 + 2 * n2)
    discounts = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return discounts if (discounts[1:] > 0).all() else None
