"""From parents to a SuperNet, and from that to an ordinary network: each step watched, and held to what was given."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from fxmerge.compiler.figures import probes
from fxmerge.compiler.parents import load_base, teacher_notes
from fxmerge.compiler.verification import Verifier, require_template, unfolded
from fxmerge.config import MergeConfig
from fxmerge.errors import LineUpError
from fxmerge.installed import knowledge, pipeline
from fxmerge.ir.difference import Difference
from fxmerge.ir.probe import probe
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods import Method
from fxmerge.methods.about import takes_teachers
from fxmerge.methods.base import Trained
from fxmerge.methods.one_base import base_by_names
from fxmerge.methods.trunks import Weights, trunk_of
from fxmerge.pipeline import Pipeline, Stage
from fxmerge.pipeline.extension import Extension
from fxmerge.pipeline.knowledge import Plan
from fxmerge.pipeline.record import Record
from fxmerge.pipeline.watch import Watch
from fxmerge.samples.rows import Samples
from fxmerge.training.answers import USUAL_BATCH


@dataclass
class Build:
    """The steps of one merge, and what they made of its parents."""

    config: MergeConfig
    known: Extension
    method: Method
    trained: Trained
    given: list[Program]
    """The parents as they were given."""
    notes: list[str]
    rewrite: dict[str, Difference] = field(default_factory=dict)
    """How far the parents are from what was made of them."""

    @cached_property
    def plan(self) -> Plan:
        """What is known of the merge once the parents are."""
        config = self.config
        tasks = tuple(program.task for program in self.given)
        batch, scale = self.trained.batch_size or USUAL_BATCH, config.width_scale or 1.0
        teachers, until = takes_teachers(self.method), config.share_until or ""
        return Plan(tasks, config.like, scale, batch, teachers=teachers, until=until)

    @cached_property
    def pipeline(self) -> Pipeline:
        """Every step of the merge, in order."""
        return pipeline(self.known, self.plan)

    @cached_property
    def verifier(self) -> Verifier:
        """What holds the merge to the programs that it was given."""
        watch = Watch.from_environment([each.name for each in self.known.passes])
        return Verifier(self.known, Record(watch), self.config.atol, self.notes)

    def run(self, stage: Stage, program: Program) -> Program:
        """The program behind all steps of a stage."""
        return self.pipeline.run(stage, program, self.known, self.verifier.record)

    def supernet(self, samples: list[Samples] | None) -> SuperNet:
        """The parents joined, and held to what was given."""
        check, record = self.verifier, self.verifier.record
        normal = [self.run("parent", program) for program in self.given]
        lined = self.pipeline.line_up(normal, self.known, record)
        self.notes += teacher_notes(lined, self.config.like)
        self.rewrite = check.parents(self.given, [each.shown for each in lined], samples)
        joined = self.pipeline.join(lined, self.known, record)
        if any(mine is not theirs for mine, theirs in zip(joined.parents, lined, strict=True)):
            self.rewrite = check.parents(self.given, [each.shown for each in joined.parents], samples)
        check.join(joined, samples)
        program = self.run("supernet", joined.program)
        inputs = probe(joined.program, probes(joined.program, joined, samples)[0])
        check.supernet(joined, program, self.pipeline, inputs)
        record.steps.clear()
        return joined.with_program(program)

    def fold_trunk(self, program: Program) -> Program:
        """A SuperNet with its trunk folded, the heads' maps left."""
        return knowledge().fold_trunk(self.plan).run("fold", program, self.known, self.verifier.record)

    def fold(self, trained: Program, net: SuperNet) -> Program:
        """An ordinary network of the SuperNet, with exactly the template's parameters in its trunk."""
        folded = self.run("fold", trained)
        require_template(folded, net, len(unfolded(trained, self.pipeline, self.known)))
        return self.run("merged", folded)

    def base(self, source: str, net: SuperNet, samples: list[Samples] | None) -> Weights:
        """The trunk of the model that the parents were tuned from: lined up with the template, or by its names."""
        like, lined = self.given[net.template], net.parents[net.template]
        program = load_base(source, self.config, samples[net.template] if samples else dict(like.samples))
        both = [like, program.evolve(task=f"{like.task} base")]
        pair = replace(self, config=self.config.with_options(like=0), given=both, notes=[], rewrite={})
        try:
            joined = pair.supernet(None)
            if why := joined.parents[1].teacher and joined.parents[1].teacher.why:
                raise LineUpError(why)
        except LineUpError as error:
            found, said = base_by_names(program, like, lined)
            if not found:
                what = f"--base {source} does not line up with {like.task} and has other weights: {error.what}"
                raise LineUpError(what, "give the model that the parents were fine-tuned from") from error
            self.notes.append(f"the base does not line up with {like.task}: its weights are taken {said}")
            return found
        return trunk_of(pair.fold_trunk(joined.start([0.0, 1.0]).program))
