"""What is printed at the end of a command, and the HTML report of a merge."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import jinja2
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxmerge.cli.bars import duration
from fxmerge.compiler.inspection import Examined
from fxmerge.ir.program import Program
from fxmerge.ir.space import Use
from fxmerge.pipeline.extension import BUILTIN_OWNER

CHECKS = (
    ("rewrite_max_abs", "parents as rewritten = parents as given"),
    ("all_gradients", "a gradient reached every M and U"),
    ("fold_max_abs", "folded model = SuperNet"),
    ("onnx_max_abs", "ONNX Runtime = folded model"),
    ("written_max_abs", "what was written, read back = folded model"),
)
"""The verifications of a merge: key of the result, what it says."""

FIXED = 72
"""Columns of the table of spaces without its lists of parameters."""


def merge(result: Mapping[str, Any]) -> RenderableType:
    """The table a merge ends with: tasks, sizes, the three verifications, where the output is."""
    parts: list[RenderableType] = [_tasks(result), *_stages(result), _sizes(result), *_points(result)]
    if result["checks"]:
        parts.append(_checks(result["checks"]))
    training = result["training"]
    if training:
        augmented = training.get("augmentation", {}).get("kind")
        parts.append(
            Text(
                f"trained {training['steps']} steps from {result['init']}"
                + (f" on {augmented} samples, augmented" if augmented not in (None, "none") else "")
                + f" · loss {number(training['loss_first'])} → {number(training['loss_last'])}"
                + f" · {training['samples_per_second']:,.0f} samples/s",
                style="dim",
            )
        )
    if command := eval_command(result):
        parts.append(Text(f"accuracy, where the samples hold labels: {command}", style="dim"))
    total = sum(result["seconds"].values())
    said = f"written: {result['out']}   ({duration(total)}, {result['peak_rss_mib']:,} MiB)"
    is_written = result["out"] and result["checks"]
    parts.append(Text(said if is_written else "nothing was written (--dry-run)", style="bold"))
    return Group(*parts)


def _tasks(result: Mapping[str, Any]) -> Table:
    table = Table(title=f"merged by {result['method']}", title_justify="left")
    table.add_column("task")
    for name in ("samples", "agreement with parent", "feature R²", "error", "parent's parameters"):
        table.add_column(name, justify="right")
    parents = {parent["task"]: parent for parent in result["parents"]}
    figures = {task["task"]: task for task in result["tasks"]}
    for name, parent in parents.items():
        row = figures.get(name, {})
        shown = Text(name + (" (teacher only)" if parent.get("role") == "teacher" else ""))
        table.add_row(
            shown, _samples(row), percent(row.get("agreement")),
            number(row.get("feature_r2")), _error(row), f"{parent['parameters']:,}",
        )  # fmt: skip
        for output in several(row):
            table.add_row(
                Text(f"  {output['output']}", style="dim"), Text(output["kind"], style="dim"),
                percent(output["agreement"]), number(output["r2"]), percent(output["error"]), "",
            )  # fmt: skip
    return table


def eval_command(result: Mapping[str, Any]) -> str | None:
    """What measures the merged model by labels, on the rows that the merge held back; None where it wrote no ONNX file,
    or was given no samples in files. The merge itself reads no labels.
    """
    given = result.get("options", {})
    data = given.get("data")
    if not (result["checks"] and data and str(result["out"]).endswith(".onnx")):
        return None
    words = ["fxmerge", "eval", result["out"]]
    for task, path in data.items():
        words += ["--data", f"{task}={path}" if task else path]
    for parent in () if given.get("arch") else result["parents"]:  # eval builds no model for weights
        words += ["--parent", parent["source"]] if parent["source"] else []
    held = [task.get("held_back") for task in result["tasks"]]
    words += ["--limit", str(min(held))] if held and all(held) else []
    return shlex.join(words)


def several(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The outputs of a task that has more than one."""
    outputs: Sequence[Mapping[str, Any]] = row.get("outputs") or []
    return outputs if len(outputs) > 1 else []


def _error(row: Mapping[str, Any]) -> str:
    """The normalised error of a task's one output."""
    outputs: Sequence[Mapping[str, Any]] = row.get("outputs") or []
    return percent(outputs[0]["error"]) if len(outputs) == 1 else "–"


def _samples(row: Mapping[str, Any]) -> str:
    """How many there were, and how many of them the agreement is measured on."""
    if not row.get("samples"):
        return "–"
    return f"{row['samples']:,}" + (f" ({row['held_back']:,} held back)" if row.get("held_back") else "")


def _stages(result: Mapping[str, Any]) -> list[Text]:
    """What every stage reached on held-back samples, a line a task."""
    rows = [(task["task"], stages) for task in result["tasks"] if (stages := task.get("stages"))]
    return [Text(f"{task}: " + " → ".join(f"{n} {number(r)}" for n, r in stages.items())) for task, stages in rows]


