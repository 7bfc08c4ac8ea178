"""The verb `serve`; what it needs beyond fxmerge itself is imported when it is called."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from typing import Annotated

import typer

from fxmerge.cli.arguments import QUIET, VERBOSE
from fxmerge.cli.exits import INTERRUPTED
from fxmerge.errors import OptionError

NEEDED = ("starlette", "uvicorn", "grpc", "prometheus_client")


def serve(
    model: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Merged models (.onnx), named by their stems.")
    ],
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port of REST; 0 takes a free one.")] = 8080,
    grpc_port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port of gRPC; 0 takes a free one.")
    ] = 8081,
    max_batch: Annotated[int, typer.Option(metavar="N", min=1, help="Most rows of a batch.")] = 32,
    max_wait_ms: Annotated[
        float, typer.Option(metavar="X", min=0, help="How long a request waits for others to run with.")
    ] = 2.0,
    max_queue: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests that may wait for a model; more are refused.")
    ] = 256,
    max_request_mib: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Largest request, in MiB.")] = 64,
    timeout: Annotated[float, typer.Option(metavar="X", min=0.001, help="Seconds a request may take.")] = 30.0,
    raw: Annotated[bool, typer.Option("--raw", help="Take text and pictures too, and give classes by name.")] = False,
    api_key_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Keys, one a line; requests must carry one.")
    ] = None,
    verbose: VERBOSE = False,
    quiet: QUIET = False,
) -> None:
    """Serve merged models: Open Inference Protocol v2 over REST and gRPC, requests batched together.

    A file that is replaced is taken once it is whole. SIGTERM stops the server when all it accepted is answered.

    [bold]Examples:[/]

      fxmerge serve merged.onnx
      fxmerge serve reviews.onnx --raw
      fxmerge serve digits.onnx moods.onnx --host 0.0.0.0 --api-key-file keys.txt
    """
    if any(find_spec(name) is None for name in NEEDED):
        raise OptionError("serving needs packages that are not installed", "pip install 'fxmerge[serve]'")
    from fxmerge.serving.batching import Limits
    from fxmerge.serving.run import Options, run

    stopped = run(
        Options(
            model, host, port, grpc_port,
            Limits(max_batch, max_wait_ms / 1e3, max_queue, timeout, max_request_mib << 20), raw, api_key_file, quiet,
        )
    )  # fmt: skip
    if stopped == signal.SIGINT:
        raise typer.Exit(INTERRUPTED)
