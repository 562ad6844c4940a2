"""An integer hash: every host-side random decision is a pure function of (seed, step, purpose)."""

import math

import numpy as np

_MASK = (1 << 64) - 1
_ROUNDS = (
    6  # of the Feistel network: four make a pseudo-random permutation (Luby and Rackoff 1988), small sizes need more
)


def _splitmix64(x: int) -> int:
    """One round of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def hash_u64(*words: int | str) -> int:
    """Hashes integers and short names to a uniform 64-bit integer; the order of the words matters."""
    state = 0
    for word in words:
        if isinstance(word, str):
            word = int.from_bytes(word.encode(), "little")
        while True:  # absorb wide words 64 bits at a time
            state = _splitmix64(state ^ (word & _MASK))
            word >>= 64
            if word in (0, -1):
                break
    return state


def uniform_int(bound: int, *words: int | str) -> int:
    """A uniform integer in [0, bound) from `words` (multiply-shift, bias below 2**-50 for any real bound)."""
    return (hash_u64(*words) * bound) >> 64


def permute(places: np.ndarray, size: int, *words: int | str) -> np.ndarray:
    """Where a permutation of 0, 1, ..., size - 1, drawn by `words`, puts each of `places`: int64 of the same shape.

    Nothing is stored and no other place is computed. A Feistel network over the pairs below the square root, walked
    until it lands below `size`, which it nearly always does at once (Black and Rogaway, CT-RSA 2002).
    """
    side = np.uint64(math.isqrt(max(size - 1, 0)) + 1)
    seed = hash_u64(*words)
    keys = np.array([_splitmix64(seed ^ turn) for turn in range(_ROUNDS)], np.uint64)
    x = np.array(places, np.uint64)
    outside = np.ones(x.shape, bool)
    while outside.any():
        left, right = np.divmod(x[outside], side)
        for key in keys:
            left, right = right, (left + _mix(right ^ key) % side) % side
        x[outside] = left * side + right
        outside = x >= size
    return x.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of `_splitmix64`, for arrays of uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
