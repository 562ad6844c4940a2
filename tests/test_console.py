"""Durations and rates."""

import pytest

from sew_jax.console import Progress, format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (8.24, "8.2 s"),
        (65, "1 m 05 s"),
        (3599.6, "1 h 00 m"),
        (7800, "2 h 10 m"),
        (126_000, "1 d 11 h"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_rate_and_time_left_ignore_pauses():
    now = [0.0]
    progress = Progress(100, start=10, window=5, clock=lambda: now[0])
    assert (progress.rate, progress.left) == (0.0, "?")
    for done in range(11, 21):
        now[0] += 0.5
        progress.update(done)
        with progress.paused():
            now[0] += 100
    assert progress.rate == pytest.approx(2.0)
    assert progress.left == "40.0 s"
