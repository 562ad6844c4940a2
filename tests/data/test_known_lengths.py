"""Lengths that an earlier start read: the next one opens no file for them, and none is believed that may be wrong."""

import multiprocessing
import os
import re
import threading
import time

import numpy as np
import pytest
import soundfile

from sew_jax.data import audio, entries, known_lengths, listing
from sew_jax.data.sources import open_source


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache's folder, used for any number of files."""
    monkeypatch.setenv("SEW_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(entries, "_SOME", 1)
    return tmp_path / "cache" / "lengths"


@pytest.fixture
def read(monkeypatch):
    """The files whose headers were read."""
    read, probe = [], audio.probe

    def noted(data):
        read.append(os.path.basename(data))
        return probe(data)

    monkeypatch.setattr(audio, "probe", noted)
    return read


def opened(data, split="train", **options):
    return open_source(str(data), split, **(dict(min_samples=1, need_text=False, max_bad=0) | options))


def names(corpus, split="train"):
    return sorted(path.name for path in (corpus / split).rglob("*.flac"))


def test_the_second_start_reads_no_header(corpus, read):
    first, _ = opened(corpus)
    assert sorted(read) == names(corpus)
    read.clear()
    second, _ = opened(corpus)
    assert not read and second.fingerprint() == first.fingerprint()
    np.testing.assert_array_equal(second.samples, first.samples)
    opened(corpus, "test")  # of the same root: what is known of the other split stays
    assert read == names(corpus, "test")
    read.clear()
    opened(corpus, "train,test")
    assert not read


def test_a_file_that_changed_is_read_again(corpus, read):
    opened(corpus)
    path = sorted((corpus / "train").rglob("*.flac"))[1]
    before, data = path.stat(), path.read_bytes()
    soundfile.write(path, np.zeros(12_345), 16_000)
    read.clear()
    assert opened(corpus)[0].samples[1] == 12_345 and read == [path.name]
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # the size of before, and another time
    read.clear()
    assert opened(corpus)[0].samples[1] == 20_000 and read == [path.name]
    path.unlink()
    assert len(opened(corpus, max_bad=1)[0]) == 3


def test_what_cannot_be_read_is_looked_at_each_time(corpus, read):
    path = sorted((corpus / "train").rglob("*.flac"))[0]
    path.write_bytes(b"fLaC")
    for _ in range(2):
        read.clear()
        source, problems = opened(corpus, max_bad=1)
        assert len(source) == 3 and [problem.id for problem in problems] == [path.stem] and path.name in read
    assert read == [path.name]


def test_what_a_manifest_says_is_still_checked(corpus, read):
    listed = [entries.Entry(path.stem, str(path), seconds=1.0) for path in sorted((corpus / "train").rglob("*.flac"))]
    for expected in (names(corpus), []):
        read.clear()
        problems = [entry.problem for entry in entries.measure(listed, str(corpus))]
        assert problems[0] is None and all("its manifest says 1;" in problem for problem in problems[1:])
        assert sorted(read) == expected


@pytest.mark.parametrize("spoil", ["cut", "flip", "empty", "other"])
def test_a_corrupt_cache_is_thrown_away(spoil, corpus, cache, read, capsys):
    first, _ = opened(corpus)
    (file,) = cache.iterdir()
    data = file.read_bytes()
    flipped = data[:40] + bytes([data[40] ^ 1]) + data[41:]
    file.write_bytes({"cut": data[: len(data) // 2], "flip": flipped, "empty": b"", "other": b"no table"}[spoil])
    read.clear()
    capsys.readouterr()
    assert opened(corpus)[0].fingerprint() == first.fingerprint() and sorted(read) == names(corpus)
    assert re.search(
        rf"! {re.escape(str(file))} is damaged .* and removed; lengths are read anew", capsys.readouterr().out
    )
    read.clear()
    opened(corpus)
    assert not read  # it was written anew


def test_no_flipped_bit_changes_a_length(corpus, cache, capsys):
    opened(corpus)
    (file,) = cache.iterdir()
    data = file.read_bytes()
    paths = sorted(os.fspath(path) for path in (corpus / "train").rglob("*.flac"))
    stamps = np.array([known_lengths.stamp(path) for path in paths])
    right = known_lengths.recall(str(corpus), paths, stamps)
    assert right.tolist() == [16_000, 20_000, 24_000, 28_000]
    for at in range(0, len(data), 5):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        found = known_lengths.recall(str(corpus), paths, stamps)
        assert ((found == right) | (found == known_lengths.UNKNOWN)).all(), at


def test_another_way_of_counting_forgets(corpus, read, monkeypatch):
    opened(corpus)
    monkeypatch.setattr(known_lengths, "_SCHEMA", known_lengths._SCHEMA.with_metadata({"form": b"next"}))
    read.clear()
    opened(corpus)
    assert sorted(read) == names(corpus)


def test_a_cache_that_cannot_be_written_costs_a_line(corpus, cache, capsys):
    cache.parent.mkdir()
    cache.write_text("a file, where its folder should be")
    assert len(opened(corpus)[0]) == 4
    assert "lengths are read anew at each start" in capsys.readouterr().out


def test_it_is_bounded_in_rows_and_time(corpus, cache, monkeypatch, read):
    opened(corpus, "train,test")
    (file,) = cache.iterdir()
    monkeypatch.setattr(known_lengths, "_MOST", 4)
    old, young = file.with_name("old.parquet"), file.with_name("young.parquet")
    for other, days in ((old, 31), (young, 29)):
        other.touch()
        os.utime(other, (time.time() - days * 86_400,) * 2)
    path = sorted((corpus / "train").rglob("*.flac"))[0]
    os.utime(path)
    opened(corpus)
    assert not old.exists() and young.exists()
    read.clear()
    opened(corpus)
    assert not read  # the newest stay
    opened(corpus, "test")
    assert read == names(corpus, "test")


def _start(corpus, cache, times):
    os.environ["SEW_JAX_CACHE"], entries._SOME = cache, 1
    for _ in range(times):
        assert len(opened(corpus)[0]) == 4 and len(opened(corpus, "test")[0]) == 1


def test_several_processes_at_once(corpus, cache, read, capsys):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_start, args=(str(corpus), str(cache.parent), 10)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.suffix for path in cache.iterdir()] == [".parquet"]
    opened(corpus, "train,test")
    read.clear()
    opened(corpus, "train,test")
    assert not read


@pytest.mark.parametrize("count", [0, 1, 5, 129, 20_000])
def test_threads_keep_the_order(count):
    assert entries.in_threads(lambda item: item * 2, range(count)) == list(range(0, 2 * count, 2))


def test_few_items_take_all_threads():
    threads = min(32, 4 * (os.cpu_count() or 1))
    barrier = threading.Barrier(threads, timeout=20)
    assert len(entries.in_threads(lambda _: barrier.wait(), range(threads))) == threads


def test_what_takes_long_says_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(entries, "_SILENCE", 0.0)
    entries.in_threads(lambda _: time.sleep(0.001), range(100), "looking")
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(re.fullmatch(r"  looking: \d+/100 \| \d+/s \| eta .*", line) for line in lines)
    entries.in_threads(lambda _: None, range(100))
    assert not capsys.readouterr().out


def test_a_long_listing_says_how_far_it_is(corpus, monkeypatch, capsys):
    monkeypatch.setattr(listing, "_SILENCE", -1.0)
    opened(corpus)
    lines = [line for line in capsys.readouterr().out.splitlines() if "listing" in line]
    assert lines[-1].endswith("5 files in 3 folders so far")  # four of audio, and their transcripts
