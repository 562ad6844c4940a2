"""Schedules at published points, and freezing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sew_jax.training import optimizer as optim
from sew_jax.training.pretraining import Temperature


def test_warmup_linear_is_wav2vec2s():
    schedule = optim.warmup_linear(5e-4, 32_000, 400_000)
    assert float(schedule(0)) == pytest.approx(5e-4 / 32_000)
    assert float(schedule(31_999)) == pytest.approx(5e-4)
    assert float(schedule(99_999)) == pytest.approx(4.08e-4, rel=1e-3)  # what SEW's 100k updates end with
    assert float(schedule(399_999)) == 0


def test_tri_stage_corners():
    schedule = optim.tri_stage(5e-5, 20_000, warmup=0.1, hold=0.4, initial=0.01, final=0.05)
    assert float(schedule(0)) == pytest.approx(5e-7)
    assert float(schedule(1000)) == pytest.approx(5e-5 * (0.01 + 0.99 / 2))
    assert float(schedule(2000)) == float(schedule(10_000)) == pytest.approx(5e-5)
    assert float(schedule(15_000)) == pytest.approx(5e-5 * 0.05**0.5)
    assert float(schedule(20_000)) == pytest.approx(2.5e-6)


def test_temperature_is_fairseqs_as_a_fraction_of_training():
    for update in (0, 25_000, 100_000, 277_000, 400_000):
        value = float(Temperature(2.0, 0.5, 0.693147).at(update / 400_000))
        assert value == pytest.approx(max(2 * 0.999995**update, 0.5), rel=1e-3)


def run(transform, params, gradient, updates):
    state, history = transform.init(params), [params]
    for _ in range(updates):
        step, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, step)
        history.append(params)
    return history


def test_frozen_parameters_stay_until_their_update():
    params = {"head": jnp.ones(2), "encoder": jnp.ones(2), "extractor": jnp.ones(2)}
    start = {"head": 0, "encoder": 3, "extractor": float("inf")}
    transform = optim.adam(
        optax.constant_schedule(0.1), eps=1e-8, weight_decay=0.1, clip_norm=0, frozen_until=start.get
    )
    history = run(transform, params, jax.tree.map(jnp.ones_like, params), 6)
    moved = {name: [bool((b[name] != a[name]).any()) for a, b in itertools.pairwise(history)] for name in params}
    assert moved == {"head": [True] * 6, "encoder": [False] * 3 + [True] * 3, "extractor": [False] * 6}


def test_frozen_gradients_do_not_enter_the_clipping_norm():
    params, gradient = {"a": jnp.ones(1), "b": jnp.ones(1)}, {"a": jnp.full(1, 0.5), "b": jnp.full(1, 1e6)}
    frozen = optim.adam(
        optax.constant_schedule(0.1),
        eps=1.0,
        weight_decay=0,
        clip_norm=1.0,
        frozen_until={"a": 0, "b": float("inf")}.get,
    )
    alone = optim.adam(optax.constant_schedule(0.1), eps=1.0, weight_decay=0, clip_norm=1.0)
    a = run(frozen, params, gradient, 1)[-1]["a"]
    np.testing.assert_allclose(a, run(alone, {"a": params["a"]}, {"a": gradient["a"]}, 1)[-1]["a"])


def test_a_group_has_its_share_of_the_rate():
    params = {"head": jnp.array([1.0, -2.0]), "backbone": jnp.array([1.0, -2.0])}
    gradient, options = jax.tree.map(lambda x: 0.3 * x, params), dict(eps=1e-8, weight_decay=0.1, clip_norm=0)
    schedule = optim.warmup_linear(0.1, 4, 10)
    whole = run(optim.adam(schedule, **options), params, gradient, 1)[-1]
    parts = run(optim.adam(schedule, lr_scale={"head": 1.0, "backbone": 0.25}.get, **options), params, gradient, 1)[-1]
    np.testing.assert_array_equal(parts["head"], whole["head"])
    moved = (whole["backbone"] - params["backbone"], parts["backbone"] - params["backbone"])
    np.testing.assert_allclose(moved[1], 0.25 * moved[0], rtol=1e-5)


def test_counted_are_the_updates_of_the_parameters():
    params = {"count": jnp.ones(3)}
    transform = optim.adam(optax.constant_schedule(0.1), eps=1e-8, weight_decay=0, clip_norm=0)
    state = transform.init(params)
    for updates in range(3):
        assert optim.applied_updates(state) == updates
        _, state = transform.update(params, state, params)


def test_weight_decay_is_decoupled():
    transform = optim.adam(optax.constant_schedule(0.1), eps=1e-6, weight_decay=0.01, clip_norm=0)
    params = run(transform, {"w": jnp.full(1, 2.0)}, {"w": jnp.zeros(1)}, 1)[-1]
    assert float(params["w"][0]) == pytest.approx(2.0 - 0.1 * 0.01 * 2.0)
