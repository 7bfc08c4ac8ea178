"""Writes docs/architectures.md from the result files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.table import RESULTS, Row

PROTOTYPE: dict[str, tuple[int, int, int, float]] = {
    "bert": (14, 10, 4, 1.0), "roberta": (14, 10, 4, 1.0), "distilbert": (13, 10, 4, 1.0), "electra": (15, 11, 4, 1.0),
    "albert": (11, 7, 2, 1.0), "deberta-v2": (13, 10, 4, 1.0), "mpnet": (13, 9, 4, 1.0), "modernbert": (12, 8, 2, 1.0),
    "convbert": (20, 12, 2, 1.0), "fnet": (9, 4, 0, 0.58), "gpt2": (11, 9, 4, 1.0), "gpt_neox": (12, 9, 4, 1.0),
    "gptj": (13, 9, 4, 1.0), "opt": (11, 9, 4, 1.0), "bloom": (9, 7, 4, 1.0), "llama": (12, 9, 2, 1.0),
    "mistral": (12, 9, 2, 1.0), "qwen2": (12, 9, 2, 1.0), "qwen3": (12, 9, 2, 1.0), "gemma2": (11, 9, 2, 1.0),
    "phi": (12, 9, 4, 1.0), "phi3": (12, 9, 2, 1.0), "falcon": (9, 7, 2, 1.0), "mixtral": (16, 9, 2, 0.71),
    "mamba": (10, 7, 2, 1.0), "vit": (15, 9, 4, 1.0), "deit": (15, 9, 4, 1.0), "beit": (13, 9, 4, 1.0),
    "dinov2": (16, 10, 5, 1.0), "swin": (26, 18, 8, 1.0), "convnext": (26, 8, 0, 1.0), "resnet": (22, 10, 0, 1.0),
    "mobilenet_v2": (63, 25, 0, 1.0), "segformer": (25, 10, 4, 1.0), "levit": (40, 26, 0, 1.0),
    "poolformer": (18, 8, 0, 1.0), "siglip_vision_model": (18, 13, 6, 1.0), "t5": (23, 20, 12, 1.0),
    "bart": (26, 23, 12, 1.0), "wav2vec2": (18, 14, 6, 1.0), "audio-spectrogram-transformer": (14, 9, 4, 1.0),
}  # fmt: skip
"""What the throw-away prototype found: spaces, of them movable, of them linear, share of free axes."""

INTRODUCTION = """# Architectures

<!-- written by `python -m benchmarks.bench_zoo` and `python -m benchmarks.bench_vision`; do not edit -->

fxmerge knows operators, not architectures. Each row is a random model of a public architecture, tiny where its library
allows it, built offline and put through the whole compiler. Nothing in fxmerge names any of them.

- **dynamic**: the sizes that stay dynamic from capture to ONNX.
- **check**: every space transformed at once by a random element of the group it is said to tolerate; largest relative
  change of an output, in float64.
- **covered**, **free**: share of the parameters of which no axis is opaque; share of their axes that can at least be
  permuted.
- **spaces**: classes of coupled axes, in brackets how many can at least be permuted and how many take any orthogonal
  or invertible map. ▲ more, ▼ fewer than an earlier prototype found.
- **ONNX**: two random parents merged by `average` and written as ONNX; largest difference between ONNX Runtime and the
  folded graph at several batch sizes and lengths, in float32.
- **planted**: a twin made by a random group element (order, scales, signs, dense maps) is merged with its original
  through merge and unmerge maps that carry it back; largest relative error of the merged weights and outputs against
  the original, in float64. **without**: the error of the outputs when nothing carries it back.
"""


def headings() -> list[str]:
    return ["model", "kind", "dynamic", "check", "covered", "free", "spaces", "ONNX", "planted", "without"]


def cells(row: Row) -> list[str]:
    """A row as text; a step that failed shows as such."""
    errors = row.get("errors", {})
    planted = row.get("planted") or {}
    worst = max((planted[key] for key in ("twin", "undone", "weights", "outputs")), default=None) if planted else None
    return [
        row["model"],
        row.get("family", ""),
        _failed(errors, "capture") or ", ".join(row.get("dynamic", ())) or "nothing",
        _failed(errors, "check") or _power(row.get("check")),
        _failed(errors, "analyse") or _share(row.get("coverage")),
        _share(row.get("free_axes")),
        _spaces(row),
        _failed(errors, "merge") or _power(row.get("onnx")),
        _failed(errors, "plant") or _power(worst),
        _share(planted.get("plain")),
    ]


def write_all(path: Path) -> None:
    """Write the page from all results."""
    write(path, *(RESULTS / f"{stem}.json" for stem in ("zoo", "vision", "kinds")))


def write(path: Path, *results: Path) -> None:
    """Write the page from the result files that exist; the first one is the zoo's."""
    parts = [INTRODUCTION]
    for result in results:
        if result.is_file():
            document = json.loads(result.read_text())
            parts += [_section(result.stem, document), ""]
    if ONNX_MODELS.is_file() and len(results) > 1:
        parts += [_onnx(json.loads(ONNX_MODELS.read_text()), json.loads(ONNX_OPERATORS.read_text())), ""]
    if len(results) > 1 and not results[1].is_file():
        parts += [NO_VISION, ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts))
    print(f"wrote {path.name}")


