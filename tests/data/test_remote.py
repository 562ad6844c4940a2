"""Data on an object store: gs:// on an in-memory file system, through the same libraries as a real bucket."""

import json

import fsspec
import numpy as np
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from configs.prepare import get_config
from sew_jax.data.prepare import prepare
from sew_jax.data.sources import open_source
from sew_jax.errors import UserError


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


@pytest.fixture
def bucket(corpus, tmp_path, monkeypatch):
    """The corpus as gs://bucket/corpus."""
    monkeypatch.setenv("SEW_JAX_CACHE", str(tmp_path / "cache"))
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, Bucket, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    Bucket.store.clear()
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
    assert len(source) == 2 and "cannot be fetched" in problems[0].reason
    np.testing.assert_array_equal(source.audio(1), opened(corpus)[0].audio(1))


def test_prepared_from_one_bucket_into_another(bucket, corpus, tmp_path):
    """Written there, and read through the user's cache, which takes each shard once."""
    config = get_config()
    config.data, config.workers = "gs://bucket/corpus", 0
    prepare(config, "gs://other/speech")
    names = {path.removeprefix("/other/speech/") for path in bucket.find("gs://other/speech")}
    assert {"summary.json", "lengths.png", "rejected.jsonl", "speech/1.0.0/dataset_info.json"} <= names
    assert not any("unfinished" in name for name in names)
    source = opened("gs://other/speech")[0]
    same(source, opened(corpus)[0])
    bucket.rm(next(path for path in bucket.find("gs://other/speech") if "train.array_record" in path))
    same(opened("gs://other/speech")[0], opened(corpus)[0])  # from the cache


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
