"""Schedules that beat uniform settings at equal cost: searched on a dev split, reported on the test split."""

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sew_jax.checks.check import check_config
from sew_jax.compression import Compression
from sew_jax.console import Progress, format_duration, say
from sew_jax.decoding.eval_set import EvalSet, compile_for, open_eval_sets
from sew_jax.decoding.greedy import greedy
from sew_jax.decoding.recognizer import FineTuned, best_symbols, load_finetuned
from sew_jax.errors import UserError
from sew_jax.evaluation.evaluate import evaluate
from sew_jax.evaluation.pooling_search import Point, find_front, is_uniform, search_schedules
from sew_jax.evaluation.tradeoff import Row
from sew_jax.files import write_json
from sew_jax.metrics.wer import count_errors
from sew_jax.models.cost import count_macs
from sew_jax.runtime.sharding import make_mesh


def search(config: ConfigDict, workdir: Path) -> list[Row]:
    """Writes search.json into the workdir, and what `evaluate` writes of the two fronts; returns their rows.

    Raises:
      UserError: config, data or checkpoint do not fit.
    """
    check_config(config)
    if jax.process_count() > 1:
        raise UserError("search runs in one process; start it on one host")
    begin = time.monotonic()
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    say("sew_jax search")
    tuned = load_finetuned(config.init_from, config.dtype, NamedSharding(mesh, PartitionSpec()))
    squeezes = tuple(config.squeeze) or tuple(dict.fromkeys(setting.squeeze for setting in tuned.trained))
    layers = tuned.model.backbone.layers
    (dev,) = open_eval_sets(config, [config.dev_split], tuned.vocabulary, mesh)
    say(f"  space     squeeze {squeezes}, queries and keys of {layers} layers each by {tuple(config.factors)}")
    measure = _Measure(tuned, dev, config.trials)
    points = search_schedules(
        measure, functools.partial(_relative_macs, tuned, dev), layers=layers, squeezes=squeezes,
        factors=tuple(config.factors), trials=config.trials, seed=config.seed,
    )  # fmt: skip
    front, uniform = find_front(points), find_front([p for p in points if is_uniform(p.setting)])
    say(f"tried {len(points)} settings in {format_duration(time.monotonic() - begin)}; both fronts are evaluated now")

    named = config.copy_and_resolve_references()
    with named.unlocked():
        named.settings = ",".join(dict.fromkeys(p.setting.name for p in (*uniform, *front)))
    rows = evaluate(named, workdir)
    words = measure.words
    write_json(workdir / "search.json", {
        "dev_split": config.dev_split, "words": words, "trials": [_object(p, words, front, uniform) for p in points],
    })  # fmt: skip
    say(format_comparison(front, uniform, words, rows))
    say(f"done in {format_duration(time.monotonic() - begin)}: search.json, and what evaluate leaves, are in {workdir}")
    return rows


class _Measure:
    """Word errors of settings on the dev split, with progress."""

    def __init__(self, tuned: FineTuned, dev: EvalSet, trials: int):
        self._tuned, self._dev, self._progress = tuned, dev, Progress(trials)
        self._done = 0
        self.words = sum(len(reference.split()) for reference in dev.references)

    def __call__(self, settings: list[Compression]) -> list[int]:
        function = functools.partial(best_symbols, self._tuned.model)
        programs = compile_for([self._dev], settings, function, self._tuned.params, "trial")
        errors = []
        for setting in settings:
            paths, _ = self._dev.run(programs, setting, self._tuned.params)
            texts = [greedy(path, self._tuned.vocabulary) for path in paths]
            errors.append(sum(count_errors(r, t).errors for r, t in zip(self._dev.references, texts, strict=True)))
            self._done += 1
            self._progress.update(self._done)
            say(
                f"  trial {self._done}: {setting} WER {errors[-1] / max(self.words, 1):.2%} | eta {self._progress.left}"
            )
        return errors


def _relative_macs(tuned: FineTuned, part: EvalSet, setting: Compression) -> float:
    lengths, counts = np.unique(part.samples, return_counts=True)

    def macs(setting: Compression) -> int:
        each = [count_macs(tuned.model.backbone, setting, int(n)).total for n in lengths]
        return int(np.dot(each, counts))

    return macs(setting) / macs(Compression())


def _object(point: Point, words: int, front: Sequence[Point], uniform: Sequence[Point]) -> dict[str, Any]:
    return {
        "setting": point.setting.name, "relative_macs": point.macs, "errors": point.errors,
        "wer": point.errors / max(words, 1), "on_front": point in front, "on_uniform_front": point in uniform,
    }  # fmt: skip


def format_comparison(front: Sequence[Point], uniform: Sequence[Point], words: int, rows: Sequence[Row]) -> str:
    """For each uniform setting on its front, the best schedule that costs no more: dev and test side by side."""
    by_split = {(row.split, row.setting): row for row in rows}
    splits = list(dict.fromkeys(row.split for row in rows))
    lines = [
        "At equal cost or less, the best uniform setting and the best schedule (MACs, dev WER %, WER % of each split):"
    ]
    for point in uniform:
        best = min((p for p in front if p.macs <= point.macs), key=lambda p: p.errors)
        for mark, one in (("uniform", point), ("found", best)):
            tests = "".join(f"  {100 * by_split[split, one.setting.name].wer:6.2f}" for split in splits)
            lines.append(f"  {mark:8}{one.macs:.3f}  {100 * one.errors / max(words, 1):6.2f}{tests}  {one.setting}")
    return "\n".join(lines)
