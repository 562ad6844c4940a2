"""Records by their range of bytes: the same as ArrayRecord's own reader has, wherever the 64 KiB of blocks end."""

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from sew_jax.data.riegeli import find_records, record_of

_FULL = 65_536 - 24 - 64 - 40  # what of a record of noise may lie in a file's first block


def written(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path.read_bytes()


def noise(rng, sizes):
    return [rng.bytes(int(size)) for size in sizes]


@pytest.mark.parametrize("case", range(12))
def test_the_same_records_as_the_library(case, tmp_path):
    rng, most = np.random.default_rng(case), (1, 50, 3000, 70_000, 200_000, 1_000_000)[case % 6]
    records = noise(rng, rng.integers(0, most + 1, 20)) + [b"a" * int(n) for n in rng.integers(0, most + 1, 5)]
    data = written(tmp_path / "records", records)
    places = find_records(tmp_path / "records", len(records))
    assert [record_of(data[p.offset : p.offset + p.bytes], p.offset) for p in places] == records
    assert ArrayRecordReader(str(tmp_path / "records")).read_all() == records
    ends = [p.offset + p.bytes for p in places]
    assert places[0].offset == 64 and [p.offset for p in places[1:]] == ends[:-1] and ends[-1] <= len(data)


def test_records_that_end_about_the_end_of_a_block(tmp_path):
    rng = np.random.default_rng(0)
    for size in range(_FULL - 50, _FULL + 10):  # the chunk's header and zstd's take some of it
        records = noise(rng, [size, 10])
        data = written(tmp_path / "records", records)
        for record, p in zip(records, find_records(tmp_path / "records", 2), strict=True):
            assert record_of(data[p.offset : p.offset + p.bytes], p.offset) == record


def test_what_is_no_record_is_refused(tmp_path):
    rng = np.random.default_rng(1)
    data = written(tmp_path / "records", [rng.bytes(3000)])
    (place,) = find_records(tmp_path / "records", 1)
    chunk = data[place.offset : place.offset + place.bytes]
    for bad in (b"", chunk[:20], chunk[: len(chunk) // 2], bytes(len(chunk)), chunk[:60] + b"xxxx" + chunk[64:]):
        with pytest.raises(ValueError, match=r"is damaged|is no record"):
            record_of(bad, place.offset)
    (tmp_path / "short").write_bytes(data[:64])
    with pytest.raises(ValueError, match="has 0 of 1 records"):
        find_records(tmp_path / "short", 1)
