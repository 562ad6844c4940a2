"""Quantizer, projections, BatchNorm, and the whole pre-training model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.models.config import PretrainHeadConfig
from sew_jax.models.noise import draw_rows
from sew_jax.models.pretrain import MLP, MaskedBatchNorm
from sew_jax.models.quantizer import Quantizer
from tests.models.build import noise

HEAD = PretrainHeadConfig(codebooks=2, codes=5, code_width=8)


@pytest.fixture(scope="module")
def quantizer():
    model, x = Quantizer(HEAD), jnp.asarray(noise((3, 7, 6)))
    params = model.init({"params": jax.random.key(0)}, x, 1.0, True)["params"]
    return model, params, x


def test_evaluation_takes_the_best_entry(quantizer):
    model, params, x = quantizer
    out = model.apply({"params": params}, x, 1.0, True)
    logits = (x @ params["logits"]["kernel"] + params["logits"]["bias"]).reshape(3, 7, 2, 5)
    np.testing.assert_array_equal(out.codes_BxMxG, logits.argmax(-1))
    expected = np.concatenate([params["codebook"][g][logits.argmax(-1)[..., g]] for g in range(2)], axis=-1)
    np.testing.assert_allclose(out.vectors_BxMxQ, expected, rtol=1e-6)
    np.testing.assert_allclose(out.probs_BxMxGxV, jax.nn.softmax(logits), rtol=1e-5)


def test_training_is_hard_forward_and_soft_backward(quantizer):
    model, params, x = quantizer
    noise_key, tau, mix = jax.random.key(5), 0.7, noise((3, 7, 8), 2)

    def run(params):
        return model.apply({"params": params}, x, tau, False, rngs={"gumbel": noise_key})

    out = run(params)
    for g in range(2):  # forward: exactly rows of the codebook
        np.testing.assert_allclose(
            out.vectors_BxMxQ[..., 4 * g : 4 * g + 4], params["codebook"][g][out.codes_BxMxG[..., g]], rtol=1e-5
        )
    np.testing.assert_array_equal(out.best_BxMxG, model.apply({"params": params}, x, tau, True).codes_BxMxG)
    assert (out.codes_BxMxG != out.best_BxMxG).any()  # the noise explores

    # backward: the gradient of the soft mixture, with the noise that explains the choice made
    gradient = jax.grad(lambda p: (run(p).vectors_BxMxQ * mix).sum())(params)["logits"]["kernel"]

    def soft(kernel, gumbel):
        logits = (x @ kernel + params["logits"]["bias"]).reshape(3, 7, 2, 5)
        weights = jax.nn.softmax((logits + gumbel) / tau)
        return (jnp.einsum("bmgv,gve->bmge", weights, params["codebook"]).reshape(3, 7, 8) * mix).sum()

    gumbel = []

    def record(sampler, key_B, shape):
        gumbel.append(draw_rows(sampler, key_B, shape))
        return gumbel[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sew_jax.models.quantizer.draw_rows", record)
        run(params)
    np.testing.assert_allclose(gradient, jax.grad(soft)(params["logits"]["kernel"], gumbel[0]), rtol=1e-4, atol=1e-5)


def test_temperature_sharpens_the_gradient_not_the_choice(quantizer):
    model, params, x = quantizer
    codes = [
        model.apply({"params": params}, x, tau, False, rngs={"gumbel": jax.random.key(1)}).codes_BxMxG
        for tau in (2.0, 0.1)
    ]
    np.testing.assert_array_equal(*codes)


def test_batch_norm_counts_valid_frames_only():
    x, valid = noise((4, 6, 3)), np.arange(6) < np.array([6, 3, 0, 1])[:, None]
    norm = MaskedBatchNorm()
    variables = norm.init(jax.random.key(0), x, valid, False)
    out, updated = norm.apply(variables, x, valid, False, mutable=["batch_stats"])
    rows = x[valid]
    np.testing.assert_allclose(out[valid], (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5), atol=1e-5)
    stats = updated["batch_stats"]  # torch: momentum 0.1, unbiased variance
    np.testing.assert_allclose(stats["mean"], 0.1 * rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["variance"], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5)
    evaluated = norm.apply({**variables, **updated}, x, valid, True)
    np.testing.assert_allclose(evaluated, (x - stats["mean"]) / np.sqrt(stats["variance"] + 1e-5), rtol=1e-4, atol=1e-5)


def test_the_mlp_is_sews():
    """Linear without bias, BatchNorm, ReLU, linear."""
    x, valid = noise((2, 9, 5)), np.ones((2, 9), bool)
    head = MLP(width=7, out=4)
    variables = head.init(jax.random.key(0), x, valid, False)
    assert set(variables["params"]["hidden"]) == {"kernel"} and set(variables["params"]["out"]) == {"kernel", "bias"}
    out, _ = head.apply(variables, x, valid, False, mutable=["batch_stats"])
    hidden = x.reshape(-1, 5) @ np.asarray(variables["params"]["hidden"]["kernel"])
    hidden = np.maximum((hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5), 0)
    np.testing.assert_allclose(out.reshape(-1, 4), hidden @ np.asarray(variables["params"]["out"]["kernel"]), atol=1e-4)
