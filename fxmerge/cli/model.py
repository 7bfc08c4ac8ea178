"""The verbs about one model: `capture`, `inspect`, `check`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from fxmerge.cli import exits
from fxmerge.cli.arguments import (
    ARCH,
    EXTENSION,
    IGNORE,
    IMAGE_COLOURS,
    IMAGE_SIDES,
    INPUTS,
    JSON,
    KEY,
    OVERWRITE,
    PICKLE,
    QUIET,
    SOURCE,
    VERBOSE,
)
from fxmerge.cli.bars import bars
from fxmerge.cli.class_names import check_class_names, read_class_names
from fxmerge.cli.flags import config_of
from fxmerge.cli.printing import note, stderr, stdout
from fxmerge.config.image_settings import IMAGE_OPTIONS
from fxmerge.io.files import check_output, write_text
from fxmerge.messages import unknown


def capture(
    source: SOURCE,
    out: Annotated[str, typer.Option(metavar="FILE", help="The bundle to write.")],
    arch: ARCH = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="State dict, when SOURCE is a config.json.")
    ] = None,
    inputs: INPUTS = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the task; else the file's stem.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="FILE", help="Class names: one a line, or a JSON list.")] = None,
    key: KEY = None,
    ignore: IGNORE = None,
    batch_axis: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Axis of the inputs that is the batch; else it is found.")
    ] = None,
    dynamic: Annotated[
        str | None,
        typer.Option(metavar="AXES", help="Axes that may be of any size beside the batch: height,width or time."),
    ] = None,
    image_size: IMAGE_SIDES = None,
    image_crop: IMAGE_SIDES = None,
    image_mean: IMAGE_COLOURS = None,
    image_std: IMAGE_COLOURS = None,
    allow_pickle: PICKLE = False,
    overwrite: OVERWRITE = False,
    verbose: VERBOSE = False,
    quiet: QUIET = False,
) -> None:
    """Trace a model into a bundle: graph, weights, sample inputs, task and labels in one file.

    A bundle needs no model code to be read, and reading it runs nothing.

    [bold]Examples:[/]

      fxmerge capture bert-sst2/ --inputs tokens.npz --task mood --out mood.pt
      fxmerge capture vit.safetensors --arch my.models:vit --inputs x.npy --out digits.pt
      fxmerge capture r18.pth --arch torchvision:resnet18 --inputs x.npz --out pets.pt
      fxmerge capture unet.pt --arch net.py:build --inputs x.npy --dynamic height,width --out cells.pt
    """
    check_output(out, overwrite=overwrite)
    names = read_class_names(labels) if labels else None
    how = config_of(image_size=image_size, image_crop=image_crop, image_mean=image_mean, image_std=image_std)
    how.check_options()
    said = {each for name in IMAGE_OPTIONS for each in getattr(how, name)}
    from fxmerge.cli.report import program_summary
    from fxmerge.sources.bundle import save_bundle
    from fxmerge.sources.load import load, task_of

    own = task or task_of(source)
    if wrong := said - {"", own}:
        raise unknown("task", min(wrong), [own])

    with bars(quiet)("capture"):
        axes = tuple(name.strip() for name in dynamic.split(",")) if dynamic else ()
        program = load(
            source,
            arch=arch,
            weights=weights,
            inputs=inputs,
            task=task,
            key=key,
            ignore=ignore or (),
            allow_pickle=allow_pickle,
            dynamic=axes,
            batch_axis=batch_axis,
            images=how.images(own),
        )
        program = program.evolve(task=task or program.task, labels=names or program.labels)
        check_class_names(names, program)
        save_bundle(program, out, overwrite=overwrite)
    stderr(quiet).print(program_summary(program, out))


def inspect(
    source: SOURCE,
    arch: ARCH = None,
    inputs: INPUTS = None,
    as_json: JSON = False,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a page that draws spaces and layers.")] = None,
    extension: EXTENSION = None,
    key: KEY = None,
    ignore: IGNORE = None,
    allow_pickle: PICKLE = False,
    overwrite: OVERWRITE = False,
    verbose: VERBOSE = False,
    quiet: QUIET = False,
) -> None:
    """Show the spaces of a model: what may be permuted or rotated freely, who writes and reads it, what is opaque.

    [bold]Examples:[/]

      fxmerge inspect digits.pt
      fxmerge inspect digits.pt --html digits.html
      fxmerge inspect llama/ --json | jq .coverage
    """
    if html:
        check_output(html, overwrite=overwrite)
    from fxmerge.cli import report
    from fxmerge.compiler.inspection import examine, refusals

    options = _source_options(arch, inputs, key, ignore, allow_pickle, extension)
    with bars(quiet)("analyse"):
        found = examine(source, **options)
    if html:
        from fxmerge.cli.inspect_page import page

        write_text(html, page(found.program, found.spaces, found.described), overwrite=overwrite)
        stderr(quiet).print(f"written: {html}", highlight=False)
    if as_json:
        print(json.dumps(found.described, indent=1))
    elif not quiet and not html:
        console = stdout()
        console.print(report.spaces(found, width=console.width, verbose=verbose))
    if verbose:
        note(refusals([found.program], extensions=options["extensions"]), quiet)


def check(
    source: SOURCE,
    arch: ARCH = None,
    inputs: INPUTS = None,
    as_json: JSON = False,
    seed: Annotated[int, typer.Option(min=0, help="Which random elements are drawn.")] = 0,
    extension: EXTENSION = None,
    key: KEY = None,
    ignore: IGNORE = None,
    allow_pickle: PICKLE = False,
    verbose: VERBOSE = False,
    quiet: QUIET = False,
) -> int:
    """Transform every space of a model by a random element of its group: the outputs must not move.

    Exits with 3 if they do, and names the first operator whose output moved otherwise than predicted.

    [bold]Examples:[/]

      fxmerge check digits.pt
      fxmerge check weights.pt --arch my.models:net --inputs x.npz --json
    """
    from fxmerge.cli import report
    from fxmerge.compiler import inspection

    options = _source_options(arch, inputs, key, ignore, allow_pickle, extension)
    with bars(quiet)("check"):
        found = inspection.check(source, seed=seed, **options)
    if as_json:
        print(json.dumps(report.as_dict(found), indent=1))
    elif not quiet or not found.ok:
        stdout().print(report.check(found))
    return exits.DONE if found.ok else exits.VERIFICATION


def _source_options(
    arch: str | None, inputs: str | None, key: str | None, ignore: Sequence[str] | None, allow_pickle: bool,
    extension: Sequence[str] | None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "arch": arch, "inputs": inputs, "key": key, "ignore": tuple(ignore or ()), "allow_pickle": allow_pickle,
        "extensions": tuple(extension or ()),
    }  # fmt: skip
