"""The driver: load, run the pipeline stage by stage, verify each, write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from fxmerge.compiler import figures, gates
from fxmerge.compiler.build import Build
from fxmerge.compiler.choice import chosen
from fxmerge.compiler.estimate import estimate
from fxmerge.compiler.facts import merged_of, result_of, tasks_of
from fxmerge.compiler.given_samples import all_samples
from fxmerge.compiler.job import OneBase, behind, job_of, outcome_of, plan_of
from fxmerge.compiler.metrics_log import metrics_log
from fxmerge.compiler.parents import Parent, load_parents, unsized_in
from fxmerge.compiler.sizes import merge_to_size
from fxmerge.config import MergeConfig, no_page
from fxmerge.installed import known
from fxmerge.io.files import check_room, write_text
from fxmerge.ir.program import Program
from fxmerge.ir.shapes import unsized
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods import Method
from fxmerge.methods.base import Trained
from fxmerge.methods.one_base import nearness, notes_of
from fxmerge.methods.post import told
from fxmerge.output.formats import ONNX, format_of
from fxmerge.output.insight import Insight
from fxmerge.output.merged import Merged
from fxmerge.output.readings import check_metrics
from fxmerge.pipeline.extension import Extension
from fxmerge.pipeline.format import check_suffix
from fxmerge.result import Checks
from fxmerge.samples.rows import Samples, split
from fxmerge.stages import Stages


def merge(
    parents: Sequence[Parent],
    *,
    data: Any = None,
    config: MergeConfig | None = None,
    stages: Stages | None = None,
    page: Callable[[Merged, MergeConfig], str] | None = None,
    **options: Any,
) -> Merged:
    """Merge two or more parents into one model of one model's size.

    `parents`: programs, or SOURCEs. `data`: unlabeled samples by task (a tensor or array for a single input, a dict of
    them by input name, or a path), or one of these for all tasks; without it, the samples inside the parents are used.
    `options` are fields of `MergeConfig` and override it. With `out`, the model is written there, whole or not at all,
    and the figures where `result` says; a `report` is drawn by `page`, which the command line has.
    Raises `FxmergeError`s; `VerificationError` if a check fails, and then nothing is written.
    """
    config = (config or MergeConfig()).with_options(**options)
    config.check_options()
    config.check_files()
    if config.report and page is None:
        raise no_page()
    merged = merge_alone(parents, data=data, config=config, stages=stages)
    if config.result:
        write_text(config.result, json.dumps(merged.result, indent=1), overwrite=config.overwrite)
    if config.report and page is not None:
        write_text(config.report, page(merged, config), overwrite=config.overwrite)
    return merged


def merge_alone(parents: Sequence[Parent], *, data: Any, config: MergeConfig, stages: Stages | None) -> Merged:
    """`merge`, its options checked; figures are left to whoever asks."""
    with metrics_log(config) as log:
        merged = _merge(parents, data=data, config=config.with_options(log=None), stages=log.watching(stages))
    merged.facts = replace(merged.facts, notes=(*merged.facts.notes, *log.notes))
    return merged


def _merge(
    parents: Sequence[Parent], *, data: Any, config: MergeConfig, stages: Stages | None = None, estimated: bool = True
) -> Merged:
    """`merge`, its options checked and its log opened; a plan is `estimated` where somebody asked for it."""
    extension = known(config.extension)
    if config.out:
        check_suffix(config.out, extension.formats)
    if config.max_size is not None or config.keep is not None or config.curve:
        return merge_to_size(parents, data, config, _merge, stages)
    method, trained = chosen(extension, config)
    data, run = (
        config.data if data is None else data,
        _Merge(config, stages or Stages(), extension, method, trained, estimated),
    )
    try:
        return run(list(parents), data)
    except GuardOnDataDependentSymNode as error:  # a value whose size no step can know, whichever step asked for it
        raise unsized_in(run.given) from error


@dataclass
class _Merge:
    """One run of the driver, stage by stage."""

    config: MergeConfig
    stages: Stages
    known: Extension
    method: Method
    trained: Trained
    estimated: bool = True
    given: list[Program] = field(default_factory=list)
    """The parents, once they are loaded."""

    def __call__(self, parents: list[Parent], data: Any) -> Merged:
        config = self.config
        with self.stages("capture"):
            given = self.given = load_parents(parents, config, data)
            if any(unsized(node) for program in given for node in program.result):
                raise unsized_in(given)
            check_metrics(config.metric, given)
            loaded = all_samples(given, data, config, self.method, self.known.methods)
            samples = loaded.inputs
            if samples:  # what they show, of a mask say, holds in this merge
                given = self.given = [p.evolve(samples=own) for p, own in zip(given, samples, strict=True)]
        build = Build(config, self.known, self.method, self.trained, given, [*loaded.notes])
        with self.stages("analyse"):
            net = build.supernet(samples)
            base = self._one_base(build, net, samples)
            if config.gate:
                gates.require_shared(net, build.fold, self.known.rules, config.answer)
        if config.dry_run:
            return self._planned(build, net, parents, base, samples)
        if config.out:
            check_room(config.out, net.parents[net.template].count() * 4)
        held, kept = split(samples)
        watched = self.stages.watched or config.report is not None
        with self.stages("train") as tell:
            torch.manual_seed(config.seed)
            job = job_of(build, net, kept, held if watched else None, base=base, tell=tell)
            outcome = outcome_of(build, job)
        probes = figures.probes(outcome.program, net, samples)
        did: list[dict[str, Any]] = []
        if config.post:
            with self.stages("post"):
                outcome, did = behind(build, job, outcome, probes)
            build.notes += map(told, did)
        with self.stages("fold"):
            trained = outcome.program.only(net.output_names)
            folded = build.fold(trained, net)
        with self.stages("verify"):
            fold = build.verifier.fold(trained, folded, probes)
            checks = Checks.of(build.rewrite, fold, True if outcome.log else None)
            tasks = tasks_of(build, outcome, net, folded, samples, held, loaded.skipped)
            gate = None
            if config.gate and kept:
                folded, gate, added = gates.trained(folded, net, self.known.rules, held, kept, config.answer)
                checks = checks.with_outputs(added)
                build.notes += gates.notes_of(gate)
        folded, notes = figures.with_assets(folded, given, net.template, self.known)
        build.notes += notes
        facts = result_of(build, parents, net, outcome, base, tasks=tasks, checks=checks, gate=gate, post=tuple(did))
        merged = merged_of(build, folded, net, facts, probes[0])
        if config.report:
            merged.insight = Insight.of(net, outcome.mixed, held or samples)
        if config.out:
            with self.stages("export"):
                found = merged.write(config.out, opset=config.opset, overwrite=config.overwrite, tolerance=config.atol)
                checks = checks.with_written(found, format_of(config.out) is ONNX)
        seconds = {name: round(seconds, 3) for name, seconds in self.stages.seconds.items()}
        merged.facts = replace(merged.facts, checks=checks, seconds=seconds, peak_rss_mib=figures.peak_memory())
        return merged

    def _one_base(self, build: Build, net: SuperNet, samples: list[Samples] | None) -> OneBase:
        """Whether the parents come from one base: what `--base` gives, or one that their weights tell of."""
        source = getattr(self.method, "base", None)
        weights = cache(partial(build.base, str(source), net, samples)) if source else None
        near = nearness(net, weights() if weights else None)
        build.notes += notes_of(near, self.method)
        return OneBase(near, weights)

    def _planned(
        self, build: Build, net: SuperNet, parents: list[Parent], base: OneBase, samples: list[Samples] | None
    ) -> Merged:
        """What the merge will be, its weights aside: sizes, what is trained, outputs, and what it will take."""
        job = job_of(build, net, base=base)
        outcome = plan_of(build, job)
        probes = figures.probes(outcome.program, net, samples)
        taken = estimate(job, outcome, net, probes[0]) if self.estimated else None
        folded, gate = build.fold(outcome.program.only(net.output_names), net), None
        if self.config.gate:
            folded, gate = gates.untrained(folded, net, self.known.rules, self.config.answer)
        if taken:
            build.notes.append(taken.told)
        return merged_of(build, folded, net, result_of(build, parents, net, outcome, base, gate=gate, estimate=taken))
