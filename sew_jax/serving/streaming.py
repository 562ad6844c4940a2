"""Audio that comes as it is spoken, by WebSocket: the text so far after each chunk, and all of it at the end."""

import asyncio
import concurrent.futures
import contextlib
import json
import queue
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import soxr
from starlette.websockets import WebSocket, WebSocketDisconnect

from sew_jax.compression import Compression
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.rates import SAMPLE_RATE
from sew_jax.serving.requests import SEARCH_FIELDS, BadRequest, fault
from sew_jax.serving.responses import scored, word_times
from sew_jax.serving.service import Service

_LONGEST_WAIT = 60.0  # seconds without a message
_MOST_AHEAD = 30.0  # seconds of audio that may come before they are computed
_LAST_WORDS = 1.0  # seconds
_START = ("setting", "budget", "model", "rate", *SEARCH_FIELDS)
_ENDED, _REFUSED, _TOO_LONG, _FAILED, _BUSY = 1000, 1008, 1009, 1011, 1013  # codes of RFC 6455


class Streams:
    """The route, and how its connections end."""

    def __init__(self, service: Service, executor: concurrent.futures.Executor):
        self._service, self._executor = service, executor
        self._open: set[_Stream] = set()

    async def serve(self, socket: WebSocket) -> None:
        """One connection: a start in JSON, audio in bytes, `{"type": "end"}`."""
        await socket.accept()
        try:
            with self._service.accepted():
                stream = _Stream(socket, self._service, self._executor)
                self._open.add(stream)
                try:
                    await stream.run()
                finally:
                    self._open.discard(stream)
            status = "101"
        except BadRequest as error:
            status = str(error.status)
            await _fail(socket, error)
        except WebSocketDisconnect:
            status = "499"
        except Exception as error:
            status = "500"
            await _fail(socket, fault(socket.url.path, error))
        self._service.metrics.requests.labels("stream", status).inc()

    async def drain(self) -> None:
        """Gives open streams the text of what came so far, and returns when they have it."""
        for stream in self._open:
            stream.ending.set()
        while self._open:
            await asyncio.sleep(0.02)


