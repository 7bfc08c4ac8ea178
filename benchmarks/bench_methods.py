"""Every installed method on every family of networks, with few and many unlabeled inputs: one table.

Methods that train get the same processor time (--seconds), those that do not take what they take; both stand beside.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fxmerge
from benchmarks.families import FAMILIES
from benchmarks.pairs import PAIRS, measure, show_barriers
from benchmarks.parents import CACHE
from benchmarks.quality_case import Case, Data
from benchmarks.quality_cells import Ledger, code, show
from benchmarks.table import RESULTS, Row
from fxmerge.compiler.choice import options_of
from fxmerge.errors import FxmergeError
from fxmerge.methods import METHODS, Method
from fxmerge.methods.about import about_of

SIZES = (16, 100, 1000)
PACED = (20, 60)
"""Steps of the two short runs that tell how long a step takes."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_methods", description=__doc__)
    default = Path(__file__).parents[2] / "shared" / "data"
    names = [method.name for method in METHODS]
    parser.add_argument("--data", type=Path, default=default, help="folder of the data sets (default: ../shared/data)")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods.json", help="where the results go")
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=[*FAMILIES], help="(default: all)")
    parser.add_argument("--pairs", nargs="*", choices=PAIRS, default=[*PAIRS], help="for barriers (default: all)")
    parser.add_argument("--methods", nargs="+", choices=names, default=names, help="(default: all)")
    parser.add_argument("--inputs", type=int, nargs="+", default=SIZES, help="unlabeled inputs a task")
    parser.add_argument("--seeds", type=int, default=3, help="merges a cell, each on other inputs (default: 3)")
    parser.add_argument("--seconds", type=float, default=60, help="of processor time for a method that trains")
    parser.add_argument("--again", action="store_true", help="measure also what the file has")
    parser.add_argument("--table", action="store_true", help="only print what the file has")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ledger, barriers = Ledger(given.out), Ledger(given.out.with_name("barriers.json"))
    chosen = [method for method in METHODS if method.name in given.methods]
    if not given.table:
        for name in given.families:
            print(f"{name}: parents", flush=True)
            course = Course(Case.of(FAMILIES[name], given.data), given.data, ledger, given.seconds, given.again)
            course.run(chosen, given.inputs, given.seeds)
        for name in given.pairs:
            print(f"{name}: parents", flush=True)
            measure(name, chosen, given.data, barriers, given.seeds, given.again)
    if given.families:
        show(ledger.rows(), given.families, given.methods)
    show_barriers(barriers.rows())


@dataclass(frozen=True)
class Course:
    """The cells of one family; what the file has already is left as it is."""

    case: Case
    folder: Path
    ledger: Ledger
    seconds: float
    again: bool = False

    def run(self, methods: Sequence[Method], sizes: Sequence[int], seeds: int) -> None:
        """Every method, number of inputs and seed; a method that cannot do this family is skipped and said."""
        whole = self._parents()["mean"]
        for count in sizes:
            for method in methods:
                for seed in range(seeds):
                    try:
                        self._cell(method, count, seed, whole)
                    except FxmergeError as error:
                        print(f"  skipped: {method.name} of {self.case.family.name}: {error.what}", flush=True)
                        break

    def _parents(self) -> Row:
        keys = {"setting": self.case.family.name, "method": "parents"}
        found = self.ledger.find(self.case.settings, **keys)
        return (
            found[0]
            if found
            else self._keep({**self.case.reference(), **keys, "share": 1.0, "settings": self.case.settings})
        )

    def _cell(self, method: Method, count: int, seed: int, whole: float) -> None:
        keys = {"setting": self.case.family.name, "method": method.name, "inputs": count, "seed": seed}
        settings = {**self.case.settings, "seconds": self.seconds if _trains(method) else None}
        if self.ledger.find(settings, **keys) and not self.again:
            return
        data = self.case.data(count, seed)
        options = {"method": method.name, **self._base(method)}
        options |= self._paced(method, data, options) if _trains(method) else {}
        merged, spent = self.case.merge(data, seed, options)
        row = {**self.case.measured(merged), **keys, "cpu_seconds": spent, "settings": settings}
        row["options"] = options | ({"base": Path(options["base"]).name} if "base" in options else {})
        row |= {"share": row["mean"] / whole, "init": merged.result["init"], "code": code()}
        self._keep(row)

    def _paced(self, method: Method, data: Data, options: Mapping[str, Any]) -> dict[str, Any]:
        """The option that makes a trained method take the time that all get."""
        if "budget" in options_of(method):
            return {"budget": self.seconds}
        few, more = (self.case.merge(data, 0, {**options, "steps": steps})[1] for steps in PACED)
        pace = max((more - few) / (PACED[1] - PACED[0]), 1e-4)
        return {"steps": max(PACED[0], round((self.seconds - few) / pace) + PACED[0])}

    def _base(self, method: Method) -> dict[str, Any]:
        """The base of parents that have one, for methods that can use it."""
        bases = {net.base[0].label: net.base for net in self.case.family.nets if net.base is not None}
        if len(bases) != 1 or "base" not in options_of(method):
            return {}
        net, _, tasks = next(iter(bases.values()))
        path = CACHE / f"{net.label}.pt"
        study = self.case.studies[0]
        few = study.unlabeled(4, 0)
        model = net.trained(tasks(self.folder), self.folder)
        fxmerge.save(model.eval(), path, inputs=tuple(few[name] for name in study.inputs), task="base", overwrite=True)
        return {"base": str(path)}

    def _keep(self, row: Row) -> Row:
        self.ledger.keep(row)
        where = f"{row['inputs']} inputs, seed {row['seed']}" if "inputs" in row else ""
        spent = f" in {row['cpu_seconds']:.0f} s" if row.get("cpu_seconds") is not None else ""
        print(f"  {row['setting']} {row['method']} {where}: share {row['share']:.3f}{spent}", flush=True)
        return row


def _trains(method: Method) -> bool:
    about = about_of(method)
    return about is not None and about.trained


if __name__ == "__main__":
    main()
