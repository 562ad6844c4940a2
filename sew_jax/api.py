"""sew_jax from Python: a model that transcribes and gives log-probabilities and hidden states, at any setting.

Audio is a path, the bytes of a file, an array, or an array with its rate as a pair, which is what `soundfile.read`
gives. Arrays are mono: integers of 16 bits, or floats of which 1 is full scale. What is wrong with an argument is a
UserError of one line. What a model says goes to standard error, since standard output belongs to the caller's program;
several threads may use one model. T frames (one each 20 ms; of the front end `fbank25` each 40), V symbols, D width.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, overload

import jax
import numpy as np

from sew_jax.compression import Compression
from sew_jax.console import say_on_stderr
from sew_jax.data.audio import AudioError
from sew_jax.data.labels import FrameLabels, Labels
from sew_jax.decoding.beam_options import BeamOptions, given_options
from sew_jax.decoding.decoders import Decoders
from sew_jax.decoding.engine_recognizer import default_dtype, on_engine
from sew_jax.decoding.frame_segments import FrameSegment, segments_of
from sew_jax.decoding.incremental import Decoder
from sew_jax.decoding.recognizer import Output, Recognizer, hidden_states, load_recognizer, log_probs, no_head
from sew_jax.engines.run_times import RUNTIMES, Engine
from sew_jax.errors import UserError
from sew_jax.evaluation.budget import chosen, chosen_setting, installed
from sew_jax.rates import SAMPLE_RATE
from sew_jax.runtime.sharding import batch_sharding, make_mesh, place_batch
from sew_jax.transcription.chunking import Chunking, bucket_grid, bucket_of, make_chunking
from sew_jax.transcription.given_audio import Audio, recording_of, wave_of
from sew_jax.transcription.transcriber import Transcriber, count_chunks
from sew_jax.transcription.transcripts import Transcript

# As in configs/transcribe.py: longer audio is transcribed in chunks of which two neighbours share so much
_CHUNK_SECONDS, _OVERLAP_SECONDS = 30.0, 4.0
_BATCH_SAMPLES = 60 * SAMPLE_RATE  # of a device; a CPU takes one chunk, since filler costs it as much as speech

_Kind = TypeVar("_Kind", Labels, FrameLabels)


def load(init_from: str | os.PathLike, *, dtype: str = "", runtime: str = "") -> "Model":
    """A trained model, on all devices of this process.

    Args:
      init_from: workdir of a run, or `hf:` and a folder of Hugging Face's (or a name on the hub). A run of fine-tuning
        gives its best checkpoint by word error rate where it has one, else its newest.
      dtype: of the computation: float32, bfloat16 or int8 (products of the layers alone, all else in bfloat16); empty
        keeps that of training.
      runtime: jax; or on a CPU, with log-probabilities alone, onnxruntime (float32, int8) or openvino (float32,
        bfloat16, int8). Empty: what a budget picks, else jax.

    Raises:
      UserError: there is no model, or its files do not fit each other.
    """
    if jax.process_count() > 1:
        raise UserError("load runs in one process; start it on one host")
    with say_on_stderr():
        in_jax = runtime in ("", "jax")
        recognizer = load_recognizer(os.fspath(init_from), dtype if in_jax else "", make_mesh(), need_text=False)
        if runtime:
            if runtime not in RUNTIMES:
                raise UserError(f"runtime: {runtime!r} is unknown; choose one of {', '.join(RUNTIMES)}")
            recognizer = on_engine(recognizer, Engine(runtime, dtype or default_dtype(recognizer, runtime)))
        return Model(recognizer, runtime, dtype)


class Model:
    """A trained model. Each setting and length of audio (in a few buckets) is compiled when first used, and kept."""

    def __init__(self, recognizer: Recognizer, runtime: str = "", dtype: str = ""):
        self._recognizer, self._runtime, self._dtype = recognizer, runtime, dtype
        self._by_engine = {recognizer.engine: recognizer}
        self._decoders = Decoders(recognizer.vocabulary)

    @property
    def name(self) -> str:
        """As it was loaded by."""
        return self._recognizer.name

    @property
    def engine(self) -> Engine:
        """What computes, where no budget picks another one."""
        return self._recognizer.engine

    @property
    def layers(self) -> int:
        """Of the transformer."""
        return self._recognizer.model.backbone.layers

    @property
    def settings(self) -> list[str]:
        """Names of the settings that it was trained at; the first is what is computed where none is named.

        Others can be named, too: they cost and err as they may.
        """
        return [setting.name for setting in self._recognizer.trained]

    def __repr__(self) -> str:
        return f"Model({self._recognizer.name}, {self._recognizer.state}: {' '.join(self.settings)})"

    @overload
    def transcribe(
        self,
        audio: Audio,
        *,
        rate: int = ...,
        setting: str | Compression = ...,
        budget: str | float = ...,
        tradeoff: str | os.PathLike = ...,
        lm: str | os.PathLike | BeamOptions = ...,
        hot_words: Sequence[str] = ...,
        nbest: int = ...,
    ) -> Transcript: ...
    @overload
    def transcribe(
        self,
        audio: list[Audio],
        *,
        rate: int = ...,
        setting: str | Compression = ...,
        budget: str | float = ...,
        tradeoff: str | os.PathLike = ...,
        lm: str | os.PathLike | BeamOptions = ...,
        hot_words: Sequence[str] = ...,
        nbest: int = ...,
    ) -> list[Transcript]: ...
    def transcribe(
        self,
        audio: Audio | list[Audio],
        *,
        rate: int = SAMPLE_RATE,
        setting: str | Compression = "",
        budget: str | float = "",
        tradeoff: str | os.PathLike = "",
        lm: str | os.PathLike | BeamOptions = "",
        hot_words: Sequence[str] = (),
        nbest: int = 1,
    ) -> Transcript | list[Transcript]:
        """What is said, with the time and confidence of each word; of a list, a transcript for each item.

        Long audio is computed in chunks of 30 s, as configs/transcribe.py does: memory does not grow with its length.

        Args:
          rate: in Hz, of arrays that come without one.
          setting: such as s2q1k1; empty: what the budget picks, or the first of training.
          budget: 0.5 (of the time of s1q1k1), rtf=0.05 (seconds for a second of audio) or wer=12%: picks the setting.
          tradeoff: workdir of an evaluation, which the budget picks from; empty: the model's own folder, or the one
            above.
          lm: an n-gram (ARPA or KenLM binary) for beam search, or all options of the search; empty: the best path.
          hot_words: words and phrases (or these joined by commas) that beam search favours; see `BeamOptions`.
          nbest: hypotheses of a transcript, found by beam search where there are several; see `Transcript.nbest`.

        Raises:
          UserError: the model has no CTC head, an argument makes no sense, or audio cannot be read.
        """
        recognizer, options = self._recognizer, given_options(lm, hot_words, nbest)
        items = audio if isinstance(audio, list) else [audio]
        recordings = [recording_of(item, rate, i) for i, item in enumerate(items)]
        with say_on_stderr():
            recognizer, compression = self._chosen(str(setting), str(budget), tradeoff)
            transcriber = self._transcriber(
                recognizer, compression, options, lambda chunking: count_chunks(recordings, chunking)
            )
            transcripts = []
            for recording, result in transcriber.transcribe(recordings):
                if isinstance(result, AudioError):
                    raise UserError(f"audio: {recording.name} {result}")
                if not isinstance(recording.data, str):
                    recording = recording._replace(data=b"")  # a transcript must not keep its audio in memory
                transcripts.append(Transcript(recording, compression, tuple(result)))
        return transcripts if isinstance(audio, list) else transcripts[0]

    def _chosen(self, setting: str, budget: str, tradeoff: str | os.PathLike) -> tuple[Recognizer, Compression]:
        """What computes, and at which setting."""
        mine = self._recognizer
        choice = chosen(
            setting,
            budget,
            tradeoff,
            mine.trained[0],
            init_from=mine.name,
            runtimes=installed(self._runtime),
            dtype=self._dtype,
        )
        engine = choice.engine or mine.engine
        if engine not in self._by_engine:
            self._by_engine[engine] = on_engine(mine, engine)
        return self._by_engine[engine], choice.setting

    def transcriber(self, setting: Compression, options: BeamOptions | None = None) -> Transcriber:
        """What transcribes audio of any length at one setting, compiled here: for those who batch it themselves.

        Raises:
          UserError: the model has no CTC head, or the setting or the options do not fit it.
        """
        return self._transcriber(self._recognizer, setting, options, lambda chunking: bucket_grid(chunking.length))

    def _transcriber(
        self,
        recognizer: Recognizer,
        setting: Compression,
        options: BeamOptions | None,
        buckets: Callable[[Chunking], Iterable[int]],
    ) -> Transcriber:
        if recognizer.vocabulary is None:
            raise no_head(recognizer.name, recognizer.no_text, recognizer.labels)
        backbone = recognizer.model.backbone
        chunking = make_chunking(_CHUNK_SECONDS, _OVERLAP_SECONDS, setting, backbone.layers, backbone.frame_samples)
        rows = {bucket: self._rows(bucket) for bucket in buckets(chunking)}
        nbest = options.nbest if options else 1
        return Transcriber(recognizer, setting, chunking, self.decoder(options), rows, nbest)

    def log_probs(self, wave: Audio, *, rate: int = SAMPLE_RATE, setting: str | Compression = "") -> np.ndarray:
        """Natural log-probability of each symbol at each frame: (T, V) float32, in the order of vocab.json.

        The audio is computed as a whole, so memory grows with its length.

        Args:
          rate: in Hz, of an array that comes without one.
          setting: empty: the first of training.

        Raises:
          UserError: the model has no CTC head, an argument makes no sense, or audio cannot be read.
        """
        if self._recognizer.vocabulary is None:
            raise no_head(self._recognizer.name, self._recognizer.no_text, self._recognizer.labels)
        return self._computed(log_probs, wave, rate, setting)

    def classify(self, audio: Audio, *, rate: int = SAMPLE_RATE, setting: str | Compression = "") -> dict[str, float]:
        """The probability of each label of a classifier, the most likely first.

        The audio is computed as a whole, so memory grows with its length.

        Args:
          rate: in Hz, of an array that comes without one.
          setting: empty: the first of training.

        Raises:
          UserError: the model is no classifier, an argument makes no sense, or audio cannot be read.
        """
        labels = self._labels(Labels, "classify")
        (log_prob_C,) = self._computed(log_probs, audio, rate, setting)
        probabilities = zip(labels.names, np.exp(log_prob_C).tolist(), strict=True)
        return dict(sorted(probabilities, key=lambda pair: -pair[1]))

    def label_frames(
        self, audio: Audio, *, rate: int = SAMPLE_RATE, setting: str | Compression = ""
    ) -> list[FrameSegment]:
        """The stretches of audio that a classifier of frames gives one label each, from the begin to the end.

        The audio is computed as a whole, so memory grows with its length.

        Args:
          rate: in Hz, of an array that comes without one.
          setting: empty: the first of training.

        Raises:
          UserError: the model labels no frames, an argument makes no sense, or audio cannot be read.
        """
        labels = self._labels(FrameLabels, "frames")
        return segments_of(self._computed(log_probs, audio, rate, setting), labels)

    def _labels(self, kind: type[_Kind], task: str) -> _Kind:
        labels = self._recognizer.labels
        if type(labels) is not kind:
            other = f"labels {labels.unit}s (ask {labels.method})" if labels else "gives no labels"
            raise UserError(
                f"init_from: {self.name} {other}; fine-tune it with --config.task={task} (docs/classification.md)"
            )
        return labels

    def features(
        self, wave: Audio, *, rate: int = SAMPLE_RATE, setting: str | Compression = "", layer: int | None = None
    ) -> np.ndarray:
        """Hidden states of each frame, (T, D) float32; also of a pre-training checkpoint, or of one without a head.

        The audio is computed as a whole, so memory grows with its length. Frame t begins at sample 320 t (640 t where
        the front end is `fbank25`).

        Args:
          rate: in Hz, of an array that comes without one.
          setting: empty: the first of training.
          layer: None: the backbone's output, which its heads read (final norm and up-sampler included). From 1 to the
            number of layers, or from -1, the last, backwards: what that transformer layer gives, before the final norm
            of pre-norm models and before the up-sampler. At squeeze S a layer has one state for S frames, which is
            given S times. Frames that a model with `tail="drop"` (SEW's) leaves out are 0.

        Raises:
          UserError: an argument makes no sense, or audio cannot be read.
        """
        layers = self._recognizer.model.backbone.layers
        if layer is None:
            return self._computed(hidden_states(None), wave, rate, setting)
        if not layer or layer not in range(-layers, layers + 1):
            raise UserError(
                f"layer: {layer!r} must be 1 to {layers}, -1 for the last, or None for the backbone's output"
            )
        return self._computed(hidden_states(int(layer) if layer > 0 else layers + 1 + int(layer)), wave, rate, setting)

    def _computed(self, output: Output, audio: Audio, rate: int, setting: str | Compression) -> np.ndarray:
        recognizer = self._recognizer
        wave = wave_of(audio, rate)
        compression = chosen_setting(str(setting), "", "", recognizer.trained[0])
        bucket, rows = bucket_of(len(wave), round(_CHUNK_SECONDS * SAMPLE_RATE)), recognizer.mesh.size
        with say_on_stderr():
            recognizer.compile(output, [compression], {bucket: rows}, "model", np.float32)
        wave_BxN, length_B = np.zeros((rows, bucket), np.float32), np.zeros(rows, np.int32)
        wave_BxN[0, : len(wave)], length_B[0] = wave, len(wave)
        batch = place_batch({"wave": wave_BxN, "length": length_B}, batch_sharding(recognizer.mesh))
        values, frames_B = jax.device_get(recognizer.run(output, compression, batch))
        return values[0, : frames_B[0]]

    def _rows(self, bucket: int) -> int:
        """Chunks of a batch, whatever there is to transcribe, so that each bucket has one program."""
        per_device = 1 if jax.default_backend() == "cpu" else max(_BATCH_SAMPLES // bucket, 1)
        return per_device * self._recognizer.mesh.size

    def decoder(self, options: BeamOptions | None) -> Decoder:
        """Beam search, or (None) the best path, of log-probabilities (T, V). The last few that were asked for are kept.

        Raises:
          UserError: a language model, lexicon or hot word cannot be used.
        """
        return self._decoders(options)
