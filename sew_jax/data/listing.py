"""What a folder of audio holds, before any of it is opened: one entry for each utterance, its faults named."""

import os
import re
import time
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etils import epath

from sew_jax.buckets import is_remote
from sew_jax.console import say
from sew_jax.data import text_files
from sew_jax.data.audio_names import audio_kinds, is_left_behind
from sew_jax.data.entries import Entry, in_threads, is_audio_file
from sew_jax.data.manifests import printable
from sew_jax.data.text_files import split_id
from sew_jax.errors import UserError
from sew_jax.files import is_below
from sew_jax.names import split_names
from sew_jax.storage import exists, is_folder, names_in, patient, raise_if_away

_SILENCE = 10.0  # seconds after which a listing says how far it is
_LIST = ".trans.txt"
_NORMALIZED = ".normalized.txt"  # LibriTTS's
_OTHER_TEXTS = (".normalized", ".original", ".trans")
_MANIFESTS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv")
# Of all audio below, as MLS has it: lines `ID WORDS`
_ABOVE = "prompts text trans transcript transcription transcriptions transcripts"
_LISTS_ABOVE = frozenset(_ABOVE.split())
_READ_ME = "authors books chapters citation copying licence license notes readme speakers"
_NO_TEXTS = frozenset(_READ_ME.split())


class _Text(NamedTuple):
    """A file of transcripts, which entries it serves, and whether it lists them by their names."""

    path: str
    serves: Sequence[int]
    is_list: bool


def list_folder(root: epath.Path, split: str) -> list[Entry]:
    """Audio of any depth under the folders that `split` names (joined by commas; empty: all of `root`).

    A folder without folders in it has one split, `train`.

    Transcripts stand in LibriSpeech's `*.trans.txt` (lines `ID WORDS`), whose ids are file names without suffix, or in
    a `.txt` beside each file, whose id is its path under `root`, or in a list above it, such as `transcripts.txt`.
    Links may not lead out of `root`.

    Raises:
      UserError: there is no such split, or it holds no audio.
    """
    entries = []
    for folder in [root / name for name in split_names(split)] or [root]:
        if not is_folder(folder):
            has = folders_of(root) or ["train"]
            if folder.name not in has:
                raise UserError(
                    f"data: {root} has no split {folder.name}; it has: {', '.join(has)}; "
                    "set --config.split (empty: all)"
                )
            folder = root
        found = list_below(root, folder)
        if not found:
            instead = manifest_hint(folder) or "; is it in LibriSpeech's layout?"
            raise UserError(f"data: {folder} holds no audio files ({audio_kinds()}){instead}")
        entries += found
    return entries


def folders_of(root: epath.Path) -> list[str]:
    """Names of the folders in a folder."""
    names = (name for name in names_in(root) if is_folder(root / name))
    return sorted(name for name in names if not name.startswith(".") and not is_left_behind(name))


def manifest_hint(folder: epath.Path) -> str:
    """What to name instead of a folder without audio or transcripts; nothing where it holds no manifest."""
    lists = [name for name in names_in(folder) if name.endswith(_MANIFESTS)] if is_folder(folder) else []
    return f"; name one of its manifests, such as {folder / lists[0]}" if lists else ""


def list_below(root: epath.Path, top: epath.Path) -> list[Entry]:
    """Audio of any depth under a folder and its transcripts, as `list_folder` finds them; none where there is none."""
    entries: list[Entry] = []
    texts: list[_Text] = []
    lone_texts: list[str] = []
    for folder, dirs, files in _walk(top):
        names = sorted(name for name in files if is_audio_file(f"{folder}/{name}"))
        entries += _links_to_folders(root, folder, dirs | files.difference(names))
        lists = sorted(name for name in files if name.lower().endswith(_LIST))
        beside = {} if lists else _texts_by_stem(files)
        first = len(entries)
        for name in names:
            stem = os.path.splitext(name)[0]
            problem = _name_problem(root, f"{folder}/{name}")
            known_as = stem if lists else os.path.splitext(_relative(root, folder, name))[0]
            entries.append(Entry(printable(known_as), f"{folder}/{name}", problem=problem))
            if served := beside.keys() & {_form(stem), _form(name)}:
                texts.append(_Text(f"{folder}/{beside[min(served)]}", [len(entries) - 1], is_list=False))
        texts += [_Text(f"{folder}/{name}", range(first, len(entries)), is_list=True) for name in lists]
        lone = beside.keys() - {_form(one) for name in names for one in (name, os.path.splitext(name)[0])}
        lone_texts += [f"{folder}/{beside[stem]}" for stem in lone if stem.lower() not in _NO_TEXTS]
    below = [_Text(path, serves, True) for path in lone_texts if (serves := _served_below(root, entries, path))]
    if entries and (lone_texts := sorted({*lone_texts}.difference(text.path for text in below))):
        such = printable(lone_texts[0][len(os.fspath(root)) :].lstrip("/"))
        say(f"  ! texts without audio beside them: {len(lone_texts)}, such as {such}")
    return entries + _read_texts(root, entries, [*below, *texts])


def _served_below(root: epath.Path, entries: list[Entry], path: str) -> list[int]:
    """Which entries a list of transcripts serves that lies above their audio; none where it does not list the half."""
    folder, name = os.path.split(path)
    if os.path.splitext(name)[0].lower() not in _LISTS_ABOVE or _name_problem(root, path):
        return []
    serves = [i for i, entry in enumerate(entries) if entry.path.startswith(f"{folder}/")]
    lines = text_files.decode_lines(_read(path))
    names = {_form(printable(name)) for name, _ in map(split_id, lines) if name}
    return serves if 2 * len(names & _names_of(entries, serves).keys()) >= max(len(names), 1) else []


