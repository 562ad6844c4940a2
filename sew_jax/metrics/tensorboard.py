"""TensorBoard's event files: rows of `metrics.jsonl` as scalars, the picture and texts of an evaluation.

The one file that knows tensorboardX. Files lie in the workdir itself, so that `tensorboard --logdir runs` calls a run
by its workdir's name. They are written by the thread that calls: a queue would hide a full disk.
"""

import contextlib
import math
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import register_writer_factory
from tensorboardX.summary import text

from sew_jax.buckets import children, is_remote, remove
from sew_jax.files import write_whole
from sew_jax.line_files import PART
from sew_jax.storage import patient

_PREFIX = "events"  # files are events.out.tfevents.SECONDS.HOST.SUFFIX
_EVALUATION = ".evaluation"
_SCHEME = "sew_jax"  # before the paths of files that tensorboardX writes through `_Appended`


class _Appended:
    """A file to which what waits is added at `flush`, however often its storage has to be asked; as `LineFile`'s."""

    def __init__(self, address: str):
        self._path = Path(address.removeprefix(f"{_SCHEME}:"))
        self._size, self._waiting = 0, b""

    def write(self, data: bytes) -> None:
        self._waiting += data

    @patient(seen_before=True)
    def flush(self) -> None:
        with open(self._path, "r+b" if self._size else "wb") as file:
            file.seek(self._size)
            file.truncate()
            file.write(self._waiting)
            file.flush()
            os.fsync(file.fileno())
        self._size, self._waiting = self._size + len(self._waiting), b""

    def close(self) -> None:
        if self._waiting:
            self.flush()


class _Opener:
    @staticmethod
    def open(address: str) -> _Appended:
        return _Appended(address)


register_writer_factory(_SCHEME, _Opener)


class EventFile:
    """An update's numbers: `training/NAME`, its loss also `loss/SETTING`; an evaluation's: `held-out NAME/SETTING`.

    One file for each start of a run that has rows: TensorBoard reads a folder's files one after the other, so that rows
    of one start must not lie in two of them. In a bucket such a file is parts, of which the last is written whole each
    time, until it is full.

    Args:
      folder: where the file goes.
      step: the update that the run starts after. TensorBoard then leaves out what earlier files hold of later ones.
    """

    def __init__(self, folder: Path, step: int):
        self._folder, self._step = folder, step
        self._events: list[Event] = []
        self._writer: EventsWriter | None = None
        self._scratch, self._begun = Path(folder), False

    def write(self, row: Mapping[str, Any]) -> None:
        """Keeps the row of an update until `flush`."""
        numbers = {f"training/{name}": value for name, value in row.items() if name not in ("step", "time")}
        if "loss" in row:
            numbers[f"loss/{row['setting']}"] = row["loss"]
        self._keep(row["step"], numbers, row.get("time"))

    def write_held_out(self, row: Mapping[str, Any]) -> None:
        """Keeps the row of an evaluation at a setting until `flush`; of a list, each number by its place from 1."""
        numbers = {}
        for name, value in row.items():
            for place, item in enumerate(value, 1) if isinstance(value, list) else [("", value)]:
                numbers[f"held-out {name}/{row['setting']}{place and f' {place}'}"] = item
        del numbers[f"held-out step/{row['setting']}"]
        self._keep(row["step"], numbers)

    def _keep(self, step: int, numbers: Mapping[str, Any], seconds: float | None = None) -> None:
        numbers = {tag: value for tag, value in numbers.items() if _is_number(value)}
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._events.append(Event(wall_time=seconds or time.time(), step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        """Rows so far reach the disk."""
        if not self._events:
            return
        if not self._writer:  # two starts within a second get names of their own
            self._open(self._events[0].step if self._begun else self._step)
        events, self._events = self._events, []  # from here on the writer keeps them
        for event in events:
            self._writer.write_event(event)
        self._writer.flush()
        if is_remote(self._folder):
            self._send()

    def _open(self, step: int) -> None:
        if is_remote(self._folder):
            self._scratch = Path(tempfile.mkdtemp(prefix="sew_jax_"))
        address = str(self._scratch / _PREFIX)
        self._writer = EventsWriter(address if is_remote(self._folder) else f"{_SCHEME}:{address}", f".{step:09d}")
        if not self._begun:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=self._step + 1, session_log=start))
        self._begun = True

    def _send(self) -> None:
        """Writes the part, and ends it where it is full."""
        (path,) = self._scratch.iterdir()
        write_whole(self._folder / path.name, path.read_bytes())
        if path.stat().st_size >= PART:
            self._end()

    def _end(self) -> None:
        writer, self._writer = self._writer, None
        if writer:
            writer.close()
            if is_remote(self._folder):
                shutil.rmtree(self._scratch, ignore_errors=True)

    def close(self) -> None:
        """Flushes too."""
        self.flush()
        self._end()


def write_evaluation_events(folder: Path, plot_png: bytes, texts: Mapping[str, str]) -> None:
    """Writes an evaluation's plot, as `tradeoff`, and its texts, in place of those of an earlier evaluation.

    Args:
      plot_png: a PNG file's bytes.
      texts: tag -> Markdown.
    """
    width, height = struct.unpack(">II", plot_png[16:24])  # of the header that each PNG file begins with
    image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=plot_png)
    summaries = [Summary(value=[Summary.Value(tag="tradeoff", image=image)])]
    summaries += [text(tag, markdown) for tag, markdown in texts.items()]
    with tempfile.TemporaryDirectory(prefix="sew_jax_") as scratch:
        with contextlib.closing(EventsWriter(os.path.join(scratch, _PREFIX), _EVALUATION)) as writer:
            for summary in summaries:
                writer.write_event(Event(wall_time=time.time(), step=0, summary=summary))
        (path,) = Path(scratch).iterdir()
        write_whole(folder / path.name, path.read_bytes())
    for earlier in children(folder):  # last, so that one is there whatever ends this
        is_evaluation = earlier.name.startswith(f"{_PREFIX}.out.tfevents.") and earlier.name.endswith(_EVALUATION)
        if is_evaluation and earlier.name != path.name:
            remove(earlier)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
