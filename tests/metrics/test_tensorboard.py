"""Event files, read back by the format's own description: length, checksum, bytes, checksum."""

import errno
import math
import os
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from sew_jax.evaluation.plot import plot_tradeoff
from sew_jax.metrics import tensorboard
from sew_jax.metrics.metrics_file import MetricsFile
from sew_jax.metrics.tensorboard import EventFile, write_evaluation_events
from tests.evaluation.test_tradeoff import POINTS

KEPT = {"training/loss", "training/skipped", "training/epoch", "loss/s1q1k1"}


def crc32c(data: bytes) -> int:
    """Castagnoli's, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read(path) -> list[Event]:
    data, events = path.read_bytes(), []
    while data:
        (length,), (check,) = struct.unpack("<Q", data[:8]), struct.unpack("<I", data[8:12])
        body, (body_check,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
        assert check == masked(data[:8]) and body_check == masked(body)
        events.append(Event.FromString(body))
        data = data[16 + length :]
    return events


def files(folder):
    return sorted(folder.glob("events.out.tfevents.*"))


def shown(folder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: tag -> (step, value), where a start takes away what was later than it."""
    series = {}
    for event in [event for path in files(folder) for event in read(path)]:
        if event.session_log.status == SessionLog.START:
            series = {tag: [(s, v) for s, v in points if s < event.step] for tag, points in series.items()}
        for value in event.summary.value:
            series.setdefault(value.tag, []).append((event.step, value.simple_value))
    return series


def row(step, **changes):
    return {"step": step, "setting": f"s{1 + step % 2}q1k1", "loss": step / 4, "epoch": 0, "skipped": 0.0} | changes


def test_every_number_of_every_row(tmp_path):
    file = EventFile(tmp_path, 0)
    for step in (1, 2, 3):
        file.write(row(step, batch_ids="00ff", grad_norm=None))
    file.flush()
    file.write(row(4, loss=math.nan))
    file.close()
    (path,) = files(tmp_path)
    assert read(path)[0].file_version == "brain.Event:2"
    series = shown(tmp_path)
    assert set(series) == KEPT | {"loss/s2q1k1"}
    assert series["training/loss"] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert series["loss/s2q1k1"] == [(1, 0.25), (3, 0.75)] and series["loss/s1q1k1"] == [(2, 0.5)]
    assert [step for step, _ in series["training/skipped"]] == [1, 2, 3, 4]


def test_a_resumed_run_shows_each_update_once(tmp_path):
    """Rows of metrics.jsonl and points agree, also where the first life got further than its checkpoint, and died."""
    first = MetricsFile(tmp_path / "metrics.jsonl", 0)
    for step in range(1, 6):
        first.write(row(step))
        if step == 3:
            first.sync()  # a checkpoint
    first.flush()
    second = MetricsFile(tmp_path / "metrics.jsonl", 3)
    for step in range(4, 7):
        second.write(row(step, loss=step + 10.0))
    second.close()
    first.close()
    assert len(files(tmp_path)) == 2
    points = shown(tmp_path)["training/loss"]
    assert points == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 14.0), (5, 15.0), (6, 16.0)]


def test_a_checkpoint_has_its_rows_on_disk(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.write(row(1))
    file.sync()
    assert shown(tmp_path)["training/loss"] == [(1, 0.25)]
    file.close()


def test_no_rows_no_file(tmp_path):
    MetricsFile(tmp_path / "metrics.jsonl", 0).close()
    assert not files(tmp_path)
    MetricsFile(None, 0).close()  # hosts other than the first


def test_an_evaluation_replaces_the_one_before(tmp_path):
    training = EventFile(tmp_path, 0)
    training.write(row(1))
    training.close()
    png = plot_tradeoff(POINTS)
    for text in ("old", "| a | table |"):
        write_evaluation_events(tmp_path, png, {"tradeoff/table": text, "transcripts/1-2": "ONE"})
    (path,) = [path for path in files(tmp_path) if path.name.endswith(".evaluation")]
    assert len(files(tmp_path)) == 2
    values = {value.tag: value for event in read(path) for value in event.summary.value}
    image = values["tradeoff"].image
    assert image.encoded_image_string == png and (image.width, image.height) == (1040, 650)
    texts = {tag: v.tensor.string_val[0].decode() for tag, v in values.items() if tag.endswith("text_summary")}
    assert all(v.metadata.plugin_data.plugin_name == "text" for tag, v in values.items() if tag in texts)
    assert texts == {"tradeoff/table/text_summary": "| a | table |", "transcripts/1-2/text_summary": "ONE"}


def test_an_evaluation_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    (tmp_path / "events.out.tfevents.0000000001.here.evaluation").write_bytes(b"old")

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensorboard, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        write_evaluation_events(tmp_path, plot_tradeoff(POINTS), {})
    assert [path.read_bytes() for path in files(tmp_path)] == [b"old"]


def test_the_oracle_of_checksums():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
