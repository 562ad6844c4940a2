"""A transcript in the forms that OpenAI's clients read."""

import json
import math
from typing import Any

from sew_jax.decoding.greedy import Word
from sew_jax.serving.requests import Wanted
from sew_jax.transcription.subtitles import cues, srt, vtt
from sew_jax.transcription.transcripts import Transcript

_JSON = "application/json"


def response(transcript: Transcript, wanted: Wanted) -> tuple[str, str]:
    """(text, media type)."""
    words = transcript.hypothesis.words
    if wanted.form == "text":
        return transcript.text + "\n", "text/plain; charset=utf-8"
    if wanted.form == "srt":
        return srt(words), "application/x-subrip; charset=utf-8"
    if wanted.form == "vtt":
        return vtt(words), "text/vtt; charset=utf-8"
    usage = {"type": "duration", "seconds": math.ceil(transcript.seconds)}
    body: dict[str, Any] = {"text": transcript.text, "usage": usage, "setting": transcript.setting.name}
    if wanted.search and wanted.search.nbest > 1:
        body["nbest"] = scored(transcript)
    if wanted.form == "verbose_json":
        body |= {"task": "transcribe", "duration": round(transcript.seconds, 3)}
        body["language"] = wanted.language or "unknown"
        if "segment" in wanted.granularities:
            body["segments"] = _segments(words)
        if "word" in wanted.granularities:
            body["words"] = word_times(transcript)
    return json.dumps(body, ensure_ascii=False), _JSON


def word_times(transcript: Transcript) -> list[dict[str, Any]]:
    """Words with their times in seconds, and how sure the model is of each."""
    return [
        {
            "word": word.text,
            "start": round(word.begin, 2),
            "end": round(word.end, 2),
            "confidence": round(word.confidence, 4),
        }
        for word in transcript.words
    ]


def scored(transcript: Transcript) -> list[dict[str, Any]]:
    """The best few readings, as `transcribe` writes them."""
    return [{"text": said.text, "score": round(said.score, 4)} for said in transcript.nbest]


def _segments(words: tuple[Word, ...]) -> list[dict[str, Any]]:
    """As subtitles are cut: at pauses, and where more could not be read. `id` counts from 0."""
    return [
        {"id": i, "start": cue.begin / 1000, "end": cue.end / 1000, "text": cue.text}
        for i, cue in enumerate(cues(words))
    ]
