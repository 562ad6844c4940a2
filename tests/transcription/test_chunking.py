"""Chunks of a recording, and what a model says of them merged: every frame once, and as in the whole."""

import functools
import itertools
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.decoding.greedy import Hypothesis, Word
from sew_jax.decoding.recognizer import log_probs
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, CTCHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.models.frontend import frame_count
from sew_jax.rates import FRAME_SAMPLES
from sew_jax.transcription import transcriber
from sew_jax.transcription.chunking import Chunk, Chunking, ChunkMerger, bucket_grid, bucket_of, cut, make_chunking

FRONTENDS = [BackboneConfig(frontend=name) for name in get_args(get_type_hints(BackboneConfig)["frontend"])]
SETTINGS = ["s1q1k1", "s3q2k1", "s4q2.3k4.1"]


def blocks(wave, random):
    """In pieces of any length."""
    return np.split(wave, np.sort(random.integers(0, len(wave) + 1, 5)))


def test_chunks_hold_the_recording_overlap_and_lie_on_the_grid():
    random = np.random.default_rng(0)
    for _ in range(300):
        grid = int(random.integers(1, 5))
        hop = grid * int(random.integers(1, 6))
        chunking = Chunking(hop + int(random.integers(1, 9)), hop, grid)
        wave = np.arange(random.integers(0, 100)).astype(np.int16)
        chunks = list(cut(blocks(wave, random), chunking))
        assert len(chunks) == chunking.count(len(wave)) and [c.last for c in chunks] == [False] * (len(chunks) - 1) + [
            True
        ]
        for chunk in chunks:
            np.testing.assert_array_equal(chunk.wave, wave[chunk.begin : chunk.begin + len(chunk.wave)])
            assert chunk.begin % grid == 0 and len(chunk.wave) <= chunking.length
            assert len(chunk.wave) > chunking.length - grid or len(chunks) == 1
        for before, after in itertools.pairwise(chunks):
            assert before.begin < after.begin <= before.begin + len(before.wave) - (chunking.length - hop)
        assert chunks[0].begin == 0 and chunks[-1].begin + len(chunks[-1].wave) == len(wave)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("config", FRONTENDS, ids=lambda config: config.frontend)
def test_every_frame_comes_once_from_the_chunk_that_knows_more_around_it(config, setting):
    random = np.random.default_rng(1)
    chunking = make_chunking(4.0, 0.5, Compression.parse(setting), 2, config.frame_samples)
    for samples in [1, 500, 64_000, 64_001, *random.integers(64_000, 600_000, 20)]:
        merger, merged, spans = ChunkMerger(config.frame_samples), [], []
        for chunk in cut([np.zeros(samples, np.int16)], chunking):
            first, frames = chunk.begin // config.frame_samples, frame_count(config, len(chunk.wave))
            said = np.stack([first + np.arange(frames), np.full(frames, len(spans))], 1)  # frame, chunk
            spans.append((first, first + frames))
            merged.append(merger.add(chunk, said))
        frame_T, chunk_T = np.concatenate(merged).T
        np.testing.assert_array_equal(frame_T, np.arange(frame_count(config, int(samples))))
        for number, (before, after) in enumerate(itertools.pairwise(spans)):
            middle = (after[0] + before[1]) // 2  # of what the two share
            assert before[0] <= after[0] < before[1]
            assert list(chunk_T[middle - 1 : middle + 1]) == [number, number + 1]


def local_model():
    """A model whose frames see but their surroundings: no statistics over time, and attention adds a constant."""
    backbone = BackboneConfig(
        conv_width=4,
        conv_norm="layer",
        width=16,
        layers=2,
        heads=2,
        ffn_width=16,
        pos_kernel=8,
        pos_groups=2,
        pool_ffn=True,
        upsample_factors=(3, 4),
    )
    model = CTCModel(backbone, CTCHeadConfig(symbols=5))
    params = model.initialize(jax.random.key(0))["params"]

    def silence(path, x):
        return x * 0 if "attention" in [key.key for key in path] else x

    return model, jax.tree_util.tree_map_with_path(silence, params)


@pytest.mark.parametrize("setting", SETTINGS)
def test_merged_chunks_say_what_the_whole_says(setting):
    setting = Compression.parse(setting)
    model, params = local_model()
    chunking = make_chunking(4.0, 1.5, setting, 2)
    wave = (np.random.default_rng(2).normal(size=150_123) * 3000).astype(np.int16)
    program = jax.jit(functools.partial(log_probs, model), static_argnames="compression")

    def said(samples, padded):
        batch = {"wave": np.zeros((1, padded), np.int16), "length": np.array([len(samples)])}
        batch["wave"][0, : len(samples)] = samples
        log_prob, frames = program(params, batch, compression=setting)
        return np.asarray(log_prob)[0, : int(frames[0])]

    whole, merger = said(wave, len(wave)), ChunkMerger()
    chunks = list(cut([wave], chunking))
    merged = np.concatenate([merger.add(chunk, said(chunk.wave, chunking.length)) for chunk in chunks])
    assert len(chunks) > 3 and np.ptp(whole, axis=0).min() > 0.01  # frames differ, so that a shift would be seen
    np.testing.assert_allclose(merged, whole, atol=2e-5)
    if setting.squeeze > 1:  # off the grid, frames mean something else
        off = said(wave[2 * FRAME_SAMPLES :], len(wave))
        assert np.abs(off - whole[2 : 2 + len(off)]).max() > 1e-2


def test_buckets_waste_little_and_are_few():
    buckets = bucket_grid(480_000)
    assert buckets == sorted(buckets) and buckets[-1] == 480_000 and len(buckets) <= 9
    assert all(longer <= 1.5 * shorter for shorter, longer in itertools.pairwise(buckets))
    assert bucket_grid(16_000) == [16_000]


def test_a_bucket_holds_its_samples_and_wastes_little():
    for samples in [1, 480_000, 480_001, *np.random.default_rng(0).integers(1, 5_000_000, 200).tolist()]:
        bucket = bucket_of(samples, 480_000)
        assert bucket >= samples and (bucket <= 1.5 * samples or bucket == bucket_grid(480_000)[0])
        assert bucket in bucket_grid(480_000) or samples > 480_000


@pytest.mark.parametrize(
    ("chunk", "overlap", "message"),
    [
        (30.0, 0.0, "too short to merge"),
        (4.0, 4.0, "at least 0.08 s more than"),
        (1.0, 4.0, "at least 0.08 s more than"),
    ],
)
def test_impossible_chunks_are_a_clear_error(chunk, overlap, message):
    with pytest.raises(UserError, match=message):
        make_chunking(chunk, overlap, Compression(2, 2), 2)


def test_frames_are_copied_from_their_batch():
    merger, batch = ChunkMerger(), np.zeros((8, 10, 3))
    merger.add(Chunk(0, np.zeros(3200, np.int16), False), batch[0])
    assert merger._held.base is None


def test_words_of_a_model_at_25_hz_are_on_frames_of_20_ms():
    words = (Word("one", 3, 5, 0.5), Word("two", 7, 8, 0.25))
    hypothesis = Hypothesis("one two", -1.0, words)
    assert transcriber.on_20_ms_frames(hypothesis, 640).words == (Word("one", 6, 10, 0.5), Word("two", 14, 16, 0.25))
    assert transcriber.on_20_ms_frames(hypothesis, 320) == hypothesis
