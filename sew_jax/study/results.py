"""What runs of a study leave, one file each: what was done, by whom, and the errors of each utterance."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sew_jax.compression import Compression
from sew_jax.decoding.eval_set import EvalSet, compile_for, open_eval_sets
from sew_jax.decoding.greedy import greedy
from sew_jax.decoding.recognizer import best_symbols, load_recognizer
from sew_jax.errors import UserError
from sew_jax.files import WORKDIR_HINT, write_json, writing_to
from sew_jax.metrics.wer import count_errors
from sew_jax.storage import exists
from sew_jax.study.plan import Model, finetune_key


class Results:
    """The files of runs that are done; they are never changed, so each is read once."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._read: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def done(self, key: str) -> bool:
        return key in self._read or exists(self._path(key))

    def write(self, key: str, result: Mapping[str, Any]) -> None:
        with writing_to(self._folder, WORKDIR_HINT):
            write_json(self._path(key), dict(result))

    def __getitem__(self, key: str) -> dict[str, Any]:
        if key not in self._read:
            self._read[key] = json.loads(self._path(key).read_text(encoding="utf-8"))
        return self._read[key]

    def _path(self, key: str) -> Path:
        return self._folder / f"{key.replace('/', '.')}.json"


class Scorer:
    """Errors of fine-tuned models by greedy decoding, untimed; audio and programs serve one model after the other."""

    def __init__(self, config: ConfigDict, splits: Sequence[str], mesh: Mesh):
        """`config` is an evaluation's."""
        self._config, self._splits, self._mesh = config, splits, mesh
        self._sets: list[EvalSet] = []
        self._programs: dict[str, dict] = {}  # architecture -> a recognizer's programs

    def __call__(self, workdir: Path, settings: Sequence[Compression]) -> dict[str, Any]:
        """Of the model in a workdir: ids, words and characters of each utterance, and its errors at each setting."""
        recognizer = load_recognizer(
            str(workdir), self._config.dtype, self._mesh, text_normalizer=self._config.text_normalizer
        )
        if not self._sets:
            self._sets = open_eval_sets(self._config, self._splits, recognizer)
        model = recognizer.model
        shape = json.dumps([dataclasses.asdict(model.backbone), dataclasses.asdict(model.head)])
        recognizer.programs = self._programs.setdefault(shape, recognizer.programs)
        compile_for(recognizer, best_symbols, self._sets, settings, "scoring")
        splits, scores = {}, []
        for part in self._sets:
            for setting in settings:
                paths, _ = part.run(recognizer, best_symbols, setting)
                texts = [greedy(path, recognizer.vocabulary) for path in paths]
                counts = [count_errors(r, text) for r, text in zip(part.references, texts, strict=True)]
                splits[part.split] = {
                    "ids": part.ids,
                    "words": [c.words for c in counts],
                    "characters": [c.characters for c in counts],
                }
                scores.append(
                    {
                        "split": part.split,
                        "setting": setting.name,
                        "errors": [c.errors for c in counts],
                        "character_errors": [c.character_errors for c in counts],
                    }
                )
        return {"splits": splits, "scores": scores}


def mean_wer(result: Mapping[str, Any], split: str) -> float:
    """Of a run on a split, over its settings."""
    words = max(sum(result["splits"][split]["words"]), 1)
    return float(np.mean([sum(s["errors"]) / words for s in result["scores"] if s["split"] == split]))


def chosen_rate(results: Results, model: Model, seed: int, rates: Sequence[float], dev: str) -> float | None:
    """The rate of the lowest mean WER on dev, the first of equals; None where none was tried.

    Raises:
      UserError: training diverged at all of them.
    """
    if not rates:
        return None
    tried = {rate: results[finetune_key(model, seed, rate)] for rate in rates}
    sound = {rate: mean_wer(result, dev) for rate, result in tried.items() if "scores" in result}
    if not sound:
        raise UserError(f"rates: {model.name} diverged at all of {', '.join(f'{r:g}' for r in rates)}; name lower ones")
    return min(sound, key=sound.__getitem__)
