"""Kaldi's log-mel energies step by step in float64, after `feat/feature-window.cc` and `feat/mel-computations.cc`."""

import numpy as np


def fbank(samples, bins=80, low=20.0, high=8000.0):
    """(frames, bins) of 16 kHz samples as 16-bit integers."""
    position = np.arange(400)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * position / 399)) ** 0.85
    frames = []
    for begin in range(0, len(samples) - 399, 160):
        frame = np.array(samples[begin : begin + 400], np.float64)
        frame -= frame.mean()
        emphasised = frame.copy()
        for i in range(399, 0, -1):
            emphasised[i] -= 0.97 * emphasised[i - 1]
        emphasised[0] -= 0.97 * emphasised[0]
        frames.append(np.abs(np.fft.rfft(emphasised * window, 512)) ** 2)
    power = np.stack(frames)[:, :256]

    def mel(hz):
        return 1127.0 * np.log(1 + hz / 700)

    step = (mel(high) - mel(low)) / (bins + 1)
    weights = np.zeros((256, bins))
    for b in range(bins):
        left, centre, right = (mel(low) + (b + i) * step for i in range(3))
        for i in range(256):
            at = mel(i * 16_000 / 512)
            if left < at < right:
                weights[i, b] = (at - left) / (centre - left) if at <= centre else (right - at) / (right - centre)
    return np.log(np.maximum(power @ weights, np.finfo(np.float32).eps))
