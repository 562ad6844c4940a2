"""An utterance's output depends on nothing but the utterance."""

import numpy as np
import pytest

from sew_jax.compression import Compression
from tests.models.build import FRONTENDS, apply, init, noise, small

SETTINGS = [Compression(s, q, k) for s in (1, 2, 3, 4) for q in (1, 2) for k in (1, 2)] + [
    Compression(2, (1, 3), (2, 1))
]
SAMPLES = 5200  # 16 frames


CASES = [("logmel", setting) for setting in SETTINGS]
CASES += [(frontend, SETTINGS[i]) for frontend in FRONTENDS if frontend != "logmel" for i in (0, 6, 16)]


@pytest.mark.parametrize("frontend, setting", CASES, ids=str)
def test_alone_padded_and_in_a_batch(frontend, setting):
    model, params = init(small(frontend))
    wave = noise(SAMPLES)
    alone = apply(model, params, wave[None], [SAMPLES], setting)
    batch = np.stack([noise(8003, seed) * 3 for seed in range(4)])  # whatever lies in the padding must not be seen
    batch[2, :SAMPLES] = wave
    together = apply(model, params, batch, [8003, 700, SAMPLES, 0], setting)

    frames = alone.length_B[0]
    assert together.length_B[2] == frames == alone.context_BxTxD.shape[1]
    scale = np.abs(alone.context_BxTxD).max()
    np.testing.assert_allclose(together.context_BxTxD[2, :frames], alone.context_BxTxD[0], atol=1e-5 * max(scale, 1))
    np.testing.assert_allclose(together.features_BxTxC[2, :frames], alone.features_BxTxC[0], atol=2e-5)
    assert np.isfinite(together.context_BxTxD).all()
    assert not together.context_BxTxD[2, frames:].any() and not together.context_BxTxD[3].any()


@pytest.mark.parametrize(
    "options",
    [dict(pool_ffn=True), dict(upsampler="repeat"), dict(upsampler="linear"), dict(pre_norm=True), dict(tail="drop")],
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
