"""MACs against the published arithmetic and XLA's own count."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone
from sew_jax.models.config import BackboneConfig
from sew_jax.models.cost import count_macs, count_shared_macs, count_update_flop
from sew_jax.models.lengths import conv_length
from sew_jax.models.sizes import published

BASE = dataclasses.replace(published("base")[0], upsample_factors=(2, 3, 4))
SAMPLES = 614 * 320 + 80  # 614 frames, 12.3 s


@pytest.mark.parametrize(
    ("name", "projections", "attention", "feed_forward", "encoder"),
    [
        ("s1q1k1", 17.4, 6.9, 34.8, 62.0),
        ("s2q1k1", 8.7, 1.7, 17.4, 29.6),
        ("s3q1k1", 5.8, 0.8, 11.6, 19.4),
        ("s4q1k1", 4.3, 0.4, 8.7, 14.5),
        ("s1q1k2", 13.0, 3.5, 34.8, 54.2),
        ("s1q2k1", 13.0, 3.5, 34.8, 54.2),
        ("s1q2k2", 8.7, 1.7, 34.8, 48.1),
        ("s1q4k4", 4.3, 0.4, 34.8, 42.4),
        ("s2q2k2", 4.3, 0.4, 17.4, 24.0),
    ],
)
def test_wav2vec2_base(name, projections, attention, feed_forward, encoder):
    cost = count_macs(BASE, Compression.parse(name), SAMPLES)
    # the table rounds, and cuts 614 / S down where the model rounds up
    assert cost.projections / 1e9 == pytest.approx(projections, abs=0.11)
    assert cost.attention / 1e9 == pytest.approx(attention, abs=0.06)
    assert cost.feed_forward / 1e9 == pytest.approx(feed_forward, abs=0.11)
    assert cost.encoder / 1e9 == pytest.approx(encoder, abs=0.16)
    assert cost.extractor / 1e9 == pytest.approx(30.2, abs=0.1)


def test_sew_extractor_is_seven_times_cheaper():
    sew = published("sew_small")[0]
    assert count_macs(sew, Compression(2), SAMPLES).extractor / 1e9 == pytest.approx(4.1, abs=0.1)


CONFIGS = {
    "wav2vec2": BackboneConfig(width=256, layers=2, heads=4, ffn_width=1024, pos_kernel=16, upsample_factors=(2, 4)),
    "compact": BackboneConfig(
        frontend="compact",
        conv_width=64,
        width=256,
        layers=2,
        heads=4,
        ffn_width=1024,
        pos_kernel=15,
        upsample_factors=(2,),
    ),
    "logmel": BackboneConfig(
        frontend="logmel", width=128, layers=2, heads=4, ffn_width=512, pos_kernel=15, pos_groups=1, pool_ffn=True
    ),
    "parts": BackboneConfig(
        frontend="logmel",
        width=128,
        layers=2,
        heads=4,
        ffn_width=512,
        pos_kernel=15,
        pos_layers=3,
        rel_buckets=32,
        pre_norm=True,
        adapter_width=128,
    ),
}
CONFIGS["entangled"] = dataclasses.replace(
    CONFIGS["parts"], pos_layers=1, rel_form="disentangled", pre_norm=False, adapter_width=0
)
CONFIGS["learned"] = dataclasses.replace(CONFIGS["logmel"], compressor=True, pool_ffn=False)
CONFIGS |= {
    frontend: BackboneConfig(frontend=frontend, width=256, layers=2, heads=4, ffn_width=1024, pos_kernel=16)
    for frontend in ("fbank50", "fbank25", "scf")
}


COUNTED = [("parts", "s2q1k2"), ("entangled", "s1q1k1"), ("entangled", "s2q1k2")]
COUNTED += [(frontend, name) for frontend in list(CONFIGS)[:3] for name in ("s1q1k1", "s2q1k2", "s3q2.1k1")]
COUNTED += [("logmel", "s1q1k1m0.2"), ("logmel", "s1q1k2.1m0.3-0.5"), ("learned", "r0.4q1k1")]
COUNTED += [(frontend, "s2q1k1") for frontend in list(CONFIGS)[6:]]


@pytest.mark.parametrize(("frontend", "name"), COUNTED)
def test_xla_counts_the_same(frontend, name):
    config, setting, samples = CONFIGS[frontend], Compression.parse(name), 48_000
    model = Backbone(config)

    def forward(params, wave):
        return model.apply(params, wave, jnp.array([samples]), setting, deterministic=True).context_BxTxD

    wave = jax.ShapeDtypeStruct((1, samples), jnp.float32)
    params = jax.eval_shape(
        lambda: model.init(
            jax.random.key(0), jnp.zeros((1, samples)), jnp.array([samples]), Compression(), deterministic=True
        )
    )
    flops = jax.jit(forward).lower(params, wave).compile().cost_analysis()["flops"]
    # XLA also counts norms, softmax and activations
    assert 1.0 <= flops / (2 * count_macs(config, setting, samples).total) < 1.15


def test_more_compression_never_costs_more():
    for squeeze, query, kv in itertools.product((1, 2, 3), (1, 2), (1, 2)):
        cost = count_macs(BASE, Compression(squeeze, query, kv), SAMPLES).total
        assert count_macs(BASE, Compression(squeeze + 1, query, kv), SAMPLES).total < cost
        assert count_macs(BASE, Compression(squeeze, query + 1, kv), SAMPLES).total < cost
        assert count_macs(BASE, Compression(squeeze, query, kv + 1), SAMPLES).total < cost


def test_feed_forward_at_the_pooled_rate():
    pooled = dataclasses.replace(BASE, pool_ffn=True)
    cost = {
        n: count_macs(c, Compression.parse(n), 15 * 16_000).total for c, n in [(BASE, "s1q1k1"), (pooled, "s2q2k2")]
    }
    # 2.06 before the up-sampler, which the published arithmetic leaves out
    assert cost["s1q1k1"] / cost["s2q2k2"] == pytest.approx(2.06, abs=0.06)


def first_layer(samples):
    """MACs of the waveform extractor's first convolution, whose input needs no gradient."""
    return conv_length(samples, 10, 5) * 10 * 512


