"""What an accelerator's branches become on 8 devices, compiled for 8 virtual ones: each holds its own rows alone."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest

from sew_jax.compression import Compression
from sew_jax.models import attention, positions
from sew_jax.models.backbone import Backbone
from sew_jax.models.flash_attention import flash_attention
from sew_jax.models.platforms import compiled_for
from sew_jax.models.spectral_conv import convolve_by_spectrum
from sew_jax.runtime.sharding import batch_sharding, make_mesh, tree_shardings
from tests.models.build import shapes, small

ROWS, FRAMES = 56, 104  # numbers that nothing else in the program has; frames in eights, which bfloat16 has them in
SAMPLES = 400 + 320 * (FRAMES - 1)


def compiled_text(dtype):
    """Of the gradient of a sum of outputs, noise included."""
    config = small("group", layers=1, dropout=0.1, attention_dropout=0.1, feature_grad_scale=1.0)
    config = dataclasses.replace(config, heads=2, dtype=dtype)
    mesh = make_mesh(4, 2)

    def loss(params, wave, length, row):
        hidden = Backbone(config).apply(
            {"params": params},
            wave,
            length,
            Compression(1, 1, 1),
            deterministic=False,
            row_B=row,
            rngs={"dropout": jax.random.key(1)},
        )
        return jnp.square(hidden.context_BxTxD.astype(jnp.float32)).sum()

    params = shapes(config)
    placed = tree_shardings(mesh, params)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, placed)
    rows = batch_sharding(mesh)
    batch = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for shape, dtype in (((ROWS, SAMPLES), jnp.int16), ((ROWS,), jnp.int32), ((ROWS,), jnp.int32))
    ]
    return jax.jit(jax.grad(loss), out_shardings=placed).lower(like, *batch).compile().as_text()


def sizes(text):
    """Of every array in a program, but those of one axis."""
    return [tuple(map(int, axes.split(","))) for axes in set(re.findall(r"\w\[([\d,]+)\]", text)) if "," in axes]


def sizes_of_scores(text):
    """Elements of arrays with queries and keys."""
    return [math.prod(axes) for axes in sizes(text) if axes.count(FRAMES) == 2]


@pytest.fixture
def on_gpus(monkeypatch):
    monkeypatch.setattr(attention, "flash_attention", lambda *arguments: flash_attention(*arguments, True))
    with compiled_for("cuda"):
        yield


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_device_holds_the_batch_and_none_holds_the_scores_of_all_heads(dtype, on_gpus):
    """Its part of the batch has 7 rows. Scores are those of a head at a time, in bfloat16 those of a block."""
    text = compiled_text(dtype)
    arrays = sizes(text)
    assert any(ROWS // 8 in axes for axes in arrays)
    assert not [axes for axes in arrays if ROWS in axes]
    assert max(sizes_of_scores(text), default=0) == (ROWS // 8 * FRAMES**2 if dtype == "float32" else 0)


def test_the_grouped_convolution_would_gather_it(monkeypatch):
    """Why TPUs alone have it, whose partitioner is another: if this fails, XLA has learned it."""
    rows = batch_sharding(make_mesh(8, 1))
    x = jax.ShapeDtypeStruct((ROWS, FRAMES, 16), jnp.float32, sharding=rows)
    kernel = jax.ShapeDtypeStruct((6, 4, 16), jnp.float32)

    def text(convolve):
        return jax.jit(lambda x, k: convolve(x, k, 1, 4), out_shardings=rows).lower(x, kernel).compile().as_text()

    assert any(ROWS in axes for axes in sizes(text(positions.convolve)))
    for form in (positions.convolve_group_by_group, convolve_by_spectrum):
        assert not any(ROWS in axes for axes in sizes(text(form)))
