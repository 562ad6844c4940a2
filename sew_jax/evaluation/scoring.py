"""Errors of what was decoded or labelled, and the points of the trade-off that they make with its times."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sew_jax.compression import Compression
from sew_jax.console import say
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.decoding.eval_set import EvalSet
from sew_jax.decoding.greedy import Hypothesis
from sew_jax.decoding.recognizer import Recognizer
from sew_jax.engines.run_times import Engine
from sew_jax.evaluation.tradeoff import Point
from sew_jax.metrics.bootstrap import wer_interval
from sew_jax.metrics.classes import count_labels, macro_f1, macro_f1_interval
from sew_jax.metrics.measure import ACCURACY
from sew_jax.metrics.wer import ErrorCounts, count_errors
from sew_jax.models.cost import count_macs


class Search(NamedTuple):
    """A beam search: its options, seconds, and the hypotheses of each utterance, the best first."""

    options: BeamOptions
    seconds: float
    hypotheses: list[list[Hypothesis]]


class Scored(NamedTuple):
    """A split as decoded at a setting: `texts` and `errors` of each utterance, and seconds of each timed round."""

    recognizer: Recognizer
    part: EvalSet
    setting: Compression
    decoder: str
    texts: list[str]
    errors: list[ErrorCounts]
    seconds: list[float]
    search: Search | None = None  # None: greedy decoding

    @property
    def engine(self) -> Engine:
        """What computed it."""
        return self.recognizer.engine

    @property
    def labels(self) -> tuple[list[list[str]], list[list[str]]]:
        """Of a classifier, the labels of each utterance, one or one a frame: by the reference, and as found."""
        assert self.recognizer.labels
        split = self.recognizer.labels.split
        return [split(text) for text in self.part.references], [split(text) for text in self.texts]

    @property
    def total(self) -> ErrorCounts:
        """Errors of the split."""
        return sum(self.errors, ErrorCounts())


def score(
    recognizer: Recognizer,
    part: EvalSet,
    setting: Compression,
    decoder: str,
    texts: list[str],
    seconds: list[float],
    search: Search | None = None,
) -> Scored:
    """Counts the errors of texts, one for each utterance of a split, and says how many they are."""
    scored = Scored(recognizer, part, setting, decoder, texts, _errors(recognizer, part, texts), seconds, search)
    name = f"{part.split} {setting}" if part.split else str(setting)
    empty = f"; {scored.total.empty} references are empty" if scored.total.empty else ""
    if recognizer.labels:
        reached = f"accuracy {ACCURACY.of(scored.total.wer):.2%}, macro F1 {macro_f1(*scored.labels):.2%}"
        say(f"  {name}, {recognizer.engine}: {reached} of {scored.total.words} {recognizer.labels.unit}s")
    else:
        words = f"{scored.total.words} words{empty}"
        say(f"  {name}, {decoder}, {recognizer.engine}: WER {scored.total.wer:.2%} of {words}")
    return scored


def _errors(recognizer: Recognizer, part: EvalSet, texts: list[str]) -> list[ErrorCounts]:
    pairs = zip(part.references, texts, strict=True)
    if not recognizer.labels:
        return [count_errors(reference, text) for reference, text in pairs]
    split = recognizer.labels.split
    return [count_labels(split(reference), split(text)) for reference, text in pairs]


def points_of(scored: Sequence[Scored], part: EvalSet, device: str) -> list[Point]:
    """The points of one split; s1q1k1 must be among them, and the first such point is what times are relative to.

    Args:
      device: what it ran on, in words.
    """
    mine = [one for one in scored if one.part is part]
    reference = Compression()
    recognizer = mine[0].recognizer  # all compute one model
    macs = {one.setting: split_macs(recognizer, part, one.setting) for one in mine}
    base = next(statistics.median(one.seconds) for one in mine if one.setting == reference)
    points = []
    for one in mine:
        errors, median = one.total, statistics.median(one.seconds)
        low, high = wer_interval([e.errors for e in one.errors], [e.words for e in one.errors])
        point = Point(
            setting=one.setting.name,
            split=part.split,
            decoder=one.decoder,
            wer=errors.wer,
            wer_low=low,
            wer_high=high,
            cer=errors.cer,
            substitutions=errors.substitutions,
            deletions=errors.deletions,
            insertions=errors.insertions,
            words=errors.words,
            utterances=errors.utterances,
            empty_references=errors.empty,
            seconds=median,
            seconds_min=min(one.seconds),
            seconds_max=max(one.seconds),
            repeats=len(one.seconds),
            decode_seconds=one.search.seconds if one.search else 0.0,
            lm_weight=one.search.options.lm_weight if one.search else None,
            word_score=one.search.options.word_score if one.search else None,
            audio_seconds=part.seconds,
            rtf=median / part.seconds,
            relative_time=median / base,
            macs_per_s=macs[one.setting] / part.seconds,
            relative_macs=macs[one.setting] / macs[reference],
            device=device,
            dtype=one.recognizer.engine.dtype,
            trained=one.setting in recognizer.trained,
            runtime=one.recognizer.engine.runtime,
            **(_of_labels(one, low, high) if recognizer.labels else {}),
        )
        points.append(point)
    return points


def _of_labels(scored: Scored, wer_low: float, wer_high: float) -> dict[str, Any]:
    """What a point says of labels beside errors."""
    low, high = ACCURACY.interval(wer_low, wer_high)
    told, found = scored.labels
    f1_low, f1_high = macro_f1_interval(told, found)
    return {
        "accuracy": ACCURACY.of(scored.total.wer),
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": macro_f1(told, found),
        "macro_f1_low": f1_low,
        "macro_f1_high": f1_high,
    }


def count_split_errors(references: Sequence[str], texts: Sequence[str]) -> ErrorCounts:
    """Errors of all utterances of a split together."""
    return sum((count_errors(r, t) for r, t in zip(references, texts, strict=True)), ErrorCounts())


def split_macs(recognizer: Recognizer, part: EvalSet, setting: Compression) -> int:
    """Multiply-accumulates of a split at a setting."""
    lengths, counts = np.unique(part.samples, return_counts=True)
    each = [count_macs(recognizer.model.backbone, setting, int(n)).total for n in lengths]
    return int(np.dot(each, counts))
