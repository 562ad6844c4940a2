"""Writes the dataset that training reads: any folder, manifest or TFDS name as records of 16 kHz FLAC with an index.

Work is cut into shards, each a pure function of the list of utterances: a run that was killed goes on where it stopped,
and ends with the same bytes.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from etils import epath
from ml_collections import ConfigDict

from sew_jax.buckets import children, is_remote, make_folder, remove
from sew_jax.checks.check import check_config
from sew_jax.console import Progress, format_duration, say
from sew_jax.data import records
from sew_jax.data.audio import AudioError
from sew_jax.data.convert import Limits, convert
from sew_jax.data.corpora import list_root, list_splits
from sew_jax.data.entries import Entry
from sew_jax.data.packed import file_of, is_packed
from sew_jax.data.riegeli import find_records
from sew_jax.data.sources import root_path
from sew_jax.data.summary import plot_lengths, split_facts
from sew_jax.data.text_files import read_text
from sew_jax.data.tfds_listing import SCHEME, list_tfds
from sew_jax.errors import UserError
from sew_jax.files import write_whole
from sew_jax.names import split_names
from sew_jax.processes import die_with_parent
from sew_jax.rates import SAMPLE_RATE
from sew_jax.storage import exists, is_away, patient, raise_if_away

_SHARDS, _SMALLEST = 256, 16  # at most so many shards a split; at least so many utterances each (but for the last)
_SCREEN = 5.0  # seconds between lines of progress
_SCRATCH = ".writing-"


class Shard(NamedTuple):
    """A part of a split, written by one process into the file `name`."""

    split: str
    name: str
    entries: Sequence[Entry]
    limits: Limits


def prepare(config: ConfigDict, workdir: epath.Path) -> None:
    """Leaves NAME/1.0.0/ (the dataset), summary.json, lengths.png and rejected.jsonl in the workdir.

    Raises:
      UserError: config or data do not fit, the workdir holds another dataset, or it cannot be written.
    """
    check_config(config)
    begin = time.monotonic()
    say("sew_jax prepare")
    workdir = epath.Path(workdir)
    splits = _list_splits(config)
    for split, entries in splits.items():
        known = sum(entry.text is not None for entry in entries)
        say(f"  split     {split}: {len(entries)} utterances listed, {known} with transcripts")
    shards = [shard for split, entries in splits.items() for shard in _cut(config, split, entries)]
    key = _fingerprint(config, splits)
    folder, unfinished = workdir / config.name / records.VERSION, workdir / "unfinished"
    say(f"  outputs   {folder}, {len(shards)} shards")
    if _is_done(workdir, folder, unfinished, key):
        say(f"nothing to do: {folder} holds these data already")
        return
    try:
        done = _start(unfinished, folder, key)
        say(
            f"  start     {len(done)} of {len(shards)} shards are there already"
            if done
            else "  start     from the first"
        )
        _write_shards(shards, done, folder, unfinished, config.workers)
        facts, rejected = _finish(splits, shards, workdir, folder, unfinished, key)
    except OSError as error:
        raise_if_away(error)
        raise UserError(
            f"workdir: {workdir} cannot be written, or data not be read ({error.strerror or error}); "
            "the same command goes on from there"
        ) from error
    for split, fact in facts.items():
        say(
            f"  {split}: {fact['listed'] - fact['rejected']} of {fact['listed']} utterances, "
            f"{fact['hours']:.2f} h, {fact['speakers']} speakers, {fact['rejected']} rejected"
            + (f"; {fact['cut']} of them cut at pauses into {fact['pieces']} pieces" if fact["cut"] else "")
        )
    for line in rejected[:5]:
        say(f"  ! {line['id']} {line['reason']}")
    if rejected:
        say(f"  {len(rejected)} rejected: all are in rejected.jsonl")
    say(f"done in {format_duration(time.monotonic() - begin)}; train with --config.data={workdir}")


def _list_splits(config: ConfigDict) -> dict[str, list[Entry]]:
    """The utterances of each split of the dataset to be."""
    if config.data.startswith(SCHEME):
        return list_tfds(config.data.removeprefix(SCHEME), split_names(config.split))
    root = config.data
    if "," in root:
        raise UserError(f"data: {root}; prepare takes one folder, manifest, tfds:NAME or demo at a time")
    path = root_path(root)
    return {
        split or "train": list_root(path, split) for split in split_names(config.split) or list_splits(path, _say_aside)
    }


def _say_aside(names: list[str]) -> None:
    say(f"  ! not named like splits and left aside: {', '.join(names)} (--config.split takes them)")


def _cut(config: ConfigDict, split: str, entries: list[Entry]) -> list[Shard]:
    """Shards of a split, without the entries that have a problem already."""
    with_text = sum(entry.text is not None for entry in entries)
    need_text = config.transcripts == "required" or (config.transcripts == "auto" and 2 * with_text >= len(entries))
    limits = Limits(config.min_seconds, config.cut_seconds, config.max_seconds, need_text)
    good = [entry for entry in entries if not entry.problem]
    each = max(_SMALLEST, -(-len(good) // _SHARDS))
    cuts = [good[i : i + each] for i in range(0, len(good), each)] or [[]]
    names = (records.shard_name(config.name, split, i, len(cuts)) for i in range(len(cuts)))
    return [Shard(split, name, cut, limits) for name, cut in zip(names, cuts, strict=True)]


def _fingerprint(config: ConfigDict, splits: dict[str, list[Entry]]) -> str:
    """A digest of all that decides the dataset: what is listed, the files' sizes and times, and the options."""
    digest = hashlib.sha256(json.dumps({**config, "workers": None}, default=str, sort_keys=True).encode())
    for split, entries in splits.items():
        for entry in entries:
            digest.update(f"({split!r}, {_said(entry)}, {_version(entry.path)!r})".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _said(entry: Entry) -> str:
    """An entry as it was written before there were segments, and these where it has them."""
    said = entry._asdict()
    segments = said.pop("segments")
    return f"Entry({', '.join(f'{name}={value!r}' for name, value in said.items())})" + (segments or "")


@patient
def _version(path: str) -> tuple[int, int] | None:
    """A file's size and time; None where it is remote, or missing: its problem says so."""
    try:
        stat = os.stat(file_of(path))
    except OSError as error:
        raise_if_away(error)
        return None
    return stat.st_size, stat.st_mtime_ns


def _is_done(workdir: epath.Path, folder: epath.Path, unfinished: epath.Path, key: str) -> bool:
    """Whether the dataset is whole; raises UserError where it is one of other data."""
    if not exists(folder / records.INFO):
        return False
    summary = workdir / "summary.json"
    if not exists(summary) or json.loads(read_text(summary))["input"] != key:
        raise UserError(
            f"workdir: {folder} was prepared from other data or with other options; use another --workdir, or remove it"
        )
    remove(unfinished)
    return True


def _start(unfinished: epath.Path, folder: epath.Path, key: str) -> set[str]:
    """Names of the shards that an earlier run of the same command has finished."""
    marker = unfinished / "input"
    if exists(marker) and read_text(marker) != key:
        raise UserError(
            f"workdir: {unfinished} was begun from other data or with other options; "
            "use another --workdir, or remove it"
        )
    make_folder(folder)
    make_folder(unfinished)
    for left in children(folder):
        if left.name.startswith(_SCRATCH):  # of a run that was killed
            remove(left)
    write_whole(marker, key.encode())
    return {path.name.removesuffix(".json") for path in children(unfinished) if path.suffix == ".json"}


def _write_shards(
    shards: list[Shard], done: set[str], folder: epath.Path, unfinished: epath.Path, workers: int
) -> None:
    """Writes what is missing, `workers` processes at a time (-1: as many as cores; 0: in this one)."""
    total = sum(len(shard.entries) for shard in shards)
    count = sum(len(shard.entries) for shard in shards if shard.name in done)
    progress, shown, seconds = Progress(total, count), time.monotonic(), 0.0
    write = functools.partial(write_shard, folder=folder, unfinished=unfinished)
    missing = [shard for shard in shards if shard.name not in done]
    with _pool(workers) as run:
        for shard, spent in run(write, missing):
            count, seconds = count + len(shard.entries), seconds + spent
            progress.update(count)
            if time.monotonic() - shown > _SCREEN or count == total:
                shown = time.monotonic()
                say(
                    f"  {count}/{total} utterances | {seconds / 3600:.2f} h of audio | "
                    f"{progress.rate:.0f} utterances/s | "
                    f"eta {progress.left}"
                )


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Callable[..., Iterator[tuple[Shard, float]]]]:
    """Gives `run(function, shards)`, which yields (shard, result) as each is done."""
    if workers == 0:
        yield lambda function, shards: ((shard, function(shard)) for shard in shards)
        return
    processes = workers if workers > 0 else os.cpu_count()
    # spawned: a fork would copy threads and locks of libraries
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(processes, context, initializer=die_with_parent)

    def run(function, shards):
        futures = {executor.submit(function, shard): shard for shard in shards}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()

    try:
        yield run
    finally:
        executor.shutdown(cancel_futures=True)


