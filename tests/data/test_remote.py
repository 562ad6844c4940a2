"""Data on an object store: gs:// on an in-memory file system, through the same libraries as a real bucket."""

import errno
import io
import json
import os
import shutil
import sys
import time
import types

import fsspec
import google as google_package
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from configs.prepare import get_config
from sew_jax import storage
from sew_jax.data import packed
from sew_jax.data.prepare import prepare
from sew_jax.data.problems import AudioError
from sew_jax.data.records import index_bytes
from sew_jax.data.riegeli import find_records
from sew_jax.data.sources import open_source
from sew_jax.errors import Unavailable, UserError
from tests.data.stand_in import StandIn, serve


class Bucket(MemoryFileSystem):
    """Knows gs:// as its own, and nothing of it is on a disk."""

    protocol = ("gs", "gcs")
    store: dict = {}  # noqa: RUF012 - fsspec's way: one store for all instances
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("gs://").removeprefix("gcs://"))

    def __init__(self, *_, finalize_on_close=False, **options):
        super().__init__(**options)


class OtherBucket(Bucket):
    """Knows s3:// as its own, and notes which ranges it was asked for."""

    protocol = ("s3",)
    store: dict = {}  # noqa: RUF012
    asked: list = []  # noqa: RUF012
    faults: list = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("s3://"))

    def cat_file(self, path, start=None, end=None, **options):
        self.asked.append((path.rpartition("/")[2], start, end))
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        data = super().cat_file(path, start, end, **options)
        return fault(data) if fault else data


