"""Hold a merge to the programs that it was given.

Every parent is compared, before and after it was rewritten, on a few of its own samples: each output relative to its
own spread, in float64 where the model allows that. The SuperNet is compared with the template whose graph it has, and
with itself before the passes of extensions; the folded model with the SuperNet. What changed the numbers is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxmerge.compiler.figures import name_in_head
from fxmerge.errors import VerificationError
from fxmerge.ir.difference import Difference, compare, differences, floor, largest, require, worse
from fxmerge.ir.merge import NODES, fold, head
from fxmerge.ir.probe import probe
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.ir.wide import run_wide
from fxmerge.pipeline.borders import FOLDED
from fxmerge.pipeline.extension import Extension
from fxmerge.pipeline.passes import Pipeline, use_of
from fxmerge.pipeline.record import Record, Step, guilty_rewrite, names

WIDE = 1e-5
"""What rewriting may change in float64: weights that are computed are stored with seven digits, as constants are."""
NARROW = 1e-4
"""What it may change in float32."""
HUGE = 1 << 31
"""Bytes of weights above which a program is compared in its own dtype: a copy in float64 takes twice that."""
_OURS = "nothing was written; this is a fault of fxmerge or of an extension, please report it"

Found = dict[str, Difference]
Inputs = Mapping[str, Tensor]
Values = dict[str, Tensor]
Measured = tuple[Found, float]
"""Differences by output, and what they may be."""
Measure = Callable[[Program, Program, Inputs], Measured]


@dataclass
class Verifier:
    """Compares programs, and says what is to blame."""

    known: Extension
    record: Record
    tolerance: float
    """For comparisons of what was trained, in the model's own dtype."""
    notes: list[str] = field(default_factory=list)

    # -- parents, and the SuperNet ---------------------------------------------------------------------

    def parents(
        self, given: Sequence[Program], rewritten: Sequence[Program], samples: Sequence[Inputs] | None
    ) -> dict[str, Difference]:
        """Compare all parents as they were given with what became of them, by "TASK.OUTPUT"."""
        found: dict[str, Difference] = {}
        for k, (before, after) in enumerate(zip(given, rewritten, strict=True)):
            inputs = probe(before, samples[k] if samples else None)
            gaps = self._same(before, after, inputs, before.task, self._wide)
            found |= {f"{before.task}.{name}": gap for name, gap in gaps.items()}
        return found

    def join(self, supernet: SuperNet, samples: Sequence[Inputs] | None) -> None:
        """With nothing but the template's weights in its maps, a SuperNet of the template's sizes is the template."""
        k = supernet.template
        if any(block.size != block.sizes[k] for _, block in supernet.maps()):
            return  # wider than the template: its norms see more coordinates
        parent = supernet.parents[k]
        inputs = probe(parent, samples[k] if samples else None)
        try:
            alone = supernet.start([float(n == k) for n in range(len(supernet.parents))])
            mine = alone.program.only([f"{parent.task}.{port.name}" for port in parent.outputs], inputs=True)
            expected, got, tolerance = self._both(parent, inputs, mine, supernet.given(k, inputs))
        finally:
            supernet.start([1.0] * len(supernet.parents))
        found = differences({f"{parent.task}.{name}": value for name, value in expected.items()}, got)
        require("insert-merge joined the parents to something else", found, tolerance, _OURS)

    def supernet(self, joined: SuperNet, after: Program, pipeline: Pipeline, inputs: Inputs) -> None:
        """Passes on the SuperNet left its function, and every map that folds into a weight still does."""
        if after is joined.program:
            return
        self._same(joined.program, after, inputs, "the SuperNet", self._wide)
        outputs = joined.output_names
        for step in self.record.between(joined.program, after):
            left, before = (
                unfolded(program.only(outputs), pipeline, self.known) for program in (step.after, step.before)
            )
            lost = left - before
            if lost:
                raise VerificationError(
                    f"{self._pass(step)} lost how maps fold: {min(lost)} would stay in the merged model",
                    self._todo(step),
                )

    def fold(self, trained: Program, folded: Program, probes: Sequence[Inputs]) -> dict[str, Difference]:
        """The folded model is what was trained, by "TASK.OUTPUT"."""
        worst: dict[str, Difference] = {}
        for inputs in probes:
            worst = worse(worst, self._same(trained, folded, inputs, "the merged model", self._narrow))
        return worst

    # -- how -------------------------------------------------------------------------------------------

    def _same(self, before: Program, after: Program, inputs: Inputs, what: str, measure: Measure) -> Found:
        """The differences between a program and what steps on record made of it; raises if one of them is to blame."""
        found, tolerance = measure(before, after, inputs)
        if largest(found) <= tolerance:
            return found
        steps = self.record.between(before, after)
        explained = False
        for step in steps:
            gaps, tolerance = measure(step.before, step.after, inputs)
            if largest(gaps) <= tolerance:
                continue
            if step.done.exact:
                blamed = self._blame(step, lambda made: measure(step.before, made, inputs))  # noqa: B023 (called here)
                require(f"{blamed} changed what {what} computes", gaps, tolerance, self._todo(step))
            explained = True
            self._say(
                f"{self._pass(step)} changes what {what} computes, as it says: by {largest(gaps):.2g} of the spread"
            )
        if not explained:
            together = f"the passes {names(steps)} together" if steps else "rewriting"
            require(f"{together} changed what {what} computes", found, tolerance, _OURS)
        return found

    def _wide(self, a: Program, b: Program, inputs: Inputs) -> Measured:
        """Differences of the outputs that both have, in float64, and what they may be."""
        one, two, tolerance = self._both(a, inputs, b, inputs)
        shared = [name for name in one if name in two]
        return differences({n: one[n] for n in shared}, {n: two[n] for n in shared}), tolerance

    def _narrow(self, a: Program, b: Program, inputs: Inputs) -> Measured:
        """Differences of the outputs that both have, as whoever runs the model sees them, and what they may be."""
        shared = [port.name for port in a.outputs if port.name in {other.name for other in b.outputs}]
        return compare(a, b, inputs, shared), max(self.tolerance, floor(b))

    def _both(self, a: Program, x: Inputs, b: Program, y: Inputs) -> tuple[Values, Values, float]:
        """What two programs compute, both in float64 or both in their own dtype, and how far apart that may be."""
        size = sum(tensor.nbytes for program in (a, b) for tensor in program.tensors.values())
        if size > HUGE:
            self._say(f"{a.task} was compared in its own dtype: in float64 it would take {2 * size >> 30} GB")
        else:
            try:
                return run_wide(a, x), run_wide(b, y), WIDE
            except Exception as error:  # an operator without a form in float64 may fail in any way
                why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                self._say(f"{a.task} was compared in its own dtype: it does not run in float64 ({why[:120]})")
        with torch.no_grad():
            return a.run(x), b.run(y), max(NARROW, floor(a))

    # -- who -------------------------------------------------------------------------------------------

    def _blame(self, step: Step, measure: Callable[[Program], Measured]) -> str:
        """Who changed the numbers: the rewrite of a step if it is one's fault, else the step."""

        def wrong(made: Program) -> bool:
            gaps, tolerance = measure(made)
            return not largest(gaps) <= tolerance

        fired = guilty_rewrite(step, self.known, wrong)
        if fired is None:
            return self._pass(step)
        known = any(each.name == fired.name for each in self.known.rewrites)
        owner = f" of {self.known.owner('rewrite', fired.name)}" if known else ""
        where = f", at {fired.source}" if fired.source else ""
        return f"rewrite {fired.name}{owner} (in pass {step.done.name}{where})"

    def _pass(self, step: Step) -> str:
        return f"pass {step.done.name} of {self.known.owner('pass', step.done.name)}"

    def _todo(self, step: Step) -> str:
        return f"nothing was written; FXMERGE_PRINT={step.done.name} shows what it did; report it to its owner"

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def unfolded(program: Program, pipeline: Pipeline, known: Extension) -> set[str]:
    """The merge and unmerge calls that are left when a program is hoisted: maps that fold into no weight."""
    for each in pipeline.stage("fold"):
        if FOLDED in each.ensures:
            break
        program = each.run(program, use_of(each, known))
    return {
        f"{node.target.__name__} by {next(str(n.target) for n in node.all_input_nodes if n.target in program.maps)}"
        + "".join(f" of parent {a}" for a in node.args[-1:] if isinstance(a, int))
        for node in program.graph.nodes
        if node.target in NODES - {fold, head}
    }


