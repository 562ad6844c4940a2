"""What was said in a recording, as JSON, plain text and subtitles, on standard output or in files of their own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from sew_jax.buckets import make_folder
from sew_jax.compression import Compression
from sew_jax.decoding.greedy import Hypothesis
from sew_jax.errors import UserError
from sew_jax.files import FOLDER_HINT, write_whole, writing_to
from sew_jax.rates import FRAME_SECONDS
from sew_jax.transcription.recordings import Recording
from sew_jax.transcription.subtitles import srt, vtt

_SUBTITLES = {"srt": srt, "vtt": vtt}
FORMATS = ("jsonl", "text", *_SUBTITLES)


class TimedWord(NamedTuple):
    """A word, when it was said (seconds from the beginning), and how sure the model is of it (0 to 1)."""

    text: str
    begin: float
    end: float
    confidence: float


class Transcript(NamedTuple):
    """What was said in a recording, and at which setting it was transcribed."""

    recording: Recording
    setting: Compression
    nbest: tuple[Hypothesis, ...]

    @property
    def hypothesis(self) -> Hypothesis:
        """The best of `nbest`, which are sorted by their scores."""
        return self.nbest[0]

    @property
    def text(self) -> str:
        return self.hypothesis.text

    @property
    def seconds(self) -> float:
        """Of audio."""
        return self.recording.seconds

    @property
    def words(self) -> tuple[TimedWord, ...]:
        """A word's confidence is the geometric mean of its symbols' best frames."""
        return tuple(
            TimedWord(word.text, word.begin * FRAME_SECONDS, word.end * FRAME_SECONDS, word.confidence)
            for word in self.hypothesis.words
        )

    @property
    def confidence(self) -> float | None:
        """The mean of its words'; None where there are none."""
        words = self.hypothesis.words
        return sum(word.confidence for word in words) / len(words) if words else None

    def __repr__(self) -> str:
        return f"Transcript({self.text!r} of {self.recording.name} at {self.setting})"

    def as_json(self) -> str:
        """One line; times are seconds. Where several hypotheses were asked for, all stand there with their scores."""
        words = [
            {
                "word": word.text,
                "begin": round(word.begin, 2),
                "end": round(word.end, 2),
                "confidence": round(word.confidence, 4),
            }
            for word in self.words
        ]
        line = {
            "audio": self.recording.name,
            "seconds": round(self.seconds, 3),
            "text": self.text,
            "words": words,
            "setting": self.setting.name,
            "confidence": None if self.confidence is None else round(self.confidence, 4),
        }
        if len(self.nbest) > 1:
            line["nbest"] = [{"text": h.text, "score": round(h.score, 4)} for h in self.nbest]
        return json.dumps(line, ensure_ascii=False)


class TranscriptWriter:
    """Writes transcripts one after the other.

    Subtitles of several recordings are files in the workdir, and their paths are written in their stead.

    Args:
      form: one of FORMATS.
      recordings: all that are to come.
      alone: whether there is but one, whose name needs not be said.

    Raises:
      UserError: there is no such format, or two recordings would write the same file.
    """

    def __init__(self, form: str, recordings: Sequence[Recording], alone: bool, out: TextIO, workdir: Path):
        if form not in FORMATS:
            raise UserError(f"format: {form!r} is unknown; choose one of {', '.join(FORMATS)}")
        self._form, self._alone, self._out, self._workdir = form, alone, out, workdir
        if form not in _SUBTITLES or alone:
            return
        taken: dict[Path, Recording] = {}
        for recording in recordings:
            file = self._file(recording)
            other = taken.setdefault(file, recording)
            if other is not recording:
                raise UserError(
                    f"audio: {other.name} and {recording.name} would both be written to {file}; "
                    "name them in two runs with a workdir each"
                )

    def write(self, transcript: Transcript) -> None:
        """Writes the next one at once. Raises UserError where a file cannot be written."""
        recording, words = transcript.recording, transcript.hypothesis.words
        if self._form == "jsonl":
            text = transcript.as_json() + "\n"
        elif self._form == "text":
            text = f"{transcript.text}\n" if self._alone else f"{recording.name}\t{transcript.text}\n"
        else:
            text = _SUBTITLES[self._form](words)
            if not self._alone:
                file = self._file(recording)
                with writing_to(self._workdir, FOLDER_HINT):
                    make_folder(file.parent)
                    write_whole(file, text.encode())
                text = f"{file}\n"
        self._out.write(text)
        self._out.flush()

    def _file(self, recording: Recording) -> Path:
        return self._workdir / f"{recording.stem}.{self._form}"
