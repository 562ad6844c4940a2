"""Published recipes of pre-training, against the files that they are from."""

import jax.numpy as jnp
import pytest

from configs import finetune, pretrain
from sew_jax.errors import UserError
from sew_jax.models.sizes import SIZES
from sew_jax.training import optimizer as optim
from sew_jax.training.pretraining import Temperature

PUBLISHED = [size for size in SIZES if size not in ("demo", "cpu_hour", "gpu_day")]


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_temperature_is_fairseqs_at_every_update(size):
    config = pretrain.get_config(size)
    temperature = Temperature(**config.temperature)
    assert (temperature.start, temperature.end) == (2.0, 0.1 if size in ("large", "large_lv60k", "xlsr_1b") else 0.5)
    for update in (0, 1, 25_000, 50_000, 100_000, 200_000, 250_000, 277_258, 400_000, 599_145, 1_000_000):
        if update <= config.num_steps:
            value = float(temperature.at(jnp.float32(update / config.num_steps)))
            assert value == pytest.approx(max(2.0 * 0.999995**update, temperature.end), rel=1e-3), update


@pytest.mark.parametrize(("size", "last"), [("sew_tiny", 1.213), ("large", 0.573), ("base", 0.5), ("large_lv60k", 0.1)])
def test_where_an_anneal_above_1_ends(size, last):
    config = pretrain.get_config(size)
    assert float(Temperature(**config.temperature).at(1.0)) == pytest.approx(last, abs=1e-3)
    assert (config.temperature.anneal > 1) == (last > config.temperature.end)


@pytest.mark.parametrize(
    ("size", "updates", "peak", "rates"),
    [
        ("base", 400_000, (32_000, 5e-4), {400_000: 0.0}),
        ("sew_mid", 100_000, (32_000, 5e-4), {100_000: 5e-4 * 300 / 368}),
        ("large", 250_000, (20_000, 3e-4), {250_000: 0.0}),
        ("large_lv60k", 1_000_000, (32_000, 5e-3), {1_000_000: 0.0}),
    ],
)
def test_the_rate_is_the_published_one(size, updates, peak, rates):
    config = pretrain.get_config(size)
    assert config.num_steps == updates
    schedule = optim.warmup_linear(config.optim.lr, config.optim.warmup * updates, config.optim.total * updates)
    for update, rate in {peak[0]: peak[1], peak[0] // 2: peak[1] / 2, **rates}.items():
        assert float(schedule(update - 1)) == pytest.approx(rate, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize(("size", "samples", "crop"), [("base", 64 * 1.4e6, 250_000), ("large", 128 * 1.2e6, 320_000)])
def test_batches_are_those_of_as_many_devices(size, samples, crop):
    config = pretrain.get_config(size)
    assert config.input.batch_seconds * 16_000 == pytest.approx(samples, rel=0.01)
    assert config.input.crop_seconds * 16_000 == pytest.approx(crop, rel=0.01)
    assert config.input.min_seconds * 16_000 == 32_000


# Each line of wav2vec2_large_librivox.yaml that is a field of ours, and what the same fields are for LibriSpeech
LV60K = dict(
    conv_norm="layer",
    conv_bias=True,
    pre_norm=True,
    normalize_wave=True,
    layerdrop=0.0,
    input_dropout=0.0,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    layers=24,
    width=1024,
    ffn_width=4096,
    heads=16,
    feature_grad_scale=1.0,
)
LIBRISPEECH = LV60K | dict(
    conv_norm="group",
    conv_bias=False,
    pre_norm=False,
    normalize_wave=False,
    layerdrop=0.2,
    input_dropout=0.1,
    attention_dropout=0.1,
    feature_grad_scale=0.1,
)
HEAD = dict(final_width=768, code_width=768, codes=320, codebooks=2, negatives=100, logit_temperature=0.1)


@pytest.mark.parametrize(
    ("size", "model", "head"),
    [
        ("large_lv60k", LV60K, HEAD | dict(feature_dropout=0.0, penalty_weight=0.0, diversity_weight=0.1)),
        ("large", LIBRISPEECH, HEAD | dict(feature_dropout=0.1, penalty_weight=10.0, diversity_weight=0.1)),
    ],
)
def test_the_two_large_models(size, model, head):
    config = pretrain.get_config(f"{size},fixed")
    assert {key: config.model[key] for key in model} == model
    assert {key: config.head[key] for key in head} == head
    assert (config.compression.squeeze, config.compression.query_pool, config.compression.kv_pool) == ((1,), (1,), (1,))


@pytest.mark.parametrize("recipe", ["", "10m", "1h", "10h", "100h"])
def test_what_learns_from_its_teacher_hears_the_same(recipe):
    """Without masks and dropped layers; the rest is the recipe's, but that nothing is frozen."""
    taught, alone = (finetune.get_config(",".join(filter(None, (recipe, name)))) for name in ("stochastic", ""))
    assert taught.mask.time_prob == taught.mask.channel_prob == taught.model.layerdrop == taught.optim.freeze == 0
    assert (taught.num_steps, taught.optim.lr, taught.teacher.weight) == (alone.num_steps, alone.optim.lr, 1)
    assert bool(recipe) == (alone.mask.time_prob > 0)


def test_each_size_has_a_recipe_and_is_named_where_one_is_unknown():
    assert pretrain.RECIPES.keys() == SIZES.keys()
    with pytest.raises(UserError, match="choose one of demo, base, large, large_lv60k"):
        pretrain.get_config("largest")
