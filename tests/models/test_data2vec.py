"""data2vec 2.0: its masks against their rules, its targets against numpy, its student against its teacher."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.models.config import BackboneConfig, Data2VecConfig
from sew_jax.models.data2vec import Data2VecModel, targets, teacher_part
from sew_jax.models.encoder import Encoder
from sew_jax.models.kept_frames import KeptFrames, kept_frames, masked_units, unit_of
from sew_jax.models.noise import row_keys
from tests.models.build import draw

BACKBONE = BackboneConfig(
    frontend="logmel",
    width=16,
    layers=1,
    heads=2,
    ffn_width=24,
    pos_kernel=5,
    pos_groups=1,
    upsample_factors=(2,),
    dropout=0.0,
    attention_dropout=0.0,
    input_dropout=0.0,
    layerdrop=0.0,
)
HEAD = Data2VecConfig(
    clones=3, top_layers=1, decoder_width=8, decoder_layers=2, decoder_kernel=3, decoder_groups=1, decoder_dropout=0.0
)
MODEL = Data2VecModel(BACKBONE, HEAD)
SAMPLES, FRAMES = 13_040, 40


@functools.cache
def variables():
    """Drawn by numpy, since the model's own takes a program."""
    return {"params": draw(jax.eval_shape(MODEL.initialize, jax.random.key(0))["params"])}


def masks(length, frames, unit, ratio=0.5, rows=None):
    rows = np.arange(len(length)) if rows is None else np.array(rows)
    return jax.device_get(_masks(rows, np.array(length), frames, unit, ratio))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _masks(rows, length_B, frames, unit, ratio):
    keys = row_keys(jax.random.key(3), rows)
    return kept_frames(keys, length_B, frames, unit=unit, clones=4, ratio=ratio, adjust=0.05, block=5)


@pytest.mark.parametrize(("unit", "ratio"), [(1, 0.5), (4, 0.55)])
def test_each_copy_masks_its_share_and_no_padding(unit, ratio):
    lengths = [200, 163, 7, 1, 0]
    kept = masks(lengths, 200, unit, ratio)
    for row, length in enumerate(np.repeat(lengths, 4)):
        masked, seen = kept.masked_RxT[row], kept.kept_RxU[row]
        units = -(-int(length) // unit)
        assert seen.sum() == units - masked_units(units, ratio)
        assert not masked[length:].any() and not seen[units:].any()
        own = np.repeat(seen, unit)[:length]  # whole units are seen or masked, and nothing is both or neither
        np.testing.assert_array_equal(own, ~masked[:length])
        assert kept.length_R[row] == own.sum()
        np.testing.assert_array_equal(kept.unit_RxK[row][: seen.sum()], np.flatnonzero(seen))
    assert len({kept.masked_RxT[row].tobytes() for row in range(4)}) == 4  # each copy has a mask of its own
    assert kept.unit_RxK.shape[1] == 200 // unit - masked_units(200 // unit, ratio)


def test_masks_do_not_depend_on_padding_or_place():
    here, there = masks([150, 90], 150, 1), masks([0, 200, 0, 90, 17], 200, 1, rows=[9, 8, 7, 1, 0])
    np.testing.assert_array_equal(here.masked_RxT[4:], there.masked_RxT[12:16, :150])
    np.testing.assert_array_equal(here.length_R[4:], there.length_R[12:16])


def test_most_of_a_mask_lies_in_blocks():
    """42.4 % of all frames in blocks of 5, the rest single frames (simulated from fairseq's rule)."""
    masked = masks([200] * 5, 200, 1).masked_RxT
    in_blocks = sum(np.lib.stride_tricks.sliding_window_view(row, 5).all(1).sum() > 0 for row in masked)
    assert in_blocks == 20
    runs = [len(run) for row in masked for run in "".join("mx"[int(not m)] for m in row).split("x") if run]
    assert 0.3 < np.mean(np.array(runs) == 1) < 0.5 and np.mean(runs) > 3.5


@pytest.mark.parametrize("squeeze", [1, 2, 4])
def test_gather_and_scatter_are_inverse(squeeze):
    kept = KeptFrames(4, 4, *masks([21, 14], 21, 4)[2:])
    frames = np.random.default_rng(0).normal(size=(8, 21, 3)).astype(np.float32)
    windows = np.stack([frames[:, i : i + 1] for i in range(0, 21, squeeze)], 1)[:, :, 0]
    seen = np.asarray(jax.jit(lambda kept, x: KeptFrames(4, 4, *kept).gather(x, squeeze))(kept[2:], windows))
    for row in range(8):
        of = np.repeat(kept.kept_RxU[row], 4 // squeeze)[: windows.shape[1]]
        np.testing.assert_array_equal(seen[row, : of.sum()], windows[row, of])
    if squeeze == 1:
        nine = np.full((8, 21, 3), 9, np.float32)
        back = jax.jit(lambda kept, x: KeptFrames(4, 4, *kept).scatter(x, nine))(kept[2:], seen)
        own = np.repeat(kept.kept_RxU, 4, axis=1)[:, :21]
        np.testing.assert_array_equal(back, np.where(own[:, :, None], frames, 9.0))


def test_units_hold_whole_windows_and_pools():
    names = {"s1q1k1": 1, "s2q1k1": 2, "s2q2k1": 4, "s3q1.2k1.4": 12}
    assert {name: unit_of([Compression.parse(name)], 2) for name in names} == names
    assert unit_of([Compression(), Compression(2, 2), Compression(3)], 2) == 12


def feed_forward(intermediates):
    """Of each layer, before its residual and norm."""
    return [intermediates[layer]["feed_forward"][0] for layer in sorted(intermediates) if layer.startswith("layer_")]


def expected_targets(feed_forward, lengths, top):
    """Float64: each layer's channels normalised over an utterance's frames, then averaged."""
    out = []
    for row, length in enumerate(lengths):
        layers = []
        for x in feed_forward[-top:]:
            x = x[row, :length].astype(np.float64)
            layers.append((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5))
        out.append(np.mean(layers, 0))
    return out


def test_targets_against_numpy_and_padding():
    random, lengths = np.random.default_rng(1), np.array([40, 23])
    x = random.normal(size=(2, 40, 16)).astype(np.float32)
    encoder, options = Encoder(dataclasses.replace(BACKBONE, layers=2)), (lengths, Compression(), True)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), x, *options))["params"]
    teacher = jax.tree.map(lambda leaf: 0.3 * random.normal(size=leaf.shape).astype(np.float32), shapes)

    @jax.jit
    def compute(x):
        _, kept = encoder.apply({"params": teacher}, x, *options, mutable=["intermediates"])
        heads = [dataclasses.replace(HEAD, top_layers=top) for top in (1, 2)]
        models = [Data2VecModel(encoder.config, head) for head in heads]
        return kept["intermediates"], [targets(model, teacher, x, lengths) for model in models]

    noted, by_top = jax.device_get(compute(x))
    for top, target in enumerate(by_top, 1):
        for row, expected in enumerate(expected_targets(feed_forward(noted), lengths, top)):
            np.testing.assert_allclose(target[row, : lengths[row]], expected, atol=2e-4)
    x[1, 23:] = np.nan  # what padding holds does not matter
    for target, other in zip(by_top, compute(x)[1], strict=True):
        np.testing.assert_array_equal(target[1, :23], other[1, :23])