@pytest.fixture
def bucket(corpus, tmp_path, monkeypatch):
    """The corpus as gs://bucket/corpus."""
    monkeypatch.setenv("SEW_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(
        "CLOUD_STORAGE_EMULATOR_ENDPOINT", "http://127.0.0.1:1"
    )  # nothing answers, unless a test says so
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, Bucket, clobber=True)
    fsspec.register_implementation("s3", OtherBucket, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    for kind in (Bucket, OtherBucket):
        kind.store.clear()
    OtherBucket.asked.clear()
    files = fsspec.filesystem("gs")
    for path in corpus.rglob("*"):
        if path.is_file():
            files.pipe_file(f"gs://bucket/corpus/{path.relative_to(corpus)}", path.read_bytes())
    yield files
    backend.fsspec_backend._get_filesystem.cache_clear()


def opened(data, split="train", **options):
    return open_source(str(data), split, **(dict(min_samples=1, need_text=True, max_bad=0) | options))


def same(remote, local):
    assert remote.fingerprint() == local.fingerprint()
    for i in range(len(local)):
        assert remote.text(i) == local.text(i)
        np.testing.assert_array_equal(remote.audio(i), local.audio(i))
        np.testing.assert_array_equal(remote.audio(i, 300, 200), local.audio(i)[300:500])


def test_a_folder(bucket, corpus):
    same(opened("gs://bucket/corpus")[0], opened(corpus)[0])


def test_a_manifest(bucket, corpus):
    rows = [
        {"audio": "corpus/train/1/1/1-1-0000.flac", "text": "WORD A"},
        {"audio": "gs://bucket/corpus/train/1/1/1-1-0001.flac", "text": "WORD B", "duration": 1.25},
        {"audio": "corpus/missing.flac", "text": "WORD C"},
    ]
    bucket.pipe_file("gs://bucket/list.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    source, problems = opened("gs://bucket/list.jsonl", "", max_bad=1)
    assert len(source) == 2 and "does not exist" in problems[0].reason
    np.testing.assert_array_equal(source.audio(1), opened(corpus)[0].audio(1))


@pytest.fixture
def google(bucket, monkeypatch):
    """What lies in gs:// as array_record asks for it."""
    stand_in = StandIn(lambda name: bucket.cat_file(f"/{name}") if bucket.exists(f"/{name}") else None)
    with serve(stand_in) as address:
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)
        yield stand_in


def prepare_into(folder):
    config = get_config()
    config.data, config.workers = "gs://bucket/corpus", 0
    prepare(config, folder)


def test_prepared_from_one_bucket_into_another(bucket, corpus, google):
    prepare_into("gs://other/speech")
    names = {path.removeprefix("/other/speech/") for path in bucket.find("gs://other/speech")}
    assert {"summary.json", "lengths.png", "rejected.jsonl", "speech/1.0.0/dataset_info.json"} <= names
    assert not any("unfinished" in name for name in names)
    same(opened("gs://other/speech")[0], opened(corpus)[0])


def test_records_stay_in_the_bucket(bucket, corpus, google, tmp_path):
    """What is opened are tables; then a shard's end once, and each record by one request that begins where it lies."""
    prepare_into("gs://other/speech")
    source, files = opened("gs://other/speech")[0], opened(corpus)[0]
    assert not google.asked
    kept = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert kept == {"dataset_info.json", "index-train.arrow"}
    (path,) = bucket.glob("gs://other/speech/speech/1.0.0/speech-train.array_record*")
    shard = tmp_path / "shard"
    shard.write_bytes(bucket.cat_file(path))
    places = [place.offset for place in find_records(shard, len(source))]
    order = [2, 0, 3, 1, 2]
    for i in order:
        np.testing.assert_array_equal(source.audio(i), files.audio(i))
    first, *others = [begin for _, begin in google.asked]
    assert first < 0 and others == [places[i] for i in order]
    assert {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()} == kept


def test_a_bucket_that_refuses_or_cuts_is_asked_again(bucket, corpus, google):
    prepare_into("gs://other/speech")
    source, files = opened("gs://other/speech")[0], opened(corpus)[0]
    google.faults = ["", "refuse", "cut"]  # the first answer opens the shard
    np.testing.assert_array_equal(source.audio(3), files.audio(3))
    assert len(google.asked) == 4 and not google.faults


def test_storage_that_fails_is_no_damage(bucket, corpus, google):
    """Neither before a shard was opened nor after; and when it is back, all is well."""
    prepare_into("gs://other/speech")
    files = opened(corpus)[0]
    (path,) = bucket.glob("gs://other/speech/speech/1.0.0/speech-train.array_record*")
    data = bucket.cat_file(path)
    for opened_before in (False, True):
        source = opened("gs://other/speech")[0]
        if opened_before:
            source.audio(0)
        bucket.rm(path)
        with pytest.raises(OSError, match=r"gs://other/speech.* cannot be read: Permanent error"):
            source.audio(1)
        bucket.pipe_file(path, data)
        np.testing.assert_array_equal(source.audio(1), files.audio(1))
    bucket.pipe_file(path, data[:200] + b"damage" + data[206:])
    with pytest.raises(AudioError, match=r"has a record that cannot be read .*hash mismatch"):
        source.audio(0)


def test_credentials_are_asked_for_before_a_run_waits(bucket, monkeypatch):
    class DefaultCredentialsError(Exception):
        pass

    def none():
        raise DefaultCredentialsError("Your default credentials were not found")

    exceptions = types.SimpleNamespace(DefaultCredentialsError=DefaultCredentialsError)
    auth = types.SimpleNamespace(default=none, exceptions=exceptions)
    monkeypatch.setitem(sys.modules, "google.auth", auth)
    monkeypatch.setattr(google_package, "auth", auth, raising=False)
    monkeypatch.delenv("CLOUD_STORAGE_EMULATOR_ENDPOINT")
    prepare_into("gs://other/speech")
    source = opened("gs://other/speech")[0]
    with pytest.raises(UserError, match="gcloud auth application-default login"):
        source.audio(0)


@pytest.fixture
def elsewhere(bucket):
    """A dataset under s3://, which array_record does not read."""
    prepare_into("s3://other/speech")
    OtherBucket.asked.clear()
    return fsspec.filesystem("s3")


def test_other_stores_are_asked_for_each_record_alone(elsewhere, corpus, tmp_path):
    source, files = opened("s3://other/speech")[0], opened(corpus)[0]
    assert not any("array_record" in name for name, _, _ in OtherBucket.asked)
    OtherBucket.asked.clear()
    for i in (3, 1, 1):
        np.testing.assert_array_equal(source.audio(i), files.audio(i))
    (path,) = elsewhere.glob("s3://other/speech/speech/1.0.0/speech-train.array_record*")
    (tmp_path / "shard").write_bytes(elsewhere.store[path].getvalue())
    places = find_records(tmp_path / "shard", 4)
    assert OtherBucket.asked == [
        (path.rpartition("/")[2], places[i].offset, places[i].offset + places[i].bytes) for i in (3, 1, 1)
    ]
    same(source, files)
    both = opened("s3://other/speech", "test,train")[0]
    same(both, opened(corpus, "test,train")[0])


def test_faults_of_other_stores_are_no_damage(elsewhere, corpus):
    source, files = opened("s3://other/speech")[0], opened(corpus)[0]
    OtherBucket.faults[:] = [ConnectionResetError("busy"), lambda data: data[:-1]]
    np.testing.assert_array_equal(source.audio(1), files.audio(1))
    assert not OtherBucket.faults
    OtherBucket.faults[:] = 2 * [lambda data: bytes(len(data))]  # which is believed when it comes twice
    with pytest.raises(AudioError, match="has a record that is"):
        source.audio(1)


def test_an_index_of_before_is_named(elsewhere):
    (path,) = elsewhere.glob("s3://other/speech/speech/1.0.0/index-train.arrow")
    table = pa.ipc.open_file(pa.BufferReader(elsewhere.cat_file(path))).read_all()
    elsewhere.pipe_file(path, index_bytes(table.drop_columns(["offset", "bytes"])))
    with pytest.raises(UserError, match="does not say where its records lie; run prepare again"):
        opened("s3://other/speech")[0].audio(0)


def test_tables_that_nobody_opened_for_a_month_are_removed(elsewhere, tmp_path):
    opened("s3://other/speech")
    (own,) = (tmp_path / "cache" / "datasets").iterdir()
    for days, left in ((29, 2), (31, 1)):
        old = own.with_name("another")
        old.mkdir()
        os.utime(old, (time.time() - days * 86400,) * 2)
        opened("s3://other/speech")
        assert len(list(own.parent.iterdir())) == left
        shutil.rmtree(old, ignore_errors=True)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), TimeoutError("slow"), ConnectionError()])
