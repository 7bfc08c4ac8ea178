"""The REST door: the routes of the protocol, and /metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fxmerge.serving.protocol import (
    FULL,
    LATE,
    NO_KEY,
    STOPPING,
    TOO_LARGE,
    InferRequest,
    RequestError,
    format_answer,
    parse_request,
)
from fxmerge.serving.service import GONE, Hold, Service

SMALL = 1 << 16
"""Bytes of a body up to which it is parsed at once, not in a thread."""

LENGTH = "Inference-Header-Content-Length"

Handler = Callable[[Request], Awaitable[Response]]


def app(service: Service) -> Starlette:
    """The application that answers over HTTP."""

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        return _ready({"ready": not service.stopping})

    async def model_ready(request: Request) -> Response:
        served = service.find(*_named(request))
        return _ready({"name": served.name, "ready": not service.stopping})

    async def server(request: Request) -> Response:
        return JSONResponse(service.metadata())

    async def model(request: Request) -> Response:
        return JSONResponse(service.find(*_named(request)).metadata())

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def infer(request: Request) -> Response:
        with service.holding() as hold:
            return await answered(request, hold)

    async def answered(request: Request, hold: Hold) -> Response:
        try:
            parsed = await _read(request, service, hold)
        except RequestError as error:
            service.refused(_named(request)[0], "rest", error)
            raise
        answer = await _while_there(request, service.infer(*_named(request), parsed, "rest"))
        if answer is None:
            return Response(status_code=GONE)
        size = sum(value.size for value in answer.outputs.values())
        made, length = await _off(size, format_answer, parsed, answer)
        if length is None:
            return Response(made, media_type="application/json")
        return Response(made, media_type="application/octet-stream", headers={LENGTH: str(length)})

    guarded = _guarded(service)
    routes = [
        Route("/v2/health/live", _answering(service, live)),
        Route("/v2/health/ready", _answering(service, ready)),
    ]
    routes += [Route("/v2", guarded(server)), Route("/v2/", guarded(server)), Route("/metrics", guarded(metrics))]
    for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            Route(f"{base}/ready", _answering(service, model_ready)),
            Route(f"{base}/infer", guarded(infer), methods=["POST"]),
            Route(base, guarded(model)),
        ]
    return Starlette(routes=routes, exception_handlers={404: _no_route, 405: _no_route})


def _answering(service: Service, handler: Handler) -> Handler:
    """Errors become the protocol's error objects; who asks a stopping server is told to go elsewhere."""

    async def answer(request: Request) -> Response:
        try:
            made = await handler(request)
        except ClientDisconnect:
            return Response(status_code=GONE)
        except RequestError as error:
            headers = {"Retry-After": "1"} if error.status in (FULL, STOPPING) else {}
            headers |= {"WWW-Authenticate": "Bearer"} if error.status == NO_KEY else {}
            made = JSONResponse({"error": str(error)}, error.status, headers)
        if service.stopping:
            made.headers["Connection"] = "close"
        return made

    return answer


def _guarded(service: Service) -> Callable[[Handler], Handler]:
    def guard(handler: Handler) -> Handler:
        async def checked(request: Request) -> Response:
            service.admit(request.headers.get("authorization"))
            return await handler(request)

        return _answering(service, checked)

    return guard


def _ready(told: dict[str, Any]) -> Response:
    return JSONResponse(told, 200 if told["ready"] else STOPPING)


def _named(request: Request) -> tuple[str, str]:
    return request.path_params["name"], request.path_params.get("version", "")


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    todo = "the routes are those of the Open Inference Protocol v2: POST /v2/models/NAME/infer"
    return JSONResponse({"error": f"there is no {request.method} {request.url.path}\n{todo}"}, status)


async def _read(request: Request, service: Service, hold: Hold) -> InferRequest:
    """The request in the body."""
    service.find(*_named(request))
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError("the body is compressed", "send it as it is", 415)
    try:
        async with asyncio.timeout(service.timeout):
            body = await _body(request, service.most_bytes, hold)
    except TimeoutError as error:
        raise RequestError("the request did not arrive in time", "send it faster, or in parts", LATE) from error
    parsed: InferRequest = await _off(len(body), parse_request, body, request.headers.get(LENGTH))
    return parsed


async def _body(request: Request, most: int, hold: Hold) -> bytes:
    """The whole body. Raises `RequestError` as soon as it is known to be too large."""
    told = request.headers.get("content-length", "0")
    parts, size = [b""], int(told) if told.isascii() and told.isdigit() else 0
    if size <= most:
        size = 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > most:
                break
            hold(len(part))
    if size > most:
        raise RequestError(f"the request has more than {most} bytes", "send fewer rows at once", TOO_LARGE)
    return b"".join(parts)


async def _off(size: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function, in a thread if its work is large."""
    return function(*args) if size <= SMALL else await asyncio.to_thread(function, *args)


async def _while_there(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns; it is cancelled, and None returned, if the client goes away before."""
    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        return None
    finally:
        for task in (answer, gone):
            task.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)
