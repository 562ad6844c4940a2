"""Held-out evaluation inside training: what a run is worth at each setting, while it goes on.

Pre-training: the objective's loss under fixed masks and negatives (and the contrast's accuracy), how much each layer
changes the stream, and whether the settings' contexts speak one language; of distillation, how far the features are
from what they were. Fine-tuning: word error rate, or accuracy and macro F1 of labels. Rows go to `held_out.jsonl`.

B utterances, T frames.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sew_jax.compression import Compression, parse_table
from sew_jax.console import say
from sew_jax.data.audio import AudioError
from sew_jax.data.batch_plan import choose_buckets
from sew_jax.data.labels import Labels, check_labels
from sew_jax.data.pipeline import Share
from sew_jax.data.sources import Source, open_source
from sew_jax.data.transcripts import text_notes
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.decoding.eval_set import EvalSet, rows_to_measure, target_of, told_by
from sew_jax.decoding.greedy import read_best
from sew_jax.errors import UserError
from sew_jax.metrics.classes import count_labels, macro_f1
from sew_jax.metrics.measure import measure_of
from sew_jax.metrics.wer import ErrorCounts, count_errors
from sew_jax.models.config import CTCHeadConfig
from sew_jax.models.cost import typical_macs
from sew_jax.models.data2vec import Data2VecModel
from sew_jax.models.features import FeatureModel
from sew_jax.models.kept_frames import unit_of
from sew_jax.models.pretrain import PretrainModel
from sew_jax.names import split_names
from sew_jax.rates import SAMPLE_RATE
from sew_jax.runtime.agreement import at_all_processes, check_same
from sew_jax.runtime.sharding import batch_sharding, place_batch, share_of
from sew_jax.training import distillation, losses
from sew_jax.training.losses import LOG2E
from sew_jax.training.pretrain_scores import score_contrast, score_regression
from sew_jax.training.task import SpanMask, Task

AUTO = "auto"  # the split `dev`, where the data have one
_LEAST_BATCH_S = 60.0  # audio of a batch: an evaluation keeps nothing for a backward pass


class HeldOut(NamedTuple):
    """An evaluation that a run repeats.

    Attributes:
      split: name of what is held out.
      settings: at which it is measured, the largest first.
      buckets: lengths in samples, each a program at each setting.
      function: (variables, batch, compression) -> what `measure` reads.
      arguments: (variables' shapes, (setting, bucket)) -> the arguments of `function`.
      measure: (programs, variables, what is called after each part) -> a row of numbers for each setting.
      in_words: a row, as the screen has it.
    """

    split: str
    settings: list[Compression]
    buckets: list[int]
    function: Callable[..., Any]
    arguments: Callable[[Any, tuple[Compression, int]], tuple[Any, Any]]
    measure: Callable[[dict, Any, Callable[[], None]], list[dict[str, Any]]]
    in_words: Callable[[dict[str, Any]], str]


def open_held_out(config: ConfigDict, task: Task, mesh: Mesh) -> HeldOut | None:
    """What `config.eval` asks for; None where nothing is held out.

    Raises:
      UserError: the split that it names does not exist, or a setting does not fit the model.
    """
    options = config.eval
    if not options.split:
        return None
    named = parse_table(options.settings) if options.settings else _default_settings(task)
    for setting in named:
        task.model.backbone.check_setting(setting)
    settings = sorted(named, key=functools.partial(typical_macs, task.model.backbone), reverse=True)
    split = "dev" if options.split == AUTO else options.split
    trained = split_names(config.split)
    if not trained or set(trained) & set(split_names(split)):
        why = f"config.split={config.split} takes in {split}, which is trained on"
        if options.split != AUTO:
            raise UserError(f"eval.split: {why}; name the splits to train on without it")
        say(f"  held out  nothing: {why}")
        return None
    try:
        source, problems = at_all_processes(
            lambda: open_source(
                config.data,
                split,
                min_samples=round(config.input.min_seconds * SAMPLE_RATE),
                max_samples=round(config.input.max_seconds * SAMPLE_RATE),
                need_text=bool(task.vocabulary),
                max_bad=config.input.max_bad,
                target=target_of(task.vocabulary),
            )
        )
    except UserError as error:
        if options.split != AUTO:
            raise UserError(f"eval.split: {error}") from error
        say(f"  held out  nothing: the data have no usable split `dev` ({error}); --config.eval.split names another")
        return None
    make = _errors if task.vocabulary else _pretraining
    held_out = make(config, task, mesh, split, settings, source)
    say(f"  held out  {split}: every {options.every} updates at {' '.join(map(str, settings))}; rows in held_out.jsonl")
    if problems:
        say(f"            {len(problems)} left out, the first: {problems[0].id} {problems[0].reason}")
    return held_out


def _default_settings(task: Task) -> list[Compression]:
    """All of the table in pre-training; in fine-tuning its ends, since decoding takes longer."""
    if not task.vocabulary:
        return task.table
    ordered = sorted(task.table, key=functools.partial(typical_macs, task.model.backbone))
    return list(dict.fromkeys((ordered[-1], ordered[0])))


def _pretraining(
    config: ConfigDict, task: Task, mesh: Mesh, split: str, settings: list[Compression], source: Source
) -> HeldOut:
    check_same({f"data of {source.name}": [len(source), source.fingerprint()]})
    samples = min(round(config.input.crop_seconds * SAMPLE_RATE), int(source.samples.max()))
    rows = max(round(config.eval.max_seconds * SAMPLE_RATE / samples), 1)
    rows = -(-min(rows, len(source)) // mesh.size) * mesh.size
    sharding = batch_sharding(mesh)
    batch = place_batch(_first_seconds(source, share_of(sharding).rows(np.arange(rows)), samples, rows), sharding)
    assert isinstance(task.model, (PretrainModel, Data2VecModel, FeatureModel))
    model: Any = dataclasses.replace(task.model, backbone=dataclasses.replace(task.model.backbone, remat="none"))
    if isinstance(model, FeatureModel):
        assert task.teacher
        function, in_words = functools.partial(distillation.score, model, task.teacher), _distance
    elif isinstance(model, Data2VecModel):
        unit_of(settings, model.backbone.layers)  # names those that no masks fit
        function, in_words = functools.partial(score_regression, model, settings[0], config.seed), _regression
    else:
        function = functools.partial(score_contrast, model, SpanMask(**config.mask), settings[0], config.seed)
        in_words = _contrast

    def measure(programs: dict, variables: Any, progress: Callable[[], None]) -> list[dict[str, Any]]:
        rows = []
        for setting in settings:
            rows.append(jax.device_get(programs[setting, samples](variables, batch)))
            progress()
        return rows

    return HeldOut(split, settings, [samples], function, lambda variables, key: (variables, batch), measure, in_words)


def _first_seconds(source: Source, mine: np.ndarray, samples: int, rows: int) -> dict[str, np.ndarray]:
    """Rows `mine` of `rows` utterances that are spread evenly over the split and cut to `samples`."""
    wave, length = np.zeros((len(mine), samples), np.int16), np.zeros(len(mine), np.int32)
    count = min(rows, len(source))
    for i, row in enumerate(mine.tolist()):
        if row >= count:  # filler, for so many devices
            continue
        try:
            speech = source.audio(row * len(source) // count, 0, samples)
        except AudioError:  # damage that no header tells
            continue
        wave[i, : len(speech)], length[i] = speech, len(speech)
    return {"wave": wave, "length": length, "crop": mine.astype(np.int32)}


def _errors(
    config: ConfigDict, task: Task, mesh: Mesh, split: str, settings: list[Compression], source: Source
) -> HeldOut:
    buckets = choose_buckets(source.samples, config.input.buckets)
    seconds = max(config.input.batch_seconds, _LEAST_BATCH_S)
    vocabulary = task.vocabulary
    assert vocabulary
    rows = rows_to_measure([source], buckets, seconds, mesh.size)
    sharding = batch_sharding(mesh)
    if isinstance(vocabulary, Labels):
        check_labels(vocabulary, source)
    part = EvalSet(split, source, rows, mesh, config, told_by(vocabulary, task.model.backbone))
    symbols: list[list[int] | None]
    if isinstance(vocabulary, Labels):
        symbols = [vocabulary.encode(label) for label in part.references]
    else:
        symbols = [None if vocabulary.unknown(text) else vocabulary.encode(text) for text in part.references]
        for note in text_notes(vocabulary, source, empty="what is written there counts as insertions"):
            say(note)
    batches = [
        (
            bucket,
            arrays | place_batch(_labels(symbols, arrays["length"].shape[0], members, share_of(sharding)), sharding),
            members,
        )
        for bucket, arrays, members in part.batches
    ]
    examples = {bucket: arrays for bucket, arrays, _ in batches}
    head = task.model.head

    def function(variables, batch, compression: Compression):
        logits_BxTxV, length_B = task.model.apply(
            {"params": variables["params"]}, batch["wave"], batch["length"], compression, deterministic=True
        )
        if isinstance(head, CTCHeadConfig):
            labels = batch["labels"], batch["label_length"], batch["has_labels"]
            loss, impossible = losses.ctc(logits_BxTxV, length_B, *labels, head.blank)
        else:
            told = length_B, batch["labels"], batch["label_length"]
            loss, impossible = losses.label_cross_entropy(logits_BxTxV, *told)
        return logits_BxTxV.argmax(-1).astype(jnp.int32), length_B, loss.sum * LOG2E, impossible.sum, loss.weight

    def measure(programs: dict, variables: Any, progress: Callable[[], None]) -> list[dict[str, Any]]:
        return [row_of(programs, variables, setting, progress) for setting in settings]

    def row_of(programs: dict, variables: Any, setting: Compression, progress: Callable[[], None]) -> dict[str, Any]:
        sums, texts = np.zeros(3), [""] * len(part.ids)
        for bucket, arrays, members in batches:
            path_BxT, length_B, *terms = jax.device_get(programs[setting, bucket](variables, arrays))
            progress()
            sums += terms
            for row, utterance in members:
                texts[utterance] = read_best(path_BxT[row, : length_B[row]], vocabulary)
        loss, other, weight = sums
        one = "accuracy" if isinstance(vocabulary, Labels) else "ctc_invalid_frac"
        return _rates(part.references, texts, vocabulary) | {
            "loss": loss / max(weight, 1),
            one: other / max(weight, 1),
        }

    def arguments(variables, key):
        return variables, examples[key[1]]

    return HeldOut(split, settings, list(examples), function, arguments, measure, _error_rate)


def _rates(references: list[str], texts: list[str], symbols: Vocabulary | Labels) -> dict[str, Any]:
    """Error rates of what was read; each label counts as a word."""
    if isinstance(symbols, Labels):
        told, found = [symbols.split(text) for text in references], [symbols.split(text) for text in texts]
        return _counted(map(count_labels, told, found)) | {"macro_f1": macro_f1(told, found)}
    return _counted(map(count_errors, references, texts))


def _counted(errors_U: Iterable[ErrorCounts]) -> dict[str, Any]:
    errors = sum(errors_U, ErrorCounts())
    return {"wer": errors.wer, "cer": errors.cer, "errors": errors.errors, "words": errors.words}


def _labels(
    symbols: list[list[int] | None], rows: int, members: list[tuple[int, int]], share: Share
) -> dict[str, np.ndarray]:
    """A share of a batch's labels; there are none where an utterance has characters without a symbol."""
    slots = -(-max(len(ids or ()) for ids in symbols) // 16) * 16
    labels, length = np.zeros((rows, max(slots, 1)), np.int32), np.zeros(rows, np.int32)
    known = np.zeros(rows, bool)
    for row, utterance in members:
        ids = symbols[utterance]
        if ids is not None:
            known[row], length[row] = True, len(ids)
            labels[row, : length[row]] = ids
    return {"labels": share.rows(labels), "label_length": share.rows(length), "has_labels": share.rows(known)}


def describe(held_out: HeldOut, rows: list[dict[str, Any]]) -> str:
    """The line on screen."""
    return " | ".join([f"held-out {held_out.split}", *(f"{row['setting']} {held_out.in_words(row)}" for row in rows)])


def _error_rate(row: dict[str, Any]) -> str:
    measure = measure_of(row)
    return f"{measure.name} {measure.of(row['wer']):.1%} {row['loss']:.1f} bits"


def _contrast(row: dict[str, Any]) -> str:
    return f"{row['loss_contrastive']:.2f} bits {row['accuracy']:.3f}"


def _distance(row: dict[str, Any]) -> str:
    return f"distance {row['distance']:.3f} cosine {row['cosine']:.3f}"


def _regression(row: dict[str, Any]) -> str:
    return f"loss {row['loss']:.3f}"


def mean_wer(rows: list[dict[str, Any]]) -> float:
    """What the best checkpoint is chosen by; infinite for rows of pre-training."""
    return sum(row.get("wer", math.inf) for row in rows) / len(rows)
