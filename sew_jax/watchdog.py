"""What can go wrong silently, said in words: signatures of collapse over the last rows of metrics.

The patterns are those that wav2vec 2.0's users report; the thresholds are this project's.
"""

import collections
import math
from collections.abc import Mapping

_WINDOW = 100  # updates
_REPEAT = 1000  # updates before a sentence is said again


class Watchdog:
    """Reads each row of metrics; says each finding once in a while.

    Args:
      chance: contrastive loss of uniform predictions in bits, log2(1 + negatives); None when fine-tuning.
      codebook: largest possible code perplexity, groups x codes.
      groups: smallest possible one.
      masked: expected fraction of masked frames.
    """

    def __init__(self, chance: float | None = None, codebook: int = 0, groups: int = 0, masked: float = 0.0):
        self._chance, self._codebook, self._groups, self._masked = chance, codebook, groups, masked
        self._rows: collections.deque[Mapping[str, float]] = collections.deque(maxlen=_WINDOW)
        self._said: dict[str, int] = {}

    def check(self, row: Mapping[str, float]) -> list[str]:
        """Sentences about what the last rows show; empty when all is well."""
        self._rows.append(row)
        if len(self._rows) < _WINDOW:
            return []
        mean = {k: sum(r[k] for r in self._rows) / _WINDOW for k, v in row.items() if isinstance(v, float)}
        findings = self._pretraining(mean) if self._chance else self._finetuning(mean)
        if mean.get("input_wait_frac", 0) > 0.3:
            findings["input"] = (
                f"the device waits for input {mean['input_wait_frac']:.0%} of the time: raise input.workers or input.threads"
            )
        new = {k: v for k, v in findings.items() if row["step"] - self._said.get(k, -math.inf) >= _REPEAT}
        self._said |= dict.fromkeys(new, row["step"])
        return list(new.values())

    def _pretraining(self, mean: Mapping[str, float]) -> dict[str, str]:
        findings = {}
        loss, accuracy, codes = mean["loss_contrastive"], mean["accuracy"], mean["code_perplexity"]
        guess = 2**-self._chance
        if codes < self._groups + 0.02 * self._codebook:
            findings["collapse"] = (
                f"the codebook has collapsed ({codes:.1f} of {self._codebook} codes in use), so a low loss means nothing: "
                "raise head.diversity_weight or temperature.start, or lower optim.lr"
            )
        elif loss > 0.99 * self._chance and accuracy < 2 * guess:
            findings["chance"] = (
                f"predictions are still uniform (loss {loss:.2f} of {self._chance:.2f} bits, accuracy {accuracy:.3f}): "
                "usual in the first updates; if it stays, change optim.lr or enlarge input.batch_seconds"
            )
        elif codes < 0.5 * mean["prob_perplexity"]:
            findings["temperature"] = (
                f"hard choices use {codes:.0f} codes although probabilities spread over {mean['prob_perplexity']:.0f}: "
                "Gumbel noise decides; lower temperature.start or anneal sooner"
            )
        if self._masked and abs(mean["masked_frac"] / self._masked - 1) > 0.2:
            findings["masked"] = (
                f"{mean['masked_frac']:.0%} of frames are masked, {self._masked:.0%} were expected: utterances are short for "
                "mask.span, or mask.prob is unusual"
            )
        return findings

    def _finetuning(self, mean: Mapping[str, float]) -> dict[str, str]:
        findings = {}
        if mean["ctc_invalid_frac"] > 0.05:
            findings["invalid"] = (
                f"{mean['ctc_invalid_frac']:.0%} of transcripts do not fit their audio's frames and are ignored: do texts "
                "match the audio?"
            )
        if mean["blank_frac"] > 0.999:
            findings["blank"] = (
                "the model outputs blanks only: usual in the first updates; if it stays, raise optim.lr or shorten optim.freeze"
            )
        return findings
