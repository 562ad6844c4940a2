"""Folders as Kaldi and ESPnet have them: wav.scp, and where they are there segments, text and utt2spk.

https://kaldi-asr.org/doc/data_prep.html
"""

import re
from collections.abc import Iterator, Sequence

from etils import epath

from sew_jax.data.manifests import Form, Row, working_folder
from sew_jax.data.text_files import decode_lines, is_text, split_id
from sew_jax.storage import exists

LIST = "wav.scp"
_CHANNELS = {"A": 0, "B": 1} | {str(channel): channel for channel in range(32)}


def is_kaldi(names: set[str]) -> bool:
    """Whether a folder that holds these names is one of Kaldi's."""
    return LIST in names


def _rows(folder: epath.Path, wanted: Sequence[str]) -> Iterator[Row]:
    del wanted
    folder = folder if folder.name != LIST else folder.parent
    texts, problems = _transcripts(folder / "text")
    speakers = _table(folder / "utt2spk")
    recordings: dict[str, Row] = {}
    for number, (name, rest) in _numbered(folder / LIST):
        if name and name in recordings:
            yield Row(f"{LIST}:{number}", problem=f"names recording {name} again")
            continue
        recordings[name] = Row(f"{LIST}:{number}", audio=rest, id=name, problem=_problem(name, rest))
    if exists(folder / "segments"):
        found = [_segment(number, line, recordings) for number, line in _numbered(folder / "segments")]
    else:
        found = list(recordings.values())
    for row in found:
        name = row.id or ""
        text = texts.pop(name, None)
        row = row._replace(text=text, speaker=speakers.get(name) or "", audio="" if row.problem else row.audio)
        yield row._replace(problem=row.problem or problems.get(name))
    for name in texts:
        yield Row("text", id=name, problem="has a transcript but no audio")


def _problem(name: str, rest: str) -> str | None:
    if not name or not rest:
        return "is not UTF-8" if not name else "has no file"
    if rest.endswith("|") or rest.startswith("|"):
        return f"is a command ({rest[:60]}), which is never run; write its output as a file and name that"
    if re.search(r"\.ark:\d+$", rest):
        return "lies in a Kaldi archive (.ark); write it as a file and name that"
    return None


def _segment(number: int, line: tuple[str, str], recordings: dict[str, Row]) -> Row:
    """A line `UTTERANCE RECORDING BEGIN END`, and a channel where it counts; an end of -1 is that of the recording."""
    name, rest = line
    where = f"segments:{number}"
    try:
        recording, begin, end, *channel = rest.split()[:4]
        first, last, side = float(begin), float(end), _CHANNELS[channel[0]] if channel else None
    except (ValueError, KeyError):
        return Row(where, id=name or None, problem="is not UTTERANCE RECORDING BEGIN END")
    if recording not in recordings:
        return Row(where, id=name, problem=f"is of recording {recording}, which {LIST} lacks")
    if last != -1 and not 0 <= first < last:
        return Row(where, id=name, problem=f"begins at {begin} s and ends at {end} s")
    return recordings[recording]._replace(
        where=where, id=name, offset=first, duration=None if last == -1 else last - first, channel=side
    )


def _transcripts(path: epath.Path) -> tuple[dict[str, str], dict[str, str]]:
    """Transcripts by their utterances, and what is wrong with those of some."""
    texts: dict[str, str] = {}
    problems: dict[str, str] = {}
    for line in decode_lines(path.read_bytes()) if exists(path) else ():
        name, text = split_id(line)
        if not is_text(text):
            problems[name] = "its transcript is not UTF-8"
        elif name and is_text(name) and texts.setdefault(name, text) != text:
            problems[name] = "has two transcripts"
    return texts, problems


def _table(path: epath.Path) -> dict[str, str | None]:
    return dict(line for _, line in _numbered(path) if line[0]) if exists(path) else {}


def _numbered(path: epath.Path) -> Iterator[tuple[int, tuple[str, str]]]:
    """(number, (id, rest)) of each line that is not empty; the id of what is no text is empty."""
    for number, line in enumerate(decode_lines(path.read_bytes()), 1):
        if line.strip():
            yield number, split_id(line) if is_text(line) else ("", "")


def _places(folder: epath.Path) -> list[epath.Path]:
    folder = folder if folder.name != LIST else folder.parent
    return [folder, working_folder()]


KALDI = Form(lambda folder: ["train"], _rows, _places, "RECORDING PATH in wav.scp")