@patient(seen_before=True)
def write_shard(shard: Shard, folder: epath.Path, unfinished: epath.Path) -> float:
    """Writes one shard and, when it is in its place, the note that it is done; returns its seconds of audio."""
    rows, rejected = [], []

    def accepted():
        for entry in shard.entries:
            kept = 0.0  # seconds
            try:
                for row, flac in convert(entry, shard.limits):
                    rows.append(row)
                    kept += row["samples"] / SAMPLE_RATE
                    yield row, flac
            except AudioError as error:
                if is_away(error, seen_before=not is_packed(entry.path)):  # what tables name was not looked for
                    raise
                reason = f"{error}; its first {kept:.2f} s are kept" if kept else str(error)
                rejected.append({"id": entry.id, "path": entry.path, "reason": reason})

    remote = is_remote(os.fspath(folder))
    with tempfile.TemporaryDirectory(dir=None if remote else folder, prefix=_SCRATCH) as scratch:
        path = Path(scratch) / shard.name  # ArrayRecord writes local files only
        written = records.write_shard(path, accepted())
        for row, place in zip(rows, find_records(path, len(rows)), strict=True):
            row.update(place._asdict())
        if remote:
            write_whole(folder / shard.name, path.read_bytes())
        else:
            os.replace(path, folder / shard.name)
    note = {"rows": rows, "rejected": rejected, "bytes": written}
    write_whole(unfinished / f"{shard.name}.json", json.dumps(note).encode())
    return sum(row["samples"] for row in rows) / SAMPLE_RATE


