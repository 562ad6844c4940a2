"""Batches: pure functions of their index, whoever reads them."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sew_jax.data.batch_plan import BatchPlan
from sew_jax.data.pipeline import Batches, Share, read_ahead
from sew_jax.data.sources import open_source
from sew_jax.data.transcripts import spell_transcripts
from sew_jax.data.vocabulary import open_vocabulary
from tests.data.processes import assert_all_end


@pytest.fixture
def opened(corpus):
    source, _ = open_source(str(corpus), "train", min_samples=1, need_text=True, max_bad=0)
    return source, BatchPlan(source.samples, {16_000: 2, 25_600: 2}, seed=0, shuffle=True)


def read(opened, start=0, stop=12, workers=0, **options):
    source, plan = opened
    vocabulary = open_vocabulary("letters")
    symbols_U = spell_transcripts(vocabulary, source).symbols_U
    batches = Batches(
        source, plan, seed=0, vocabulary=vocabulary, symbols_U=symbols_U, start=start, stop=stop, **options
    )
    with read_ahead(batches, workers=workers, threads=2) as data:
        return list(data)


def same(a, b):
    return a[1:] == b[1:] and all((a.arrays[k] == b.arrays[k]).all() for k in a.arrays)


def test_rows_hold_their_utterances(opened):
    source = opened[0]
    vocabulary = open_vocabulary("letters")
    for batch in read(opened):
        assert batch.arrays["wave"].shape == (2, batch.bucket)
        for name, wave, length, labels, n in zip(
            batch.ids, *(batch.arrays[k] for k in ("wave", "length", "labels", "label_length")), strict=False
        ):
            i = [source.id(u) for u in range(4)].index(name)
            assert length == min(source.samples[i], batch.bucket) and not wave[length:].any()
            assert vocabulary.decode(labels[:n]) == source.text(i) and not labels[n:].any()
            speech = source.audio(i)
            assert any((speech[s : s + length] == wave[:length]).all() for s in range(len(speech) - length + 1))


def test_a_restart_gives_the_same_batches(opened):
    whole, rest = read(opened), read(opened, start=5)
    assert [b.number for b in rest] == list(range(5, 12))
    assert all(same(a, b) for a, b in zip(whole[5:], rest, strict=True))


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("hosts", [1, 2])
def test_hosts_do_not_change_the_global_batches(opened, hosts, start):
    """Resumed at batch 5, too: what all hosts together hold is what one process holds."""
    whole = read(opened)
    parts = [read(opened, start=start, share=Share((h,), hosts)) for h in range(hosts)]
    for batch, *shares in zip(whole[start:], *parts, strict=True):
        assert all(batch.ids == share.ids and batch[1:4] == share[1:4] for share in shares)
        for name, array in batch.arrays.items():
            np.testing.assert_array_equal(array, np.concatenate([share.arrays[name] for share in shares]))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("start", "host", "hosts"), [(0, 0, 1), (5, 0, 1), (0, 0, 2), (5, 1, 2)])
def test_workers_do_not_change_the_batches(opened, workers, start, host, hosts):
    share = Share((host,), hosts)
    """Of any host, and resumed at batch 5: they are those of a process that has none."""
    alone = read(opened, start=start, share=share)
    assert len(alone) == 12 - start
    batches = read(opened, start=start, workers=workers, share=share)
    assert all(same(a, b) for a, b in zip(alone, batches, strict=True))


@pytest.mark.parametrize("blocks", [[(0,), (1,), (2,), (3,)], [(0, 1), (2, 3)], [(0, 3), (1, 2)]])
def test_each_host_reads_the_rows_it_holds(opened, blocks):
    """Whether or not they are neighbours (`runtime.sharding.share_of`)."""
    source, _ = opened
    plan = BatchPlan(source.samples, {28_800: 4}, seed=0, shuffle=True)
    whole = read((source, plan), stop=3)
    for mine in blocks:
        for batch, part in zip(whole, read((source, plan), stop=3, share=Share(mine, 4)), strict=True):
            assert len(set(batch.arrays["length"].tolist())) == 4  # no row is like another
            for name, array in batch.arrays.items():
                np.testing.assert_array_equal(part.arrays[name], array[list(mine)])


def test_crops_are_numbered_through_all_that_an_epoch_takes(long_among_short):
    """Each number once an epoch; -1 in rows that are filler, but not where audio could not be read."""
    source, plan = long_among_short
    batches = Batches(source, plan, seed=0, vocabulary=None, start=0, stop=2 * plan.batches_per_epoch)
    numbers = {0: [], 1: []}
    for batch in map(batches.__getitem__, range(len(batches))):
        crop, length = batch.arrays["crop"], batch.arrays["length"]
        assert ((crop < 0) == (length == 0)).all()
        numbers[batch.epoch] += crop[crop >= 0].tolist()
    assert sorted(numbers[0]) == sorted(numbers[1]) == list(range(int(plan.crops.sum())))


def test_signals_to_the_whole_group_are_left_to_the_run(opened):
    """Ctrl-C and Slurm's SIGTERM reach the workers too, whose batches the last update may still need."""
    source, plan = opened
    batches = Batches(source, plan, seed=0, vocabulary=None, start=0, stop=40)
    with read_ahead(batches, workers=2, threads=1) as data:
        indices = [next(data).number, next(data).number]  # both have started
        for worker in multiprocessing.active_children():
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker.pid, number)
        indices += [batch.number for batch in data]
    assert indices == list(range(40))