ONNX_MODELS, ONNX_OPERATORS = (RESULTS / f"onnx_{what}.json" for what in ("models", "operators"))


def _onnx(models: Row, operators: Row) -> str:
    """How much of what exporters write is read back."""
    names = sorted({name.split()[0] for name in models["all"]})
    rest = "; ".join(f"{name}: {what}" for name, what in models["rest"].items())
    lines = [
        "## Read from ONNX",
        "",
        "Models of the first table, written by `torch.onnx.export` (`dynamo` or not) and by fxmerge, read again:",
        f"{models['equal']} of {models['of']} files ({len(names)} models) come back equal to ONNX Runtime.",
        *([f"Not: {rest}."] if rest else []),
        *([models["remark"]] if "remark" in models else []),
        f"Of the {operators['of']} operator tests of the onnx package {operators['equal']} give what the test says.",
        *([operators["remark"]] if "remark" in operators else []),
        "The others have operators that are not read (training, text, sequences, loops, quantized numbers), numbers of",
        "types that torch lacks, are refused or differ. Written by `python -m benchmarks.bench_onnx`.",
    ]
    return "\n".join(lines)


NO_VISION = """## timm and torchvision

Not run here: `python -m benchmarks.bench_vision` needs both."""

TITLES = {"zoo": "transformers", "vision": "timm and torchvision"}


def _section(stem: str, document: Row) -> str:
    if stem == "kinds":
        return _kinds(document)
    rows, facts, versions = document["rows"], document["facts"], document["environment"]["versions"]
    days = sorted({row["run"] for row in rows})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    more = [f"{name} {facts[name]}" for name in ("transformers", "timm", "torchvision") if name in facts]
    good, missing = sum(not row["errors"] for row in rows), facts.get("missing")
    lines = [
        f"## {TITLES.get(stem, stem)}",
        "",
        f"{good} of {len(rows)} pass every step. Run {when} with torch {versions['torch']}, {', '.join(more)}.",
        *([facts["remark"]] if "remark" in facts else []),
        *([f"{len(missing)} more of `benchmarks/vision.py` were not run to the end."] if missing else []),
        "",
        _line(headings()),
        _line(["---"] * len(headings())),
        *(_line(cells(row)) for row in rows),
    ]
    return "\n".join([*lines, *_details(rows)])


KINDS = """## Networks as people write them

<!-- written by `python -m benchmarks.kinds`; do not edit -->

Small networks, each written in a way that people use. Each is saved, inspected (every parameter covered), checked in
float64, merged with another one by `foldable` and with itself by `average`, and written as ONNX.

- **inputs**, **outputs**: as the bundle has them, the batch first; a number in its place is a batch that the network
  fixes.
- **merged**: parameters of the merged network, in brackets its spaces.
- **difference**: the largest, as a share of the largest output, between ONNX Runtime and the merged network, and
  between ONNX Runtime and the network itself where it was merged with itself; at batches of 1, 2 and 7.
"""


def _kinds(document: Row) -> str:
    rows = document["rows"]
    good, versions = sum("failed" not in row for row in rows), document["environment"]["versions"]
    lines = [
        KINDS,
        f"{good} of {len(rows)} go the whole way. Run with torch {versions['torch']}.",
        "",
        _line(["kind", "written with", "inputs", "outputs", "merged", "check", "difference"]),
        _line(["---"] * 7),
    ]
    for row in rows:
        figures = ["", "", "", "", "**failed**"]
        if "failed" not in row:
            merged = f"{row['parameters']} ({row['spaces']})"
            shown = ["; ".join(row["inputs"]), ", ".join(row["outputs"]), merged]
            figures = [*shown, _power(row["check"]), _power(row["difference"])]
        lines.append(_line([row["group"], row["kind"], *figures]))
    failed = [f"- {row['kind']}: {row['failed'].splitlines()[0]}" for row in rows if "failed" in row]
    return "\n".join([*lines, *(["", *failed] if failed else [])])


def _details(rows: Iterable[Row]) -> list[str]:
    """What did not work, and what is only partly free, in words."""
    lines: list[str] = []
    for row in rows:
        lines += [f"- {row['model']}, {step}: {text}" for step, text in row["errors"].items()]
        lines += [f"- {row['model']}: {note}" for note in row.get("notes", ())]
        unknown = dict.fromkeys(text.partition(" ")[0] for text in row.get("opaque", ()))
        lines += [f"- {row['model']}, no rule for: {operator}" for operator in unknown]
    return ["", *lines] if lines else []


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _failed(errors: Row, step: str) -> str:
    return "**failed**" if step in errors else ""


def _power(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}" if value else "0"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _spaces(row: Row) -> str:
    if "spaces" not in row:
        return ""
    known = PROTOTYPE.get(row["model"])
    movable, linear = (str(row["movable"]), str(row["linear"]))
    if known:
        movable, linear = (
            text + _trend(row[key], was)
            for text, key, was in ((movable, "movable", known[1]), (linear, "linear", known[2]))
        )
    return f"{row['spaces']} ({movable}, {linear})"


def _trend(found: int, before: int) -> str:
    return "▲" if found > before else "▼" if found < before else ""
