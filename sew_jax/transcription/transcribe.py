"""Audio to text with times, at one setting: results on standard output, everything else on standard error."""

import contextlib
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import jax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sew_jax.console import Progress, format_duration, say
from sew_jax.data.audio import AudioError
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.decoding.beam import Beam, chosen_options
from sew_jax.decoding.greedy import best_path
from sew_jax.decoding.incremental import Decoder
from sew_jax.decoding.recognizer import load_finetuned
from sew_jax.errors import UserError
from sew_jax.evaluation.budget import chosen_setting
from sew_jax.rates import SAMPLE_RATE
from sew_jax.runtime.sharding import make_mesh
from sew_jax.transcription.chunking import make_chunking
from sew_jax.transcription.recordings import Clip, find_clips
from sew_jax.transcription.transcriber import Listener
from sew_jax.transcription.transcripts import Transcript, TranscriptWriter

_SAY_EVERY = 10.0  # seconds


def transcribe(config: ConfigDict, workdir: Path) -> None:
    """Writes a transcript of each clip that `config.audio` names, in that order.

    Raises:
      UserError: config or checkpoint do not fit; or, after all others are done, some audio could not be used.
    """
    if jax.process_count() > 1:
        raise UserError("transcribe runs in one process; start it on one host")
    results = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        _transcribe(config, workdir, results)


def _transcribe(config: ConfigDict, workdir: Path, results: TextIO) -> None:
    begin = time.monotonic()
    say("sew_jax transcribe")
    clips, problems, alone = find_clips(config.audio)
    writer = TranscriptWriter(config.format, clips, alone, results, workdir)
    say(f"  audio     {len(clips)} files, {sum(clip.seconds for clip in clips) / 3600:.2f} h")
    for problem in problems:
        say(f"  ! {problem.id} {problem.reason}; it is left out")
    left_out = len(problems)
    if clips:
        listener = _listener(config, clips)
        telling = _Telling(clips)
        for clip, result in listener.hear(telling.heard):
            if isinstance(result, AudioError):
                say(f"  ! {clip.name} {result}; it is left out")
                left_out += 1
            else:
                writer.write(Transcript(clip, listener.setting, result))
            telling.files += 1
        say(f"done in {format_duration(time.monotonic() - begin)}: {telling.sum()}")
    if left_out:
        count = len(clips) + len(problems)
        raise UserError(
            f"audio: {left_out} of {count} could not be transcribed and are named above; mend them or leave them out"
        )


def _listener(config: ConfigDict, clips: Sequence[Clip]) -> Listener:
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    say(f"  devices   {mesh.size} x {jax.devices()[0].device_kind}")
    tuned = load_finetuned(config.init_from, config.dtype, NamedSharding(mesh, PartitionSpec()))
    setting = chosen_setting(config, tuned.trained[0])
    say(f"  setting   {setting}" + ("" if setting in tuned.trained else ", which the model was not trained at"))
    chunking = make_chunking(config.chunk_seconds, config.overlap_seconds, setting, tuned.model.backbone.layers)
    batch_samples = round(config.input.batch_seconds * SAMPLE_RATE)
    return Listener(tuned, setting, chunking, _decoder(config, tuned.vocabulary), clips, batch_samples, mesh)


def _decoder(config: ConfigDict, vocabulary: Vocabulary) -> Decoder:
    """What makes text of log-probabilities (T, V). Raises UserError where a language model or lexicon can't be used."""
    if options := chosen_options(config):
        beam = Beam(vocabulary, options)
        return lambda log_prob_TxV: beam(log_prob_TxV)[0]
    return functools.partial(best_path, vocabulary=vocabulary)


class _Telling:
    """Says now and then how far it is."""

    def __init__(self, clips: Sequence[Clip]):
        self.files, self._of = 0, len(clips)  # `files` are done
        self._heard, self._samples = 0, sum(clip.samples for clip in clips)
        self._progress, self._begin = Progress(self._samples), time.monotonic()
        self._next = self._begin + _SAY_EVERY

    def heard(self, samples: int) -> None:
        """Notes that so many samples are heard by now."""
        self._heard = samples
        self._progress.update(samples)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SAY_EVERY
            hours = f"{_hours(samples):.2f}/{_hours(self._samples):.2f} h of audio"
            pace = f"{self._progress.rate / SAMPLE_RATE:.0f} x real time"
            say(f"{self.files}/{self._of} files | {hours} | {pace} | eta {self._progress.left}")

    def sum(self) -> str:
        """All that was heard, and how fast."""
        pace = self._heard / SAMPLE_RATE / (time.monotonic() - self._begin)
        return f"{self.files} files, {_hours(self._heard):.2f} h of audio, {pace:.0f} x real time"


def _hours(samples: int) -> float:
    return samples / SAMPLE_RATE / 3600
