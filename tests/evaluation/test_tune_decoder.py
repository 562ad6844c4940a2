"""Weights that are chosen, against all that were tried."""

import numpy as np
import pytest

from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.decoding.beam_pool import BeamPool
from sew_jax.decoding.greedy import Hypothesis
from sew_jax.decoding.ngram import arpa, estimate
from sew_jax.errors import UserError
from sew_jax.evaluation.tune_decoder import tune
from sew_jax.metrics.wer import ErrorCounts, count_errors
from tests.decoding.test_beam import AB, spoken

SENTENCES = ["AB A", "A AB", "BA AB A", "AB AB", "A BA"]


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    """Speech of which a third is noise, so that the language model has something to mend."""
    root, random = tmp_path_factory.mktemp("tune"), np.random.default_rng(0)
    (root / "lm.arpa").write_text(arpa(estimate(SENTENCES * 3, 3)))
    references = [SENTENCES[i % len(SENTENCES)] for i in range(20)]
    log_probs = []
    for reference in references:
        clean = np.exp(spoken(reference.replace(" ", "|") + "|", AB, sure=0.7))
        noisy = 0.6 * clean + 0.4 * random.dirichlet(np.ones(5) * 0.3, len(clean))
        log_probs.append(np.log(noisy).astype(np.float32))
    return str(root / "lm.arpa"), log_probs, references


def tuned(options, log_probs, references, workers, **how):
    with BeamPool(AB, options, workers) as pool:
        return tune(pool, log_probs, references, **how)


def errors(options, log_probs, references):
    with BeamPool(AB, options, workers=0) as pool:
        found = pool.decode(log_probs)
    return sum((count_errors(r, h[0].text) for r, h in zip(references, found, strict=True)), ErrorCounts())


def test_it_finds_the_best_of_what_it_tried(dev):
    lm, log_probs, references = dev
    start = BeamOptions(lm=lm, lm_weight=0.0, word_score=-4.0, nbest=5)
    chosen, tried = tuned(start, log_probs, references, 0, trials=12)
    assert len(tried) == 12 == len({trial[:2] for trial in tried})
    assert tried[0][:2] == (0.0, -4.0) and chosen.nbest == 5
    assert all(0 <= trial.lm_weight <= 5 and -4 <= trial.word_score <= 4 for trial in tried)
    got = errors(chosen, log_probs, references)
    assert got.wer == min(trial.errors.wer for trial in tried) < tried[0].errors.wer
    assert (chosen.lm_weight, chosen.word_score, got) in tried
    assert tuned(start, log_probs, references, 0, trials=12) == (chosen, tried)
    assert tuned(start, log_probs, references, 0, trials=4, seed=1)[1] != tried[:4]


def test_processes_try_the_same(dev):
    lm, log_probs, references = dev
    runs = [tuned(BeamOptions(lm=lm), log_probs, references, w, trials=3) for w in (0, 2)]
    assert runs[0] == runs[1]


def test_without_an_ngram_its_weight_stays(dev, tmp_path):
    _, log_probs, references = dev
    (tmp_path / "words").write_text("A AB BA")
    _, tried = tuned(BeamOptions(lexicon=str(tmp_path / "words")), log_probs, references, 0, trials=4)
    assert {trial.lm_weight for trial in tried} == {2.0} and len({trial.word_score for trial in tried}) == 4


def test_hot_words_keep_the_ngram_some_weight():
    """All trials do equally well, so that the later ones are drawn around a first weight near 0."""

    class Pool:
        options = BeamOptions(lm="lm.arpa", lm_weight=0.02, hot_words=("A",))

        def decode(self, log_probs, options, quiet):
            return [[Hypothesis("A", 0.0, ())] for _ in log_probs]

    _, tried = tune(Pool(), [np.zeros((1, 5))], ["A"], trials=20)
    weights = [trial.lm_weight for trial in tried]
    assert min(weights) == 0.01 and len(set(weights)) > 10


@pytest.mark.parametrize(
    ("options", "references", "message"),
    [({}, ["A"], "no weights to tune"), ({"lexicon": "x"}, [" "], "one reference")],
)
def test_bad_input(options, references, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("A")
    with pytest.raises(UserError, match=message):
        tuned(BeamOptions(**options), [], references, 0)
