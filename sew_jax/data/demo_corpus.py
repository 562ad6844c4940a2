"""The embedded default data: a small corpus of spoken commands and digits, synthesised at first use."""

import concurrent.futures
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from sew_jax.data.espeak import Synthesiser
from sew_jax.errors import UserError
from sew_jax.files import cache_folder
from sew_jax.hashing import hash_u64, uniform_int
from sew_jax.rates import SAMPLE_RATE
from sew_jax.storage import raise_if_away

VERSION = 3  # part of the folder's name: raise it with any change that alters the audio or the transcripts
SIZES = {"train": 2400, "dev": 100, "test": 200}
MAX_SECONDS = 1.6  # of an utterance: one in twelve would be up to 2.1 s long, and pad all others of a batch

# A sentence is a template, drawn by weight, whose {slots} are filled at random.
_TEMPLATES = (
    (5, "{digit} {digit} {digit}"),
    (8, "{digit} {digit} {digit} {digit}"),
    (6, "{digit} {digit} {digit} {digit} {digit}"),
    (5, "TURN THE {room} LIGHT {switch}"),
    (4, "TURN THE {sound} {way}"),
    (4, "SET THE {device} TO {digit}"),
    (2, "SET THE {device} TO {digit} {digit}"),
    (2, "PLAY SONG {digit}"),
    (2, "PLAY CHANNEL {digit}"),
    (3, "{run} THE {running}"),
    (3, "{move} THE {room} {opening}"),
    (2, "CALL THE OFFICE"),
    (2, "CALL {digit} {digit} {digit}"),
    (3, "WHAT'S THE {question}"),
)
_SLOTS = {
    "digit": ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"),
    "room": ("KITCHEN", "BEDROOM", "GARDEN"),
    "switch": ("ON", "OFF"),
    "sound": ("VOLUME", "MUSIC", "RADIO"),
    "way": ("UP", "DOWN"),
    "device": ("HEATING", "ALARM", "TIMER"),
    "run": ("START", "STOP", "PAUSE"),
    "running": ("MUSIC", "RADIO", "TIMER"),
    "move": ("OPEN", "SHUT"),
    "opening": ("WINDOW", "DOOR"),
    "question": ("TIME", "WEATHER"),
}
_DRAWS = [template for weight, template in _TEMPLATES for _ in range(weight)]

# Timbres of espeak-ng, disjoint between splits; those with nearly the same formants (m7 and m8, f2 and f5) stay
# together.
_ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp")
_VARIANTS = {
    "train": ("m1", "f1", "m3", "f2", "m5", "f5", "m6", "linda", "m7", "m8"),
    "dev": ("m4", "f3"),
    "test": ("m2", "f4", "robert"),
}
_FIRST_SPEAKER = {"train": 101, "dev": 201, "test": 301}

_README = """\
Synthetic speech: the demo corpus of sew_jax, grammar version {version}, seed {seed}.

No person was recorded. Every utterance was spoken by the text-to-speech program espeak-ng on this computer, then
resampled to 16 kHz, scaled to a random level and mixed with a little white noise. The sentences are digit strings and
household commands of a small grammar. Word error rates on this corpus say nothing about recorded speech.

The layout is that of LibriSpeech: SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac and SPEAKER-CHAPTER.trans.txt.
A speaker is a pair of a timbre (an espeak-ng voice variant) and an accent; no timbre is in two splits.
The folder may be deleted at any time: it is made again, the same, when it is next needed.

Speakers:
{speakers}
"""


class Speaker(NamedTuple):
    """A voice of the corpus: its number, espeak-ng variant (timbre) and language variety (accent)."""

    number: int
    variant: str
    accent: str


def speakers(split: str) -> list[Speaker]:
    """The speakers of `split`, in the order in which utterances are dealt out to them."""
    pairs = [(variant, accent) for accent in _ACCENTS for variant in _VARIANTS[split]]
    return [Speaker(_FIRST_SPEAKER[split] + i, *pair) for i, pair in enumerate(pairs)]


def _sentence(*key: int | str) -> str:
    """A sentence of the grammar, a pure function of `key`."""
    template = _DRAWS[uniform_int(len(_DRAWS), *key, "template")]
    slots = re.split(r"\{(\w+)\}", template)  # alternately literal text and the name of a slot
    for i in range(1, len(slots), 2):
        words = _SLOTS[slots[i]]
        slots[i] = words[uniform_int(len(words), *key, "slot", i)]
    return "".join(slots)


