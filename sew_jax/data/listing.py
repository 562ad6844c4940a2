"""What a folder or a manifest holds, before any audio is opened: one entry for each utterance, its faults named.

Paths may be local or remote (gs://, s3://), through etils.epath; a remote scheme needs its package (gcsfs, s3fs).
"""

import concurrent.futures
import functools
import json
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from etils import epath

from sew_jax.console import say
from sew_jax.data import audio
from sew_jax.data.audio import AudioError
from sew_jax.errors import UserError
from sew_jax.names import split_names
from sew_jax.rates import SAMPLE_RATE

_T = TypeVar("_T")
_MANY = 20_000  # files whose headers take long enough to say so


class Entry(NamedTuple):
    """An utterance; with a `problem` it cannot be used."""

    id: str
    path: str
    text: str | None = None  # None: it has no transcript
    speaker: str = ""
    samples: int | None = None  # None: not known yet
    problem: str | None = None


def is_remote(path: str) -> bool:
    """Whether a path names an object store rather than a file of this machine."""
    return "://" in path


def fetch(path: str) -> str | bytes:
    """What `audio.read` takes: a local path itself, a remote file's bytes.

    Raises:
      AudioError: the remote file cannot be had.
    """
    if not is_remote(path):
        return path
    try:
        return epath.Path(path).read_bytes()
    except OSError as error:
        raise AudioError(f"cannot be fetched ({type(error).__name__})") from error


def in_threads(function: Callable[[Any], _T], items: Iterable[Any]) -> list[_T]:
    """`function` of each item, in order; for work that waits for disks and networks."""
    with concurrent.futures.ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(function, items))


def list_folder(root: epath.Path, split: str) -> list[Entry]:
    """Audio of any depth under the folders that `split` names (joined by commas; empty: all of `root`).

    A folder without folders in it has one split, `train`.

    Transcripts stand in LibriSpeech's `*.trans.txt` (lines `ID WORDS`), whose ids are file names without suffix, or in
    a `.txt` beside each file, whose id is its path under `root`. Links may not lead out of `root`.

    Raises:
      UserError: there is no such split, or it holds no audio.
    """
    entries = []
    for folder in [root / name for name in split_names(split)] or [root]:
        if not folder.is_dir():
            has = folders_of(root) or ["train"]
            if folder.name not in has:
                raise UserError(
                    f"data: {root} has no split {folder.name}; it has: {', '.join(has)}; "
                    "set --config.split (empty: all)"
                )
            folder = root
        found = _list_below(root, folder)
        if not found:
            kinds = " ".join(sorted(audio.EXTENSIONS))
            raise UserError(f"data: {folder} holds no audio files ({kinds}); is it in LibriSpeech's layout?")
        entries += found
    return entries


