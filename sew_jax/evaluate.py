"""Word error rate and time at every setting, from the same run of the same programs.

Time is measured as SEW's repository does (`tools/eval_w2v.py`): encoder, argmax and the copy to the host, without loading
and post-processing. Batches wait on the device; each setting is warmed up; repeats go round all settings, so that a
disturbance does not hit one of them alone; the median is reported with minimum and maximum.
"""

import functools
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sew_jax.compression import Compression, parse_table
from sew_jax.cost import count_macs
from sew_jax.data.audio import SAMPLE_RATE
from sew_jax.data.pipeline import Batch, Batches, read_ahead
from sew_jax.data.plan import BatchPlan, choose_buckets, rows_per_bucket
from sew_jax.data.sources import Source, open_source
from sew_jax.data.text import Vocabulary
from sew_jax.decode import greedy
from sew_jax.errors import UserError
from sew_jax.files import write_whole
from sew_jax.models.config import BackboneConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.programs import compile_table
from sew_jax.progress import format_duration, say
from sew_jax.recognizer import FineTuned, load_finetuned
from sew_jax.sharding import batch_sharding, make_mesh, place_batch
from sew_jax.tradeoff import Row, format_table, mark_front, write_tradeoff
from sew_jax.wer import ErrorCounts, count_errors


def evaluate(config: ConfigDict, workdir: Path) -> list[Row]:
    """Writes tradeoff.json, .csv, .png and transcripts/ into the workdir, shows the table and returns its rows.

    Raises:
      UserError: config, data or checkpoint do not fit.
    """
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
    source, problems = open_source(
        config.data, config.split, min_samples=1, need_text=True, max_bad=config.input.max_bad
    )
    unknown = [(source.id(i), bad) for i in range(len(source)) if (bad := tuned.vocabulary.unknown(source.text(i)))]
    if unknown:
        name, bad = unknown[0]
        say(
            f"  ! {len(unknown)} of {len(source)} references hold characters that the vocabulary lacks (first {name}: "
            f"{' '.join(sorted(bad))}); they count as errors"
        )
    buckets = choose_buckets(source.samples, config.input.buckets)
    rows = rows_per_bucket(buckets, round(config.input.batch_seconds * SAMPLE_RATE), mesh.size)
    plan = BatchPlan(source.samples, rows, seed=0, shuffle=False)
    say(f"  settings  {len(table)}: {' '.join(map(str, table))}")
    say(f"  data      {source.name}: {len(source)} utterances, {source.samples.sum() / SAMPLE_RATE / 3600:.2f} h")
    say(f"  buckets   {', '.join(f'{b / SAMPLE_RATE:.1f} s x {plan.rows[b]}' for b in plan.buckets)}")
    say(f"  outputs   {workdir}")

    batches = Batches(source, plan, seed=0, vocabulary=None, start=0, stop=plan.batches_per_epoch)
    with read_ahead(batches, workers=config.input.workers, threads=config.input.threads) as data:
        loaded = list(data)
    problems += [p for batch in loaded for p in batch.problems]
    for problem in problems[:5]:
        say(f"  ! {problem.id} {problem.reason}; it is left out")
    if len(problems) > config.input.max_bad:
        raise UserError(
            f"data: {len(problems)} damaged utterances in {config.data}, the first: {problems[0].id} {problems[0].reason}; mend them or raise --config.input.max_bad"
        )
    placed = [place_batch(batch.arrays, batch_sharding(mesh)) for batch in loaded]
    programs = compile_table(
        jax.jit(functools.partial(_best_symbols, tuned.model), static_argnames="compression"),
        [(setting, bucket) for setting in table for bucket in plan.buckets],
        lambda key: (tuned.params, next(p for p, b in zip(placed, loaded, strict=True) if b.bucket == key[1])),
        "inference",
    )

    utterances = [_utterances(plan, batch) for batch in loaded]
    counts: dict[Compression, ErrorCounts] = {}
    seconds: dict[Compression, list[float]] = {setting: [] for setting in table}
    for repeat in range(config.repeats + 1):  # the first round warms up, and gives the transcripts
        for setting in table:
            outputs, spent = _run(programs, setting, tuned.params, placed, loaded)
            if repeat:
                seconds[setting].append(spent)
                continue
            counts[setting] = _transcribe(workdir, setting, source, tuned.vocabulary, utterances, outputs)
            say(f"  {setting}: WER {counts[setting].wer:.2%} of {counts[setting].words} words")
    say(f"timed {config.repeats} rounds over all settings")

    table_rows = mark_front(_rows(config, tuned, source, utterances, counts, seconds, device))
    write_tradeoff(table_rows, workdir)
    say(format_table(table_rows))
    say(
        f"done in {format_duration(time.monotonic() - begin)}: tradeoff.json, .csv, .png and transcripts/ are in {workdir}"
    )
    return table_rows