def _speech(synthesise: Synthesiser, sentence: str, speaker: Speaker, *key: int | str) -> np.ndarray:
    """`sentence` in the voice of `speaker`: int16 at 16 kHz, shape (samples,), a pure function of the arguments."""

    def draw(low: int, high: int, name: str) -> int:
        return low + uniform_int(high - low + 1, *key, name)

    voice = f"{speaker.accent}+{speaker.variant}"
    pitch, pitch_range = draw(35, 65, "pitch"), draw(30, 70, "range")
    samples, rate = synthesise(sentence.lower(), voice, draw(160, 200, "rate"), pitch, pitch_range)
    speech = soxr.resample(samples.astype(np.float32) / 2**15, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(speech) > 1e-3)  # -60 dBFS: espeak-ng's own silence is digital zero
    if not loud.size:
        raise UserError(f"libespeak-ng says nothing for {sentence!r} as {voice}: pip install --upgrade espeakng-loader")
    speech = speech[loud[0] : loud[-1] + 1]

    level = 10 ** (draw(-270, -210, "level") / 200)  # RMS of the speech, -27 to -21 dBFS
    speech *= min(level / np.sqrt(np.mean(speech**2)), 0.9 / np.abs(speech).max())
    margins = [draw(50, 100, name) * SAMPLE_RATE // 1000 for name in ("before", "after")]
    speech = np.pad(speech, margins)
    noise = np.random.default_rng(hash_u64(*key, "noise")).standard_normal(speech.size, np.float32)
    speech += noise * (level * 10 ** (-draw(28, 40, "snr") / 20))
    return np.round(speech.clip(-1, 1) * (2**15 - 1)).astype(np.int16)


def _utterance(synthesise: Synthesiser, speaker: Speaker, *key: int | str) -> tuple[str, np.ndarray]:
    """A sentence and its audio, the first draw that is not too long."""
    draw = key
    while True:
        sentence = _sentence(*draw)
        audio = _speech(synthesise, sentence, speaker, *draw)
        if audio.size <= MAX_SECONDS * SAMPLE_RATE:
            return sentence, audio
        draw = (*draw, "again")


class _Made(NamedTuple):
    """An utterance of the corpus, as it is written."""

    split: str
    speaker: int
    name: str
    sentence: str
    flac: bytes
    samples: int


def _make(seed: int, sizes: dict[str, int]) -> Generator[_Made]:
    """All utterances, in order; each core makes some of them, as the synthesiser runs outside Python's lock."""
    keys = [(split, i) for split, size in sizes.items() for i in range(size)]
    own = threading.local()

    def begin(folder: str) -> None:
        own.synthesise = Synthesiser(Path(tempfile.mkdtemp(dir=folder)))

    def one(key: tuple[str, int]) -> _Made:
        split, i = key
        voices = speakers(split)
        speaker = voices[i % len(voices)]
        sentence, audio = _utterance(own.synthesise, speaker, seed, split, i)
        flac = io.BytesIO()  # so that a full disk raises OSError rather than an error of libsndfile
        soundfile.write(flac, audio, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
        name = f"{speaker.number}-1-{i // len(voices):04d}"
        return _Made(split, speaker.number, name, sentence, flac.getvalue(), audio.size)

    with tempfile.TemporaryDirectory(prefix="sew_jax_espeak_") as folder:
        begin(folder)  # here: what a pool's initialiser raises is lost
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, initializer=begin, initargs=(folder,)) as pool:
            yield from pool.map(one, keys)


def _write(root: Path, seed: int, sizes: dict[str, int]) -> float:
    """Writes the splits and README.txt under the folder `root`; returns the duration of the audio in hours."""
    total, samples, started = sum(sizes.values()), 0, time.monotonic()
    transcripts: dict[Path, list[str]] = {}
    with contextlib.closing(_make(seed, sizes)) as utterances:
        for done, made in enumerate(utterances, 1):
            chapter = root / made.split / str(made.speaker) / "1"
            chapter.mkdir(parents=True, exist_ok=True)
            (chapter / f"{made.name}.flac").write_bytes(made.flac)
            lines = transcripts.setdefault(chapter / f"{made.speaker}-1.trans.txt", [])
            lines.append(f"{made.name} {made.sentence}\n")
            samples += made.samples
            if done % 500 == 0:
                left = (time.monotonic() - started) / done * (total - done)
                print(f"  {done} of {total} utterances, {left:.0f} s left", file=sys.stderr, flush=True)
    for path, lines in transcripts.items():
        path.write_bytes("".join(lines).encode())  # bytes: no carriage returns on Windows
    cast = [
        f"{split} {s.number} {s.accent}+{s.variant}" for split, size in sizes.items() for s in speakers(split)[:size]
    ]
    readme = _README.format(version=VERSION, seed=seed, speakers="\n".join(cast))
    (root / "README.txt").write_bytes(readme.encode())
    return samples / SAMPLE_RATE / 3600


def _ensure(target: Path, seed: int, sizes: dict[str, int]) -> None:
    """Makes the corpus at `target` unless it is there; what is there is whole, whoever else is making it too."""
    if target.is_dir():
        return
    count = sum(sizes.values())
    print(f"Making the demo corpus: {count} utterances of synthetic speech (espeak-ng) in {target}", file=sys.stderr)
    started = time.monotonic()
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        hours = _write(unfinished, seed, sizes)
        try:
            unfinished.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, and made the same
                raise
    except OSError as error:
        raise_if_away(error)
        raise UserError(f"cannot write the demo corpus ({error}): set SEW_JAX_CACHE to a writable folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"  {hours:.2f} h of audio in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def ensure_demo_corpus(seed: int = 0, cache_dir: Path | None = None) -> Path:
    """The folder of the demo corpus of `seed`, synthesised once (well under a minute) and kept in the user's cache.

    It has LibriSpeech's layout, with the splits `train` (2400 utterances, 0.81 h), `dev` (100) and `test` (200) of
    disjoint timbres; audio is 16 kHz mono 16-bit FLAC, transcripts use A-Z, apostrophe and space. The same seed gives
    the same bytes on the same machine.

    Args:
        seed: chooses sentences, speaking rates, pitches, levels and noise.
        cache_dir: where the corpus' folder goes; by default the user's cache.

    Raises:
        UserError: libespeak-ng is missing or broken, or the cache cannot be written.
    """
    if cache_dir is None:
        cache_dir = cache_folder()
    target = Path(cache_dir) / f"demo-v{VERSION}-seed{seed}"
    _ensure(target, seed, SIZES)
    return target
