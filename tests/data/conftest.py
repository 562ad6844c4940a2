"""A small corpus of tones in LibriSpeech's layout."""

import numpy as np
import pytest
import soundfile


def tone(seconds, rate=16_000, channels=1):
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * 440 * time)
    return np.stack([wave] * channels, axis=1) if channels > 1 else wave


@pytest.fixture
def corpus(tmp_path):
    """`train` with four utterances of speaker 1, `test` with one of speaker 2."""
    for split, speaker, count in (("train", 1, 4), ("test", 2, 1)):
        folder = tmp_path / "corpus" / split / str(speaker) / "1"
        folder.mkdir(parents=True)
        lines = []
        for i in range(count):
            soundfile.write(folder / f"{speaker}-1-{i:04d}.flac", tone(1 + i / 4), 16_000)
            lines.append(f"{speaker}-1-{i:04d} WORD {'ABCD'[i]}\n")
        (folder / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return tmp_path / "corpus"


@pytest.fixture
def make_tone():
    return tone
