"""Per-layer settings that beat uniform ones at equal cost: searched on a dev split, reported on the test split."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from sew_jax.buckets import make_folder
from sew_jax.checks.check import check_config
from sew_jax.compression import Compression
from sew_jax.console import Progress, format_duration, say
from sew_jax.decoding.eval_set import EvalSet, compile_for, open_eval_sets
from sew_jax.decoding.greedy import greedy
from sew_jax.decoding.recognizer import Recognizer, best_symbols, load_recognizer
from sew_jax.errors import UserError
from sew_jax.evaluation.evaluate import evaluate
from sew_jax.evaluation.pooling_search import Candidate, find_front, is_uniform, search_settings
from sew_jax.evaluation.scoring import count_split_errors, split_macs
from sew_jax.evaluation.tradeoff import Point
from sew_jax.files import FOLDER_HINT, write_json, writing_to
from sew_jax.runtime.sharding import make_mesh


def search(config: ConfigDict, workdir: Path) -> list[Point]:
    """Writes search.json into the workdir, and what `evaluate` writes of the two fronts; returns their points.

    Raises:
      UserError: config, data or checkpoint do not fit.
    """
    check_config(config)
    if jax.process_count() > 1:
        raise UserError("search runs in one process; start it on one host")
    begin = time.monotonic()
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    say("sew_jax search")
    with writing_to(workdir, FOLDER_HINT):  # said before anything long
        make_folder(workdir)
    recognizer = load_recognizer(config.init_from, config.dtype, mesh, text_normalizer=config.text_normalizer)
    squeezes = tuple(config.squeeze) or tuple(dict.fromkeys(setting.squeeze for setting in recognizer.trained))
    layers = recognizer.model.backbone.layers
    (dev,) = open_eval_sets(config, [config.dev_split], recognizer)
    say(f"  space     squeeze {squeezes}, queries and keys of {layers} layers each by {tuple(config.factors)}")
    measure, whole = _Measure(recognizer, dev, config.trials), split_macs(recognizer, dev, Compression())
    tried = search_settings(
        measure,
        lambda setting: split_macs(recognizer, dev, setting) / whole,
        layers=layers,
        squeezes=squeezes,
        factors=tuple(config.factors),
        trials=config.trials,
        seed=config.seed,
    )
    front, uniform = find_front(tried), find_front([one for one in tried if is_uniform(one.setting)])
    trials = [_object(one, measure.words, front, uniform) for one in tried]
    with writing_to(workdir, FOLDER_HINT):
        write_json(workdir / "search.json", {"dev_split": config.dev_split, "words": measure.words, "trials": trials})
    say(f"tried {len(tried)} settings in {format_duration(time.monotonic() - begin)}; both fronts are evaluated now")

    named = config.copy_and_resolve_references()
    with named.unlocked():
        named.settings = ",".join(dict.fromkeys(one.setting.name for one in (*uniform, *front)))
    points = evaluate(named, workdir)
    say(format_comparison(front, uniform, measure.words, points))
    say(f"done in {format_duration(time.monotonic() - begin)}: search.json, and what evaluate leaves, are in {workdir}")
    return points


class _Measure:
    """Word errors of settings on the dev split, with progress."""

    def __init__(self, recognizer: Recognizer, dev: EvalSet, trials: int):
        self._recognizer, self._dev, self._progress = recognizer, dev, Progress(trials)
        self._done = 0
        self.words = sum(len(reference.split()) for reference in dev.references)

    def __call__(self, settings: list[Compression]) -> list[int]:
        compile_for(self._recognizer, best_symbols, [self._dev], settings, "trial")
        errors = []
        for setting in settings:
            paths, _ = self._dev.run(self._recognizer, best_symbols, setting)
            texts = [greedy(path, self._recognizer.vocabulary) for path in paths]
            errors.append(count_split_errors(self._dev.references, texts).errors)
            self._done += 1
            self._progress.update(self._done)
            wer = errors[-1] / max(self.words, 1)
            say(f"  trial {self._done}: {setting} WER {wer:.2%} | eta {self._progress.left}")
        self._recognizer.programs.clear()  # no setting is tried twice
        return errors


def _object(one: Candidate, words: int, front: Sequence[Candidate], uniform: Sequence[Candidate]) -> dict[str, Any]:
    return {
        "setting": one.setting.name,
        "relative_macs": one.macs,
        "errors": one.errors,
        "wer": one.errors / max(words, 1),
        "on_front": one in front,
        "on_uniform_front": one in uniform,
    }


def format_comparison(
    front: Sequence[Candidate], uniform: Sequence[Candidate], words: int, points: Sequence[Point]
) -> str:
    """For each uniform setting on its front, the best one of no more cost: dev and test side by side."""
    by_split: dict[tuple[str, str], Point] = {}
    for point in points:  # as dev was: by the best path; of several run times the first
        if point.decoder == "greedy":
            by_split.setdefault((point.split, point.setting), point)
    splits = list(dict.fromkeys(point.split for point in points))
    lines = [
        "At equal cost or less, the best uniform setting and the best of all (MACs, dev WER %, WER % of each split):"
    ]
    for candidate in uniform:
        best = min((one for one in front if one.macs <= candidate.macs), key=lambda one: one.errors)
        for mark, one in (("uniform", candidate), ("found", best)):
            tests = "".join(f"  {100 * by_split[split, one.setting.name].wer:6.2f}" for split in splits)
            lines.append(f"  {mark:8}{one.macs:.3f}  {100 * one.errors / max(words, 1):6.2f}{tests}  {one.setting}")
    return "\n".join(lines)
