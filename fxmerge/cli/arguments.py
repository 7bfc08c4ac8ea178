"""Arguments and flags that several verbs have."""

from __future__ import annotations

from typing import Annotated

import typer

SOURCE = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A bundle, a .pt2, a state dict with --arch, or a Hugging Face folder.")
]
ARCH = Annotated[
    str | None,
    typer.Option(metavar="FACTORY", help="module:callable, timm:NAME, torchvision:NAME or config.json."),
]
INPUTS = Annotated[
    str | None, typer.Option(metavar="FILE", help="Sample inputs (.npz, .npy, .safetensors), for a SOURCE without any.")
]
PICKLE = Annotated[bool, typer.Option(help="Run the code inside a pickled module. Only for files you trust.")]
KEY = Annotated[str | None, typer.Option(metavar="NAME", help="Which weights of a checkpoint, where it holds several.")]
IGNORE = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Tensors that are no weights, as '*.total_ops'."),
]
IMAGE_SIDES = Annotated[
    list[str] | None, typer.Option(metavar="[TASK=]N|HxW", help="As in `merge`.", rich_help_panel="Images")
]
IMAGE_COLOURS = Annotated[
    list[str] | None, typer.Option(metavar="[TASK=]X,X,X", help="As in `merge`.", rich_help_panel="Images")
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
EXTENSION = Annotated[
    list[str] | None, typer.Option(metavar="FILE:NAME", help="Load rules, passes and methods from a Python file.")
]
OVERWRITE = Annotated[bool, typer.Option(help="Replace outputs that exist.")]
VERBOSE = Annotated[bool, typer.Option("-v", "--verbose", help="Say more; show the traceback of an error.")]
QUIET = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")]
