"""A corpus with one good utterance of each form, and one of each kind of damage that users' corpora have."""

import os

import numpy as np
import soundfile

from sew_jax.rates import SAMPLE_RATE

GOOD = ("plain", "8 bit", "24 bit", "96 kHz stereo", "spaces and ünïcode", "ogg", "link within", "empty transcript")
# kind -> what its reason must say
DAMAGED = {
    "truncated flac": "truncated|cannot be decoded",
    "empty file": "is empty",
    "text renamed": "cannot be decoded",
    "no samples": "holds no audio",
    "nan": "NaN",
    "too short": "0.01 s long",
    "an hour": "3600.00 s long",
    "no transcript": "has no transcript",
    "latin-1 transcript": "not UTF-8",
    "same name": "has the id of another utterance",
    "link out": "is a link out of",
    "broken link": "is a broken link",
    "transcript alone": "has a transcript but no audio file",
    "name not utf-8": "its name is not UTF-8",
}


def make_damaged_corpus(root, outside):
    """Folder `train` under `root`: names as above; returns {id: pattern of its reason} of what is damaged."""
    folder = root / "train" / "7" / "1"
    folder.mkdir(parents=True)
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    wave = 0.3 * np.sin(2 * np.pi * 300 * time)

    def write(name, data=wave, rate=SAMPLE_RATE, suffix=".flac", **options):
        soundfile.write(folder / f"{name}{suffix}", data, rate, **options)

    write("plain")
    write("8 bit", suffix=".wav", subtype="PCM_U8")
    write("24 bit", subtype="PCM_24")
    write("96 kHz stereo", np.stack([np.repeat(wave, 6)] * 2, 1), 96_000)
    write("spaces and ünïcode")
    write("ogg", suffix=".ogg")
    (folder / "link within.flac").symlink_to(folder / "plain.flac")

    write("truncated flac", np.random.default_rng(0).uniform(-1, 1, SAMPLE_RATE * 2))
    path = folder / "truncated flac.flac"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / "empty file.wav").write_bytes(b"")
    (folder / "text renamed.wav").write_text("this is no audio")
    write("no samples", np.zeros(0), suffix=".wav")
    write("nan", np.full(SAMPLE_RATE, np.nan), suffix=".wav", subtype="FLOAT")
    write("too short", wave[:160])
    write("an hour", np.zeros(3600 * SAMPLE_RATE, np.int16))
    for name in ("no transcript", "empty transcript", "latin-1 transcript"):  # the second one is of silence
        write(name)
    write("same name")
    write("same name", suffix=".wav")
    soundfile.write(outside / "elsewhere.flac", wave, SAMPLE_RATE)
    (folder / "link out.flac").symlink_to(outside / "elsewhere.flac")
    (folder / "broken link.flac").symlink_to(outside / "nowhere.flac")
    write("name")
    (folder / "name.flac").rename(os.fsdecode(os.fsencode(folder) + b"/name \xff not utf-8.flac"))

    for name in (*GOOD, *DAMAGED):
        text = {"empty transcript": b"", "latin-1 transcript": "GRÜSSE".encode("latin-1")}.get(name, b"HELLO")
        if name not in ("no transcript", "transcript alone"):
            (folder / f"{name}.txt").write_bytes(text)
    other = root / "train" / "8" / "1"  # a list of transcripts holds for its folder alone
    other.mkdir(parents=True)
    soundfile.write(other / "8-1-0001.flac", wave, SAMPLE_RATE)
    (other / "8-1.trans.txt").write_text("8-1-0001 HELLO\n8-1-0002 WORD\n")
    ids = {"transcript alone": "8-1-0002", "name not utf-8": "train/7/1/name \\udcff not utf-8"}
    return {ids.get(kind, f"train/7/1/{kind}"): reason for kind, reason in DAMAGED.items()}
