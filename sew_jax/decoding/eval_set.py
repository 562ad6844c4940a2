"""Splits to evaluate on: utterances with references, in batches that wait on the devices."""

import json
import time
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sew_jax.compression import Compression
from sew_jax.console import say
from sew_jax.data.batch_plan import BatchPlan, choose_buckets, rows_per_bucket
from sew_jax.data.labels import Labels, check_labels
from sew_jax.data.normalize_text import show
from sew_jax.data.pipeline import Batches, read_ahead
from sew_jax.data.problems import Problem, check_damaged
from sew_jax.data.sources import Source, open_source
from sew_jax.data.transcripts import text_notes
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.decoding.recognizer import Output, Recognizer
from sew_jax.models.config import BackboneConfig
from sew_jax.models.frontend import frame_count
from sew_jax.rates import SAMPLE_RATE
from sew_jax.runtime.agreement import check_same
from sew_jax.runtime.distributed import on_host, texts_of_all, whole
from sew_jax.runtime.sharding import batch_sharding, place_batch, share_of


class EvalSet:
    """The usable utterances of a split, ordered by id.

    Attributes:
      split: its name.
      ids, references: (U,) of the utterances; references are as errors are counted on them.
      samples: (U,) their lengths at 16 kHz.
      batches: bucket, placed arrays and the (row, utterance) pairs that are no filler, of each batch.
    """

    def __init__(
        self,
        split: str,
        source: Source,
        rows: dict[int, int],
        mesh: Mesh,
        config: ConfigDict,
        told: Callable[[str, int], str],
    ):
        """Reads all audio, of which each process of a job has a share.

        `rows` is bucket length -> utterances of a batch, `told` makes a reference of a text and its samples.

        Raises:
          UserError: more than `config.input.max_bad` utterances cannot be decoded, or processes list others.
        """
        check_same({f"data of {source.name}": [len(source), source.fingerprint()]})
        plan = BatchPlan(source.samples, rows, seed=0, shuffle=False)
        sharding = batch_sharding(mesh)
        batches = Batches(
            source, plan, seed=0, vocabulary=None, start=0, stop=plan.batches_per_epoch, share=share_of(sharding)
        )
        with read_ahead(batches, workers=config.input.workers, threads=config.input.threads) as data:
            loaded = list(data)
        _report_damaged(_of_all([p for batch in loaded for p in batch.problems]), config, len(source))
        placed = [place_batch({name: batch.arrays[name] for name in ("wave", "length")}, sharding) for batch in loaded]
        members = [
            [
                (row, int(u))
                for row, (u, length) in enumerate(
                    zip(plan[batch.number].utterances, whole(arrays["length"]), strict=True)
                )
                if u >= 0 and length > 0
            ]
            for batch, arrays in zip(loaded, placed, strict=True)
        ]
        order = sorted((u for pairs in members for _, u in pairs), key=source.id)
        place = {u: i for i, u in enumerate(order)}
        self.split = split
        self.ids = [source.id(u) for u in order]
        self.references = [told(source.text(u) or "", int(source.samples[u])) for u in order]
        self.samples = source.samples[order]
        self.batches = [
            (batch.bucket, arrays, [(row, place[u]) for row, u in pairs])
            for batch, arrays, pairs in zip(loaded, placed, members, strict=True)
        ]

    @property
    def seconds(self) -> float:
        """Of audio."""
        return float(self.samples.sum()) / SAMPLE_RATE

    def run(self, recognizer: Recognizer, output: Output, setting: Compression) -> tuple[list[np.ndarray], float]:
        """An output of a recognizer at a setting: (U,) arrays (frames, ...) on the host, and the seconds that took."""
        outputs, spent = [np.empty(0)] * len(self.ids), 0.0
        for _, arrays, members in self.batches:
            start = time.perf_counter()
            frames, length = on_host(recognizer.run(output, setting, arrays))
            spent += time.perf_counter() - start
            for row, utterance in members:
                outputs[utterance] = frames[row, : length[row]]
        return outputs, spent


