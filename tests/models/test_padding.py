"""An utterance's output depends on nothing but the utterance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression
from tests.models.build import apply, init, noise, small

SETTINGS = [Compression(s, q, k) for s in (1, 2, 3, 4) for q in (1, 2) for k in (1, 2)] + [
    Compression(2, (1, 3), (2, 1)),
    Compression(1, 1, 1, 0.2),
    Compression(2, 1, 2, (0.2, 0.5)),
    Compression(1, 1, 2, rate=0.4),
]
SAMPLES = 5200  # 16 frames


# Settings that one program computes: of a squeeze for log-mel, and three for those that take longer to compile
GROUPS = [("logmel", tuple(s for s in SETTINGS if s.squeeze == squeeze)) for squeeze in (1, 2, 3, 4)]
GROUPS += [(frontend, tuple(SETTINGS[i] for i in (0, 6, 16))) for frontend in ("group", "layer", "compact")]
GROUPS += [(frontend, (SETTINGS[6],)) for frontend in ("fbank50", "fbank25", "scf")]
LENGTHS, ROW = (8003, 700, SAMPLES, 0), 2  # of a batch, and where the utterance lies in it


@functools.cache
def alone_and_together(frontend, settings):
    """Hidden states of the utterance, and of a batch with it, at all of the settings."""
    model, params = init(small(frontend))
    wave = noise(SAMPLES)
    batch = np.stack([noise(8003, seed) * 3 for seed in range(4)])  # whatever lies in the padding must not be seen
    batch[ROW, :SAMPLES] = wave

    def both(params, alone, batch):
        run = functools.partial(model.apply, {"params": params}, deterministic=True, others=settings[1:])
        return run(alone, jnp.array([SAMPLES]), settings[0]), run(batch, jnp.array(LENGTHS), settings[0])

    return jax.device_get(jax.jit(both)(params, wave[None], batch))


@pytest.mark.parametrize(
    ("frontend", "settings", "i"),
    [
        pytest.param(frontend, settings, i, id=f"{frontend}-{setting}")
        for frontend, settings in GROUPS
        for i, setting in enumerate(settings)
    ],
)
def test_alone_padded_and_in_a_batch(frontend, settings, i):
    hidden = alone_and_together(frontend, settings)
    alone, together = ((x.context_BxTxD, *x.others_BxTxD)[i] for x in hidden)
    frames = hidden[0].length_B[0]
    assert hidden[1].length_B[ROW] == frames == alone.shape[1]
    scale = np.abs(alone).max()
    np.testing.assert_allclose(together[ROW, :frames], alone[0], atol=1e-5 * max(scale, 1))
    features = hidden[0].features_BxTxC[0]
    atol = 1e-5 * max(np.abs(features).max(), 2)
    np.testing.assert_allclose(hidden[1].features_BxTxC[ROW, :frames], features, atol=atol)
    assert np.isfinite(together).all()
    assert not together[ROW, frames:].any() and not together[3].any()


@pytest.mark.parametrize(
    "options",
    [
        dict(pool_ffn=True),
        dict(upsampler="repeat"),
        dict(upsampler="linear"),
        dict(pre_norm=True),
        dict(tail="drop"),
        dict(rel_form="disentangled", rel_buckets=8, rel_furthest=12, rel_unit=2, input_norm=False),
        dict(pos_layers=3, rel_buckets=16, rel_furthest=12, pre_norm=True, adapter_width=8),
    ],
    ids=str,
)
def test_every_variant(options):
    model, params = init(small("logmel", **options))
    setting = Compression(3, 2, 2)
    wave = noise(SAMPLES)
    alone = apply(model, params, wave[None], [SAMPLES], setting)
    padded = apply(model, params, np.concatenate([wave, noise(3000, 9)])[None], [SAMPLES], setting)
    frames = alone.length_B[0]
    np.testing.assert_allclose(padded.context_BxTxD[0, :frames], alone.context_BxTxD[0], atol=2e-5)
    assert not padded.context_BxTxD[0, frames:].any()
