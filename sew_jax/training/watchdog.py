"""What can go wrong silently, said in words: signatures of collapse over the last rows of metrics, and slow updates.

The patterns of collapse are those that wav2vec 2.0's users report; the thresholds are this project's.
"""

import collections
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sew_jax.metrics.measure import measure_of

LOCAL = ("input",)  # findings that hold for one process of a job, where the others are the same for all
_WINDOW = 100  # updates
_REPEAT = 1000  # updates before a sentence is said again
_SLOW = 5.0  # times the median of the same program
_IDLE = 0.05  # of a layer, what it adds to what it is given
_TARGETS_VARY, _PREDICTIONS_VARY = 0.1, 0.01  # fairseq's min_target_var and min_pred_var
_APART = 0.6  # cosine: .40 where pre-training was harmed, .93 where it was not


class Watchdog:
    """Reads each row of metrics; says each finding once in a while.

    Args:
      chance: contrastive loss of uniform predictions in bits, log2(1 + negatives); None without a contrast.
      codebook: largest possible code perplexity, groups x codes.
      groups: smallest possible one.
      masked: expected fraction of masked frames.
      guarded_from: the update after which targets and predictions of data2vec 2.0 must vary; None without.
    """

    def __init__(
        self,
        chance: float | None = None,
        codebook: int = 0,
        groups: int = 0,
        masked: float = 0.0,
        guarded_from: int | None = None,
    ):
        self._chance, self._codebook, self._groups, self._masked = chance, codebook, groups, masked
        self._guarded_from = guarded_from
        self._rows: collections.deque[Mapping[str, float]] = collections.deque(maxlen=_WINDOW)
        self._said: dict[str, int] = {}
        self._seconds: dict[Any, collections.deque[float]] = {}  # of the last updates of each program
        self._stragglers = 0

    def check(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Sentences about what the last rows show, each with its kind; empty when all is well."""
        self._rows.append(row)
        findings = self._straggler(row)
        if len(self._rows) == _WINDOW:
            findings |= self._window()
        new = {k: v for k, v in findings.items() if row["step"] - self._said.get(k, -math.inf) >= _REPEAT}
        self._said |= dict.fromkeys(new, row["step"])
        return new

    def _straggler(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Updates of one setting and bucket take the same time, so one of them that takes far longer was held up."""
        program, seconds = f"{row['setting']} at {row['bucket_s']:.1f} s", 1 / row["steps_per_s"]
        before = self._seconds.setdefault(program, collections.deque(maxlen=_WINDOW))
        usual = statistics.median(before) if len(before) >= 10 else math.inf
        before.append(seconds)
        if seconds < _SLOW * usual or seconds < usual + 0.5:  # half a second: what no one would notice
            return {}
        self._stragglers += 1
        cause = (
            "it waited for audio: raise input.workers or input.threads, or look at the storage"
            if row["input_wait_frac"] > 0.5
            else "something else used this machine, or another process of the job was late"
        )
        return {
            "straggler": f"update {row['step']} took {seconds:.1f} s, "
            f"{seconds / usual:.0f} times the median of {program}; {cause} ({self._stragglers} such so far)"
        }

    def _window(self) -> dict[str, str]:
        row = self._rows[-1]
        mean = {k: sum(r[k] for r in self._rows) / _WINDOW for k, v in row.items() if isinstance(v, float)}
        if self._chance:
            findings = self._pretraining(mean)
        elif self._guarded_from is not None:
            findings = self._regression(mean) if row["step"] > self._guarded_from else {}
        else:
            findings = self._finetuning(mean)
        if mean.get("input_wait_frac", 0) > 0.3:
            findings["input"] = (
                f"the device waits for input {mean['input_wait_frac']:.0%} of the time: "
                "raise input.workers or input.threads"
            )
        return findings

    def _pretraining(self, mean: Mapping[str, float]) -> dict[str, str]:
        findings = {}
        loss, accuracy, codes = mean["loss_contrastive"], mean["accuracy"], mean["code_perplexity"]
        guess = 2**-self._chance
        if codes < self._groups + 0.02 * self._codebook:
            findings["collapse"] = (
                f"the codebook has collapsed ({codes:.1f} of {self._codebook} codes in use), "
                "so a low loss means nothing: raise head.diversity_weight or temperature.start, or lower optim.lr"
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
                f"{mean['masked_frac']:.0%} of frames are masked, {self._masked:.0%} were expected: "
                "utterances are short for mask.span, or mask.prob is unusual"
            )
        return findings

    def _regression(self, mean: Mapping[str, float]) -> dict[str, str]:
        """data2vec 2.0's own guards, at which fairseq ends a run."""
        targets, predictions = mean["target_std"], mean["prediction_std"]
        if targets < _TARGETS_VARY:
            return {
                "collapse": f"the targets have collapsed (a deviation of {targets:.3f} over frames), so a low loss "
                "means nothing: lower optim.lr, or raise data2vec.ema_start"
            }
        if predictions < _PREDICTIONS_VARY:
            return {
                "constant": f"predictions are the same for all frames (a deviation of {predictions:.4f}): change "
                "optim.lr, or enlarge input.batch_seconds"
            }
        return {}

    def _finetuning(self, mean: Mapping[str, float]) -> dict[str, str]:
        findings = {}
        if "ctc_invalid_frac" not in mean:  # labels
            return findings
        if mean["ctc_invalid_frac"] > 0.05:
            findings["invalid"] = (
                f"{mean['ctc_invalid_frac']:.0%} of transcripts do not fit their audio's frames and are ignored: "
                "do texts match the audio?"
            )
        if mean["blank_frac"] > 0.999:
            findings["blank"] = (
                "the model outputs blanks only: usual in the first updates; if it stays, halve optim.lr where the loss "
                "or grad_norm had jumped, which a pre-trained start may do, else raise it or shorten optim.freeze"
            )
        return findings


def check_held_out(rows: Sequence[Mapping[str, Any]], baseline: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences about an evaluation's rows, one a setting, the largest first; `baseline` has random weights' rows."""
    findings = []
    changes = rows[0].get("layer_changes", [])
    if idle := [str(i) for i, change in enumerate(changes, 1) if change < _IDLE]:
        findings.append(
            f"layers {', '.join(idle)} add less than {_IDLE:.0%} to the stream at {rows[0]['setting']}: "
            "they learn nothing yet; if that stays, change optim.lr, or take post-LN (model.pre_norm=False)"
        )
    beside = [row for row in rows if "distance" not in row]  # in distillation the cosine is to the original's features
    if apart := [f"{row['setting']} {row['cosine']:.2f}" for row in beside if row.get("cosine", 1.0) < _APART]:
        findings.append(
            f"contexts of {', '.join(apart)} have parted from {rows[0]['setting']}'s (cosine), "
            "and one head must read all of them: take model.upsampler=residual"
        )
    for row in rows:
        other = baseline.get(row["setting"])
        if other and row["wer"] - other["wer"] > 2 * math.sqrt(row["wer"] / max(row["words"], 1)):
            measure = measure_of(row)
            findings.append(
                f"at {row['setting']} this start is behind random weights: {measure.name} "
                f"{measure.of(row['wer']):.1%} against {measure.of(other['wer']):.1%} after as many updates "
                "(eval.baseline): lower optim.lr, or look at what was pre-trained"
            )
    return findings
