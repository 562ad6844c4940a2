"""Products and convolutions in bfloat16 on this CPU, against float64 and against what other platforms compute."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.models import products, strided_conv
from sew_jax.models.backbone import Backbone
from sew_jax.models.parameters import cast_ahead, path_name
from sew_jax.models.platforms import compiled_for
from tests.models.build import apply, init, noise, small

INFO = {
    "flags\t\t: fpu avx512f avx512_bf16 clzero\n": True,
    "flags : fpu amx_tile amx_bf16\n": True,
    "Features\t: fp asimd bf16 i8mm\n": True,
    "model name : avx512_bf16\nflags\t\t: fpu avx2 avx512f\n": False,
    "": False,
}


# What released families have beside wav2vec 2.0's parts, and what a rate needs
PARTS = {
    "wavlm": small("logmel", layers=1, rel_buckets=16, rel_furthest=20),
    "sew_d": small("logmel", layers=1, rel_buckets=8, rel_furthest=20, rel_form="disentangled", input_norm=False),
    "mms": small("logmel", layers=1, pre_norm=True, adapter_width=8),
    "data2vec": small("logmel", layers=1, pos_layers=2),
    "compressor": small("logmel", layers=1, compressor=True),
}


@pytest.fixture(params=[True, False], ids=["native", "widened"])
def native(request, monkeypatch):
    """A CPU with instructions for bfloat16, and one without."""
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: request.param)
    monkeypatch.setattr(strided_conv, "cpu_multiplies_bfloat16", lambda: request.param)
    return request.param


def bfloat16(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16)


def exact(x):
    return np.asarray(x, np.float64)


def assert_rounded_once(found, expected):
    """Sums were kept in float32 and rounded to bfloat16 at the end: half of its last bit, and a little."""
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(exact(found), expected, rtol=2**-8 * 1.01, atol=1e-4)


@pytest.mark.parametrize("text", INFO)
def test_what_the_system_says_of_the_cpu(text, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(products, "_CPU_INFO", tmp_path / "cpuinfo")
    assert products.cpu_multiplies_bfloat16.__wrapped__() is INFO[text]


def test_a_system_that_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(products, "_CPU_INFO", tmp_path / "nowhere")
    assert products.cpu_multiplies_bfloat16.__wrapped__() is False


def test_a_product_and_its_gradients_are_rounded_once(native):
    x, kernel, dy = bfloat16(2, 50, 96), bfloat16(96, 24, seed=1), bfloat16(2, 50, 24, seed=2)

    @jax.jit
    def run(x, kernel, dy):
        y, pull = jax.vjp(lambda x, kernel: products.dense_product(x, kernel, (((2,), (0,)), ((), ()))), x, kernel)
        return y, *pull(dy)

    y, dx, dkernel = run(x, kernel, dy)
    assert_rounded_once(y, exact(x) @ exact(kernel))
    assert_rounded_once(dx, exact(dy) @ exact(kernel).T)
    assert_rounded_once(dkernel, np.einsum("bti,bto->io", exact(x), exact(dy)))


@pytest.mark.parametrize(("taps", "stride"), [(3, 2), (2, 2), (1, 1), (7, 3)])
def test_a_convolution_is_rounded_once(native, taps, stride):
    x, kernel = bfloat16(2, 24, 8), bfloat16(taps, 8, 6, seed=1)
    found = jax.jit(strided_conv.strided_conv, static_argnums=2)(x, kernel, stride)
    windows = (24 - taps) // stride + 1
    expected = [np.einsum("bkc,kcd->bd", exact(x)[:, stride * t :][:, :taps], exact(kernel)) for t in range(windows)]
    assert_rounded_once(found, np.stack(expected, 1))


def test_float32_is_left_alone():
    x, kernel = jnp.ones((4, 8)), jnp.ones((8, 8))
    dimensions = (((1,), (0,)), ((), ()))
    plain = jax.jit(lambda x, k: jax.lax.dot_general(x, k, dimensions)).lower(x, kernel).as_text()
    ours = jax.jit(lambda x, k: products.dense_product(x, k, dimensions)).lower(x, kernel).as_text()
    assert ours == plain


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_multiply_and_convolve_bfloat16_as_it_is(platform):
    """Nothing is widened first, in gradients neither; the extractor's convolutions are products on TPUs alone."""
    x, kernel, wave = bfloat16(2, 16, 8), bfloat16(8, 8), bfloat16(2, 16, 1)

    def loss(x, kernel, wave):
        y = products.dense_product(x, kernel, (((2,), (0,)), ((), ())))
        z = strided_conv._convolve_wave(wave, kernel[:, None], 1)
        return (strided_conv.strided_conv(y, kernel[:2, :, None] * kernel, 2).sum() + z.sum()).astype(jnp.float32)

    with compiled_for(platform):
        lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(x, kernel, wave).lower(lowering_platforms=(platform,))
    lines = [line for line in lowered.as_text().splitlines() if "dot_general" in line or "convolution" in line]
    assert lines and not [line for line in lines if "f32" in line.replace("bf16", "").partition("->")[0]]
    assert any("convolution" in line for line in lines) == (platform == "cuda")


@pytest.mark.parametrize("kind", ["group", "fbank50", *PARTS])
def test_kernels_cast_ahead_give_the_same_to_the_bit(kind):
    config = PARTS[kind] if kind in PARTS else small(kind, layers=1)
    model, params = init(dataclasses.replace(config, dtype="bfloat16"))
    wave, length = noise(2 * 4000).reshape(2, 4000), [4000, 3000]
    setting = Compression(rate=0.4) if config.compressor else Compression(2)
    usual = apply(model, params, wave, length, setting)
    ahead = cast_ahead({"backbone": params}, "bfloat16")["backbone"]
    kinds = {path_name(path).rsplit("/")[-1]: x.dtype for path, x in jax.tree_util.tree_leaves_with_path(ahead)}
    assert kinds["kernel"] == jnp.bfloat16 and {kinds["scale"], kinds["bias"]} == {jnp.dtype("float32")}
    assert np.array_equal(apply(model, ahead, wave, length, setting).context_BxTxD, usual.context_BxTxD)


@pytest.mark.parametrize("config", [small("group", layers=1), *PARTS.values()], ids=["group", *PARTS])
def test_the_model_is_near_float32(config, native):
    _, params = init(config)
    wave, length = jnp.asarray(noise(4000)[None]), jnp.array([4000])
    setting = Compression(rate=0.4 if config.compressor else 1.0)

    def context(dtype):
        model = Backbone(dataclasses.replace(config, dtype=dtype))
        return jax.jit(lambda p: model.apply({"params": p}, wave, length, setting, deterministic=True))(params)

    expected, found = context("float32").context_BxTxD, context("bfloat16").context_BxTxD
    assert found.dtype == jnp.bfloat16
    error = np.abs(exact(found) - exact(expected))  # outputs are a norm's, of size 1
    assert error.max() < 0.1 and error.mean() < 0.012
