"""The routes: OpenAI's transcriptions and models, chunks by WebSocket, health and metrics."""

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message, Receive

from sew_jax.serving.metrics import CONTENT_TYPE
from sew_jax.serving.requests import BadRequest, fault, read_fields
from sew_jax.serving.responses import response
from sew_jax.serving.service import Service
from sew_jax.serving.streaming import Streams

_UPLOAD_SECONDS = 60.0  # slower uploads would hold places that others wait for
_FORM_BYTES = 64 * 1024  # of all that is no audio


def make_app(service: Service) -> Starlette:
    """The application; whoever runs it calls `app.state.drain()` when it is to end, and closes the service."""
    # a request waits in its thread, for chunks that the batcher's thread computes
    executor = concurrent.futures.ThreadPoolExecutor(service.queue, "request")
    streams = Streams(service, executor)

    async def transcriptions(request: Request) -> Response:
        try:
            with service.accepted():
                return await _transcribed(request, service, executor)
        except BadRequest as error:
            return JSONResponse(error.body, error.status, error.headers)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it

    async def models(request: Request) -> Response:
        served = service.served
        ids = [setting.name for setting in served.settings]
        if wanted := request.path_params.get("name"):
            if wanted not in ids:
                return JSONResponse(BadRequest(f"model {wanted!r} is not served", "model", "model_not_found").body, 404)
            return JSONResponse(_model(wanted, served.name))
        return JSONResponse({"object": "list", "data": [_model(name, served.name) for name in ids]})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "closing" if service.closing else "ok"}, 503 if service.closing else 200)

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    app = Starlette(
        routes=[
            Route("/v1/audio/transcriptions", _counted(service, "transcriptions", transcriptions), methods=["POST"]),
            WebSocketRoute("/v1/audio/stream", streams.serve),
            Route("/v1/models", models),
            Route("/v1/models/{name}", models),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        exception_handlers={HTTPException: _in_openais_form, Exception: _a_fault_of_ours},
    )
    app.state.drain = streams.drain
    return app


async def _transcribed(request: Request, service: Service, executor: concurrent.futures.Executor) -> Response:
    served = service.served
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise BadRequest(f"the body must be multipart/form-data, as curl's -F makes it; it is {kind or 'of no type'!r}")
    most = served.max_bytes + _FORM_BYTES
    if (length := request.headers.get("content-length", "")).isdecimal() and int(length) > most:
        raise _too_large(served.max_bytes)
    bounded = Request(request.scope, _bounded(request.receive, most, served.max_bytes))
    try:
        async with asyncio.timeout(_UPLOAD_SECONDS):
            form = await bounded.form(max_files=1, max_fields=20, max_part_size=_FORM_BYTES)
    except TimeoutError as error:
        raise BadRequest(f"the upload took more than {_UPLOAD_SECONDS:g} s", code="timeout", status=408) from error
    try:
        upload, wanted = read_fields(form.multi_items(), served)
        data = await upload.read()
    finally:
        await form.close()
    if len(data) > served.max_bytes:
        raise _too_large(served.max_bytes)
    loop = asyncio.get_running_loop()
    transcript = await loop.run_in_executor(executor, service.transcribe, data, wanted.setting, wanted.search)
    text, media_type = response(transcript, wanted)
    return Response(text, media_type=media_type)


def _bounded(receive: Receive, most: int, limit: int) -> Receive:
    """The body, of which no more is read than may be."""
    read = 0

    async def bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise _too_large(limit)
        return message

    return bounded


def _too_large(most: int) -> BadRequest:
    message = f"file: it is larger than {most / 2**20:g} MiB; send it compressed (FLAC, Opus), or cut it into several"
    return BadRequest(message, "file", "file_too_large", 413)


def _counted(
    service: Service, endpoint: str, handle: Callable[[Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    async def counted(request: Request) -> Response:
        status = "500"
        try:
            answer = await handle(request)
            status = str(answer.status_code)
            return answer
        except HTTPException as error:  # starlette's, of forms that it cannot read
            status = str(error.status_code)
            raise
        finally:
            service.metrics.requests.labels(endpoint, status).inc()

    return counted


def _model(name: str, owner: str) -> dict:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


async def _in_openais_form(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = BadRequest(error.detail, status=error.status_code).body
    return JSONResponse(body, error.status_code, error.headers)


async def _a_fault_of_ours(request: Request, error: Exception) -> Response:
    return JSONResponse(fault(request.url.path, error).body, 500)
