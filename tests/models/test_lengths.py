"""Length arithmetic against brute force."""

import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.models import lengths


@pytest.mark.parametrize(("kernel", "stride"), [(10, 5), (3, 2), (2, 2), (1, 1), (400, 160)])
def test_conv_length_counts_windows(kernel, stride):
    for n in [0, 1, kernel - 1, kernel, kernel + 1, kernel + stride - 1, kernel + stride, 1000]:
        windows = sum(start + kernel <= n for start in range(0, max(n, 1), stride))
        assert lengths.conv_length(n, kernel, stride) == windows
        assert int(lengths.conv_length(jnp.array(n), kernel, stride)) == windows


def test_mean_pool_counts_valid_frames_only():
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 11, 3)).astype(np.float32)
    length = np.array([11, 7, 1, 0])
    spoiled = x.copy()
    for b, n in enumerate(length):
        spoiled[b, n:] = np.nan
    for factor in (1, 2, 3, 4, 16):
        pooled = np.asarray(lengths.mean_pool(jnp.array(spoiled), jnp.array(length), factor))
        assert pooled.shape[1] == -(-11 // factor)
        for b, n in enumerate(length):
            valid = int(lengths.pooled_length(int(n), factor))
            for w in range(valid):
                expected = x[b, w * factor : min((w + 1) * factor, n)].mean(0)
                np.testing.assert_allclose(pooled[b, w], expected, atol=1e-6)


def test_repeat_undoes_the_rate_of_a_pool():
    x = jnp.arange(4.0)[None, :, None]
    assert lengths.repeat_frames(x, 3, 10)[0, :, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert lengths.repeat_frames(x, 1, 3)[0, :, 0].tolist() == [0, 1, 2]


def test_zero_padding_removes_nan():
    x = jnp.full((2, 3, 1), jnp.nan).at[:, 0].set(1.0)
    assert lengths.zero_padding(x, jnp.array([1, 0]))[:, :, 0].tolist() == [[1, 0, 0], [0, 0, 0]]