def test_tables_whose_storage_fails_are_no_damage(error, tmp_path, monkeypatch):
    """Arrow says of damaged bytes that they are an OSError, too."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1600), 16_000, format="FLAC")
    table = tmp_path / "train.parquet"
    pq.write_table(pa.table({"audio": [{"bytes": file.getvalue(), "path": None}] * 2}), table)
    path = packed.row_path(packed.PARQUET, str(table), "audio", 1)
    assert packed.read_packed(path) == file.getvalue()

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(packed, "_group", fail)
        with pytest.raises(type(error)) as caught:
            packed.read_packed(path)
        assert caught.value is error
    data = table.read_bytes()
    table.write_bytes(data[:100] + bytes(40) + data[140:])
    with pytest.raises(AudioError, match="has a row that cannot be read"):
        packed.read_packed(path)
    table.unlink()
    with pytest.raises(AudioError, match="has a row that cannot be read"):
        packed.read_packed(path)


def test_a_disk_that_fails_is_no_damage(corpus, tmp_path):
    """What array_record puts into words is the error that the system gave."""
    config = get_config()
    config.data, config.workers = str(corpus), 0
    prepare(config, tmp_path / "out")
    source = opened(tmp_path / "out")[0]
    (shard,) = (tmp_path / "out").glob("*/*/speech-train.array_record*")
    data = shard.read_bytes()
    shard.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        source.audio(0)
    assert caught.value.filename == str(shard) and caught.value.errno == errno.ENOENT
    shard.mkdir()
    with pytest.raises(IsADirectoryError):
        source.audio(0)
    shard.rmdir()
    shard.write_bytes(data)
    np.testing.assert_array_equal(source.audio(0), opened(corpus)[0].audio(0))


def test_files_whose_bucket_fails_are_no_damage(elsewhere, bucket, monkeypatch):
    def late(*_, **__):
        raise TimeoutError("slow")

    for path in bucket.find("gs://bucket/corpus"):
        elsewhere.pipe_file(f"s3:/{path}", bucket.cat_file(path))
    source = opened("s3://bucket/corpus")[0]
    monkeypatch.setattr(OtherBucket, "_open", late)
    monkeypatch.setattr(storage, "PATIENCE_S", 0.1)
    with pytest.raises(Unavailable, match="slow"):
        source.audio(0)


def test_a_bucket_that_is_not_there(bucket):
    with pytest.raises(UserError, match="gs://bucket/nowhere does not exist"):
        opened("gs://bucket/nowhere")


def test_a_missing_package_is_named(monkeypatch):
    def none(*_, **__):
        raise ImportError("Please install s3fs to access S3")

    backend.fsspec_backend._get_filesystem.cache_clear()
    monkeypatch.setattr(fsspec, "filesystem", none)
    with pytest.raises(UserError, match="s3://bucket/corpus cannot be reached: Please install s3fs"):
        opened("s3://bucket/corpus")
