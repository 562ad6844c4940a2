"""The search for per-layer settings, against fronts known by trying everything."""

import itertools

import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.evaluation.pooling_search import Candidate, find_front, is_uniform, search_settings

LAYERS, SQUEEZES, FACTORS = 3, (1, 2), (1, 2)


def macs(setting):
    pools = setting.layer_pools(LAYERS)
    return (4 + sum(1 / q + 1 / k + 1 / (q * k) for q, k in pools)) / setting.squeeze / 13


def problem(seed, interaction=0.0):
    """Errors as a sum over layers, some of which hardly mind pooling, and something that does not add up."""
    random = np.random.default_rng(seed)
    harm_Lx2 = random.exponential(size=(LAYERS, 2)) * random.choice([1, 30], size=(LAYERS, 2))

    def errors(setting):
        pooled_Lx2 = np.array(setting.layer_pools(LAYERS)) > 1
        return round(
            100 + 40 * (setting.squeeze - 1) + (harm_Lx2 * pooled_Lx2).sum() + interaction * pooled_Lx2.sum() ** 2
        )

    everything = [
        Compression(s, q, k)
        for s in SQUEEZES
        for q, k in itertools.product(itertools.product(FACTORS, repeat=LAYERS), repeat=2)
    ]
    return errors, find_front([Candidate(s, macs(s), errors(s)) for s in everything]), len(everything)


def search(errors, trials, seed=0):
    calls = []

    def measure(settings):
        calls.extend(settings)
        return [errors(s) for s in settings]

    options = dict(layers=LAYERS, squeezes=SQUEEZES, factors=FACTORS, trials=trials, seed=seed)
    points = search_settings(measure, macs, **options)
    assert [p.setting for p in points] == calls and len(set(calls)) == len(calls)  # nothing is measured twice
    return points


def dominates(front, other):
    return all(any(p.macs <= o.macs + 1e-12 and p.errors <= o.errors for p in front) for o in other)


@pytest.mark.parametrize("interaction", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_with_enough_trials_it_finds_the_front_of_all_settings(seed, interaction):
    errors, best, count = problem(seed, interaction)
    front = find_front(search(errors, count))
    assert [(p.macs, p.errors) for p in front] == [(p.macs, p.errors) for p in best]


@pytest.mark.parametrize("seed", range(4))
def test_with_half_of_them_it_beats_the_uniform_settings(seed):
    errors, best, count = problem(seed)
    points = search(errors, count // 2)
    assert len(points) == count // 2
    front, uniform = find_front(points), find_front([p for p in points if is_uniform(p.setting)])
    assert dominates(front, uniform) and not dominates(uniform, front)
    assert np.mean([p in front for p in best]) > 0.7


def test_uniform_settings_are_tried_whatever_the_trials_and_a_seed_decides_the_rest():
    errors, _, count = problem(0)
    points = search(errors, 1)
    assert [p.setting for p in points] == [Compression(*c) for c in itertools.product(SQUEEZES, FACTORS, FACTORS)]
    assert search(errors, count // 2) == search(errors, count // 2)


def test_the_front_is_what_nothing_beats():
    random = np.random.default_rng(0)
    points = [
        Candidate(Compression(i + 1), float(m), int(e)) for i, (m, e) in enumerate(random.integers(0, 6, (60, 2)))
    ]
    front = find_front(points)
    assert [p.macs for p in front] == sorted(p.macs for p in front)
    for point in points:
        beaten = any(
            o.macs <= point.macs and o.errors <= point.errors and (o.macs, o.errors) != (point.macs, point.errors)
            for o in points
        )
        assert beaten == ((point.macs, point.errors) not in {(p.macs, p.errors) for p in front})
