"""A server of one model: OpenAI's requests for transcriptions, at any setting that it was trained at."""

import asyncio
import importlib.util
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from sew_jax import api
from sew_jax.compression import parse_table
from sew_jax.console import format_duration, say
from sew_jax.decoding.beam_options import chosen_options, search_options
from sew_jax.engines.run_times import RUNTIMES
from sew_jax.errors import UserError
from sew_jax.serving.requests import Served
from sew_jax.transcription.chunking import make_chunking

_NEEDED = ("starlette", "uvicorn", "multipart", "prometheus_client", "websockets")


def serve(config: ConfigDict, workdir: Path) -> None:
    """Serves until SIGTERM or Ctrl-C; what was accepted by then is answered before it returns.

    Raises:
      UserError: config or checkpoint do not fit, the address is taken, or what serving needs is not installed.
    """
    if missing := [name for name in _NEEDED if not importlib.util.find_spec(name)]:
        raise UserError(f"serve: {', '.join(missing)} not found; install what it needs: pip install 'sew_jax[serve]'")
    if jax.process_count() > 1:
        raise UserError("serve runs in one process; start it on one host")
    begin = time.monotonic()
    say("sew_jax serve")
    listening = _listen(config.host, config.port)  # what is wrong with the address is said before anything is compiled
    with listening:
        service = _open(config)
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        def ready() -> None:
            say(f"ready after {format_duration(time.monotonic() - begin)} at {address}; Ctrl-C ends it")
            setting = service.served.settings[-1]
            say(f"  curl {address}/v1/audio/transcriptions -F file=@speech.flac -F model={setting}")

        try:
            asyncio.run(_run(service, listening, ready))
        finally:
            service.close()
    say("done: all that was accepted has been answered")


def _open(config: ConfigDict) -> Any:
    from sew_jax.serving.service import Service

    model = api.load(config.init_from, dtype=config.dtype, runtime=config.runtime or RUNTIMES[0])
    settings = parse_table(config.settings or ",".join(model.settings))
    searched, beam = chosen_options(config), search_options(config)
    say(f"  settings  {' '.join(map(str, settings))}; the first where none is named")
    longest = format_duration(config.max_seconds)
    say(f"  limits    {config.queue} requests at once, {config.max_mib:g} MiB and {longest} of audio each")
    transcribers = {setting: model.transcriber(setting, searched) for setting in settings}
    stream, layers = config.stream, model.layers
    streaming = {
        setting: make_chunking(
            stream.chunk_seconds, stream.overlap_seconds, setting, layers, transcriber.chunking.frame
        )
        for setting, transcriber in transcribers.items()
    }
    limits = round(config.max_mib * 2**20), config.max_seconds
    served = Served(model.name, settings, config.tradeoff, model.engine, *limits, beam, searched is not None)
    return Service(served, transcribers, streaming, model.decoder, config.queue)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, and refuses connections until the server begins."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        return listening
    except OSError as error:
        raise UserError(
            f"port: {host}:{port} cannot be listened at ({error.strerror or error}); name another"
        ) from error


async def _run(service: Any, listening: socket.socket, on_ready: Callable[[], None]) -> None:
    import uvicorn

    from sew_jax.serving.app import make_app

    app = make_app(service)

    class Server(uvicorn.Server):
        """Uvicorn's, which tells streams that it ends, and ends as a command that did what it was asked to."""

        def handle_exit(self, sig, frame) -> None:
            if self.should_exit:  # asked twice
                self.force_exit = True
            self.should_exit = service.closing = True

        async def startup(self, sockets=None) -> None:
            await super().startup(sockets)
            on_ready()

        async def shutdown(self, sockets=None) -> None:
            for server in self.servers:
                server.close()
            draining = asyncio.ensure_future(app.state.drain())
            while not (draining.done() or self.force_exit):
                await asyncio.wait([draining], timeout=0.1)
            draining.cancel()
            await super().shutdown(sockets)

    options: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "off", "timeout_keep_alive": 30}
    options |= {"ws": "websockets-sansio", "ws_max_size": 2**20, "ws_ping_interval": None}
    config = uvicorn.Config(app, **options)
    await Server(config).serve(sockets=[listening])