def _finish(splits, shards: list[Shard], workdir, folder, unfinished, key: str) -> tuple[dict[str, dict], list[dict]]:
    """Writes tables, summary and plot, then the metadata that make it a dataset; returns (facts by split, rejected)."""
    facts, written, rejected, lengths, tables = {}, {}, [], {}, hashlib.sha256()
    for split, entries in splits.items():
        names = [shard.name for shard in shards if shard.split == split]
        bad = [{"id": e.id, "path": e.path, "reason": e.problem} for e in entries if e.problem]
        parts, counts, size = [], [], 0
        for name in names:
            note = json.loads(read_text(unfinished / f"{name}.json"))
            parts.append(pa.Table.from_pylist(note["rows"], records.PREPARED_SCHEMA))
            counts.append(len(note["rows"]))
            size += note["bytes"]
            bad += note["rejected"]
        rejected += [{"split": split, **line} for line in bad]
        table = pa.concat_tables(parts)
        index = records.index_bytes(table)
        write_whole(folder / records.index_name(split), index)
        tables.update(index)
        lengths[split] = table["samples"].to_numpy() / SAMPLE_RATE
        facts[split] = split_facts(table, listed=len(entries), rejected=len(bad))
        written[split] = counts, size
        if not len(table):
            raise UserError(
                f"data: nothing of split {split} can be used: all {len(entries)} were rejected, "
                f"the first: {bad[0]['id']} {bad[0]['reason']}"
            )
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rejected)
    write_whole(workdir / "rejected.jsonl", lines.encode("utf-8", "backslashreplace"))
    summary = json.dumps({"input": key, "splits": facts}, ensure_ascii=False, indent=1)
    write_whole(workdir / "summary.json", f"{summary}\n".encode())
    write_whole(workdir / "lengths.png", plot_lengths(lengths))
    description = f"Speech at 16 kHz as FLAC, written by sew_jax; tables {tables.hexdigest()}"
    records.write_metadata(folder, written, description)
    remove(unfinished)
    return facts, rejected
