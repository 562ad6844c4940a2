"""Long recordings in pieces that begin and end in pauses."""

from collections.abc import Iterable, Iterator

import numpy as np

from sew_jax.rates import SAMPLE_RATE

_FRAME = SAMPLE_RATE // 100
_PAUSE = 30  # frames; the closure of a stop lasts less than half as long
_EDGE = 5  # frames, in which the quietest place of a pause is found
_PREFERENCE = 6.0  # dB that a longer piece may be louder at its end than a short one; speech is 20 above its pauses


def cut_at_pauses(blocks: Iterable[np.ndarray], longest: int, shortest: int) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces of a recording, in order and without gaps, each with its first sample: (begin, int16 (samples,)).

    A cut is where a third of a second is quietest, so through a word only where nobody pauses for as long as a piece
    may be. No more than a piece and two blocks are held.

    Args:
      blocks: int16 at 16 kHz, any number of samples each.
      longest: samples of a piece; at least twice `shortest`.
      shortest: what is shorter is no piece, unless the recording is.
    """
    held, begin = np.zeros(0, np.int16), 0
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= longest + shortest:
            cut = _quietest(held[:longest], shortest)
            yield begin, held[:cut]
            held, begin = held[cut:], begin + cut
    if len(held) > longest:  # the rest must be no shorter than a piece
        cut = _quietest(held[: len(held) - shortest], max(shortest, len(held) - longest))
        yield begin, held[:cut]
        held, begin = held[cut:], begin + cut
    if len(held):
        yield begin, held


def _quietest(wave: np.ndarray, first: int) -> int:
    """The sample from `first` to the end of `wave` in whose surroundings least is to be heard."""
    frames = wave[: len(wave) // _FRAME * _FRAME].reshape(-1, _FRAME).astype(np.float32)
    power = np.square(frames).mean(1)
    begin = -(-first // _FRAME)
    loudness = _smooth(power, _PAUSE)[begin:]
    middle = begin + int(np.argmin(loudness - np.linspace(0, _PREFERENCE, len(loudness))))
    low, high = max(middle - _PAUSE // 2, begin), min(middle + _PAUSE // 2, len(power) - 1)
    around = np.arange(low, high + 1)
    # of places that are as quiet, as in digital silence, the one in the middle
    loudness = _smooth(power, _EDGE)[around] + np.abs(around - middle) / _PAUSE
    return int(around[np.argmin(loudness)]) * _FRAME


def _smooth(power: np.ndarray, width: int) -> np.ndarray:
    """Mean power in dB of the `width` frames around each frame's begin; beyond the ends there is what is there."""
    sums = np.concatenate([[0.0], np.cumsum(power, dtype=np.float64)])
    at = np.arange(len(power))
    low, high = np.maximum(at - width // 2, 0), np.minimum(at + width - width // 2, len(power))
    return 10 * np.log10(np.maximum(sums[high] - sums[low], 0) / (high - low) + 1)
