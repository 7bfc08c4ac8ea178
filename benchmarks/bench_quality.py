"""Merges of every family of networks by every method, three times each, on held-out test data: one table."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.families import FAMILIES, Family
from benchmarks.quality_case import Case
from benchmarks.quality_cells import Ledger, code, show
from benchmarks.quality_search import Search, distill, held_back
from benchmarks.table import RESULTS, Row
from fxmerge.errors import FxmergeError

METHODS: Mapping[str, Mapping[str, Any]] = {
    "average": {"method": "average"},
    "condense": {"method": "condense"},
    "default": {},
    "foldable": {"method": "foldable", "init": "average"},
    "distill": {"method": "distill"},
    "distill-searched": {"init": "average+parents"},
    "distill-tuned": {"method": "distill", "tuned": True},
}
"""Options of `fxmerge.merge` by the name of the rows.

`distill-searched` is the default without its closed form: the same trials of starts, optimizers and rates, the same
inputs and losses. What is `tuned` is searched for from outside, in the default's time.
"""
TIMED = "default"
"""The method whose processor time is what a search may use."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_quality", description=__doc__)
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of the data sets (default: ../shared/data)")
    parser.add_argument("--out", type=Path, default=RESULTS / "quality.json", help="where the results go")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[*FAMILIES], help="(default: all)")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=[*METHODS], help="(default: all)")
    parser.add_argument("--inputs", type=int, nargs="+", help="unlabeled inputs a task (default: the family's own)")
    parser.add_argument("--seeds", type=int, default=3, help="merges a cell, each on other inputs (default: 3)")
    parser.add_argument("--no-ceiling", action="store_true", help="leave out the network trained with labels")
    parser.add_argument("--again", action="store_true", help="measure also what the file has")
    parser.add_argument("--table", action="store_true", help="only print what the file has")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ledger = Ledger(given.out)
    if not given.table:
        for name in given.families:
            course = Course(FAMILIES[name], given.data, ledger, given.again)
            course.run(given.methods, given.inputs or FAMILIES[name].sizes, given.seeds, ceiling=not given.no_ceiling)
    show(ledger.rows(), given.families, given.methods)


class Course:
    """The cells of one family, measured one after another; what the file has already is left as it is."""

    def __init__(self, family: Family, folder: Path, ledger: Ledger, again: bool = False) -> None:
        self.folder, self.ledger, self.again = folder, ledger, again
        print(f"{family.name}: parents", flush=True)
        self.case = Case.of(family, folder)
        self.whole = self._reference("parents", self.case.settings, self.case.reference)["mean"]

    def run(self, methods: Sequence[str], sizes: Sequence[int], seeds: int, *, ceiling: bool = True) -> None:
        """Every method for every number of inputs and every seed. Methods that others are timed by come first."""
        if ceiling:
            joint = {"joint": self.case.family.joint.settings}
            self._reference("ceiling", joint, lambda: self.case.ceiling(self.folder))
        for count in sizes:
            for method in sorted(methods, key=lambda name: bool(METHODS[name].get("tuned"))):
                for seed in range(seeds):
                    try:
                        self._cell(method, count, seed)
                    except FxmergeError as error:
                        print(f"  skipped: {method} of {self.case.family.name}: {error.what}", flush=True)
                        break

    def _reference(self, method: str, settings: Row, measure: Any) -> Row:
        """The figures that need no merge."""
        keys = {"setting": self.case.family.name, "method": method}
        found = self.ledger.find(settings, **keys)
        if found and not self.again:
            return found[0]
        row = measure()
        row |= {**keys, "settings": settings}
        row["share"] = row["mean"] / (row["mean"] if method == "parents" else self.whole)
        return self._keep(row)

    def _cell(self, method: str, count: int, seed: int) -> None:
        keys = {"setting": self.case.family.name, "method": method, "inputs": count, "seed": seed}
        options = dict(METHODS[method])
        if options.pop("tuned", False):
            options = distill(self._tuned(count))
        settings = {**self.case.settings, "merge": self.case.options(options)}
        if self.ledger.find(settings, **keys) and not self.again:
            return
        merged, spent = self.case.merge(self.case.data(count, seed), seed, options)
        row = {**self.case.measured(merged), **keys, "cpu_seconds": spent, "settings": settings}
        row |= {"share": row["mean"] / self.whole, "init": merged.result["init"], "checks": merged.result["checks"]}
        row["code"] = code()
        self._keep(row)

    def _tuned(self, count: int) -> Mapping[str, Any]:
        """The options of distill that did best on held-back inputs of the first seed."""
        name = f"{self.case.family.name} {count}"
        known = self.ledger.search(name)
        seconds = self._seconds(count)
        if known is None or (self.again and known["seconds"] != seconds):
            print(f"{name} inputs: searching for the best of distill in {seconds or 'no given'} s", flush=True)
            search = Search(self.case, *held_back(self.case.data(count, 0)), seconds)
            known = {"best": search.best(), "seconds": seconds, "trials": [asdict(trial) for trial in search.trials]}
            self.ledger.keep_search(name, known)
        best: Mapping[str, Any] = known["best"]
        return best

    def _seconds(self, count: int) -> float | None:
        """Mean processor time of the merges that a search may take as long as."""
        rows = self.ledger.find(setting=self.case.family.name, method=TIMED, inputs=count)
        return sum(row["cpu_seconds"] for row in rows) / len(rows) if rows else None

    def _keep(self, row: Row) -> Row:
        self.ledger.keep(row)
        scores = ", ".join(f"{task} {score:.4g}" for task, score in row["scores"].items())
        where = f"{row['inputs']} inputs, seed {row['seed']}" if "inputs" in row else ""
        spent = f" in {row['cpu_seconds']:.0f} s" if row.get("cpu_seconds") is not None else ""
        print(f"  {row['setting']} {row['method']} {where}: {scores}, share {row['share']:.3f}{spent}", flush=True)
        return row


if __name__ == "__main__":
    main()
