"""Audio to text with times, at one setting: results on standard output, everything else on standard error."""

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import jax
from ml_collections import ConfigDict

from sew_jax.checkpoints.pretrained import open_pretrained
from sew_jax.console import Progress, format_duration, say
from sew_jax.data.audio import AudioError
from sew_jax.decoding.beam_options import chosen_options
from sew_jax.decoding.engine_recognizer import on_engine
from sew_jax.decoding.incremental import make_decoder
from sew_jax.decoding.recognizer import load_recognizer
from sew_jax.errors import UserError
from sew_jax.evaluation.budget import chosen, engine_for, installed
from sew_jax.rates import SAMPLE_RATE
from sew_jax.runtime.sharding import make_mesh
from sew_jax.transcription.chunking import make_chunking
from sew_jax.transcription.recordings import Recording, find_recordings
from sew_jax.transcription.transcriber import Transcriber, count_chunks, rows_for
from sew_jax.transcription.transcripts import Transcript, TranscriptWriter

_SAY_EVERY = 10.0  # seconds


def transcribe(config: ConfigDict, workdir: Path) -> None:
    """Writes a transcript of each recording that `config.audio` names, in that order.

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
    open_pretrained(config.init_from)  # what is wrong with it is said before audio is looked for
    recordings, problems, alone = find_recordings(config.audio)
    writer = TranscriptWriter(config.format, recordings, alone, results, workdir)
    say(f"  audio     {len(recordings)} files, {sum(r.seconds for r in recordings) / 3600:.2f} h")
    for problem in problems:
        say(f"  ! {problem.id} {problem.reason}; it is left out")
    left_out = len(problems)
    if recordings:
        transcriber = _transcriber(config, recordings)
        status = _Status(recordings)
        for recording, result in transcriber.transcribe(recordings, status.update):
            if isinstance(result, AudioError):
                say(f"  ! {recording.name} {result}; it is left out")
                left_out += 1
            else:
                writer.write(Transcript(recording, transcriber.setting, tuple(result)))
            status.files += 1
        say(f"done in {format_duration(time.monotonic() - begin)}: {status.total()}")
    if left_out:
        count = len(recordings) + len(problems)
        raise UserError(
            f"audio: {left_out} of {count} could not be transcribed and are named above; mend them or leave them out"
        )


def _transcriber(config: ConfigDict, recordings: Sequence[Recording]) -> Transcriber:
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    say(f"  devices   {mesh.size} x {jax.devices()[0].device_kind}")
    recognizer = load_recognizer(config.init_from, config.dtype if config.runtime in ("", "jax") else "", mesh)
    choice = chosen(
        config.setting,
        config.budget,
        config.tradeoff,
        recognizer.trained[0],
        init_from=config.init_from,
        runtimes=installed(config.runtime),
        dtype=config.dtype,
    )
    setting = choice.setting
    recognizer = on_engine(recognizer, engine_for(recognizer, choice, config.runtime, config.dtype))
    say(f"  setting   {setting}" + ("" if setting in recognizer.trained else ", which the model was not trained at"))
    backbone = recognizer.model.backbone
    chunking = make_chunking(
        config.chunk_seconds, config.overlap_seconds, setting, backbone.layers, backbone.frame_samples
    )
    batch_samples = round(config.input.batch_seconds * SAMPLE_RATE)
    rows = rows_for(count_chunks(recordings, chunking), batch_samples, mesh.size)
    decode = make_decoder(recognizer.vocabulary, chosen_options(config))
    return Transcriber(recognizer, setting, chunking, decode, rows, config.nbest)


class _Status:
    """Says now and then how far it is."""

    def __init__(self, recordings: Sequence[Recording]):
        self.files, self._of = 0, len(recordings)  # `files` are done
        self._done, self._samples = 0, sum(recording.samples for recording in recordings)
        self._progress, self._begin = Progress(self._samples), time.monotonic()
        self._next = self._begin + _SAY_EVERY

    def update(self, samples: int) -> None:
        """Notes that so many samples are done by now."""
        self._done = samples
        self._progress.update(samples)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SAY_EVERY
            hours = f"{_hours(samples):.2f}/{_hours(self._samples):.2f} h of audio"
            pace = f"{self._progress.rate / SAMPLE_RATE:.0f} x real time"
            say(f"{self.files}/{self._of} files | {hours} | {pace} | eta {self._progress.left}")

    def total(self) -> str:
        """All that was transcribed, and how fast."""
        pace = self._done / SAMPLE_RATE / (time.monotonic() - self._begin)
        return f"{self.files} files, {_hours(self._done):.2f} h of audio, {pace:.0f} x real time"


def _hours(samples: int) -> float:
    return samples / SAMPLE_RATE / 3600
