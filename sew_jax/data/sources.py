"""Where utterances come from, behind one interface: files of their own, a prepared dataset, or several of these.

A source knows all lengths ahead, so that batches can be planned without opening audio.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from sew_jax.data import audio
from sew_jax.data.addresses import AddressError, open_address
from sew_jax.data.corpora import find_form, list_root
from sew_jax.data.entries import Entry, fetch, is_part, measure, read_segment
from sew_jax.data.listing import manifest_hint
from sew_jax.data.problems import AudioError, Problem, check_damaged
from sew_jax.data.records import INDEX_SCHEMA, RecordStore, dataset_folder, splits_of_dataset
from sew_jax.data.segments import problem_of
from sew_jax.errors import UserError
from sew_jax.names import split_names
from sew_jax.rates import SAMPLE_RATE
from sew_jax.storage import exists, is_folder, patient

_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
_AT_ONCE = 100_000  # rows that are Python objects at a time
_LACKS = {
    "text": "has no transcript",
    "label": "has no label",
    "segments": "has no segments",
}
_EXAMPLES = {
    "label": '{"audio": PATH, "label": "happy"}',
    "segments": '{"audio": PATH, "segments": [{"start": 0.3, "end": 1.2, "label": "speech"}]}',
}
_FILE_SCHEMA = pa.schema(
    {"path": pa.large_string(), "begin": pa.int64(), "channel": pa.int64(), "seconds": pa.float64()}
)


class Store(Protocol):
    """Audio by row of an index: columns id, samples, text, label and segments (null where there is none), speaker."""

    index: pa.Table

    def audio(self, row: int, begin: int, samples: int | None) -> np.ndarray: ...


class FileStore:
    """Utterances in files of their own, or as parts of files."""

    def __init__(self, entries: Sequence[Entry]):
        columns = {name: [getattr(entry, name) for entry in entries] for name in INDEX_SCHEMA.names}
        self.index = pa.table(columns, schema=INDEX_SCHEMA)
        kept = {name: [getattr(entry, name) for entry in entries] for name in _FILE_SCHEMA.names}
        self._is_plain = np.array([not is_part(entry) and entry.seconds is None for entry in entries], bool)
        self._files = pa.table(kept, schema=_FILE_SCHEMA)

    def audio(self, row: int, begin: int, samples: int | None) -> np.ndarray:
        if self._is_plain[row]:
            return audio.read(fetch(self._files["path"][row].as_py()), begin, samples)
        part = {name: self._files[name][row].as_py() for name in _FILE_SCHEMA.names}
        return read_segment(Entry("", samples=self.index["samples"][row].as_py(), **part), begin, samples)


class Corpus:
    """The usable utterances of one root.

    Args:
      rows: which rows of the store's index they are.
    """

    def __init__(self, name: str, store: Store, rows: np.ndarray):
        self.name, self._store, self._rows = name, store, rows

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str, begin: int = 0, end: int | None = None) -> pa.ChunkedArray:
        """A column of the index, its usable rows, or a part of them."""
        return self._store.index[name].take(self._rows[begin:end])

    def value(self, name: str, i: int):
        """What a column says of utterance i."""
        return self._store.index[name][int(self._rows[i])].as_py()

    def audio(self, i: int, begin: int, samples: int | None) -> np.ndarray:
        return self._store.audio(int(self._rows[i]), begin, samples)


class Source:
    """Random access to the utterances of one corpus or several in a row; `samples` are lengths at 16 kHz.

    Args:
      target: the column that `text` gives: `text`, `label` or `segments`.
    """

    def __init__(self, name: str, corpora: Sequence[Corpus], target: str = "text"):
        self.name, self._corpora, self._target = name, list(corpora), target
        self.names, self.sizes = [corpus.name for corpus in corpora], [len(corpus) for corpus in corpora]
        self._starts = np.cumsum([0, *self.sizes])
        self.samples = np.concatenate([corpus.column("samples").to_numpy() for corpus in corpora])

    def __len__(self) -> int:
        return len(self.samples)

    def _at(self, i: int) -> tuple[Corpus, int]:
        corpus = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self._corpora[corpus], i - int(self._starts[corpus])

    def id(self, i: int) -> str:
        corpus, place = self._at(i)
        return corpus.value("id", place)

    def text(self, i: int) -> str | None:
        """The transcript or label, words one space apart, or segments; None where there is none."""
        corpus, place = self._at(i)
        return corpus.value(self._target, place)

    @patient(seen_before=True, doubtful=AudioError)
    def audio(self, i: int, begin: int = 0, samples: int | None = None) -> np.ndarray:
        """int16 (samples,), from `begin` on and as many as are wanted. Raises AudioError."""
        corpus, place = self._at(i)
        return corpus.audio(place, begin, samples)

    def fingerprint(self) -> str:
        """A digest of all ids and lengths, in order."""
        digest = hashlib.sha256(self.samples.tobytes())
        for corpus in self._corpora:
            for begin in range(0, len(corpus), _AT_ONCE):
                ids = corpus.column("id", begin, begin + _AT_ONCE).to_pylist()
                digest.update("\n".join([*ids, ""]).encode())
        return digest.hexdigest()


def open_source(
    data: str,
    split: str,
    *,
    min_samples: int,
    max_samples: int | None = None,
    need_text: bool,
    max_bad: float,
    target: str = "text",
) -> tuple[Source, list[Problem]]:
    """The utterances of `split` in `data`, and those left out.

    Args:
      data: `demo`, a folder that `prepare` wrote, the folder of a corpus (LibriSpeech's layout, audio with a `.txt`
        beside each file, Kaldi's, Common Voice's, `datasets`'), or the path of a manifest (docs/data.md has a table);
        several are joined by commas. Paths may be remote.
      split: name of a split; several are joined by commas. Empty: all that `data` holds.
      min_samples: shorter utterances are left out.
      max_samples: and longer ones; None leaves out none.
      need_text: whether an utterance without its target is a problem.
      max_bad: how many damaged utterances may be left out; below 1, which share. Short and long ones do not count.
      target: what an utterance is to be given: its `text`, or the `label` or `segments` that a manifest has for it.

    Raises:
      UserError: a path or split does not exist, holds no usable utterance, or holds too many damaged ones.
    """
    roots = split_names(data)
    if not roots:
        raise UserError("data is empty; set --config.data to a folder, a manifest, or demo")
    corpora, damaged, by_length, without_text = [], [], [], []
    for root in roots:
        store, problems = _open_root(root, split)
        damaged += problems
        index = store.index
        samples, keep = index["samples"].to_numpy(), np.ones(len(index), bool)
        for i in np.flatnonzero(samples < min_samples).tolist():
            by_length.append(
                _too(index, i, f"shorter than the {min_samples / SAMPLE_RATE:.2f} s that are taken (input.min_seconds)")
            )
        keep &= samples >= min_samples
        if max_samples is not None:
            for i in np.flatnonzero(samples > max_samples).tolist():
                by_length.append(_too(index, i, f"longer than input.max_seconds={max_samples / SAMPLE_RATE:g}; cut it"))
            keep &= samples <= max_samples
        if need_text:
            has_text = pc.is_valid(index[target]).to_numpy()
            without_text += [Problem(index["id"][i].as_py(), _LACKS[target]) for i in np.flatnonzero(keep & ~has_text)]
            keep &= has_text
        if target == "segments":
            wrong = _wrong_segments(index, np.flatnonzero(keep))
            without_text += [Problem(index["id"][i].as_py(), reason) for i, reason in wrong.items()]
            keep[list(wrong)] = False
        corpora.append(Corpus(root, store, np.flatnonzero(keep)))
    usable = sum(map(len, corpora))
    if without_text and not usable and target != "text":
        raise UserError(
            f"data: {data} has no {target.removesuffix('s')}s in split {split or '(all)'}; give a manifest whose rows "
            f"have one, such as {_EXAMPLES[target]} (docs/classification.md)"
        )
    if without_text and not usable:
        instead = "".join(map(_instead, roots))
        raise UserError(
            f"data: {data} has no transcripts in split {split or '(all)'}; fine-tuning and evaluation need "
            f"them{instead}"
        )
    damaged += without_text
    check_damaged(damaged, data, max_bad, usable + len(damaged) + len(by_length))
    problems = damaged + by_length
    if not usable:
        why = (
            f"; all {len(problems)} were left out, the first: {problems[0].id} {problems[0].reason}" if problems else ""
        )
        raise UserError(f"data: {data} has no usable audio in split {split or '(all)'}{why}")
    name, whole = f"{data}:{split}" if split else data, [corpus for corpus in corpora if len(corpus)]
    return Source(name, whole, target), problems


def _instead(root: str) -> str:
    """What has transcripts in a folder of audio that has none."""
    path = root_path(root)
    return "" if find_form(path) or dataset_folder(path) else manifest_hint(path)


@patient
def root_path(root: str) -> epath.Path:
    """Where a root is; the demo corpus is made first.

    Raises:
      UserError: it does not exist.
    """
    if root == "demo":
        from sew_jax.data.demo_corpus import ensure_demo_corpus  # here: recorded speech needs no synthesiser

        return epath.Path(ensure_demo_corpus())
    try:
        path = open_address(root)
    except AddressError as error:
        raise UserError(f"data: {root} {error}") from error
    if root.endswith(_ARCHIVES) and not is_folder(path):
        raise UserError(f"data: {root} is an archive; unpack it first (tar xf {root}) and give its folder")
    if not exists(path):
        raise UserError(f"data: {root} does not exist; set --config.data to a folder, a manifest, or demo")
    return path


def _open_root(root: str, split: str) -> tuple[Store, list[Problem]]:
    try:
        path = root_path(root)
        if not find_form(path) and (folder := dataset_folder(path)):
            return RecordStore(folder, split_names(split) or splits_of_dataset(folder)), []
        entries = measure(list_root(path, split), os.fspath(path))
    except ImportError as error:  # of a remote file system
        raise UserError(f"data: {root} cannot be reached: {error}") from error
    problems = [Problem(entry.id, entry.problem) for entry in entries if entry.problem]
    return FileStore([entry for entry in entries if not entry.problem]), problems


def _wrong_segments(index: pa.Table, rows: np.ndarray) -> dict[int, str]:
    """Rows whose segments make no sense -> why."""
    texts, samples = (index[name].take(rows).to_pylist() for name in ("segments", "samples"))
    reasons = (problem_of(text, length / SAMPLE_RATE) for text, length in zip(texts, samples, strict=True))
    return {i: reason for i, reason in zip(rows.tolist(), reasons, strict=True) if reason}


def _too(index: pa.Table, i: int, why: str) -> Problem:
    return Problem(index["id"][i].as_py(), f"is {index['samples'][i].as_py() / SAMPLE_RATE:.2f} s long, {why}")
