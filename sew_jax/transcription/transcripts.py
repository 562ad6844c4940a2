"""What was said in a clip, as JSON, plain text and subtitles, on standard output or in files of their own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from sew_jax.compression import Compression
from sew_jax.decoding.greedy import Hypothesis
from sew_jax.errors import UserError
from sew_jax.files import write_whole, writing_to
from sew_jax.rates import FRAME_SECONDS
from sew_jax.transcription.recordings import Clip
from sew_jax.transcription.subtitles import srt, vtt

_SUBTITLES = {"srt": srt, "vtt": vtt}
FORMATS = ("jsonl", "text", *_SUBTITLES)


class Transcript(NamedTuple):
    """What was said in a clip, and at which setting it was heard."""

    clip: Clip
    setting: Compression
    hypothesis: Hypothesis

    def as_json(self) -> str:
        """One line; times are seconds, a transcript's confidence is the mean of its words' (null where there are none)."""
        words = [
            {
                "word": word.text,
                "begin": round(word.begin * FRAME_SECONDS, 2),
                "end": round(word.end * FRAME_SECONDS, 2),
                "confidence": round(word.confidence, 4),
            }
            for word in self.hypothesis.words
        ]
        confidences = [word.confidence for word in self.hypothesis.words]
        row = {
            "audio": self.clip.name,
            "seconds": round(self.clip.seconds, 3),
            "text": self.hypothesis.text,
            "words": words,
            "setting": self.setting.name,
            "confidence": round(sum(confidences) / len(confidences), 4) if confidences else None,
        }
        return json.dumps(row, ensure_ascii=False)


class TranscriptWriter:
    """Writes transcripts one after the other.

    Subtitles of several clips are files in the workdir, and their paths are written in their stead.

    Args:
      form: one of FORMATS.
      clips: all that are to come.
      alone: whether there is but one, whose name needs not be said.

    Raises:
      UserError: there is no such format, or two clips would write the same file.
    """

    def __init__(self, form: str, clips: Sequence[Clip], alone: bool, out: TextIO, workdir: Path):
        if form not in FORMATS:
            raise UserError(f"format: {form!r} is unknown; choose one of {', '.join(FORMATS)}")
        self._form, self._alone, self._out, self._workdir = form, alone, out, workdir
        if form not in _SUBTITLES or alone:
            return
        taken: dict[Path, Clip] = {}
        for clip in clips:
            other = taken.setdefault(self._file(clip), clip)
            if other is not clip:
                raise UserError(
                    f"audio: {other.name} and {clip.name} would both be written to {self._file(clip)}; name them in two runs with a workdir each"
                )

    def write(self, transcript: Transcript) -> None:
        """Writes the next one at once. Raises UserError where a file cannot be written."""
        clip, hypothesis = transcript.clip, transcript.hypothesis
        if self._form == "jsonl":
            text = transcript.as_json() + "\n"
        elif self._form == "text":
            text = f"{hypothesis.text}\n" if self._alone else f"{clip.name}\t{hypothesis.text}\n"
        else:
            text = _SUBTITLES[self._form](hypothesis.words)
            if not self._alone:
                file = self._file(clip)
                with writing_to(self._workdir, "mend that or name another --workdir"):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(file, text.encode())
                text = f"{file}\n"
        self._out.write(text)
        self._out.flush()

    def _file(self, clip: Clip) -> Path:
        return self._workdir / f"{clip.stem}.{self._form}"
