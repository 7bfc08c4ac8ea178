"""The verb `config`: all options of a merge, as a YAML file to start from, or as a schema for editors."""

from __future__ import annotations

import json
from typing import Annotated

import typer
import yaml

from fxmerge.cli.arguments import OVERWRITE, QUIET, VERBOSE
from fxmerge.config import MergeConfig, option_group
from fxmerge.io.files import write_text


def config(
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON schema, for editors.")] = False,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write it here; else it is printed.")] = None,
    overwrite: OVERWRITE = False,
    verbose: VERBOSE = False,
    quiet: QUIET = False,
) -> None:
    """Print every option of `fxmerge merge` as YAML, with what it means and its default.

    [bold]Examples:[/]

      fxmerge config --out merge.yaml
      fxmerge config --schema --out merge.schema.json
    """
    text = json.dumps(schema_of(), indent=2) if schema else commented()
    if out:
        write_text(out, text + "\n", overwrite=overwrite)
    else:
        print(text)


def schema_of() -> dict[str, object]:
    """The JSON schema of a config file: names, types, limits, defaults, what each option means."""
    found = MergeConfig.model_json_schema()
    for field in found["properties"].values():
        for name in ("group", "metavar", "of_method"):
            field.pop(name, None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "Options of fxmerge merge"}


def commented() -> str:
    """A config file that says what each option means; all are at their defaults, so it changes nothing."""
    lines: list[str] = []
    group = ""
    values = MergeConfig().model_dump(mode="json")
    for name, field in MergeConfig.model_fields.items():
        if (own := option_group(field)) != group:
            group = own
            lines += ["", f"# -- {group.lower()}"]
        lines += [f"# {field.description}", yaml.safe_dump({name: values[name]}, allow_unicode=True).strip()]
    return "\n".join(lines).strip()