def _sizes(result: Mapping[str, Any]) -> Text:
    ours, theirs = result["merged"]["parameters"], sum(p["parameters"] for p in result["parents"])
    merged = result["merged"]
    text = f"{ours:,} parameters for {theirs:,} in {len(result['parents'])} parents ({ours / max(theirs, 1):.0%})"
    opaque = f", {merged['opaque_axes']} opaque axes" if merged["opaque_axes"] else ""
    averaged = merged.get("averaged")
    merely = "" if averaged is None else f" · {averaged / max(ours, 1):.1%} of them merely averaged"
    trained = f" · {merged['trainable']:,} numbers trained" if merged["trainable"] else ""
    lines = Text(f"{text}{merely} · {merged['spaces']} spaces{opaque}{trained}")
    if merged.get("shared_until"):
        apart = ", ".join(merged["apart"]) or "no block"
        lines.append(f"\nshared until {merged['shared_until']}, once for every task: {apart}")
        lines.append(f" · {merged['size']:.2f} times the size of one parent")
    if result.get("gate"):
        lines.append(f"\n{gate_line(result['gate'])}")
    return lines.append(f"\noutputs: {', '.join(merged['outputs'])}") if "outputs" in merged else lines


def gate_line(gate: Mapping[str, Any]) -> str:
    """What a gate is, and how often it is right."""
    right = "" if gate["accuracy"] is None else f", right for {percent(gate['accuracy'])} of held-back samples"
    told = f"{gate['output']} says which task a row belongs to{right}; it is read behind {gate['after']}"
    return "; ".join([told, *_answers(gate)])


def _answers(gate: Mapping[str, Any]) -> Iterator[str]:
    """What each answer is made of, what it holds of every task, and how long it takes."""
    ways = {"choose": "that of the likeliest task", "mix": "those of all tasks weighed by it"}
    for answer in gate.get("answers", ()):
        yield f"{answer['output']} is {ways[answer['how']]}"
    if weights := gate.get("weights"):
        own = ", ".join(f"{number:,} of {name}" for name, number in weights.items() if name != "shared")
        yield f"that does not fold: {len(weights) - 1} sets of weights, {own}, beside {weights['shared']:,} shared"
    if times := gate.get("latency"):
        shown = ", ".join(f"{name} {milliseconds:.2f} ms" for name, milliseconds in times.items())
        yield f"{gate['rows']} rows take: {shown}"


def _points(result: Mapping[str, Any]) -> list[RenderableType]:
    """Size against what is kept, a line a place where the trunk may end."""
    if not result.get("curve"):
        return []
    table = Table(title="sizes", title_justify="left")
    table.add_column("shared until")
    for name in ("size", "parameters", "least kept of a task", "error", "method"):
        table.add_column(name, justify="right")
    for point in result["curve"]:
        table.add_row(
            point["shared_until"], f"{point['size']:.2f}", f"{point['parameters']:,}", percent(point["kept"]),
            number(point["error"]), point["method"],
        )  # fmt: skip
    return [table]


def _checks(checks: Mapping[str, Any]) -> Text:
    lines = Text()
    for key, what in CHECKS:
        value = checks.get(key)
        if value is None:
            mark, style, shown = "–", "dim", "does not apply"
        elif value is True or value is False:
            mark, style, shown = ("✓", "green", "") if value else ("✗", "red", "")
        else:
            mark, style, shown = "✓", "green", f"within {value:.1e}"
        lines.append(f"{mark} ", style=style).append(f"{what}  ").append(shown + "\n", style="dim")
    lines.rstrip()
    return lines


def evaluation(found: Mapping[str, Any]) -> RenderableType:
    """The table of `fxmerge eval`, with the columns that some task has."""
    columns = {
        "agreement": ("agreement with parent", percent), "parent_accuracy": ("parent's accuracy", percent),
        "merged_accuracy": ("merged accuracy", percent), "parent_perplexity": ("parent's perplexity", number),
        "merged_perplexity": ("merged perplexity", number), "gate_accuracy": ("gate's accuracy", percent),
        "routed_accuracy": ("accuracy where the gate chooses", percent),
        "answer_accuracy": ("accuracy of the gate's mix", percent),
    }  # fmt: skip
    used = [key for key in columns if any(key in row for row in found["tasks"])]
    errors = any(row.get("outputs") for row in found["tasks"])
    table = Table("task")
    for name in ("samples", *(columns[key][0] for key in used), *(("R²", "error") if errors else ())):
        table.add_column(name, justify="right")
    for row in found["tasks"]:
        shown = [columns[key][1](row.get(key)) for key in used]
        one = row["outputs"][0] if len(row.get("outputs", ())) == 1 else {}
        table.add_row(Text(row["task"]), f"{row['samples']:,}", *shown, *(_distance(one) if errors else ()))
        for output in several(row):
            own = [percent(output["agreement"]) if key == "agreement" else "" for key in used]
            table.add_row(Text(f"  {output['output']}", style="dim"), output["kind"], *own, *_distance(output))
    if used:
        return table
    return Group(table, Text("give --parent for an agreement, or samples with labels for an accuracy", style="dim"))


