"""Start a server, keep it up, and stop it so that all it accepted is answered."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from fxmerge.errors import OptionError
from fxmerge.serving.batching import Limits
from fxmerge.serving.logs import log
from fxmerge.serving.logs import start as start_logs
from fxmerge.serving.metrics import Metrics
from fxmerge.serving.models import open_models
from fxmerge.serving.service import Service, read_keys

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than load balancers and clients do, so that they close it."""

LINGER = 1.0
"""Seconds that a stopping server still says so to who asks: a request on its way would meet a closed connection."""


@dataclass(frozen=True)
class Options:
    """What `fxmerge serve` is told."""

    models: Sequence[str]
    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int = 8081
    limits: Limits = field(default_factory=Limits)
    raw: bool = False
    api_key_file: str | None = None
    quiet: bool = False


def run(options: Options) -> int:
    """Serve until a signal says stop; returns the number of that signal."""
    start_logs(quiet=options.quiet)
    keys = read_keys(options.api_key_file) if options.api_key_file else ()
    with contextlib.closing(_listen(options.host, options.port)) as rest:
        metrics = Metrics()
        models = open_models(options.models, options.limits, metrics, _device(), raw=options.raw)
        service = Service(models, metrics, options.limits, keys=keys)
        return asyncio.run(_serve(service, rest, options))


async def _serve(service: Service, rest: socket.socket, options: Options) -> int:
    import uvicorn

    from fxmerge.serving import grpc
    from fxmerge.serving.rest import app

    by_grpc, grpc_port = grpc.server(service, _address(options.host, options.grpc_port))
    grace = int(options.limits.timeout) + 5  # more than any request may take
    config = uvicorn.Config(
        app(service), log_config=None, access_log=False, lifespan="off", ws="none", server_header=False,
        timeout_graceful_shutdown=grace, timeout_keep_alive=KEEP_ALIVE,
    )  # fmt: skip
    by_rest = uvicorn.Server(config)
    by_rest.capture_signals = contextlib.nullcontext  # type: ignore[assignment] # both doors stop together, below
    stopped: list[int] = []

    def stop(number: int) -> None:
        log("stopping", signal=signal.Signals(number).name)
        service.stop()
        if stopped:  # who asks twice does not want to wait
            by_rest.force_exit = by_rest.should_exit = True
        stopped.append(number)
        asyncio.get_running_loop().call_later(LINGER, setattr, by_rest, "should_exit", True)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    await by_grpc.start()
    watching = asyncio.create_task(service.watch())
    for served in service.models.values():
        engine = served.engine
        log(
            "model", model=served.name, version=engine.version, provider=engine.providers[0], tasks=list(engine.tasks),
            inputs=list(engine.inputs), raw=list(served.raw.inputs) if served.raw else [], batched=engine.batched,
            padded=sorted(engine.padded), notes=served.notes,
        )  # fmt: skip
    if not _local(options.host) and not service.keys:
        log("open to the network without a key", level="warning", todo="give --api-key-file")
    log("serving", host=options.host, port=rest.getsockname()[1], grpc_port=grpc_port, pid=os.getpid())
    await by_rest.serve(sockets=[rest])
    watching.cancel()
    await by_grpc.stop(0 if by_rest.force_exit else grace)
    await service.close()
    log("stopped")
    return stopped[0] if stopped else 0


def _device() -> str:
    """Where models run: CUDA if ONNX Runtime has it, and falls back from it by itself; else the CPU."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # what it falls back to is said once, per model
    return "cuda" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cpu"


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to host and port, before models are opened. Raises `OptionError` if it cannot be had."""
    made = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        return made
    except OSError as error:
        if made is not None:
            made.close()
        if error.errno == errno.EADDRINUSE:
            raise OptionError(
                f"port {port} of {host} is in use", "choose another --port, 0 takes a free one"
            ) from error
        raise OptionError(f"cannot listen at {host}:{port}: {error.strerror}", "choose another --host") from error


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _local(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