def test_an_update_costs_three_forward_passes_of_what_is_computed_and_learnt():
    setting, samples = Compression.parse("s2q1k2"), 15 * 16_000

    def flop(**changes):
        return count_update_flop(dataclasses.replace(BASE, **changes), setting, samples)

    cost = count_macs(BASE, setting, samples)
    assert flop(layerdrop=0.0) == 6 * cost.total - 2 * first_layer(samples)
    outside = cost.extractor + cost.feature_projection + cost.pos_conv + cost.upsampler
    assert flop(layerdrop=1.0) == pytest.approx(6 * outside - 2 * first_layer(samples))
    assert flop(layerdrop=0.0, feature_grad_scale=0.0) == 6 * cost.total - 4 * cost.extractor
    assert flop(layerdrop=0.5) == pytest.approx((flop(layerdrop=0.0) + flop(layerdrop=1.0)) / 2)
    fixed = count_macs(dataclasses.replace(BASE, frontend="logmel"), setting, samples)
    learnt = fixed.total - fixed.extractor
    assert flop(frontend="logmel", layerdrop=0.0) == pytest.approx(6 * learnt + 2 * fixed.extractor)


def test_settings_that_share_the_front_end_cost_one_pass_of_it():
    largest, middle, smallest = (Compression.parse(name) for name in ("s1q1k1", "s2q1k2", "s4q2k1"))
    cost = {setting: count_macs(BASE, setting, SAMPLES) for setting in (largest, middle, smallest)}
    assert count_shared_macs(BASE, [middle], SAMPLES) == cost[middle].total
    front_end = cost[largest].extractor + cost[largest].feature_projection
    apart = sum(each.total for each in cost.values())
    assert count_shared_macs(BASE, [largest, middle, smallest], SAMPLES) == apart - 2 * front_end


@pytest.mark.parametrize("frontend", ["wav2vec2", "logmel"])
def test_an_update_at_several_settings_repeats_all_but_the_front_end(frontend):
    config, samples = dataclasses.replace(BASE, frontend=frontend, layerdrop=0.1), 15 * 16_000
    settings = [Compression.parse(name) for name in ("s1q1k1", "s2q1k1", "s4q1k1")]
    together = count_update_flop(config, settings[0], samples, settings[1:])
    apart = sum(count_update_flop(config, setting, samples) for setting in settings)
    cost = count_macs(config, settings[0], samples)
    spared = 4 * cost.extractor if frontend == "logmel" else 2 * first_layer(samples)
    once = 6 * (cost.extractor + cost.feature_projection) - spared
    assert together == pytest.approx(apart - 2 * once)
