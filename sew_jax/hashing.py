"""An integer hash: every host-side random decision is a pure function of (seed, step, purpose)."""

_MASK = (1 << 64) - 1


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
