"""Networks as people write them through the whole of fxmerge: what was merged, and the largest difference."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxmerge
from benchmarks import kind_layouts, kind_nets
from benchmarks.kind import Kind
from benchmarks.table import RESULTS, Row, save
from fxmerge.capturing.inputs import bind, flatten
from fxmerge.from_onnx.runtime import run_onnx

KINDS: tuple[Kind, ...] = (*kind_nets.KINDS, *kind_layouts.KINDS)
BATCHES = (1, 2, 7)
TRAINING = {"steps": 10, "batch_size": 8, "augment": "none"}
CLOSE = 1e-5
"""How far outputs may be apart in float32, as a share of the largest."""


def whole_way(kind: Kind, folder: Path, *, write_both: bool = True) -> Row:
    """Put two networks of a kind through save, inspect, check, merges with each other, and `average` with itself.

    ONNX Runtime is compared at every batch size: with the merged program, and where a network was merged with itself,
    with the network. Without `write_both`, only the latter is written as ONNX.
    Raises `AssertionError` where a step does not hold; returns what was merged and the largest difference.
    """
    rows = kind.fixed or 12
    nets = [_net(kind, seed) for seed in (0, 1)]
    for net, name in zip(nets, "ab", strict=True):
        torch.manual_seed(2)
        fxmerge.save(net, folder / f"{name}.pt", inputs=kind.inputs(rows), task=name, **kind.options)
    a, b = (fxmerge.load(folder / f"{name}.pt") for name in "ab")
    described = fxmerge.inspect(a)
    assert described["coverage"] == 1.0, described["opaque"]
    checked = fxmerge.check(a)
    assert checked.ok, f"check moves {checked.first_bad}"
    out = folder / "merged.onnx"
    merged = fxmerge.merge([a, b], method="foldable", seed=0, out=str(out) if write_both else None, **TRAINING)
    default = fxmerge.merge([a, b], seed=0, **TRAINING | {"steps": 2})
    assert not any("please report" in note for note in default.result["notes"]), default.result["notes"]
    worst = 0.0
    if write_both:
        worst = max(_apart(merged.program.run(x), run_onnx(out, x)) for _, x in _batches(kind, a))
    out = folder / "itself.onnx"
    fxmerge.merge([a, a.evolve(task="again")], method="average", out=str(out))
    for inputs, x in _batches(kind, a):
        wanted = _model_outputs(nets[0], inputs, kind)
        worst = max(worst, _apart({f"a.{n}": v for n, v in wanted.items()}, run_onnx(out, x)))
    assert worst <= CLOSE, f"outputs differ by {worst:.1g}"
    counts = merged.result["merged"]
    return {
        "kind": kind.name,
        "group": kind.group,
        "inputs": [f"{p.name} ({', '.join(str(a.only_size(s) or s) for s in p.shape)})" for p in a.inputs],
        "outputs": [p.name for p in a.outputs],
        "parameters": counts["parameters"],
        "averaged": counts.get("averaged"),
        "spaces": counts["spaces"],
        "check": checked.error,
        "difference": worst,
    }


def _net(kind: Kind, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return kind.build().eval()


def _batches(kind: Kind, program: fxmerge.Program) -> list[tuple[Any, dict[str, Tensor]]]:
    """Inputs as the network takes them, and by the program's names with the rows first, at several batch sizes."""
    found = []
    for rows in (kind.fixed,) if kind.fixed else BATCHES:
        torch.manual_seed(10 + rows)
        inputs = kind.inputs(rows)
        tensors = bind(kind.build(), inputs).tensors
        axes = dict(zip(tensors, kind.turned or (0,) * len(tensors), strict=False))
        found.append((inputs, {name: value.movedim(axes[name], 0).contiguous() for name, value in tensors.items()}))
        assert set(tensors) == {port.name for port in program.inputs}
    return found


@torch.no_grad()
def _model_outputs(net: nn.Module, inputs: Any, kind: Kind) -> dict[str, Tensor]:
    result = net(**inputs) if isinstance(inputs, Mapping) else net(*inputs)
    named = dict(flatten(result))
    count = len(bind(net, inputs).tensors)
    axes = kind.turned[count:] or (0,) * len(named)
    return {name: value.movedim(axis, 0) for (name, value), axis in zip(named.items(), axes, strict=True)}


def _apart(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """Largest difference of the wanted outputs, each as a share of its largest entry."""
    worst = 0.0
    for name, value in wanted.items():
        assert found[name].shape == value.shape, f"{name}: {list(found[name].shape)} for {list(value.shape)}"
        scale = max(float(value.abs().max()), 1e-3)
        worst = max(worst, float((value.double() - found[name].double()).abs().max()) / scale)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kinds", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "kinds.json", help="where the results go")
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    table = Table("kind", "outputs", "parameters", "largest difference", title="Networks as people write them")
    for kind in (k for k in KINDS if given.only in k.name):
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = whole_way(kind, Path(folder))
            except Exception as error:  # the table says what failed and goes on
                row = {"kind": kind.name, "group": kind.group, "failed": f"{type(error).__name__}: {error}"}
        rows.append(row)
        table.add_row(row["kind"], ", ".join(row.get("outputs", ())), str(row.get("parameters", "")),
                      row.get("failed") or f"{row['difference']:.0e}")  # fmt: skip
        print(row["kind"], row.get("failed") or f"{row['difference']:.0e}", flush=True)
    Console().print(table)
    if not given.only:
        save(given.out, rows)
        from benchmarks import architectures

        architectures.write_all(RESULTS.parents[1] / "docs" / "architectures.md")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
