"""The command line: verbs, parsing, printing, exit codes; the work is done elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from fxmerge.cli import config_verb, exits
from fxmerge.cli.arguments import (
    EXTENSION,
    IMAGE_COLOURS,
    IMAGE_SIDES,
    JSON,
    OVERWRITE,
    PICKLE,
    QUIET,
    VERBOSE,
)
from fxmerge.cli.bars import bars, duration
from fxmerge.cli.export import export, split
from fxmerge.cli.flags import config_of, with_config_flags
from fxmerge.cli.model import capture, check, inspect
from fxmerge.cli.package import package
from fxmerge.cli.printing import note, stderr, stdout
from fxmerge.cli.serve import serve
from fxmerge.compiler.state_folder import state_folder
from fxmerge.config import MergeConfig, parse_data
from fxmerge.config.image_settings import IMAGE_OPTIONS
from fxmerge.errors import OptionError
from fxmerge.io.files import check_output

app = typer.Typer(
    name="fxmerge", rich_markup_mode="rich", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    return exits.run(app, sys.argv[1:] if args is None else args)


def _verb(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function a verb of the command line."""

    @wraps(function)
    def stoppable(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("verbose") and kwargs.get("quiet"):
            raise OptionError("--verbose and --quiet exclude each other", "keep one of them")
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            raise exits.Stopped(interrupt) from interrupt

    app.command(name=function.__name__.strip("_"))(stoppable)
    return function


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Merge trained PyTorch models into one model of one model's size, as ONNX.

    [bold]The whole way:[/]

      fxmerge capture digits/ --inputs x.npz --out digits.pt
      fxmerge merge digits.pt letters.pt --out merged.onnx
      fxmerge eval merged.onnx --data digits=test.npz --parent digits.pt

    [bold]See it work:[/]

      fxmerge demo
    """
    if version:
        from fxmerge.version import __version__

        print(f"fxmerge {__version__}")


_verb(capture), _verb(inspect), _verb(check)


@_verb
@with_config_flags
def merge(
    config: MergeConfig,
    save_config: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the options as YAML first.", rich_help_panel="Files")
    ] = None,
    verbose: VERBOSE = False,
    quiet: QUIET = False,
) -> None:
    """Merge two or more trained models into one model of one model's size.

    Samples need no labels. Without --data, those inside the bundles are used.
    The result is checked before it is written: a wrong model is never left behind.

    [bold]Examples:[/]

      fxmerge merge digits.pt clothes.pt --out merged.onnx
      fxmerge merge a.pt b.pt --data a=a.npz --data b=images/ --out ab.onnx
      fxmerge merge a.pt b.pt --method average --out ab.onnx --result ab.json
      fxmerge merge --config merge.yaml --seed 3 --out ab3.onnx --overwrite
    """
    config.check_parents()
    config.check_outputs()
    if save_config:
        config.save(save_config)
    from fxmerge import compiler
    from fxmerge.cli import report, report_page
    from fxmerge.compiler import inspection

    with state_folder(config, lambda told: note([told], quiet)) as config:
        merged = compiler.merge(
            config.parents, config=config, stages=bars(quiet),
            page=lambda merged, config: report_page.html(merged.result, config, merged),
        )  # fmt: skip
    note(merged.result["notes"], quiet)
    if verbose:
        note(inspection.refusals(merged.parents, extensions=config.extension), quiet)
        note([f"{stage} took {duration(seconds)}" for stage, seconds in merged.result["seconds"].items()], quiet)
    if not quiet:
        stdout().print(report.merge(merged.result))


@_verb
@with_config_flags
def compare(
    config: MergeConfig,
    methods: Annotated[
        str,
        typer.Option(metavar="NAME,NAME,…", help="What to compare; options of one method in braces: name{rank=12}."),
    ],
    as_json: JSON = False,
    verbose: VERBOSE = False,
    quiet: QUIET = False,
) -> None:
    """Merge the same parents by several methods and print one table: agreement, R², seconds, size.

    Takes the flags of `merge`; what only some methods have goes to those. With --out the best is written: by
    agreement with the parents on held-back samples, where outputs are no classes by R².

    [bold]Examples:[/]

      fxmerge compare a.pt b.pt --methods average,condense,auto
      fxmerge compare a.pt b.pt --methods 'ties{density=0.3},foldable{steps=100}' --base c.pt --out ab.onnx
    """
    config.check_parents()
    config.check_compared()
    from fxmerge.cli import comparison_table as table
    from fxmerge.cli.report_page import html
    from fxmerge.compiler import comparison

    tell = stderr(quiet)
    found = comparison.compare(
        config.parents, methods, config=config, stages=lambda text: bars(quiet, text),
        done=lambda row, number, total: tell.print(Text(table.progress(row, number, total), style="dim")),
        page=lambda best, config, rows: html(best.result, config, best, rows),
    )  # fmt: skip
    if verbose:
        for row in found.rows:
            note([f"{row.method}: {note}" for note in row.result.get("notes", ())], quiet)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    elif not quiet:
        stdout().print(table.table(found))


@_verb
def _eval(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A merged .onnx.")],
    data: Annotated[list[str], typer.Option(metavar="[TASK=]PATH", help="Samples of a task, labels included.")],
    parent: Annotated[list[str] | None, typer.Option(metavar="SOURCE", help="A parent to compare with.")] = None,
    as_json: JSON = False,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where ONNX Runtime runs.")] = "cpu",
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Use the first N samples of a task.")] = None,
    metric: Annotated[list[str] | None, typer.Option(metavar="[TASK=]KIND", help="As in `merge`.")] = None,
    strict_data: Annotated[bool, typer.Option("--strict-data", help="As in `merge`.")] = False,
    image_size: IMAGE_SIDES = None,
    image_crop: IMAGE_SIDES = None,
    image_mean: IMAGE_COLOURS = None,
    image_std: IMAGE_COLOURS = None,
    allow_pickle: PICKLE = False,
    verbose: VERBOSE = False,
    quiet: QUIET = False,
) -> None:
    """Measure a merged model in ONNX Runtime: accuracy where labels are given, agreement with its parents.

    [bold]Examples:[/]

      fxmerge eval merged.onnx --data digits=test.npz
      fxmerge eval merged.onnx --data digits=test.npz --parent digits.pt --json
    """
    from fxmerge.cli import report
    from fxmerge.output import evaluate

    how = config_of(
        metric=metric, image_size=image_size, image_crop=image_crop, image_mean=image_mean, image_std=image_std
    )
    found = evaluate.evaluate(
        model, parse_data(data), parents=parent or (), device=device, limit=limit, allow_pickle=allow_pickle,
        metric=how.metric, images=how.model_dump(include=set(IMAGE_OPTIONS)), stages=bars(quiet),
        strict_data=strict_data,
    )  # fmt: skip
    note(found["notes"], quiet)
    if as_json:
        print(json.dumps(found, indent=1))
    elif not quiet:
        stdout().print(report.evaluation(found))


@_verb
def methods(extension: EXTENSION = None, as_json: JSON = False, verbose: VERBOSE = False, quiet: QUIET = False) -> None:
    """List the merging methods: what each needs, for which parents, what it looks for, and its source.

    [bold]Examples:[/]

      fxmerge methods
      fxmerge methods --extension mymethods.py:EXTENSION --json
    """
    from fxmerge.cli.method_list import described, listed
    from fxmerge.installed import methods_of

    found = methods_of(tuple(extension or ()))
    console = stdout()
    if as_json:
        print(json.dumps([described(*each) for each in found], indent=1))
    else:
        console.print(listed(found, console.width))


@_verb
def passes(extension: EXTENSION = None, verbose: VERBOSE = False, quiet: QUIET = False) -> None:
    """List the passes of the pipeline in their order, a line each.

    [bold]Example:[/]

      fxmerge passes
    """
    _list("passes", extension)


@_verb
def rules(extension: EXTENSION = None, verbose: VERBOSE = False, quiet: QUIET = False) -> None:
    """List the coupling rules: which operators are known, a line each.

    [bold]Example:[/]

      fxmerge rules | grep conv
    """
    _list("rules", extension)


@_verb
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Seed of training and merging.")] = 0,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Keep the merged model here (.onnx).")] = None,
    overwrite: OVERWRITE = False,
    verbose: VERBOSE = False,
    quiet: QUIET = False,
) -> None:
    """Do the main job on real data that ships with a dependency, in under four minutes.

    [bold]Example:[/]

      fxmerge demo --out digits.onnx
    """
    if out:
        check_output(out, overwrite=overwrite)
    from fxmerge.demo import run

    run(seed=seed, out=Path(out) if out else None, console=Console(quiet=quiet))


_verb(export), _verb(split), _verb(serve), _verb(package), _verb(config_verb.config)


def _list(kind: Literal["passes", "rules"], extension: Sequence[str] | None) -> None:
    from fxmerge import installed as knowledge
    from fxmerge.cli import report

    stdout().print(report.catalogue(knowledge.catalogue(kind, extensions=tuple(extension or ()))))
