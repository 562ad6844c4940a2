"""Word error rate and time at every setting, from the same run of the same programs.

Time is measured as SEW's repository does (`tools/eval_w2v.py`): encoder, argmax and the copy to the host, without loading
and post-processing; beam search, where there is one, is timed once and added. Batches wait on the device; each setting is warmed up; repeats go round all settings, so that a
disturbance does not hit one of them alone; the median is reported with minimum and maximum.
"""

import contextlib
import datetime
import functools
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import sew_jax
from sew_jax.checks.check import check_config
from sew_jax.compression import Compression, parse_table
from sew_jax.console import format_duration, say
from sew_jax.data.listing import split_names
from sew_jax.decoding.beam import BeamOptions, BeamPool, chosen_options
from sew_jax.decoding.eval_set import EvalSet, compile_for, open_eval_sets
from sew_jax.decoding.greedy import Hypothesis, greedy
from sew_jax.decoding.recognizer import FineTuned, best_symbols, load_finetuned, log_probs
from sew_jax.errors import UserError
from sew_jax.evaluation.html_report import write_page
from sew_jax.evaluation.tradeoff import Row, format_table, mark_front, to_objects, write_tradeoff
from sew_jax.evaluation.tune_decoder import tune
from sew_jax.files import write_whole
from sew_jax.metrics.bootstrap import wer_interval
from sew_jax.metrics.tensorboard import Sample, write_tradeoff_events
from sew_jax.metrics.wer import ErrorCounts, count_errors
from sew_jax.models.cost import count_macs
from sew_jax.runtime.sharding import make_mesh

_SAMPLES = 10  # utterances whose transcripts TensorBoard shows


class Scored(NamedTuple):
    """A split as decoded at a setting: `texts` and `errors` of each utterance, and seconds of each timed round."""

    part: EvalSet
    setting: Compression
    decoder: str
    texts: list[str]
    errors: list[ErrorCounts]
    seconds: list[float]
    decode_seconds: float = 0.0  # of beam search, in `seconds`
    options: BeamOptions | None = None
    hypotheses: list[list[Hypothesis]] | None = None  # of beam search, the best first

    @property
    def total(self) -> ErrorCounts:
        """Errors of the split."""
        return sum(self.errors, ErrorCounts())


def evaluate(config: ConfigDict, workdir: Path) -> list[Row]:
    """Writes tradeoff.json, .csv, .png, .html and transcripts/ into the workdir, shows the table and returns its rows.

    Raises:
      UserError: config, data or checkpoint do not fit.
    """
    check_config(config)
    if jax.process_count() > 1:
        raise UserError("evaluate runs in one process; start it on one host")
    begin = time.monotonic()
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    device = f"{mesh.size} x {jax.devices()[0].device_kind}" + (
        f", {os.cpu_count()} cores" if jax.default_backend() == "cpu" else ""
    )
    say("sew_jax evaluate")
    say(f"  devices   {device}")
    tuned = load_finetuned(config.init_from, config.dtype, NamedSharding(mesh, PartitionSpec()))
    table = parse_table(config.settings) if config.settings else tuned.trained
    table = list(dict.fromkeys([Compression(), *table]))  # s1q1k1 is what others are measured against
    for setting in table:
        setting.layer_pools(tuned.model.backbone.layers)
    say(f"  settings  {len(table)}: {' '.join(map(str, table))}")
    splits, options = split_names(config.split) or [""], chosen_options(config)
    dev_splits = [config.tune_split] if config.tune_split else []
    sets = open_eval_sets(config, [*splits, *dev_splits], tuned.vocabulary, mesh)
    sets, dev = sets[: len(splits)], next(iter(sets[len(splits) :]), None)
    with BeamPool(tuned.vocabulary, options, config.beam.workers) if options else contextlib.nullcontext() as pool:
        if pool:  # what is wrong with its files is said before anything long
            pool.decode([np.zeros((1, len(tuned.vocabulary)), np.float32)])
        say(f"  outputs   {workdir}")
        scored = _greedy(config, tuned, table, sets)
        if pool:
            scored += _beam(config, tuned, table, sets, dev, pool)
    rows = mark_front([row for part in sets for row in _rows(config, tuned, scored, part, device)])
    _write_transcripts(workdir, scored)
    plot = write_tradeoff(rows, workdir)
    write_tradeoff_events(workdir, plot, rows, _samples(scored))
    write_page(workdir / "tradeoff.html", {
        "about": _about(config, tuned, sets, device), "rows": to_objects(rows), "transcripts": _transcripts(scored),
    })  # fmt: skip
    say(format_table(rows))
    say(
        f"done in {format_duration(time.monotonic() - begin)}: tradeoff.html, .json, .csv, .png and transcripts/ are in {workdir}"
    )
    return rows


