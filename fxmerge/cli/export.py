"""The verbs `export` and `split`: one model alone, and one task of a merged one."""

from __future__ import annotations

from typing import Annotated

import typer

from fxmerge.cli.arguments import ARCH, EXTENSION, IGNORE, INPUTS, KEY, OVERWRITE, PICKLE, QUIET, SOURCE, VERBOSE
from fxmerge.cli.bars import bars
from fxmerge.io.files import check_output


def export(
    source: SOURCE,
    out: Annotated[str, typer.Option(metavar="FILE", help="What to write: .onnx, .pt2, .pt or .safetensors.")],
    arch: ARCH = None,
    inputs: INPUTS = None,
    opset: Annotated[int | None, typer.Option(metavar="N", help="Operator set of the ONNX file.")] = None,
    atol: Annotated[
        float, typer.Option(metavar="X", min=0, help="Largest difference, as a share of an output's spread.")
    ] = 1e-4,
    extension: EXTENSION = None,
    key: KEY = None,
    ignore: IGNORE = None,
    allow_pickle: PICKLE = False,
    overwrite: OVERWRITE = False,
    verbose: VERBOSE = False,
    quiet: QUIET = False,
) -> None:
    """Write one model alone, as merged models are written: compared with what was read back, or not written at all.

    [bold]Examples:[/]

      fxmerge export digits.pt --out digits.onnx
      fxmerge export r18.pth --arch torchvision:resnet18 --inputs x.npz --out r18.onnx --opset 18
    """
    from fxmerge.compiler.alone import export as write

    with bars(quiet)("export"):
        gap = write(
            source, out, opset=opset, overwrite=overwrite, tolerance=atol, extensions=tuple(extension or ()),
            arch=arch, inputs=inputs, key=key, ignore=tuple(ignore or ()), allow_pickle=allow_pickle,
        )  # fmt: skip
    if not quiet:
        print(f"written: {out} (read back, it differs by {gap:.1g} of an output's spread)")


def split(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A merged model (.onnx).")],
    task: Annotated[str, typer.Option(metavar="NAME", help="The task to keep.")],
    out: Annotated[str, typer.Option(metavar="FILE", help="The ONNX file to write.")],
    overwrite: OVERWRITE = False,
    verbose: VERBOSE = False,
    quiet: QUIET = False,
) -> None:
    """Write one task of a merged model as a model of its own: its outputs, and the weights that they need.

    [bold]Example:[/]

      fxmerge split merged.onnx --task mnist --out mnist.onnx
    """
    check_output(out, overwrite=overwrite)
    from fxmerge.output.split import split as write

    with bars(quiet)("split"):
        gap = write(model, task, out, overwrite=overwrite)
    if not quiet:
        print(f"written: {out} (it differs by {gap:.1g} of an output's spread from the whole)")