class _Stream:
    def __init__(self, socket: WebSocket, service: Service, executor: concurrent.futures.Executor):
        self._socket, self._service, self._executor = socket, service, executor
        self.ending = asyncio.Event()
        self._blocks: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        self._received = self._taken = 0  # samples
        self._closes_at = 0.0  # when a closing server takes no more of it

    async def run(self) -> None:
        setting, rate, search = await self._start()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, self._service.decoder, search)  # says what is wrong at once

        def tell(text: str, seconds: float) -> None:
            partial = {"type": "partial", "text": text, "seconds": round(seconds, 2)}
            asyncio.run_coroutine_threadsafe(_send(self._socket, partial), loop).result()

        work = loop.run_in_executor(self._executor, self._service.stream, self._take(), setting, search, tell)
        try:
            why = await self._receive(rate, work)
        finally:
            self._blocks.put(None)  # also where the client left: the thread must end
            transcript = await work  # whose fault is said whatever the client did
        final = {
            "type": "final",
            "text": transcript.text,
            "seconds": round(transcript.seconds, 3),
            "setting": setting.name,
            "words": word_times(transcript),
        }
        if search and search.nbest > 1:
            final["nbest"] = scored(transcript)
        code = {"end": _ENDED, "long": _TOO_LONG, "closing": 1001}[why]
        reason = {"long": "the stream is as long as it may be", "closing": "closing"}.get(why)
        await _send(self._socket, final, code, reason)

    async def _start(self) -> tuple[Compression, int, BeamOptions | None]:
        asked = await self._next()
        if not isinstance(asked, dict):
            raise BadRequest('a stream begins with a text such as {"type": "start", "rate": 16000}')
        for name in asked:
            if name != "type" and name not in _START:
                raise BadRequest(f"field {name!r} is unknown; a start has {', '.join(_START)}", name)
        rate = asked.get("rate", SAMPLE_RATE)
        if isinstance(rate, bool) or not isinstance(rate, int) or not 4000 <= rate <= 192_000:
            raise BadRequest(f"rate: {rate!r} is no sample rate; give that of the samples, in Hz", "rate")
        texts = {name: value for name, value in asked.items() if name not in ("type", "rate")}
        for name in {"hot_boost", "nbest"} & texts.keys():  # as forms spell them
            if isinstance(texts[name], int | float) and not isinstance(texts[name], bool):
                texts[name] = str(texts[name])
        if wrong := next((name for name, value in texts.items() if not isinstance(value, str)), None):
            raise BadRequest(f"{wrong}: it must be a text", wrong)
        return self._service.served.setting(texts), rate, self._service.served.search(texts)

    async def _receive(self, rate: int, work: asyncio.Future) -> str:
        """Takes audio until the client, the server or the longest length ends it: which of these."""
        resampler = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="int16")
        most = self._service.served.max_seconds * SAMPLE_RATE
        why = ""
        while not why:
            message = await self._next(work)
            if work.done():
                return "end"  # its fault is said where it is awaited
            if message is None or isinstance(message, dict):
                if message is not None and message.get("type") != "end":
                    raise BadRequest('audio comes as bytes, and ends with {"type": "end"}', "type")
                samples, why = np.zeros(0, np.int16), "closing" if message is None else "end"
            elif len(message) % 2:
                raise BadRequest("audio must be samples of 16 bits, little-endian; a message has half of one")
            else:
                samples = np.frombuffer(message, "<i2")
            if resampler:
                samples = resampler.resample_chunk(samples, last=bool(why))
            if self._received + len(samples) > most:
                samples, why = samples[: int(most) - self._received], "long"
            self._received += len(samples)
            if len(samples):
                self._blocks.put(samples)
            while self._received - self._taken > _MOST_AHEAD * SAMPLE_RATE and not work.done():
                await asyncio.sleep(0.02)
        return why

    async def _next(self, *work: asyncio.Future) -> bytes | dict[str, Any] | None:
        """What comes next: audio, or a message; None where the server is closing, or `work` has ended before."""
        if self.ending.is_set():  # what has come already still counts, for a while
            self._closes_at = self._closes_at or time.monotonic() + _LAST_WORDS
            if time.monotonic() > self._closes_at:
                return None
        coming = asyncio.ensure_future(self._socket.receive())
        ending = asyncio.ensure_future(self.ending.wait())
        try:
            await asyncio.wait([coming, ending, *work], timeout=_LONGEST_WAIT, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done() and any(each.done() for each in work):
                return None
            if not coming.done() and ending.done():
                await asyncio.wait([coming], timeout=0.1)
                if not coming.done():
                    return None
            if not coming.done():
                raise BadRequest(f"nothing came for {_LONGEST_WAIT:g} s", code="timeout", status=408)
            with _by_socket():
                message = coming.result()
        finally:
            coming.cancel()
            ending.cancel()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        if (data := message.get("bytes")) is not None:
            return data
        try:
            parsed = json.loads(message["text"])
        except ValueError as error:
            raise BadRequest("a text must be JSON; audio comes as bytes") from error
        if not isinstance(parsed, dict):
            raise BadRequest('a text must be an object, such as {"type": "end"}')
        return parsed

    def _take(self) -> Iterator[np.ndarray]:
        """In the thread of the stream."""
        while (block := self._blocks.get()) is not None:
            self._taken += len(block)
            yield block


async def _fail(socket: WebSocket, error: BadRequest) -> None:
    code = {429: _BUSY, 503: _BUSY, 500: _FAILED}.get(error.status, _REFUSED)
    with contextlib.suppress(WebSocketDisconnect):  # it may have left
        await _send(socket, {"type": "error", **error.body}, code)


async def _send(socket: WebSocket, message: dict[str, Any], code: int = 0, reason: str | None = None) -> None:
    """A message, and with a code the end.

    Pings would not tell a client that has left from one whose answer stands behind audio that waits to be read.

    Raises:
      WebSocketDisconnect: the client has left, or has not read what was sent for too long.
    """
    try:
        async with asyncio.timeout(_LONGEST_WAIT):
            with _by_socket():
                await socket.send_json(message)
                if code:
                    await socket.close(code, reason)
    except TimeoutError as error:
        raise WebSocketDisconnect from error


@contextlib.contextmanager
def _by_socket() -> Iterator[None]:
    """Around what a socket does: starlette raises RuntimeError where it is closed, as programs do where they fail."""
    try:
        yield
    except RuntimeError as error:
        raise WebSocketDisconnect from error
