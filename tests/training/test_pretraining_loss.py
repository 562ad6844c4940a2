"""The whole pre-training loss, wave to terms, against float64 numpy on given masks, negatives and Gumbel noise."""

import jax
import jax.numpy as jnp
import numpy as np

from sew_jax.compression import Compression, Draw
from sew_jax.models.config import PretrainHeadConfig
from sew_jax.models.masking import MaskedFrames
from sew_jax.models.pretrain import PretrainModel
from sew_jax.training import pretraining
from sew_jax.training.pretraining import Temperature, pretrain_micro_loss
from sew_jax.training.task import SpanMask
from tests.models import oracle
from tests.models.build import small
from tests.models.test_published import WAV2VEC2_STRIDES, as_float64

HEAD = PretrainHeadConfig(codes=6, code_width=8, final_width=10, feature_dropout=0.0, negatives=4)
FRAMES, SAMPLES, TEMPERATURE = 19, 6401, 1.7


def expected_terms(params, wave, masked, negatives, noise, groups):
    """Sums in nats over one utterance: contrastive, diversity, penalty (its mean times the masked frames)."""
    p, config = params["backbone"], small("group")
    raw = oracle.extractor(p["frontend"]["extractor"], wave, WAV2VEC2_STRIDES, "group")
    features = oracle.normalize(raw, p["feature_norm"], 1)
    x = oracle.affine(features, p["feature_projection"])
    x[masked] = p["mask_embedding"]
    x = x + oracle.positions(p["encoder"]["pos_conv"], x, 1, config.pos_groups)
    context = oracle.transformer(p["encoder"], x, config.layers, config.heads, config.pre_norm)

    logits = oracle.affine(features[masked], params["quantizer"]["logits"]).reshape(len(masked), groups, HEAD.codes)
    chosen = (logits + noise).argmax(-1)  # the temperature scales all entries alike
    book = params["quantizer"]["codebook"]
    vectors = np.stack([np.concatenate([book[g, c[g]] for g in range(groups)]) for c in chosen])
    target = oracle.affine(vectors, params["project_target"])
    prediction = oracle.affine(context[masked], params["project_prediction"])

    contrastive = 0.0
    for i in range(len(masked)):
        candidates = [i] + [j for j in negatives[i] if tuple(chosen[j]) != tuple(chosen[i])]
        scores = np.array([cosine(prediction[i], target[j]) / HEAD.logit_temperature for j in candidates])
        contrastive += np.log(np.exp(scores).sum()) - scores[0]
    soft = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy = [-(m * np.log(m + 1e-7)).sum() for m in soft.mean(0)]
    size = groups * HEAD.codes
    return contrastive, (size - np.exp(entropy).sum()) / size * len(masked), (raw**2).mean() * len(masked)


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def test_terms_are_those_of_the_papers(monkeypatch):
    random = np.random.default_rng(0)
    wave = random.normal(size=SAMPLES).astype(np.float32)
    masked = np.sort(random.choice(FRAMES - 1, 9, replace=False))
    negatives = np.array([random.choice([j for j in range(9) if j != i], HEAD.negatives) for i in range(9)])
    noise = random.gumbel(size=(9, HEAD.codebooks, HEAD.codes))
    model = PretrainModel(small("group"), HEAD)
    params = jax.jit(model.initialize)(jax.random.key(0))["params"]
    params = jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape).astype(np.float32), params)

    mask = np.isin(np.arange(FRAMES), masked)[None]
    frames = MaskedFrames(jnp.array(masked[None]), jnp.ones((1, 9), bool), jnp.array(mask))
    monkeypatch.setattr(SpanMask, "draw", lambda *_: frames)
    monkeypatch.setattr(pretraining, "negative_indices", lambda *a: jnp.array(negatives[None]))
    monkeypatch.setattr(jax.random, "gumbel", lambda key, shape: jnp.array(noise, jnp.float32).reshape(shape))
    temperature = Temperature(TEMPERATURE, TEMPERATURE, 1.0)
    micro_loss = pretrain_micro_loss(model, SpanMask(0.65, 3, 2), temperature)
    batch = {"wave": jnp.array(wave[None]), "length": jnp.array([SAMPLES]), "crop": jnp.array([0])}
    run = jax.jit(lambda params, batch: micro_loss(params, {}, batch, jax.random.key(0), 0, Draw(Compression())))
    loss, (metrics, _) = run(params, batch)

    terms = expected_terms(as_float64(params), wave.astype(np.float64), masked, negatives, noise, HEAD.codebooks)
    weights = {"contrastive": 1.0, "diversity": HEAD.diversity_weight, "penalty": HEAD.penalty_weight}
    assert loss.weight == 9
    for (name, weight), expected in zip(weights.items(), terms, strict=True):
        np.testing.assert_allclose(metrics[f"loss_{name}"].sum, weight * expected / np.log(2), rtol=1e-4)
    np.testing.assert_allclose(loss.sum, sum(w * t for w, t in zip(weights.values(), terms, strict=True)), rtol=1e-4)
