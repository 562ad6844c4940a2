"""Files are whole or as they were."""

import errno
import os
import threading
from pathlib import Path

import pytest

from sew_jax.errors import UserError
from sew_jax.files import write_json, write_whole, writing_to


def test_who_has_the_old_file_open_goes_on_reading_it(tmp_path):
    """So it is another file that takes the name, and nothing is written into the one that readers have."""
    path = tmp_path / "a.json"
    path.write_bytes(b"old" * 1000)
    os.link(path, tmp_path / "held")
    with path.open("rb") as file:
        write_whole(path, b"new")
        assert file.read() == b"old" * 1000
    assert path.read_bytes() == b"new" and (tmp_path / "held").read_bytes() == b"old" * 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "held"]


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    write = Path.write_bytes

    def breaks_off(self, data):
        write(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", breaks_off)
    with pytest.raises(UserError, match="cannot be written"), writing_to(tmp_path, "mend that"):
        write_json(path, {"new": 2})
    assert path.read_text() == '{\n "old": 1\n}\n'


def test_no_reader_meets_half_of_a_file(tmp_path):
    path, sizes, done = tmp_path / "a", set(), threading.Event()
    versions = [bytes([48 + i]) * 300_000 for i in range(2)]
    write_whole(path, versions[0])

    def read():
        while not done.is_set():
            data = path.read_bytes()
            sizes.add((len(data), len(set(data))))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(100):
        write_whole(path, versions[i % 2])
    done.set()
    reader.join()
    assert sizes == {(300_000, 1)}
