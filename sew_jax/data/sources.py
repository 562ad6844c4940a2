"""Where utterances come from, behind one interface: a folder in LibriSpeech's layout, or a JSON-lines manifest.

A source knows all lengths ahead, so that batches can be planned without opening audio again.
"""

import concurrent.futures
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from sew_jax.data import audio
from sew_jax.data.audio import SAMPLE_RATE, AudioError
from sew_jax.errors import UserError
from sew_jax.progress import say


class Source(Protocol):
    """Random access to utterances whose lengths are known."""

    name: str
    samples: np.ndarray  # (utterances,) int64, at 16 kHz

    def __len__(self) -> int: ...
    def id(self, i: int) -> str: ...
    def text(self, i: int) -> str: ...
    def audio(self, i: int) -> np.ndarray: ...


class Problem(NamedTuple):
    """An utterance that was left out, and why."""

    id: str
    reason: str


class _Entry(NamedTuple):
    id: str
    path: Path
    text: str | None
    samples: int | None  # None: not known yet


class FileSource:
    """Utterances in files of their own."""

    def __init__(self, name: str, entries: list[_Entry]):
        self.name, self._entries = name, entries
        self.samples = np.array([entry.samples for entry in entries], np.int64)

    def __len__(self) -> int:
        return len(self._entries)

    def id(self, i: int) -> str:
        return self._entries[i].id

    def text(self, i: int) -> str:
        return self._entries[i].text or ""

    def audio(self, i: int) -> np.ndarray:
        """float32 (samples,). Raises AudioError."""
        return audio.read(self._entries[i].path)


def open_source(
    data: str, split: str, *, min_samples: int, need_text: bool, max_bad: int
) -> tuple[FileSource, list[Problem]]:
    """The utterances of `split` in `data`, and those left out.

    Args:
      data: `demo`, the folder of a corpus in LibriSpeech's layout, or the path of a JSON-lines manifest (`audio` or
        `audio_filepath`, `text`, optional `id`, `duration` in seconds and `split`); several are joined by commas.
      split: name of a split; several are joined by commas. Empty: all that `data` holds.
      min_samples: shorter utterances are left out.
      need_text: whether an utterance without a transcript is a problem.
      max_bad: how many damaged utterances may be left out. Short ones do not count.

    Raises:
      UserError: a path or split does not exist, holds no usable utterance, or holds too many damaged ones.
    """
    entries: list[_Entry] = []
    problems: list[Problem] = []
    roots = [part.strip() for part in data.split(",") if part.strip()]
    if not roots:
        raise UserError("data is empty; set --config.data to a folder, a manifest, or demo")
    for root in roots:
        if root == "demo":
            from sew_jax.data.demo_corpus import ensure_demo_corpus  # here: recorded speech needs no synthesiser

            found = _librispeech_folder(ensure_demo_corpus(), split, problems)
        elif Path(root).is_dir():
            found = _librispeech_folder(Path(root), split, problems)
        elif Path(root).is_file():
            found = _manifest(Path(root), split, problems)
        else:
            raise UserError(f"data: {root} does not exist; set --config.data to a folder, a manifest, or demo")
        entries += found
    entries = _measure(entries, problems)
    damaged = len(problems)
    entries = _leave_out(entries, problems, _short(min_samples))
    if need_text:
        missing = [e for e in entries if not (e.text and e.text.strip())]
        if len(missing) == len(entries) and entries:
            raise UserError(
                f"data: {data} has no transcripts in split {split or '(all)'}; fine-tuning and evaluation need them"
            )
        damaged += len(missing)
        entries = _leave_out(entries, problems, lambda e: None if e.text and e.text.strip() else "has no transcript")
    if damaged > max_bad:
        listed = "; ".join(f"{p.id} {p.reason}" for p in problems[:3])
        raise UserError(
            f"data: {damaged} utterances of {data} are damaged (first: {listed}); mend or remove them, or raise --config.input.max_bad={max_bad}"
        )
    if not entries:
        why = (
            f"; all {len(problems)} were left out, the first: {problems[0].id} {problems[0].reason}" if problems else ""
        )
        raise UserError(f"data: {data} has no usable audio in split {split or '(all)'}{why}")
    names = [e.id for e in entries]
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(n for n in names if n in seen or seen.add(n))
        raise UserError(f"data: utterance id {twice} occurs twice in {data}; ids must be unique")
    return FileSource(f"{data}:{split}" if split else data, entries), problems