def open_eval_sets(config: ConfigDict, splits: Sequence[str], recognizer: Recognizer) -> list[EvalSet]:
    """A set for each split of `config.data`, all padded to the same few bucket lengths. An empty name is all there is.

    Raises:
      UserError: a split does not exist, or too much of it cannot be used, or it has a label that the model lacks.
    """
    symbols, mesh = recognizer.labels or recognizer.vocabulary, recognizer.mesh
    assert symbols
    told = told_by(symbols, recognizer.model.backbone)
    options = {"min_samples": 1, "need_text": True, "max_bad": config.input.max_bad, "target": target_of(symbols)}
    sources = [open_source(config.data, split, **options) for split in splits]
    buckets = choose_buckets(np.concatenate([source.samples for source, _ in sources]), config.input.buckets)
    rows = rows_to_measure([source for source, _ in sources], buckets, config.input.batch_seconds, mesh.size)
    for source, problems in sources:
        say(f"  data      {source.name}: {len(source)} utterances, {source.samples.sum() / SAMPLE_RATE / 3600:.2f} h")
        _report_damaged(problems, config, len(source) + len(problems))
        if isinstance(symbols, Labels):
            check_labels(symbols, source)
        else:
            _report_texts(source, symbols)
    if isinstance(symbols, Vocabulary):
        say(f"  text      text_normalizer={symbols.normalizer}, of references and hypotheses")
    say(f"  buckets   {', '.join(f'{b / SAMPLE_RATE:.1f} s x {n}' for b, n in rows.items())}")
    return [
        EvalSet(split, source, rows, mesh, config, told) for split, (source, _) in zip(splits, sources, strict=True)
    ]


def target_of(symbols: Vocabulary | Labels | None) -> str:
    """What of a source these spell."""
    return symbols.target if isinstance(symbols, Labels) else "text"


def told_by(symbols: Vocabulary | Labels, backbone: BackboneConfig) -> Callable[[str, int], str]:
    """What makes a reference, as it is compared, of a source's text and the utterance's samples."""
    if isinstance(symbols, Labels):
        return lambda text, samples: symbols.decode(symbols.read(text, max(int(frame_count(backbone, samples)), 0)))
    return lambda text, samples: symbols.normalize(text)


def rows_to_measure(
    sources: Sequence[Source], buckets: Sequence[int], batch_seconds: float, multiple: int
) -> dict[int, int]:
    """Bucket length -> rows of a batch, as `rows_per_bucket` says, and no more than the utterances of a source fill."""
    bounds, fullest = np.sort(buckets), np.zeros(len(buckets), int)
    for source in sources:
        fullest = np.maximum(fullest, np.bincount(np.searchsorted(bounds, source.samples), minlength=len(bounds)))
    rows = rows_per_bucket(bounds.tolist(), round(batch_seconds * SAMPLE_RATE), multiple)
    return {
        bucket: min(count, max(-(-int(most) // multiple), 1) * multiple)
        for (bucket, count), most in zip(rows.items(), fullest, strict=True)
    }


def compile_for(
    recognizer: Recognizer, output: Output, sets: Sequence[EvalSet], settings: Sequence[Compression], what: str
) -> None:
    """Compiles the programs of an output that sets need at settings, those that are not there yet."""
    rows = {bucket: len(arrays["length"]) for part in sets for bucket, arrays, _ in part.batches}
    recognizer.compile(output, settings, rows, what)


def _of_all(problems: Sequence[Problem]) -> list[Problem]:
    """Those that any process of the job has met."""
    return [Problem(*problem) for text in texts_of_all(json.dumps(problems)) for problem in json.loads(text)]


def _report_damaged(problems: Sequence[Problem], config: ConfigDict, utterances: int) -> None:
    for problem in problems[:5]:
        say(f"  ! {problem.id} {problem.reason}; it is left out")
    check_damaged(problems, config.data, config.input.max_bad, utterances)


def _report_texts(source: Source, vocabulary: Vocabulary) -> None:
    for note in text_notes(vocabulary, source, empty="what is written there counts as insertions"):
        say(note)
    texts = ((source.id(i), source.text(i) or "") for i in range(len(source)))
    unknown = [(name, bad) for name, text in texts if (bad := vocabulary.unknown(text))]
    if unknown:
        name, bad = unknown[0]
        say(
            f"  ! {len(unknown)} of {len(source)} references hold characters that the vocabulary lacks (first {name}: "
            f"{' '.join(map(show, sorted(bad)))}); they count as errors"
        )
