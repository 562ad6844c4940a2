"""A small model that is served to tests: its service, a client, audio, and transcribers that wait or fail."""

import importlib
import io
import threading
import time

import numpy as np
import pytest
import soundfile
from jax.errors import JaxRuntimeError

from sew_jax.compression import Compression
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.decoding.decoders import Decoders
from sew_jax.engines.run_times import Engine
from sew_jax.serving.requests import Served
from sew_jax.transcription.chunking import make_chunking
from sew_jax.transcription.recordings import Recording

for needed in ("starlette", "uvicorn", "multipart", "prometheus_client", "websockets", "httpx2"):
    pytest.importorskip(needed)

TestClient = importlib.import_module("starlette.testclient").TestClient
make_app = importlib.import_module("sew_jax.serving.app").make_app
Service = importlib.import_module("sew_jax.serving.service").Service

SETTINGS = (Compression(), Compression(2))
PATH = "/v1/audio/transcriptions"


def open_service(runs, transcribers, queue=4):
    served = Served(
        str(runs / "finetune"),
        SETTINGS,
        "",
        Engine("jax", "float32"),
        300_000,
        20.0,
        BeamOptions(hot_boost=40.0),
        False,
    )
    decoders = Decoders(transcribers[SETTINGS[0]]._recognizer.vocabulary)
    return Service(served, transcribers, {s: make_chunking(1.0, 0.25, s, 1) for s in SETTINGS}, decoders, queue)


def sound(seconds, seed=0, form="FLAC"):
    wave = np.random.default_rng(seed).normal(size=round(16_000 * seconds)) * 3000
    file = io.BytesIO()
    soundfile.write(file, wave.astype(np.int16), 16_000, format=form, subtype="PCM_16")
    return file.getvalue()


def said(transcribers, data, setting=SETTINGS[0]):
    """(samples, hypothesis) as the transcriber gives it."""
    wave, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    [(_, [hypothesis])] = transcribers[setting].transcribe([Recording("x", "x", wave, len(wave))])
    return len(wave), hypothesis


def ask(client, data=None, name="a.flac", **fields):
    return client.post(PATH, files={"file": (name, sound(1) if data is None else data)}, data=fields)


def wait_until(true):
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


class Held:
    """A transcriber whose batches wait (for seconds at most) until they are let go, and which notes their sizes."""

    def __init__(self, transcriber):
        self._transcriber, self.let, self.sizes = transcriber, threading.Event(), []

    def __getattr__(self, name):
        return getattr(self._transcriber, name)

    def run(self, bucket, waves):
        self.sizes.append(len(waves))
        self.let.wait(40)
        return self._transcriber.run(bucket, waves)


class Faulty(Held):
    """A transcriber whose first batch fails, as programs do where memory runs out."""

    def run(self, bucket, waves):
        if not self.let.is_set():
            self.let.set()
            raise JaxRuntimeError("out of memory")
        return self._transcriber.run(bucket, waves)