def _greedy(config: ConfigDict, tuned: FineTuned, table: Sequence[Compression], sets: Sequence[EvalSet]):
    """Each split at each setting, by the best path."""
    function = functools.partial(best_symbols, tuned.model)
    programs = compile_for(sets, table, function, tuned.params, "inference")
    scored = []
    for part in sets:
        seconds: dict[Compression, list[float]] = {setting: [] for setting in table}
        for repeat in range(config.repeats + 1):  # the first round warms up, and gives the transcripts
            for setting in table:
                paths, spent = part.run(programs, setting, tuned.params)
                if repeat:
                    seconds[setting].append(spent)
                    continue
                texts = [greedy(path, tuned.vocabulary) for path in paths]
                scored.append(_score(part, setting, "greedy", texts, seconds[setting]))
        say(f"timed {config.repeats} rounds over all settings")
    return scored


def _beam(
    config: ConfigDict, tuned: FineTuned, table: Sequence[Compression], sets: Sequence[EvalSet], dev: EvalSet | None,
    pool: BeamPool,
) -> list[Scored]:  # fmt: skip
    """Each split at each setting, by beam search with the pool's weights, or those that do best on `dev`."""
    everything = [*sets, *([dev] if dev else [])]
    function = functools.partial(log_probs, tuned.model)
    programs = compile_for(everything, table, function, tuned.params, "log-probability")
    scored = []
    for setting in table:
        weighed = pool.options
        if dev:
            outputs, _ = dev.run(programs, setting, tuned.params)
            say(f"  {setting}: weights by WER on {dev.split}")
            weighed, _ = tune(pool, outputs, dev.references, trials=config.tune_trials)
        for part in sets:
            part.run(programs, setting, tuned.params)  # warms up
            rounds = [part.run(programs, setting, tuned.params) for _ in range(max(config.repeats, 1))]
            begin = time.perf_counter()
            hypotheses = pool.decode(rounds[0][0], weighed)
            spent = time.perf_counter() - begin
            texts = [best[0].text for best in hypotheses]
            seconds = [encoder + spent for _, encoder in rounds]
            scored.append(
                _score(part, setting, "lm" if weighed.lm else "beam", texts, seconds, spent, weighed, hypotheses)
            )
            say(f"    beam search: {len(texts) / spent:.1f} utterances/s, {part.seconds / spent:.0f} x real time")
    return scored


def _score(
    part: EvalSet, setting: Compression, decoder: str, texts: list[str], seconds: list[float], decode_seconds: float = 0.0,
    options: BeamOptions | None = None, hypotheses: list[list[Hypothesis]] | None = None,
) -> Scored:  # fmt: skip
    errors = [count_errors(reference, text) for reference, text in zip(part.references, texts, strict=True)]
    scored = Scored(part, setting, decoder, texts, errors, seconds, decode_seconds, options, hypotheses)
    name = f"{part.split} {setting}" if part.split else str(setting)
    say(f"  {name}, {decoder}: WER {scored.total.wer:.2%} of {scored.total.words} words")
    return scored