def require_template(folded: Program, supernet: SuperNet, left: int) -> None:
    """Raise `VerificationError` unless the folded trunk has exactly the template's parameters.

    Those of a head or a stem stand once per task; a tied one that is written and read stands twice; one that is used
    part by part (a projection of queries beside that of keys and values) stands as its parts, without what no call
    reads; `left` maps fold into no weight (they stand before an output) and are matrices of their own.
    """
    template = supernet.parents[supernet.template]
    wide = any(block.size != block.sizes[supernet.template] for _, block in supernet.maps())
    used = {node.target for node in template.graph.nodes if node.op == "get_attr"}
    for name in sorted(template.parameters & used):
        found = folded.tensors.get(name, folded.tensors.get(name_in_head(template, name)))
        if found is None:
            raise VerificationError(f"the folded model lacks {name} of {template.task}", _OURS)
        wanted = template.tensors[name]
        parts = [t for n, t in folded.tensors.items() if name in (n, _stem(n), n.removeprefix(f"{template.task}."))]
        whole = found.shape == wanted.shape or sum(part.numel() for part in parts) == wanted.numel()
        whole |= name in supernet.partly and all(a <= b for a, b in zip(found.shape, wanted.shape, strict=False))
        if found.ndim != wanted.ndim or not (wide or whole):
            raise VerificationError(
                f"{name} is {list(template.tensors[name].shape)} in {template.task} and {list(found.shape)} folded",
                _OURS,
            )
    names = {name for parent in supernet.parents for name in parent.parameters}
    names |= {f"{parent.task}.{name}" for parent in supernet.parents for name in parent.parameters}
    more = [name for name in sorted(folded.parameters) if name not in names and _stem(name) not in names]
    if len(more) > left:
        raise VerificationError(f"{more[0]} stands in the folded model and in no parent", _OURS)


def _stem(name: str) -> str:
    """The name of a tensor without the number of a second version."""
    head, _, number = name.rpartition("_")
    return head if number.isdigit() else name
