"""Subtitles, read back."""

import html
import itertools
import re

import numpy as np

from sew_jax.decoding.greedy import Word
from sew_jax.transcription.subtitles import cues, srt, vtt

_SRT = re.compile(r"(\d+)\n(\d\d):(\d\d):(\d\d),(\d{3}) --> (\d\d):(\d\d):(\d\d),(\d{3})\n((?:.+\n)+)(?:\n|$)")
_VTT = re.compile(r"(\d\d):(\d\d):(\d\d)\.(\d{3}) --> (\d\d):(\d\d):(\d\d)\.(\d{3})\n((?:.+\n)+)(?:\n|$)")


def speech(random, words=200):
    made, at = [], int(random.integers(0, 10**6))
    for _ in range(words):
        at += int(random.choice([1, 5, 20, 80, 2000], p=[0.4, 0.3, 0.2, 0.09, 0.01]))
        end = at + int(random.integers(1, 60))
        made.append(Word("".join(random.choice(list("ABC'"), random.integers(1, 15))), at, end, 0.5))
        at = end
    return made


def read(pattern, text):
    """(begin, end, lines) of each cue; nothing may stand between them."""
    assert pattern.sub("", text) == ""
    found = []
    for match in pattern.finditer(text):
        *times, body = match.groups()[-9:]
        h1, m1, s1, ms1, h2, m2, s2, ms2 = map(int, times)
        found.append(
            (
                3_600_000 * h1 + 60_000 * m1 + 1000 * s1 + ms1,
                3_600_000 * h2 + 60_000 * m2 + 1000 * s2 + ms2,
                body.splitlines(),
            )
        )
    return found


def test_cues_say_all_words_in_time_and_can_be_read():
    random = np.random.default_rng(0)
    for _ in range(20):
        words = speech(random)
        made = cues(words)
        said = [word for cue in made for line in cue.lines for word in line.split()]
        assert said == [word.text for word in words]
        spans = {begin: end for begin, end, _, _ in made}
        assert all(begin < end <= begin + 7000 for begin, end in spans.items())
        assert all(a.end <= b.begin for a, b in itertools.pairwise(made))
        assert all(len(cue.lines) <= 2 and all(0 < len(line) <= 42 for line in cue.lines) for cue in made)
        begins = np.array([cue.begin for cue in made])
        for before, word in itertools.pairwise(words):
            if word.begin - before.end >= 50:  # a second of silence
                assert 20 * word.begin in begins
        for cue in made:  # no shorter than a second where there is room
            after = begins[begins > cue.begin]
            assert cue.end - cue.begin >= min(1000, (after[0] if len(after) else np.inf) - cue.begin)


def test_srt_and_vtt_are_the_cues():
    words = [*speech(np.random.default_rng(1)), Word("<I>&", 10**7, 10**7 + 10, 1.0)]
    expected = [(begin, end, list(lines)) for begin, end, lines, _ in cues(words)]
    assert read(_SRT, srt(words)) == expected
    assert [int(n) for n in re.findall(r"^(\d+)\n", srt(words), re.M)] == list(range(1, len(expected) + 1))
    head, _, body = vtt(words).partition("\n\n")
    assert head == "WEBVTT" and "<I>" not in body and "&lt;I&gt;&amp;" in body
    assert [(b, e, [html.unescape(line) for line in lines]) for b, e, lines in read(_VTT, body)] == expected


def test_nothing_said():
    assert srt([]) == "" and vtt([]) == "WEBVTT\n"


def test_a_word_beyond_all_bounds_is_shown():
    (cue,) = cues([Word("A" * 300, 0, 1000, 1.0)])
    assert "".join(cue.lines) == "A" * 300 and cue.end == 7000


def test_a_cue_says_what_was_said_however_it_is_broken():
    words = [
        Word(text, 50 * i, 50 * i + 40, 0.5) for i, text in enumerate(["mother-in-law-" * 4 + "x", "語" * 54, "end"])
    ]
    found = cues(words)
    assert " ".join(cue.text for cue in found) == " ".join(word.text for word in words)
    assert any(len(cue.lines) > 1 for cue in found)
