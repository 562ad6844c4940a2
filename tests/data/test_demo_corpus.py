"""The embedded corpus: whole, reproducible to the byte, its splits disjoint in voice."""

import hashlib

import numpy as np
import pytest
import soundfile

from sew_jax.data import demo_corpus
from sew_jax.data.vocabulary import LETTERS
from sew_jax.errors import UserError

COUNTS = {"train": 40, "dev": 8, "test": 12}


@pytest.fixture(autouse=True, scope="module")
def fewer():
    """The generator, at a fraction of its size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_corpus, "SIZES", COUNTS)
        yield


@pytest.fixture(scope="module")
def small(fewer, tmp_path_factory):
    return demo_corpus.ensure_demo_corpus(0, tmp_path_factory.mktemp("cache"))


def digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_layout_and_content(small):
    assert "No person was recorded" in (small / "README.txt").read_text()
    for split, count in COUNTS.items():
        audio = sorted((small / split).glob("*/*/*.flac"))
        lines = [line for path in (small / split).glob("*/*/*.trans.txt") for line in path.read_text().splitlines()]
        texts = dict(line.split(" ", 1) for line in lines)
        assert len(audio) == count and {path.stem for path in audio} == set(texts)
        assert set("".join(texts.values())) <= set(LETTERS) | {" "}
        for path in audio:
            wave, rate = soundfile.read(path)
            assert (
                rate == 16_000
                and wave.ndim == 1
                and 0.4 < len(wave) / rate <= demo_corpus.MAX_SECONDS
                and 0.01 < np.abs(wave).max() < 1
            )


def test_splits_share_no_timbre():
    timbres = [{s.variant for s in demo_corpus.speakers(split)} for split in ("train", "dev", "test")]
    assert sum(map(len, timbres)) == len(set.union(*timbres))


def test_the_same_seed_gives_the_same_bytes(small, tmp_path):
    assert digest(demo_corpus.ensure_demo_corpus(0, tmp_path)) == digest(small)
    other = digest(demo_corpus.ensure_demo_corpus(1, tmp_path))
    assert sum(other.get(name) == value for name, value in digest(small).items()) < 3


def test_it_is_made_once_and_leaves_nothing_half_made(small):
    before = [path.stat().st_mtime_ns for path in sorted(small.rglob("*"))]
    assert demo_corpus.ensure_demo_corpus(0, small.parent) == small
    assert [path.stat().st_mtime_ns for path in sorted(small.rglob("*"))] == before
    assert list(small.parent.iterdir()) == [small]


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="SEW_JAX_CACHE"):
        demo_corpus.ensure_demo_corpus(0, tmp_path / "file")