def folders_of(root: epath.Path) -> list[str]:
    """Names of the folders in a folder."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_below(root: epath.Path, top: epath.Path) -> list[Entry]:
    entries, texts = [], []  # `texts` are files, and which entries each one serves
    for folder, dirs, files in _walk(top):
        names = sorted(name for name in files if os.path.splitext(name)[1].lower() in audio.EXTENSIONS)
        for name in sorted(dirs | files - set(names)):  # links to folders count as files from Python 3.12 on
            if not is_remote(folder) and os.path.islink(f"{folder}/{name}") and os.path.isdir(f"{folder}/{name}"):
                problem = "is a link to a folder, which is not followed; give that folder as data of its own"
                entries.append(Entry(_printable(_relative(root, folder, name)), f"{folder}/{name}", problem=problem))
        lists = sorted(name for name in files if name.endswith(".trans.txt"))
        first = len(entries)
        for name in names:
            stem = os.path.splitext(name)[0]
            problem = _name_problem(root, f"{folder}/{name}")
            known_as = stem if lists else os.path.splitext(_relative(root, folder, name))[0]
            entries.append(Entry(_printable(known_as), f"{folder}/{name}", problem=problem))
            if not lists and f"{stem}.txt" in files:
                texts.append((f"{folder}/{stem}.txt", range(len(entries) - 1, len(entries))))
        texts += [(f"{folder}/{name}", range(first, len(entries))) for name in lists]
    linked = {path: problem for path, _ in texts if (problem := _name_problem(root, path))}
    contents = in_threads(lambda text: b"" if text[0] in linked else epath.Path(text[0]).read_bytes(), texts)
    lone = []
    for (path, serves), content in zip(texts, contents, strict=True):
        if path in linked:
            for i in serves:
                entries[i] = entries[i]._replace(problem=entries[i].problem or f"its transcript {linked[path]}")
        elif path.endswith(".trans.txt"):
            lone += _serve_list(entries, serves, path, content)
        else:
            i = serves[0]
            text, problem = _decoded(content.removeprefix(b"\xef\xbb\xbf"))
            entries[i] = entries[i]._replace(text=text, problem=entries[i].problem or problem)
    return entries + lone


def _walk(top: epath.Path) -> list[tuple[str, set[str], set[str]]]:
    """Every folder below, with the names of its folders and files, in order."""
    below = [(os.fspath(folder), set(dirs), set(files)) for folder, dirs, files in top.walk()]
    shortest = min(len(folder) for folder, _, _ in below)  # file systems give their own forms of the top's path
    below = [(os.fspath(top) + folder[shortest:].rstrip("/"), dirs, files) for folder, dirs, files in below]
    return sorted(below, key=lambda item: item[0].split("/"))


def _serve_list(entries: list[Entry], serves: range, path: str, content: bytes) -> list[Entry]:
    """Gives the entries of a folder the texts of a `.trans.txt`; returns its lines without audio."""
    at = {entries[i].id: i for i in serves}
    lone = []
    for line in content.splitlines():
        name, _, rest = line.strip().partition(b" ")
        if not name:
            continue
        known_as = _printable(name.decode("utf-8", "surrogateescape"))
        text, problem = _decoded(rest)
        if known_as not in at:
            lone.append(Entry(known_as, path, problem="has a transcript but no audio file"))
            continue
        i = at[known_as]
        speaker = known_as.split("-")[0]
        entries[i] = entries[i]._replace(text=text, speaker=speaker, problem=entries[i].problem or problem)
    return lone


def _decoded(content: bytes) -> tuple[str | None, str | None]:
    """(text with single spaces, problem)."""
    try:
        return " ".join(content.decode("utf-8").split()), None
    except UnicodeDecodeError:
        return None, "its transcript is not UTF-8"


def _relative(root: epath.Path, folder: str, name: str) -> str:
    return f"{folder}/{name}"[len(os.fspath(root)) :].lstrip("/")


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _name_problem(root: epath.Path, path: str) -> str | None:
    if _printable(path) != path:
        return "its name is not UTF-8"
    if is_remote(path) or not os.path.islink(path):
        return None
    if not os.path.exists(path):
        return "is a broken link"
    if not _is_below(path, os.fspath(root)):
        return f"is a link out of {os.fspath(root)}"
    return None


def list_manifest(path: epath.Path, split: str) -> list[Entry]:
    """Lines of JSON: `audio` or `audio_filepath` (relative to the manifest), and where known `text`, `id`, `speaker`,
    `duration` in seconds and `split`, which is `train` where it is not given.

    A relative name may not lead out of the manifest's folder, by `..` or by links; what lies elsewhere is named by its
    whole path.

    Raises:
      UserError: no line belongs to the splits (joined by commas; empty: all).
    """
    wanted = split_names(split)
    entries, others = [], set()
    inside = functools.cache(lambda folder: is_remote(folder) or _is_below(folder, os.fspath(path.parent)))
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            row = json.loads(line.decode("utf-8"))
            file, duration = str(row.get("audio") or row["audio_filepath"]), row.get("duration")
            samples = None if duration is None else round(float(duration) * SAMPLE_RATE)
        except UnicodeDecodeError:
            entries.append(Entry(where, os.fspath(path), problem="is not UTF-8"))
            continue
        except (ValueError, KeyError, AttributeError, TypeError, OverflowError):
            entries.append(Entry(where, os.fspath(path), problem='is not a JSON object with "audio"'))
            continue
        if wanted and (name := row.get("split", "train")) not in wanted:
            others.add(str(name))
            continue
        text = row.get("text")
        entries.append(
            Entry(
                id=_printable(str(row.get("id", os.path.splitext(os.path.basename(file))[0]))),
                path=file if is_remote(file) else os.fspath(path.parent / file),
                text=None if text is None else " ".join(str(text).split()),
                speaker=str(row.get("speaker", "")),
                samples=samples,
                problem=_outside(file, path, inside),
            )
        )
    if all(entry.problem for entry in entries):
        if others:
            raise UserError(
                f"data: {path} has no split {split}; it has: {', '.join(sorted(others))}; "
                "set --config.split (empty: all)"
            )
        raise UserError(f'data: {path} has no line of the form {{"audio": PATH, "text": WORDS}}')
    return entries


def _outside(file: str, manifest: epath.Path, inside: Callable[[str], bool]) -> str | None:
    """The problem of a relative name that leads out of the manifest's folder; `inside` is asked about folders."""
    if is_remote(file) or os.path.isabs(file):
        return None
    whole = os.fspath(manifest.parent / file)
    if is_remote(whole):
        away = os.path.normpath(file).split("/")[0] == ".."
    else:
        away = not inside(os.path.dirname(whole)) or (os.path.islink(whole) and not inside(os.path.realpath(whole)))
    return f"leads out of {os.fspath(manifest.parent)}; give its whole path" if away else None


def _is_below(path: str, root: str) -> bool:
    return os.path.join(os.path.realpath(path), "").startswith(os.path.join(os.path.realpath(root), ""))


def mark_duplicates(entries: list[Entry]) -> list[Entry]:
    """All but the first entry of each id become problems."""
    first: dict[str, str] = {}
    marked = []
    for entry in entries:
        if entry.problem is None and entry.id in first:
            entry = entry._replace(problem=f"has the id of another utterance ({first[entry.id]})")
        elif entry.problem is None:
            first[entry.id] = entry.path
        marked.append(entry)
    return marked


def measure(entries: list[Entry]) -> list[Entry]:
    """Fills in lengths from the files' headers, many at a time; audio without a readable header becomes a problem."""
    unknown = sum(entry.samples is None for entry in entries)
    if unknown > _MANY:
        say(f"reading the lengths of {unknown} files (configs/prepare.py makes this unnecessary)")

    def measured(entry: Entry) -> Entry:
        if entry.problem:
            return entry
        try:
            if entry.samples is not None and (is_remote(entry.path) or os.path.isfile(entry.path)):
                return entry
            return entry._replace(samples=audio.probe(fetch(entry.path)))
        except AudioError as error:
            return entry._replace(problem=str(error))

    return in_threads(measured, entries)
