"""Durations, rates, and where lines go."""

import threading

import pytest

from sew_jax.console import Progress, format_duration, listed, say, say_on_stderr


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


def test_a_thread_that_speaks_on_stderr_speaks_for_itself(capsys):
    """Two that overlap, the first to begin being the first to end: neither moves what the others write."""
    first, second, done = threading.Event(), threading.Event(), threading.Event()

    def begin():
        with say_on_stderr():
            first.set()
            second.wait()
            say("one")
        done.set()

    thread = threading.Thread(target=begin)
    thread.start()
    first.wait()
    with say_on_stderr():
        second.set()
        done.wait()
        say("two")
    thread.join()
    say("three")
    assert capsys.readouterr() == ("three\n", "one\ntwo\n")


def test_names_at_the_end_of_a_line():
    assert listed("new", []) == ""
    assert listed("new", ["a", "b", "a"]) == "; new: a, b"
    assert listed("new", "abcd", most=2) == "; new: a, b and 2 more"