def _librispeech_folder(root: Path, split: str, problems: list[Problem]) -> list[_Entry]:
    """`SPLIT/SPEAKER/CHAPTER/ID.flac` with `SPEAKER-CHAPTER.trans.txt`; without transcripts, audio of any depth."""
    folders = [root / part.strip() for part in split.split(",") if part.strip()] or [root]
    entries = []
    for folder in folders:
        if not folder.is_dir():
            splits = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "none"
            raise UserError(f"data: {root} has no split {folder.name}; it has: {splits}; set --config.split")
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in audio.EXTENSIONS and p.is_file())
        if not paths:
            kinds = " ".join(sorted(audio.EXTENSIONS))
            raise UserError(f"data: {folder} holds no audio files ({kinds}); is it in LibriSpeech's layout?")
        texts: dict[tuple[Path, str], str] = {}
        for transcript in sorted({p.parent for p in paths}):
            for path in sorted(transcript.glob("*.trans.txt")):
                texts |= _transcripts(path, problems)
        entries += [_Entry(p.stem, p, texts.get((p.parent, p.stem)), None) for p in paths]
    return entries


def _transcripts(path: Path, problems: list[Problem]) -> dict[tuple[Path, str], str]:
    texts = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            name, _, text = line.decode("utf-8").strip().partition(" ")
        except UnicodeDecodeError:
            problems.append(Problem(f"{path.name}:{number}", "is not UTF-8"))
            continue
        if name:
            texts[path.parent, name] = text.strip()
    return texts


def _manifest(path: Path, split: str, problems: list[Problem]) -> list[_Entry]:
    wanted = {part.strip() for part in split.split(",") if part.strip()}
    entries = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            file = Path(row.get("audio") or row["audio_filepath"])
            duration = row.get("duration")
            samples = None if duration is None else round(float(duration) * SAMPLE_RATE)
        except (ValueError, KeyError, AttributeError, TypeError):
            problems.append(Problem(f"{path.name}:{number}", 'is not a JSON object with "audio"'))
            continue
        if wanted and row.get("split", split) not in wanted:
            continue
        entries.append(_Entry(str(row.get("id", file.stem)), path.parent / file, row.get("text"), samples))
    if not entries:
        raise UserError(
            f'data: {path} has no line of the form {{"audio": PATH, "text": WORDS}} for split {split or "(all)"}'
        )
    return entries


def _measure(entries: list[_Entry], problems: list[Problem]) -> list[_Entry]:
    """Fills in lengths from the files' headers, many at a time."""
    unknown = sum(e.samples is None for e in entries)
    if unknown > 20_000:
        say(f"reading the lengths of {unknown} files (a manifest with durations saves this)")

    def measure(entry: _Entry) -> _Entry | Problem:
        try:
            if entry.samples is not None and entry.path.is_file():
                return entry
            return entry._replace(samples=audio.probe(entry.path))
        except AudioError as error:
            return Problem(entry.id, str(error))

    with concurrent.futures.ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        measured = list(pool.map(measure, entries, chunksize=64))
    problems += [p for p in measured if isinstance(p, Problem)]
    return [e for e in measured if isinstance(e, _Entry)]


def _short(min_samples: int):
    def reason(entry: _Entry) -> str | None:
        if entry.samples >= min_samples:
            return None
        return f"is {entry.samples / SAMPLE_RATE:.2f} s long, shorter than the {min_samples / SAMPLE_RATE:.2f} s that training needs"

    return reason


def _leave_out(entries: Iterable[_Entry], problems: list[Problem], reason) -> list[_Entry]:
    kept = []
    for entry in entries:
        if why := reason(entry):
            problems.append(Problem(entry.id, why))
        else:
            kept.append(entry)
    return kept
