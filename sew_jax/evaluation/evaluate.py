"""Word error rate (or accuracy) and time at every setting, from the same run of the same programs.

Time is measured as SEW's repository does (`tools/eval_w2v.py`): encoder, argmax and the copy to the host, without
loading and post-processing; beam search, where there is one, is timed once and added. Batches wait on the device;
each setting is warmed up; repeats go round all settings, so that a disturbance does not hit one of them alone; the
median is reported with minimum and maximum.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sew_jax.buckets import make_folder
from sew_jax.checks.check import check_config
from sew_jax.compression import Compression, parse_table
from sew_jax.console import format_duration, say
from sew_jax.decoding.beam_options import chosen_options
from sew_jax.decoding.beam_pool import BeamPool
from sew_jax.decoding.engine_recognizer import default_dtype, on_engine
from sew_jax.decoding.eval_set import EvalSet, compile_for, open_eval_sets
from sew_jax.decoding.greedy import read_best
from sew_jax.decoding.recognizer import Recognizer, best_symbols, load_recognizer, log_probs, no_head
from sew_jax.engines.run_times import PRECISIONS, RUNTIMES, Engine
from sew_jax.errors import UserError
from sew_jax.evaluation.outputs import describe, format_table, write_outputs
from sew_jax.evaluation.scoring import Scored, Search, points_of, score
from sew_jax.evaluation.tradeoff import Point, mark_front
from sew_jax.evaluation.tune_decoder import tune
from sew_jax.files import FOLDER_HINT, writing_to
from sew_jax.names import split_names
from sew_jax.runtime.agreement import check_same, what_computes
from sew_jax.runtime.sharding import make_mesh


def evaluate(config: ConfigDict, workdir: Path) -> list[Point]:
    """Writes tradeoff.json, .csv, .png, .html and transcripts/ into the workdir, shows the table, returns its points.

    Each process of a job computes its share of each batch, and all gather what came of it: texts are the same, times
    are those of the process, and the first one writes.

    Raises:
      UserError: config, data or checkpoint do not fit.
    """
    check_config(config)
    check_same({"config": config.to_dict(), "versions": what_computes()})
    options = chosen_options(config)
    begin = time.monotonic()
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    device = _describe_devices(mesh)
    say("sew_jax evaluate")
    if jax.process_index() == 0:
        with writing_to(workdir, FOLDER_HINT):  # said before anything long
            make_folder(workdir)
    say(f"  devices   {device}")
    recognizer = _load(config, mesh)
    recognizers = _recognizers(config, recognizer)
    table = parse_table(config.settings) if config.settings else recognizer.trained
    table = list(dict.fromkeys([Compression(), *table]))  # s1q1k1 is what others are measured against
    for setting in table:
        recognizer.model.backbone.check_setting(setting)
    say(f"  settings  {len(table)}: {' '.join(map(str, table))}")
    splits = split_names(config.split) or [""]
    dev_splits = [config.tune_split] if config.tune_split else []
    if dev_splits and {"", *dev_splits} & set(splits):
        say(f"  ! tune_split={config.tune_split} is reported, too: there the weights do better than on other speech")
    symbols: Any = recognizer.labels or recognizer.vocabulary
    sets = open_eval_sets(config, [*splits, *dev_splits], recognizer)
    dev = sets.pop() if dev_splits else None
    with BeamPool(symbols, options, config.beam.workers) if options else contextlib.nullcontext() as pool:
        if pool:  # what is wrong with its files is said before anything long
            pool.decode([np.zeros((1, len(symbols)), np.float32)])
        say(f"  outputs   {workdir}")
        scored = _greedy(config, recognizers, table, sets)
        for one in recognizers if pool else ():
            scored += _beam(config, one, table, sets, dev, pool)
    points = mark_front([point for part in sets for point in points_of(scored, part, device)])
    say(format_table(points))  # first: it is there whatever the disk says
    if jax.process_index() == 0:
        with writing_to(workdir, FOLDER_HINT):
            write_outputs(workdir, points, scored, describe(config, recognizers, sets, device))
    files = "tradeoff.html, .json, .csv, .png and transcripts/"
    say(f"done in {format_duration(time.monotonic() - begin)}: {files} are in {workdir}")
    return points


def _load(config: ConfigDict, mesh: Mesh) -> Recognizer:
    """The model, which must have a head that the config's options are for."""
    options = {"need_text": False, "text_normalizer": config.text_normalizer}
    recognizer = load_recognizer(config.init_from, config.dtype, mesh, **options)
    if not recognizer.labels and recognizer.vocabulary is None:
        raise no_head(config.init_from, recognizer.no_text)
    for_text = {key: config[key] for key in ("lm", "tune_split", "text_normalizer")}
    for_text |= {"beam.hot_words": config.beam.hot_words, "beam.nbest": config.beam.nbest}
    for key, value in for_text.items():
        if recognizer.labels and value not in ("", 1):
            raise UserError(
                f"{key}: {value} is for text, and {config.init_from} gives each {recognizer.labels.unit} a label; "
                "leave it out"
            )
    return recognizer