def _best_symbols(model: CTCModel, params, batch: dict[str, jax.Array], compression: Compression):
    """The most likely symbol of each frame, (B, T), and the frames of each utterance, (B,)."""
    logits, length = model.apply({"params": params}, batch["wave"], batch["length"], compression, deterministic=True)
    return logits.argmax(-1).astype(jnp.int32), length


def _run(programs, setting: Compression, params, placed: list[dict], loaded: Sequence[Batch]):
    """All batches at a setting: (outputs on the host, seconds)."""
    outputs, spent = [], 0.0
    for arrays, batch in zip(placed, loaded, strict=True):
        program = programs[setting, batch.bucket]
        start = time.perf_counter()
        outputs.append(jax.device_get(program(params, arrays)))
        spent += time.perf_counter() - start
    return outputs, spent


def _utterances(plan: BatchPlan, batch: Batch) -> list[tuple[int, int]]:
    """(row, utterance) of a batch, without filler rows and unreadable audio."""
    planned = plan[batch.index].utterances
    return [(row, int(u)) for row, u in enumerate(planned) if u >= 0 and batch.arrays["length"][row] > 0]


def _transcribe(
    workdir: Path, setting: Compression, source: Source, vocabulary: Vocabulary, utterances, outputs
) -> ErrorCounts:
    """Decodes, counts errors, and writes transcripts/SETTING.jsonl."""
    total, lines = ErrorCounts(), []
    for members, (symbols, lengths) in zip(utterances, outputs, strict=True):
        texts = greedy(np.asarray(symbols), np.asarray(lengths), vocabulary)
        for row, utterance in members:
            reference = source.text(utterance)
            total += count_errors(reference, texts[row])
            lines.append((source.id(utterance), {"reference": reference, "hypothesis": texts[row]}))
    folder = workdir / "transcripts"
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"id": name, **texts}, ensure_ascii=False) + "\n" for name, texts in sorted(lines))
    write_whole(folder / f"{setting}.jsonl", text.encode())
    return total


def _rows(config: ConfigDict, tuned: FineTuned, source: Source, utterances, counts, seconds, device: str) -> list[Row]:
    backbone: BackboneConfig = tuned.model.backbone
    lengths = [int(source.samples[u]) for members in utterances for _, u in members]
    audio_seconds = sum(lengths) / SAMPLE_RATE
    macs = {setting: sum(count_macs(backbone, setting, n).total for n in lengths) for setting in counts}
    median = {setting: statistics.median(times) for setting, times in seconds.items()}
    reference = Compression()
    return [
        Row(
            setting=setting.name, wer=errors.wer, cer=errors.cer, substitutions=errors.substitutions,
            deletions=errors.deletions, insertions=errors.insertions, words=errors.words, utterances=errors.utterances,
            seconds=median[setting], seconds_min=min(seconds[setting]), seconds_max=max(seconds[setting]),
            repeats=config.repeats, audio_seconds=audio_seconds, rtf=median[setting] / audio_seconds,
            relative_time=median[setting] / median[reference], macs_per_s=macs[setting] / audio_seconds,
            relative_macs=macs[setting] / macs[reference], device=device, dtype=backbone.dtype, decoder="greedy",
            trained=setting in tuned.trained,
        )
        for setting, errors in counts.items()
    ]  # fmt: skip
