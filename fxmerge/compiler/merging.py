"""The driver: load, run the pipeline stage by stage, verify each, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from fxmerge.compiler import figures, gates
from fxmerge.compiler.choice import chosen
from fxmerge.compiler.given_samples import all_samples
from fxmerge.compiler.inspection import opaque_notes
from fxmerge.compiler.metrics_log import metrics_log
from fxmerge.compiler.parents import Parent, facts_of, load_base, load_parents, teacher_notes, unsized_in
from fxmerge.compiler.sizes import merge_to_size
from fxmerge.compiler.verification import Verifier, require_template, unfolded
from fxmerge.config import MergeConfig
from fxmerge.errors import FxmergeError, LineUpError, VerificationError
from fxmerge.installed import knowledge, known, pipeline
from fxmerge.ir.difference import Difference
from fxmerge.ir.probe import probe
from fxmerge.ir.program import Program
from fxmerge.ir.shapes import unsized
from fxmerge.ir.supernet import SuperNet
from fxmerge.messages import listed
from fxmerge.methods import Job, Method, Outcome
from fxmerge.methods.about import about_of, takes_teachers
from fxmerge.methods.average import AVERAGE
from fxmerge.methods.base import Trained
from fxmerge.methods.one_base import Nearness, base_by_names, nearness, notes_of
from fxmerge.methods.post import fell, post, told
from fxmerge.methods.trunks import Weights, trunk_of
from fxmerge.output.formats import ONNX, format_of
from fxmerge.output.insight import Insight
from fxmerge.output.merged import Merged
from fxmerge.output.readings import check_metrics
from fxmerge.pipeline import Pipeline, Stage, Train
from fxmerge.pipeline.extension import Extension
from fxmerge.pipeline.format import check_suffix
from fxmerge.pipeline.knowledge import Plan
from fxmerge.pipeline.record import Record
from fxmerge.pipeline.watch import Watch
from fxmerge.result import Checks, MergedFacts, Result, TaskFigures, Training
from fxmerge.samples.pool import Pools, Recipe
from fxmerge.samples.rows import Samples, rows_of, split
from fxmerge.stages import Stages
from fxmerge.training.answers import USUAL_BATCH, usual_batch
from fxmerge.training.fit import Settings, silent
from fxmerge.training.memory import budget
from fxmerge.training.optimizers import OPTIMIZERS
from fxmerge.version import __version__


def merge(
    parents: Sequence[Parent],
    *,
    data: Any = None,
    config: MergeConfig | None = None,
    stages: Stages | None = None,
    **options: Any,
) -> Merged:
    """Merge two or more parents into one model of one model's size.

    `parents`: programs, or SOURCEs. `data`: unlabeled samples by task (a tensor for a single input, a dict of tensors
    by input name, or a path), or one of these for all tasks; without it, the samples inside the parents are used.
    `options` are fields of `MergeConfig` and override it. With `out`, the model is written there, whole or not at all.
    Raises `FxmergeError`s; `VerificationError` if a check fails, and then nothing is written.
    """
    config = (config or MergeConfig()).with_options(**options)
    config.check_options()
    with metrics_log(config) as log:
        merged = _merge(parents, data=data, config=config.with_options(log=None), stages=log.watching(stages))
    merged.facts = replace(merged.facts, notes=(*merged.facts.notes, *log.notes))
    return merged


def _merge(parents: Sequence[Parent], *, data: Any, config: MergeConfig, stages: Stages | None = None) -> Merged:
    """`merge`, its options checked and its log opened."""
    extension = known(config.extension)
    if config.out:
        check_suffix(config.out, extension.formats)
    if config.max_size is not None or config.keep is not None or config.curve:
        return merge_to_size(parents, data, config, _merge, stages)
    method, trained = chosen(extension, config)
    return _Merge(config, stages or Stages(), extension, method, trained).run(
        list(parents), config.data if data is None else data
    )


@dataclass
class _Merge:
    """One run of the driver, and what it gathers for the result."""

    config: MergeConfig
    stages: Stages
    known: Extension
    method: Method
    trained: Trained
    notes: list[str] = field(default_factory=list)
    given: list[Program] = field(default_factory=list)
    """The parents as they were given."""
    skipped: dict[str, int] = field(default_factory=dict)
    rewrite: dict[str, Difference] = field(default_factory=dict)
    """How far the parents are from what was made of them."""
    base: Callable[[], Weights] | None = None
    """The trunk of the model that the parents were tuned from, where it was given."""
    near: Nearness | None = None
    """Whether they come from one base."""
    did: list[dict[str, Any]] = field(default_factory=list)
    """What the steps behind the merge did."""

    def run(self, parents: list[Parent], data: Any) -> Merged:
        """The merge; a value whose size no step can know is said with its place, whichever step asked for it."""
        try:
            return self._stages(parents, data)
        except GuardOnDataDependentSymNode as error:
            raise unsized_in(self.given) from error

    def _stages(self, parents: list[Parent], data: Any) -> Merged:
        with self.stages("capture"):
            given = self.given = load_parents(parents, self.config, data)
            if any(unsized(node) for program in given for node in program.result):
                raise unsized_in(given)
            check_metrics(self.config.metric, given)
            loaded = all_samples(given, data, self.config, self.method, self.known.methods)
            samples, self.skipped, self.notes = loaded.inputs, loaded.skipped, self.notes + loaded.notes
        with self.stages("analyse"):
            supernet = self._supernet(given, samples)
            if source := getattr(self.method, "base", None):
                self.base = cache(partial(self._base, str(source), supernet, samples))
            self.near = nearness(supernet, self.base() if self.base else None)
            self.notes += notes_of(self.near, self.method)
            if self.config.gate:
                gates.require_shared(supernet, self._fold, self.known.rules, self.config.answer)
        if self.config.dry_run:
            return self._planned(supernet, parents)
        held, kept = split(samples)
        with self.stages("train") as tell:
            torch.manual_seed(self.config.seed)
            job = self._job(supernet, kept, tell, held)
            outcome = self._outcome(job)
        probes = figures.probes(outcome.program, supernet, samples)
        if self.config.post:
            with self.stages("post"):
                outcome = self._post(job, outcome, probes)
        with self.stages("fold"):
            trained = outcome.program.only(supernet.output_names)
            folded = self._fold(trained, supernet)
        with self.stages("verify"):
            fold = self.verifier.fold(trained, folded, probes)
            checks = Checks.of(self.rewrite, fold, True if outcome.log else None)
            tasks = self._figures(outcome, supernet, folded, held, samples)
            gate = None
            if self.config.gate and kept:
                folded, gate, added = gates.trained(folded, supernet, self.known.rules, held, kept, self.config.answer)
                checks = checks.with_outputs(added)
                self.notes += gates.notes_of(gate)
        folded, notes = figures.with_assets(folded, given[supernet.template])
        self.notes += notes
        facts = replace(self._result(parents, supernet, outcome), tasks=tasks, checks=checks, gate=gate)
        merged = self._merged(folded, supernet, facts, probes[0])
        if self.config.report:
            merged.insight = Insight.of(supernet, outcome.mixed, held or samples)
        if self.config.out:
            with self.stages("export"):
                config, out = self.config, self.config.out
                found = merged.write(out, opset=config.opset, overwrite=config.overwrite, tolerance=config.atol)
                checks = checks.with_written(found, format_of(out) is ONNX)
        seconds = {name: round(seconds, 3) for name, seconds in self.stages.seconds.items()}
        merged.facts = replace(merged.facts, checks=checks, seconds=seconds, peak_rss_mib=figures.peak_memory())
        return merged

    def _planned(self, supernet: SuperNet, parents: list[Parent]) -> Merged:
        """What the merge will be, its weights aside: sizes, what is trained, and outputs."""
        outcome = self._plan(self._job(supernet, None, None))
        folded, gate = self._fold(outcome.program.only(supernet.output_names), supernet), None
        if self.config.gate:
            folded, gate = gates.untrained(folded, supernet, self.known.rules, self.config.answer)
        return self._merged(folded, supernet, replace(self._result(parents, supernet, outcome), gate=gate))

    def _plan(self, job: Job) -> Outcome:
        """What the method makes before any training; what maps will do to spaces is not known then."""
        if hasattr(self.method, "plan"):
            plan: Outcome = self.method.plan(job)
            return replace(plan, groups={}, began=None, behind=False)
        if not self.method.needs_data:
            return self._outcome(job)
        self.notes.append(f"how much {self.method.name} trains is not known before it runs")
        return Outcome(job.supernet.start([1.0] * len(job.supernet.parents)).program, self.trained.init, groups={})

    # -- the SuperNet and the job ----------------------------------------------------------------------

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

    def _run(self, stage: Stage, program: Program) -> Program:
        return self.pipeline.run(stage, program, self.known, self.verifier.record)

    def _supernet(self, given: list[Program], samples: list[Samples] | None) -> SuperNet:
        """The parents joined, and held to what was given."""
        check, record = self.verifier, self.verifier.record
        normal = [self._run("parent", program) for program in given]
        lined = self.pipeline.line_up(normal, self.known, record)
        self.notes += teacher_notes(lined, self.config.like)
        self.rewrite = check.parents(given, [each.shown for each in lined], samples)
        joined = self.pipeline.join(lined, self.known, record)
        if any(mine is not theirs for mine, theirs in zip(joined.parents, lined, strict=True)):
            self.rewrite = check.parents(given, [each.shown for each in joined.parents], samples)
        check.join(joined, samples)
        program = self._run("supernet", joined.program)
        inputs = probe(joined.program, figures.probes(joined.program, joined, samples)[0])
        check.supernet(joined, program, self.pipeline, inputs)
        record.steps.clear()
        return joined.with_program(program)

    def _job(
        self, supernet: SuperNet, samples: list[Samples] | None, tell: Any, held: list[Samples] | None = None
    ) -> Job:
        config, trained = self.config, self.trained
        watched = self.stages.watched or config.report is not None

        def fold_trunk(program: Program) -> Program:
            return knowledge().fold_trunk(self.plan).run("fold", program, self.known, self.verifier.record)

        batch = trained.batch_size or usual_batch(supernet)
        recipe = Recipe(trained.augment, trained.pool, batch, config.seed)
        uses = (
            self.method.needs_data
            or bool(config.post)
            or ((about := about_of(self.method)) is not None and about.tuned)
        )
        pools = Pools(supernet, samples, recipe, tell) if samples is not None and uses else None
        return Job(
            supernet=supernet,
            pool=None if pools is None else pools.pool(pools.kinds[0]),
            held=Pools(supernet, held, Recipe("none", batch=batch)).pool("none") if held and watched else None,
            pools=pools,
            settings=Settings(
                steps=trained.steps,
                batch_size=batch,
                lr=trained.lr or Settings.lr,
                weight_decay=trained.weight_decay,
                optimizer=OPTIMIZERS.get(trained.optimizer, Settings.optimizer),
                seed=config.seed,
                device=figures.device_of(config.device),
                dtype=getattr(torch, trained.dtype),
                memory=budget(config.memory),
            ),
            options=trained,
            hoist=partial(self._run, "train"),
            fold_trunk=fold_trunk,
            progress=tell or silent,
            state=Path(config.resume) / "training.pt" if config.resume else None,
            classes=lambda k, name, value: figures.class_axis(self.given[k], name, value, config.metric),
            base=self.base,
            near=self.near,
        )

    def _base(self, source: str, net: SuperNet, samples: list[Samples] | None) -> Weights:
        """The trunk of the model that the parents were tuned from: lined up with the template, or by its names."""
        like, lined = self.given[net.template], net.parents[net.template]
        program = load_base(source, self.config, samples[net.template] if samples else dict(like.samples))
        both, config = [like, program.evolve(task=f"{like.task} base")], self.config.with_options(like=0)
        pair = replace(self, config=config, stages=Stages(), notes=[], given=both, rewrite={}, base=None, near=None)
        try:
            joined = pair._supernet(both, None)
            if why := joined.parents[1].teacher and joined.parents[1].teacher.why:
                raise LineUpError(why)
        except LineUpError as error:
            found, said = base_by_names(program, like, lined)
            if not found:
                what = f"--base {source} does not line up with {like.task} and has other weights: {error.what}"
                raise LineUpError(what, "give the model that the parents were fine-tuned from") from error
            self.notes.append(f"the base does not line up with {like.task}: its weights are taken {said}")
            return found
        return trunk_of(pair._job(joined, None, None).fold_trunk(joined.start([0.0, 1.0]).program))

    def _outcome(self, job: Job) -> Outcome:
        """What the method makes; an extension's method that fails is named with its owner."""
        start = time.perf_counter()
        try:
            outcome = self.method(job) if job.supernet.shared else AVERAGE(job)
        except FxmergeError:
            raise
        except Exception as error:
            self.known.blame("method", self.method.name, error)
            raise
        self.verifier.record.steps.clear()
        for each in self.pipeline.stage("train"):
            if isinstance(each, Train):
                self.verifier.record(each, job.supernet.program, outcome.program, time.perf_counter() - start)
        self.notes += job.notes
        if outcome.unreached:
            raise VerificationError(
                f"no gradient reached {listed(outcome.unreached, 3)}",
                "start from --init average, or train for more steps; if it stays, please report it",
            )
        return outcome

    def _post(self, job: Job, outcome: Outcome, probes: list[Samples]) -> Outcome:
        """The outcome behind the steps that were asked for; the fold in front of them is held to what was merged."""
        found, self.did = post(job, outcome, self.config.post, self.known.rules)
        before, after = (
            each.only(job.supernet.output_names) for each in (outcome.program, job.fold_trunk(outcome.program))
        )
        self.verifier.fold(before, after, probes)
        self.verifier.record.steps.clear()
        self.notes += [told(did) for did in self.did]
        return found

    def _fold(self, trained: Program, supernet: SuperNet) -> Program:
        """An ordinary network of the SuperNet, with exactly the template's parameters in its trunk."""
        folded = self._run("fold", trained)
        require_template(folded, supernet, len(unfolded(trained, self.pipeline, self.known)))
        return self._run("merged", folded)

    # -- figures -------------------------------------------------------------------------------------

    def _figures(
        self, outcome: Outcome, supernet: SuperNet, folded: Program, held: Any, samples: Any
    ) -> tuple[TaskFigures, ...]:
        found = []
        for k, given in enumerate(self.given):
            looked_at: Samples | None = (held or samples)[k] if samples else None
            how = self.config.metric, self.trained.loss
            task, notes = figures.of_task(outcome, supernet, folded, k, given, looked_at, *how)
            rows, back = (rows_of(each[k]) if each else 0 for each in (samples, held))
            found.append(replace(task, samples=rows, held_back=back, skipped=self.skipped.get(task.task, 0)))
            self.notes += notes
        self.notes += fell([task.stages for task in found], self.config.post)
        return tuple(found)

    def _result(self, sources: list[Parent], supernet: SuperNet, outcome: Outcome) -> Result:
        """What is known of the merge before it is checked: all of a dry run."""
        spaces = knowledge().spaces(supernet.parents[supernet.template], self.known.rules)
        triples = zip(sources, self.given, supernet.parents, strict=True)
        parents = tuple(facts_of(source, program, joined) for source, program, joined in triples)
        trained = outcome.trainable > 0
        averaged = supernet.averaged(trained=trained, solved=outcome.solved)
        if note := supernet.averaged_note(trained=trained, solved=outcome.solved):
            self.notes.append(note)
        groups, told = figures.groups_of_spaces(outcome, supernet)
        self.notes += told
        counts = len(spaces.spaces), len(spaces.opaque), outcome.trainable, sum(averaged.values())
        return Result(
            fxmerge=__version__,
            method=self.method.name,
            init=outcome.init,
            seed=self.config.seed,
            out=self.config.out,
            options=self.config.asked([parent.source for parent in parents]),
            parents=parents,
            merged=MergedFacts(0, *counts, **groups),
            training=Training.of(outcome.log, outcome.augmentation, outcome.chosen) if outcome.log else None,
            base={"source": getattr(self.method, "base", None), **self.near.as_dict()} if self.near else {},
            post=tuple(self.did),
        )

    def _merged(self, program: Program, supernet: SuperNet, facts: Result, samples: Samples | None = None) -> Merged:
        """The merged model with its facts; its own size and all notes are known only now."""
        facts = replace(
            facts,
            merged=replace(
                facts.merged,
                parameters=program.count(),
                outputs=tuple(p.name for p in program.outputs),
                size=round(program.count() / max(self.given[supernet.template].count(), 1), 4),
                shared_until=self.config.share_until,
                apart=tuple(part.name for part in supernet.parts if part.apart),
            ),
            notes=tuple(
                dict.fromkeys([*self.notes, *program.notes, *opaque_notes(supernet.parents, self.known.rules)])
            ),
        )
        labels = {parent.task: parent.labels for parent in supernet.parents}
        named = replace(program, task="+".join(supernet.tasks))
        return Merged(named, facts, supernet.tasks, labels, tuple(self.given), samples or {}, self.known.formats)