def test_the_mask_embedding_begins_at_zero(monkeypatch):
    params = variables()["params"]
    monkeypatch.setattr(Data2VecModel, "init", lambda *_, **__: {"params": params})
    begun = jax.device_get(jax.jit(MODEL.initialize)(jax.random.key(0)))
    assert not begun["params"]["backbone"].pop("mask_embedding").any()
    drawn = {**params["backbone"]}
    assert drawn.pop("mask_embedding").any()
    jax.tree.map(np.testing.assert_array_equal, begun["params"]["backbone"], drawn)


def test_a_student_without_a_mask_is_the_teacher():
    """At the first update, with one copy and behind no decoder."""
    length = np.array([FRAMES, 27])
    x = np.random.default_rng(2).normal(size=(2, FRAMES, 16)).astype(np.float32)
    model = dataclasses.replace(MODEL, head=dataclasses.replace(HEAD, clones=1, mask_ratio=0.01))

    @jax.jit
    def both(variables):
        keys = row_keys(jax.random.key(0), jnp.arange(2))
        kept = model.keep(keys, jnp.array([SAMPLES, 8_880]), SAMPLES, (Compression(),))
        student, plain = (
            Encoder(BACKBONE).apply(
                {"params": teacher_part(variables["params"])},
                x,
                length,
                Compression(),
                deterministic=True,
                kept=seen,
                mutable=["intermediates"],
            )
            for seen in (kept, None)
        )
        return kept.masked_RxT, student, plain[0], targets(model, teacher_part(variables["params"]), x, length)

    masked, (context, noted), plain, target = jax.device_get(both(variables()))
    assert not masked.any()
    for row, expected in enumerate(expected_targets(feed_forward(noted["intermediates"]), length, 1)):
        np.testing.assert_allclose(target[row, : length[row]], expected, atol=2e-4)
    np.testing.assert_allclose(plain, context, atol=1e-5)


def test_what_is_masked_reaches_no_prediction():
    """Neither through windows and pools nor through the convolution of positions: no gradient comes from there.

    The decoder is given what the encoder makes of it, and noise.
    """
    setting = Compression(2, 2, 1)
    frames = np.random.default_rng(4).normal(size=(1, 40, 16)).astype(np.float32)

    @jax.jit
    def influence(params):
        kept = MODEL.keep(row_keys(jax.random.key(0), jnp.arange(1)), jnp.array([SAMPLES]), SAMPLES, (setting,))

        def context(frames):
            x = kept.without_masked(frames)
            lengths = kept.copies(jnp.array([40]))
            y = Encoder(BACKBONE).apply(
                {"params": params["backbone"]["encoder"]}, x, lengths, setting, True, None, kept
            )
            return (y * jnp.arange(y.size).reshape(y.shape)).sum((1, 2))

        return kept.masked_RxT, jax.jacrev(context)(frames)[:, 0]

    masked, gradient = jax.device_get(influence(variables()["params"]))
    np.testing.assert_array_equal(masked, (gradient == 0).all(-1))