def _describe_devices(mesh: Mesh) -> str:
    cores = f", {os.cpu_count()} cores" if jax.default_backend() == "cpu" else ""
    return f"{mesh.size} x {jax.devices()[0].device_kind}{cores}"


def _recognizers(config: ConfigDict, recognizer: Recognizer) -> list[Recognizer]:
    """The model by each run time in each precision that it has, the named ones."""
    if jax.process_count() > 1 and split_names(config.runtimes) != [RUNTIMES[0]]:
        raise UserError("runtimes: several processes compute by jax alone; start one for the others")
    made = []
    for runtime in split_names(config.runtimes):
        own = config.dtype or default_dtype(recognizer, runtime)
        wanted = split_names(config.dtypes) or [own]
        made += [on_engine(recognizer, Engine(runtime, dtype)) for dtype in wanted if dtype in PRECISIONS[runtime]]
    return made


def _greedy(
    config: ConfigDict, recognizers: Sequence[Recognizer], table: Sequence[Compression], sets: Sequence[EvalSet]
) -> list[Scored]:
    """Each split by each recognizer at each setting, by the best path."""
    for recognizer in recognizers:
        compile_for(recognizer, best_symbols, sets, table, "inference")
    scored = []
    for part in sets:
        first: list[Scored] = []
        for recognizer, setting in itertools.product(recognizers, table):  # warms up
            paths, _ = part.run(recognizer, best_symbols, setting)
            texts = [read_best(path, recognizer.labels or recognizer.vocabulary) for path in paths]
            first.append(score(recognizer, part, setting, "greedy", texts, []))
        for _ in range(config.repeats):
            for one in first:
                one.seconds.append(part.run(one.recognizer, best_symbols, one.setting)[1])
        scored += first
        say(f"timed {config.repeats} rounds over all settings")
    return scored


def _beam(
    config: ConfigDict,
    recognizer: Recognizer,
    table: Sequence[Compression],
    sets: Sequence[EvalSet],
    dev: EvalSet | None,
    pool: BeamPool,
) -> list[Scored]:
    """Each split at each setting, by beam search with the pool's weights, or those that do best on `dev`."""
    compile_for(recognizer, log_probs, [*sets, *([dev] if dev else [])], table, "log-probability")
    scored = []
    for setting in table:
        options = pool.options
        if dev:
            outputs, _ = dev.run(recognizer, log_probs, setting)
            say(f"  {setting}: weights by WER on {dev.split}")
            options, _ = tune(pool, outputs, dev.references, trials=config.tune_trials)
        for part in sets:
            part.run(recognizer, log_probs, setting)  # warms up
            rounds = [part.run(recognizer, log_probs, setting) for _ in range(config.repeats)]
            begin = time.perf_counter()
            hypotheses = pool.decode(rounds[0][0], options)
            spent = time.perf_counter() - begin
            texts = [best[0].text for best in hypotheses]
            seconds = [encoder + spent for _, encoder in rounds]
            decoder = "lm" if options.lm else "beam"
            scored.append(score(recognizer, part, setting, decoder, texts, seconds, Search(options, spent, hypotheses)))
            say(f"    beam search: {len(texts) / spent:.1f} utterances/s, {part.seconds / spent:.0f} x real time")
    return scored
