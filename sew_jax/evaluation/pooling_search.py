"""Per-layer settings that cost less than uniform ones at equal errors: the search, whatever measures errors.

Three stages share a budget of trials. First every uniform setting. Then, for each squeeze factor, every change of one
layer alone; if their errors simply added up, the best setting for any price of a MAC could be read off them, so these
are tried next. What trials are left go to random changes of members of the front, of one factor as long as that gives
something new.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sew_jax.compression import Compression
from sew_jax.hashing import uniform_int

_PRICES = 64  # of a MAC, for which the additive model is asked
_AT_ONCE = 8  # changes between two looks at the front
_PATIENCE = 250  # draws with one change, then as many with two, and so on
_MOST_CHANGES = 4


class Candidate(NamedTuple):
    """A setting that was tried: word errors on the dev split, and MACs relative to s1q1k1."""

    setting: Compression
    macs: float
    errors: int


def find_front(points: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in MACs or errors without losing in the other, cheapest first."""
    front: list[Candidate] = []
    for point in sorted(points, key=lambda p: (p.macs, p.errors, p.setting.name)):
        if not front or point.errors < front[-1].errors:
            front.append(point)
    return front


def is_uniform(setting: Compression) -> bool:
    """Whether all layers have the same factors."""
    return not any(isinstance(value, tuple) for value in (setting.query_pool, setting.kv_pool, setting.merge))


def search_settings(
    measure: Callable[[list[Compression]], list[int]],
    macs: Callable[[Compression], float],
    *,
    layers: int,
    squeezes: Sequence[int],
    factors: Sequence[int],
    trials: int,
    seed: int,
) -> list[Candidate]:
    """All that was tried, in order; at least the uniform settings, beyond them at most `trials` settings in all.

    Args:
      measure: word errors of each setting of a list.
      macs: relative MACs of a setting.
      squeezes, factors: what may be chosen for S, and for Q and K of each layer.
    """
    tried: dict[Compression, Candidate] = {}

    def attempt(settings: Sequence[Compression], bound: int = trials) -> None:
        new = [s for s in dict.fromkeys(settings) if s not in tried][: max(bound - len(tried), 0)]
        for setting, errors in zip(new, measure(new) if new else [], strict=True):
            tried[setting] = Candidate(setting, macs(setting), errors)

    uniform = [Compression(*choice) for choice in itertools.product(squeezes, factors, factors)]
    attempt(uniform, len(uniform))
    for squeeze in squeezes:
        attempt([change for change in _single_changes(squeeze, layers, factors)])
    for squeeze in squeezes:
        attempt(_additive_optima(tried, macs, squeeze, layers, factors))
    draw = 0
    while True:
        front = [point.setting for point in find_front(list(tried.values()))]
        changes = _random_changes(front, tried, layers, squeezes, factors, (seed, draw))
        if not changes or len(tried) >= trials:
            return list(tried.values())
        attempt(changes)
        draw += 1


def _setting(squeeze: int, queries: Sequence[int], keys: Sequence[int]) -> Compression:
    return Compression(squeeze, tuple(map(int, queries)), tuple(map(int, keys)))


def _single_changes(squeeze: int, layers: int, factors: Sequence[int]) -> list[Compression]:
    """Settings in which one layer alone pools its queries or its keys and values."""
    ones, changes = (1,) * layers, []
    for layer, factor in itertools.product(range(layers), factors):
        changed = (*ones[:layer], factor, *ones[layer + 1 :])
        changes += [_setting(squeeze, changed, ones), _setting(squeeze, ones, changed)]
    return changes


def _additive_optima(
    tried: dict[Compression, Candidate],
    macs: Callable[[Compression], float],
    squeeze: int,
    layers: int,
    factors: Sequence[int],
) -> list[Compression]:
    """Settings of least errors + price * MACs for many prices, were the changes of layers independent of each other."""
    changes = _single_changes(squeeze, layers, factors)
    base = tried.get(Compression(squeeze))
    if base is None or any(change not in tried for change in changes):  # no trials were left for them
        return []
    pairs = list(itertools.product(factors, factors))
    errors_LxP, ones = np.empty((layers, len(pairs))), (1,) * layers
    for layer, (p, (query, key)) in itertools.product(range(layers), enumerate(pairs)):
        queries, keys = ((*ones[:layer], f, *ones[layer + 1 :]) for f in (query, key))
        single = tried[_setting(squeeze, queries, ones)].errors + tried[_setting(squeeze, ones, keys)].errors
        errors_LxP[layer, p] = single - 2 * base.errors
    # all layers cost the same
    macs_P = np.array([(macs(Compression(squeeze, q, k)) - base.macs) / layers for q, k in pairs])
    steepest = max(np.abs(errors_LxP).max(), 1) / max(np.abs(macs_P).max(), 1e-12)
    optima = []
    for price in steepest * np.logspace(-3, 1, _PRICES):
        best_L = (errors_LxP + price * macs_P).argmin(1)
        optima.append(_setting(squeeze, *zip(*(pairs[p] for p in best_L), strict=True)))
    return optima


def _random_changes(
    front: Sequence[Compression],
    tried: dict[Compression, Candidate],
    layers: int,
    squeezes: Sequence[int],
    factors: Sequence[int],
    words: tuple[int, ...],
) -> list[Compression]:
    """New settings: members of the front with as few numbers changed as give new ones; none where none is found."""
    new: list[Compression] = []
    for draw in range(_PATIENCE * _MOST_CHANGES):
        parent = front[uniform_int(len(front), *words, draw, "parent")]
        squeeze, pools = parent.squeeze, [list(pair) for pair in parent.layer_pools(layers)]
        for change in range(1 + draw // _PATIENCE):
            key = (*words, draw, change)
            place = uniform_int(2 * layers + 1, *key, "place")
            if place == 2 * layers:
                squeeze = squeezes[uniform_int(len(squeezes), *key, "squeeze")]
            else:
                pools[place // 2][place % 2] = factors[uniform_int(len(factors), *key, "factor")]
        child = _setting(squeeze, *zip(*pools, strict=True))
        if child not in tried and child not in new:
            new.append(child)
        if len(new) == _AT_ONCE:
            break
    return new