def _names_of(entries: list[Entry], serves: Sequence[int]) -> dict[str, int]:
    """Entries by what a list may call them: id, file, and file without its suffix."""
    named: dict[str, int] = {}
    for i in serves:
        file = os.path.basename(entries[i].path)
        named |= {_form(name): i for name in (os.path.splitext(file)[0], file, entries[i].id)}
    return named


def _links_to_folders(root: epath.Path, folder: str, names: Iterable[str]) -> list[Entry]:
    """Links to folders count as files from Python 3.12 on."""
    if is_remote(folder):
        return []
    problem = "is a link to a folder, which is not followed; give that folder as data of its own"
    return [
        Entry(printable(_relative(root, folder, name)), f"{folder}/{name}", problem=problem)
        for name in sorted(names)
        if os.path.islink(f"{folder}/{name}") and is_folder(f"{folder}/{name}")
    ]


def _texts_by_stem(files: Iterable[str]) -> dict[str, str]:
    """Transcripts by the name of the audio that they stand beside, in one form, with its suffix or without."""
    found = {}
    for name in sorted(files):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() == ".txt" and not stem.lower().endswith(_OTHER_TEXTS):
            found[_form(stem)] = name
    for name in files:
        if name.lower().endswith(_NORMALIZED):
            found.setdefault(_form(name[: -len(_NORMALIZED)]), name)
    return found


def _form(name: str) -> str:
    """A name in one form of Unicode: a Mac writes letters and their marks apart, other systems as one."""
    return unicodedata.normalize("NFC", name)


def _read_texts(root: epath.Path, entries: list[Entry], texts: list[_Text]) -> list[Entry]:
    """Gives entries their texts; returns lines of lists without audio."""
    linked = {text.path: problem for text in texts if (problem := _name_problem(root, text.path))}
    contents = in_threads(lambda text: b"" if text.path in linked else _read(text.path), texts, "reading transcripts")
    lone = []
    for (path, serves, is_list), content in zip(texts, contents, strict=True):
        if path in linked:
            for i in serves:
                entries[i] = entries[i]._replace(problem=entries[i].problem or f"its transcript {linked[path]}")
        elif is_list:
            lone += _serve_list(entries, serves, path, content)
        else:
            (i,) = serves
            try:
                text, problem = _without_samples(" ".join(text_files.decode(content).split()), path), None
            except text_files.TextError as error:
                text, problem = None, f"its transcript {error}"
            entries[i] = entries[i]._replace(text=text, problem=entries[i].problem or problem)
    return lone


@patient
def _read(path: str) -> bytes:
    return epath.Path(path).read_bytes()


def _without_samples(text: str, path: str) -> str:
    """A text of TIMIT's without the first and last sample before it; its words' and phonemes' times lie beside it."""
    if not re.match(r"\d+ \d+ ", text) or is_remote(path):
        return text
    stem = os.path.splitext(path)[0]
    is_timit = any(exists(stem + suffix) for suffix in (".PHN", ".phn", ".WRD", ".wrd"))
    return text.split(" ", 2)[2] if is_timit else text


@patient
def _walk(top: epath.Path) -> list[tuple[str, set[str], set[str]]]:
    """Every folder below, with the names of its folders and files, in order."""
    below, count, said = [], 0, time.monotonic()
    for folder, dirs, files in top.walk(on_error=raise_if_away):
        below.append((os.fspath(folder), set(dirs), set(files)))
        count += len(files)
        if time.monotonic() - said > _SILENCE:
            said = time.monotonic()
            say(f"  listing {top}: {count} files in {len(below)} folders so far")
    shortest = min(len(folder) for folder, _, _ in below)  # file systems give their own forms of the top's path
    below = [
        (os.fspath(top) + folder[shortest:].rstrip("/"), _kept(dirs), _kept(files))
        for folder, dirs, files in below
        if not any(map(is_left_behind, folder[shortest:].split("/")))
    ]
    return sorted(below, key=lambda item: item[0].split("/"))


def _kept(names: set[str]) -> set[str]:
    return {name for name in names if not is_left_behind(name)}


def _serve_list(entries: list[Entry], serves: Sequence[int], path: str, content: bytes) -> list[Entry]:
    """Gives the entries of a folder the texts of a `.trans.txt`; returns its lines without audio."""
    at = _names_of(entries, serves)
    texts: dict[int, str] = {}
    lone = []
    for line in text_files.decode_lines(content):
        name, rest = split_id(line)
        if not name:
            continue
        i = at.get(_form(printable(name)))
        if i is None:
            lone.append(Entry(printable(name), path, problem="has a transcript but no audio file"))
            continue
        entry, text, problem = entries[i], " ".join(rest.split()), None
        if not text_files.is_text(rest):
            text, problem = None, "its transcript is not UTF-8"
        elif texts.setdefault(i, text) != text:
            problem = f"has two transcripts in {os.path.basename(path)}"
        speaker = re.split("[-_]", printable(name))[0]
        entries[i] = entry._replace(text=text, speaker=speaker, problem=entry.problem or problem)
    return lone


def _relative(root: epath.Path, folder: str, name: str) -> str:
    return f"{folder}/{name}"[len(os.fspath(root)) :].lstrip("/")


def _name_problem(root: epath.Path, path: str) -> str | None:
    if printable(path) != path:
        return "its name is not UTF-8"
    if is_remote(path) or not os.path.islink(path):
        return None
    if not exists(path):
        return "is a broken link"
    if not is_below(path, os.fspath(root)):
        return f"is a link out of {os.fspath(root)}"
    return None