def _write_transcripts(workdir: Path, scored: Sequence[Scored]) -> None:
    """transcripts/SETTING.jsonl, and with another decoder than the greedy one SETTING.DECODER.jsonl: all splits."""
    folder = workdir / "transcripts"
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[str]] = {}
    for one in scored:
        lines = files.setdefault(str(one.setting) if one.decoder == "greedy" else f"{one.setting}.{one.decoder}", [])
        for i, (name, reference, text) in enumerate(zip(one.part.ids, one.part.references, one.texts, strict=True)):
            line: dict[str, Any] = {"id": name, "reference": reference, "hypothesis": text, "split": one.part.split}
            if one.options and one.options.nbest > 1:
                line["nbest"] = [{"text": h.text, "score": round(h.score, 3)} for h in one.hypotheses[i]]
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    for name, lines in files.items():
        write_whole(folder / f"{name}.jsonl", "".join(lines).encode())


def _samples(scored: Sequence[Scored]) -> list[Sample]:
    """A few utterances of the first split as all settings heard them."""
    mine = [one for one in scored if one.part is scored[0].part]
    part = mine[0].part
    return [
        Sample(part.ids[i], part.references[i], {f"{one.setting} {one.decoder}": one.texts[i] for one in mine})
        for i in range(min(_SAMPLES, len(part.ids)))
    ]


def _transcripts(scored: Sequence[Scored]) -> dict[str, Any]:
    """All texts, as the page takes them."""
    splits: dict[str, Any] = {}
    for one in scored:
        told = {"ids": one.part.ids, "references": one.part.references, "hypotheses": {}}
        texts = splits.setdefault(one.part.split, told)["hypotheses"]
        texts[f"{one.setting}/{one.decoder}"] = one.texts
    return splits


def _about(config: ConfigDict, tuned: FineTuned, sets: Sequence[EvalSet], device: str) -> dict[str, str]:
    """What was run, and where."""
    listed = "; ".join(
        f"{part.split or 'all'}: {len(part.ids)} utterances, {part.seconds / 60:.1f} min" for part in sets
    )
    beam = {"n-gram": f"{config.lm}, beam {config.beam.beam}"} if config.lm else {}
    return {
        "model": f"{config.init_from}, {tuned.state}",
        "data": f"{config.data} ({listed})",
        **beam,
        "device": f"{device}, {tuned.model.backbone.dtype}",
        "timing": f"median of {config.repeats} rounds over all settings, after one to warm up",
        "versions": f"sew_jax {sew_jax.__version__}, jax {jax.__version__}, Python {platform.python_version()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "-m", "sew_jax.main", *sys.argv[1:]]),
    }


def _rows(config: ConfigDict, tuned: FineTuned, scored: Sequence[Scored], part: EvalSet, device: str) -> list[Row]:
    """The rows of one split."""
    backbone = tuned.model.backbone
    mine = [one for one in scored if one.part is part]
    macs = {one.setting: sum(count_macs(backbone, one.setting, int(n)).total for n in part.samples) for one in mine}
    reference = Compression()
    base = next(statistics.median(one.seconds) for one in mine if one.setting == reference)
    rows = []
    for one in mine:
        errors, median = one.total, statistics.median(one.seconds)
        low, high = wer_interval(np.array([e.errors for e in one.errors]), np.array([e.words for e in one.errors]))
        rows.append(Row(
            setting=one.setting.name, split=part.split, decoder=one.decoder, wer=errors.wer, wer_low=low,
            wer_high=high, cer=errors.cer, substitutions=errors.substitutions, deletions=errors.deletions,
            insertions=errors.insertions, words=errors.words, utterances=errors.utterances, seconds=median,
            seconds_min=min(one.seconds), seconds_max=max(one.seconds), repeats=config.repeats,
            decode_seconds=one.decode_seconds, lm_weight=one.options and one.options.lm_weight,
            word_score=one.options and one.options.word_score,
            audio_seconds=part.seconds, rtf=median / part.seconds, relative_time=median / base,
            macs_per_s=macs[one.setting] / part.seconds, relative_macs=macs[one.setting] / macs[reference],
            device=device, dtype=backbone.dtype, trained=one.setting in tuned.trained,
        ))  # fmt: skip
    return rows