def test_no_worker_is_waited_for_whose_batches_nobody_reads(opened):
    """Batches larger than a pipe holds; the constant of Grain's that is set there must be one that it reads."""
    source, plan = opened
    batches = Batches(source, plan, seed=0, vocabulary=None, start=0, stop=10**6)
    waited = []
    with pytest.MonkeyPatch.context() as patch, read_ahead(batches, workers=2, threads=1) as data:
        assert next(data).arrays["wave"].nbytes + next(data).arrays["wave"].nbytes > 2**16
        workers = multiprocessing.active_children()
        for worker in workers:
            patch.setattr(worker, "join", lambda timeout, join=worker.join: (waited.append(timeout), join(timeout)))
    for worker in workers:
        worker.join(60)  # one that was killed may take its time
    assert waited and max(waited) < 1 and len(workers) == 2 and not any(worker.is_alive() for worker in workers)


def test_crops_move_from_epoch_to_epoch(opened):
    crops = [tuple(b.arrays["wave"][list(b.ids).index("1-1-0003")][:50]) for b in read(opened) if "1-1-0003" in b.ids]
    assert len(crops) >= 3 and len(set(crops)) > 1


@pytest.fixture
def long_among_short(corpus):
    """A file of 20 minutes, whose samples tell the tenth of a second that they are in, beside the four short ones."""
    tenths = np.arange(20 * 60 * 16_000) // 1600
    soundfile.write(corpus / "train/1/1/1-1-0009.flac", tenths.astype(np.int16), 16_000)
    source, _ = open_source(str(corpus), "train", min_samples=1, need_text=False, max_bad=0)
    samples = np.minimum(source.samples, 48_000)
    plan = BatchPlan(samples, {48_000: 8}, seed=0, shuffle=True, crops=np.maximum(source.samples // 48_000, 1))
    return source, plan


@pytest.mark.parametrize("speed", [0.0, 0.1])
def test_an_epoch_takes_crops_all_over_a_long_file(long_among_short, speed):
    """400 crops of 3 s of 20 minutes, beside one of each short file; in another epoch at other places."""
    source, plan = long_among_short
    batches = Batches(source, plan, seed=0, vocabulary=None, start=0, stop=2 * plan.batches_per_epoch, speed=speed)
    begins = {0: [], 1: []}
    for batch in map(batches.__getitem__, range(len(batches))):
        rows = np.flatnonzero(plan[batch.number].utterances >= 0)
        for row, name in zip(rows, batch.ids, strict=True):
            if name == "1-1-0009":
                assert batch.arrays["length"][row] == 48_000
                begins[batch.epoch].append(int(batch.arrays["wave"][row, 100]) / 10)  # s; filters ring at the edge
    assert len(begins[0]) == len(begins[1]) == 400
    first, second = (np.sort(begins[epoch]) for epoch in (0, 1))
    assert first[0] < 3 and first[-1] > 1193 and first.tolist() != begins[0]
    np.testing.assert_allclose(np.diff(first), 3, atol=0.11)
    assert np.abs(first - second).mean() > 0.2


def test_a_long_file_is_not_decoded_for_a_crop_of_it(long_among_short, monkeypatch):
    source, plan = long_among_short
    decoded = []
    read_frames = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda file, frames, **options: decoded.append(frames) or read_frames(file, frames, **options),
    )
    batch = Batches(source, plan, seed=0, vocabulary=None, start=0, stop=1)[0]
    assert "1-1-0009" in batch.ids and sum(decoded) == batch.arrays["length"].sum()


def test_damage_met_while_reading_becomes_filler(opened, corpus):
    (corpus / "train/1/1/1-1-0002.flac").write_text("spoiled after the start")
    problems = [p for b in read(opened) for p in b.problems]
    assert {p.id for p in problems} == {"1-1-0002"}
    batch = next(b for b in read(opened) if b.problems)
    unread = (batch.arrays["length"] == 0) & (batch.arrays["crop"] >= 0)
    assert unread.sum() == len(batch.problems) == 1


def test_a_pace_is_drawn_for_each_reading(opened):
    """A tone of 440 Hz played faster is higher and shorter by the same factor; transcripts stay."""
    plain, first, second = read(opened), read(opened, speed=0.2), read(opened, speed=0.2)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    factors = []
    for before, after in zip(plain, first, strict=True):
        assert before.ids == after.ids and (before.arrays["labels"] == after.arrays["labels"]).all()
        for wave, old, new in zip(after.arrays["wave"], before.arrays["length"], after.arrays["length"], strict=True):
            if 0 < max(old, new) < after.bucket:  # neither filler nor cropped
                hertz = np.abs(np.fft.rfft(wave[:new] * np.hanning(new))).argmax() * 16_000 / new
                factors.append(old / new)
                assert hertz / 440 == pytest.approx(factors[-1], abs=0.005)
    assert len(set(factors)) > 4 and 0.8 <= min(factors) < 0.95 < 1.05 < max(factors) <= 1.2


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_neither_workers_nor_shared_memory(corpus, number):
    program = f"""
from sew_jax.data.pipeline import Batches, read_ahead
from sew_jax.data.batch_plan import BatchPlan
from sew_jax.data.sources import open_source

if __name__ == "__main__":
    source, _ = open_source({str(corpus)!r}, "train", min_samples=1, need_text=True, max_bad=0)
    plan = BatchPlan(source.samples, {{32_000: 2}}, seed=0, shuffle=True)
    batches = Batches(source, plan, seed=0, vocabulary=None, start=0, stop=10**6)
    with read_ahead(batches, workers=2, threads=2) as data:
        for i, _ in enumerate(data):
            if i == 20:
                print("reading", flush=True)
"""
    script = corpus.parent / "program.py"
    script.write_text(program)
    before = set(os.listdir("/dev/shm"))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout.readline() == "reading\n", process.stderr.read()
    process.send_signal(number)
    process.communicate()
    assert_all_end(process.pid)
    left, until = set(os.listdir("/dev/shm")) - before, time.monotonic() + 20
    while left and time.monotonic() < until:  # of other tests, on its way between processes
        left = {name for name in left if owned_by_none(name)}
        time.sleep(0.2)
    assert not left


def owned_by_none(name):
    """Whether no living process has a piece of shared memory open: other tests may run beside this one."""
    try:
        inode = str(Path("/dev/shm", name).stat().st_ino)
    except FileNotFoundError:
        return False
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines = [line.split() for line in (process / "maps").read_text().splitlines() if "/dev/shm/" in line]
            if any(fields[4] == inode for fields in lines):  # a semaphore is mapped under another name
                return False
            if any(os.readlink(file) == f"/dev/shm/{name}" for file in (process / "fd").iterdir()):
                return False
    return True
