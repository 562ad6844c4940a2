"""How fast beam search with a large lexicon is, in one process and in several, and what its bounds cost in words.

  python -m tests.beam_speed
  python -m tests.beam_speed --log_probs=dev.npz --references=dev.txt --lm=4-gram.arpa

Run by hand. Without log-probabilities of a model (an array an utterance, symbols in the order of `LETTERS`) it makes
some: sentences of invented words, each letter two frames of which one may be doubtful, blanks between. Bounds take
turns, so that a busy machine hits all of them.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from sew_jax.data.vocabulary import LETTERS, Vocabulary
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.decoding.beam_pool import BeamPool
from sew_jax.decoding.ngram import arpa, estimate
from sew_jax.metrics.wer import ErrorCounts, count_errors

VOCABULARY = Vocabulary(LETTERS)
BOUNDS = ((0, 25.0), (12, 25.0), (12, 20.0), (12, 15.0), (8, 20.0), (5, 20.0), (3, 20.0), (12, 10.0))


def invented(random, words, sentences):
    """Sentences of words whose frequencies fall as Zipf's, and letters as English has them."""
    letters, weights = np.array(list("ETAONIHSRDLUMWCFGYPBVK")), 1 / np.arange(3, 25)
    drawn = {
        "".join(random.choice(letters, random.integers(2, 10), p=weights / weights.sum())) for _ in range(3 * words)
    }
    lexicon, often = sorted(drawn)[:words], 1 / np.arange(1, words + 1)
    random.shuffle(lexicon)
    return lexicon, [
        " ".join(random.choice(lexicon, random.integers(6, 16), p=often / often.sum())) for _ in range(sentences)
    ]


def spoken(text, random):
    """(frames, symbols) of a model that is right about most letters."""
    frames = []
    for symbol in VOCABULARY.encode(text):
        frames += [symbol, symbol, VOCABULARY.blank]
    logits = random.normal(size=(len(frames), len(VOCABULARY))) * 1.5
    logits[np.arange(len(frames)), frames] += random.choice([8.0, 3.0], len(frames), p=[0.8, 0.2])
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log_probs", type=Path, help="an .npz")
    parser.add_argument("--references", type=Path, help="a line an utterance")
    parser.add_argument("--lm", help="ARPA or KenLM binary")
    parser.add_argument("--words", type=int, default=16_800, help="invented")
    parser.add_argument("--utterances", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.log_probs:
            log_probs = list(np.load(options.log_probs).values())
            references = options.references.read_text().splitlines()
        else:
            random = np.random.default_rng(0)
            lexicon, references = invented(random, options.words, 20 * options.utterances)
            options.lm = f"{folder}/lm.arpa"
            Path(options.lm).write_text(arpa(estimate([*references, *lexicon], 3)))
            log_probs = [spoken(text, random) for text in references[: options.utterances]]
        measure(log_probs[: options.utterances], references[: options.utterances], options)


def measure(log_probs, references, options):
    print(f"{len(log_probs)} utterances of {sum(map(len, log_probs)) / len(log_probs):.0f} frames")
    base = BeamOptions(lm=options.lm)
    seconds, texts = {}, {}
    for workers in (1, options.workers):
        with BeamPool(VOCABULARY, base, workers) as pool:
            pool.decode([log_probs[0][:1]] * 2 * workers, quiet=True)  # starts them
            for _ in range(options.rounds):
                for tokens, threshold in BOUNDS:
                    searched = BeamOptions(lm=options.lm, beam_tokens=tokens, threshold=threshold)
                    begin = time.perf_counter()
                    found = pool.decode(log_probs, searched, quiet=True)
                    seconds.setdefault((workers, tokens, threshold), []).append(time.perf_counter() - begin)
                    texts[tokens, threshold] = [hypotheses[0].text for hypotheses in found]
    print("tokens threshold   WER %   same texts   utterances/s in 1 process, in", options.workers)
    for bounds in BOUNDS:
        errors = sum(map(count_errors, references, texts[bounds]), ErrorCounts())
        same = sum(a == b for a, b in zip(texts[bounds], texts[BOUNDS[0]], strict=True))
        rates = [len(texts[bounds]) / statistics.median(seconds[(w, *bounds)]) for w in (1, options.workers)]
        print(f"{bounds[0]:6} {bounds[1]:9g} {100 * errors.wer:7.2f} {same:12} {rates[0]:14.1f} {rates[1]:9.1f}")


if __name__ == "__main__":
    main()
