"""The verb `package`: a merged model as another server takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxmerge.cli.arguments import OVERWRITE, QUIET, VERBOSE


def package(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A merged model (.onnx).")],
    triton: Annotated[str, typer.Option(metavar="REPO", help="Folder of the model repository; made if it is missing.")],
    max_batch: Annotated[int, typer.Option(metavar="N", min=1, help="Most rows of a batch.")] = 32,
    max_wait_ms: Annotated[
        float, typer.Option(metavar="X", min=0, help="How long a request waits for others to run with.")
    ] = 2.0,
    max_queue: Annotated[int, typer.Option(metavar="N", min=1, help="Requests that may wait; more are refused.")] = 256,
    overwrite: OVERWRITE = False,
    verbose: VERBOSE = False,
    quiet: QUIET = False,
) -> None:
    """Write a model repository for Triton: the model whole, and an entry for every task.

    Needs nothing of Triton. Entries of other models in the repository stay as they are.

    [bold]Example:[/]

      fxmerge package merged.onnx --triton repository
    """
    from fxmerge.serving.batching import Limits
    from fxmerge.serving.triton import package as write

    told = write(Path(model), Path(triton), Limits(max_batch, max_wait_ms / 1e3, max_queue), overwrite=overwrite)
    if not quiet:
        print("\n".join([*told, f"tritonserver --model-repository={triton}"]))