def _distance(output: Mapping[str, Any]) -> tuple[str, str]:
    """R² and normalised error of an output."""
    return number(output.get("r2")), percent(output.get("error"))


def catalogue(entries: Iterable[Sequence[str]]) -> Table:
    """(name, owner, description) lines."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    for name, owner, text in entries:
        builtin = owner == BUILTIN_OWNER
        table.add_row(Text(name, style="bold"), Text(text), Text("" if builtin else f"from {owner}", style="dim"))
    return table


def spaces(found: Examined, *, width: int = 80, verbose: bool = False) -> RenderableType:
    """A line per space: size, role, tolerance, readers, writers; then what is opaque, and why."""
    described = found.described
    room = 10_000 if verbose else (width - FIXED) // 2
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("space", "size", "role", "tolerates", "within"):
        table.add_column(name, justify="right" if name == "size" else "left", no_wrap=True)
    for name in ("writers", "readers"):
        table.add_column(name, overflow="fold", min_width=7)
    for name, values in described["spaces"].items():
        space = found.spaces.spaces[name]
        table.add_row(
            name, str(values["size"]), values["role"], values["tolerates"], values.get("within") or "",
            _users(space.writers, room), _users(space.readers, room),
        )  # fmt: skip
    parts: list[RenderableType] = [table]
    free, whole = percent(described["free_axes"]), percent(described["coverage"])
    parts.append(Text(f"{whole} of parameters have no opaque axis · {free} of axes are free to move"))
    if described.get("blocks"):
        named = (f"{number} {block['name']}" for number, block in enumerate(described["blocks"]))
        parts.append(Text(f"blocks (for --share-until): {', '.join(named)}"))
    for entry in described["opaque"]:
        where = (
            f"axis {entry['axis']} of {entry['parameter']}: {entry['operator']} at {entry['at'] or 'an unknown line'}"
        )
        parts.append(Text(f"opaque: {where}", style="yellow"))
        unruled = entry.get("reason", "").startswith("no rule for")
        if entry.get("reason") and not unruled:
            parts.append(Text(f"  {entry['reason']}", style="yellow"))
        elif verbose and entry.get("message"):
            parts.append(Text(entry["message"], style="dim"))
    if described["opaque"]:
        parts.append(
            Text("an operator without a rule holds its axes still; -v shows a rule to start from", style="dim")
        )
    if verbose:
        held = {name: values["reason"] for name, values in described["spaces"].items() if values.get("reason")}
        parts += [Text(f"{name} is held by {reason}", style="dim") for name, reason in held.items()]
        counts = ", ".join(f"{name} {count}" for name, count in described["operators"].items())
        parts.append(Text(f"operators: {counts}", style="dim"))
    return Group(*parts)


def _users(uses: Sequence[Use], room: int) -> str:
    """How many parameters, and as many of their names as there is room for."""
    names = list(dict.fromkeys(use.tensor for use in uses))
    text = f"{len(names)}: {', '.join(names)}" if names else ""
    return text if len(text) <= room else text[: room - 1] + "…" if room > 12 else str(len(names))


def check(found: Any) -> RenderableType:
    """What `fxmerge check` found, in a few lines."""
    values = as_dict(found)
    if values["ok"]:
        spaces = values.get("spaces")
        count = spaces if isinstance(spaces, int) else len(spaces or ())
        return Text(f"✓ {count} spaces transformed at random; outputs moved by {values['error']:.1e}", style="green")
    text = Text(f"✗ the outputs moved by {values['error']:.1e} when spaces were transformed\n", style="bold red")
    text.append(f"first operator that moved otherwise than predicted: {values.get('first_bad') or 'unknown'}")
    return text


def as_dict(value: Any) -> dict[str, Any]:
    """A report value as plain JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return dict(value)


def program_summary(program: Program, path: str) -> RenderableType:
    """What a bundle holds."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for kind, ports in (("input", program.inputs), ("output", program.outputs)):
        for port in ports:
            shape = ", ".join(str(size) for size in port.shape)
            table.add_row(kind, Text(port.name), f"{str(port.dtype).removeprefix('torch.')} ({shape})")
    rows = max((t.shape[0] for t in program.samples.values() if t.ndim), default=0)
    classes = f", {len(program.labels)} labels" if program.labels else ""
    notes = [Text(f"note: {note}", style="dim") for note in program.notes]
    about = f"written: {path}   (task {program.task}, {program.count():,} parameters, {rows} samples{classes})"
    return Group(table, *notes, Text(about, style="bold"))


def templates() -> jinja2.Environment:
    """The templates that come with the package; everything put into a page is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("fxmerge.cli"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"percent": percent, "number": number, "duration": duration}
    return made


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
