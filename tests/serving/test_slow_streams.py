"""Streams of a true server whose clients are quicker than it, do not read, or have more to say when it closes."""

import asyncio
import concurrent.futures
import contextlib
import functools
import importlib
import json
import os
import signal
import socket
import time
import types

from sew_jax.compression import Compression
from sew_jax.serving import streaming
from sew_jax.serving.serve import _listen, _run
from tests.serving.services import wait_until

uvicorn = importlib.import_module("uvicorn")
connect = importlib.import_module("websockets.sync.client").connect
SECOND = bytes(32_000)


class Slow:
    """A service that hears so many seconds of audio a second, and says so of each block in so many letters."""

    def __init__(self, speed, letters=1):
        self.speed, self.letters, self.queue, self.closing, self.ended = speed, letters, 2, False, []
        search = types.SimpleNamespace(setting=lambda texts: Compression(), search=lambda texts: None)
        self.served = types.SimpleNamespace(max_seconds=3600.0, **vars(search))
        labels = lambda way, status: types.SimpleNamespace(inc=lambda: self.ended.append(status))  # noqa: E731
        self.metrics = types.SimpleNamespace(requests=types.SimpleNamespace(labels=labels))

    accepted = staticmethod(contextlib.nullcontext)

    def decoder(self, search):
        return None

    def stream(self, blocks, setting, search, tell):
        heard = 0.0
        for block in blocks:
            heard += len(block) / 16_000
            time.sleep(len(block) / 16_000 / self.speed)
            tell("x" * self.letters, heard)
        return types.SimpleNamespace(text="all", seconds=heard, words=(), nbest=())


def served(service, use):
    """What `use(address)` returns in another thread, while the service is served from this one."""
    listening = _listen("127.0.0.1", 0)
    address = f"ws://127.0.0.1:{listening.getsockname()[1]}/v1/audio/stream"

    def used():
        try:
            return use(address)
        finally:
            if not service.closing:  # a server that has ended no longer listens to it
                os.kill(os.getpid(), signal.SIGTERM)

    with listening, concurrent.futures.ThreadPoolExecutor(1) as pool:
        futures = []
        asyncio.run(asyncio.wait_for(_run(service, listening, lambda: futures.append(pool.submit(used))), 60))
        return futures[0].result()


def pushed(stream, seconds):
    stream.send('{"type": "start"}')
    for _ in range(seconds):
        stream.send(SECOND)
    stream.send('{"type": "end"}')


def frame(kind, data):
    """Of RFC 6455, masked by zeros."""
    length = [len(data)] if len(data) < 126 else [126, *len(data).to_bytes(2, "big")]
    return bytes([0x80 | kind, 0x80 | length[0], *length[1:], *bytes(4)]) + data


def test_a_client_that_is_quicker_than_the_server_waits_for_all_of_it(monkeypatch):
    """Its answers to pings would stand behind its audio."""
    monkeypatch.setattr(uvicorn, "Config", functools.partial(uvicorn.Config, ws_ping_interval=0.2, ws_ping_timeout=0.2))
    monkeypatch.setattr(streaming, "_MOST_AHEAD", 5.0)

    def use(address):
        with connect(address, ping_interval=None) as stream:
            pushed(stream, 90)
            return [json.loads(message) for message in stream][-1]

    last = served(Slow(speed=40), use)
    assert (last["type"], last["seconds"]) == ("final", 90.0)


def test_a_client_that_reads_nothing_is_left_after_a_while(monkeypatch):
    monkeypatch.setattr(streaming, "_LONGEST_WAIT", 0.5)
    service = Slow(speed=1000, letters=1_000_000)

    def use(address):
        """By hand, since any client reads what it can."""
        host, port = address.removeprefix("ws://").partition("/")[0].split(":")
        head = "GET /v1/audio/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        head += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=30) as stream:
            stream.sendall(head.encode())
            assert stream.recv(1000).startswith(b"HTTP/1.1 101")
            stream.sendall(frame(1, b'{"type": "start"}'))
            for _ in range(30):
                stream.sendall(frame(2, SECOND))
            wait_until(lambda: service.ended)

    served(service, use)
    assert service.ended == ["499"]


def test_a_closing_server_takes_no_more_for_long_however_much_there_is(monkeypatch):
    monkeypatch.setattr(streaming, "_LAST_WORDS", 0.3)
    monkeypatch.setattr(streaming, "_MOST_AHEAD", 5.0)
    service, begin = Slow(speed=20), []

    def use(address):
        with connect(address, ping_interval=None) as stream:
            pushed(stream, 90)
            stream.recv()
            os.kill(os.getpid(), signal.SIGTERM)
            begin.append(time.monotonic())
            return [json.loads(message) for message in stream][-1]

    last = served(service, use)
    assert last["type"] == "final" and 5 < last["seconds"] < 90 and service.ended == ["101"]
