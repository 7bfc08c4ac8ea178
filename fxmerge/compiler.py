"""The driver: load, normalize, insert-merge, train, hoist, fold-merge, cleanup, verify, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from fxmerge import figures
from fxmerge.config import MergeConfig
from fxmerge.errors import CaptureError, DataError, FxmergeError, VerificationError
from fxmerge.figures import Samples
from fxmerge.inspection import check, examine, inspect
from fxmerge.ir.program import Program
from fxmerge.ir.shapes import first_unsized
from fxmerge.ir.supernet import SuperNet
from fxmerge.ir.verify import compare, require
from fxmerge.messages import nearest
from fxmerge.methods import Job, Method, Outcome
from fxmerge.methods.base import Trained
from fxmerge.output.formats import save_merged
from fxmerge.output.merged import Merged
from fxmerge.output.readings import check_metrics
from fxmerge.parents import Parent, load_parents
from fxmerge.pipeline import Pipeline, run_pass
from fxmerge.pipeline.choice import chosen
from fxmerge.pipeline.extension import Extension
from fxmerge.pipeline.installed import catalogue, known, passes
from fxmerge.pipeline.watch import Watch
from fxmerge.samples.fit import check_samples, named_tensors, rows_first
from fxmerge.samples.load import load_samples
from fxmerge.samples.pool import Pools, Recipe
from fxmerge.stages import Stages
from fxmerge.training.fit import Settings, silent
from fxmerge.training.memory import budget
from fxmerge.version import __version__

__all__ = ["catalogue", "check", "examine", "inspect", "merge"]


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
    extension = known(config.extension)
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
    training: dict[str, Any] = field(default_factory=dict)
    given: list[Program] = field(default_factory=list)
    """The parents as they were given."""

    def run(self, parents: list[Parent], data: Any) -> Merged:
        with self.stages("capture"):
            programs = self.given = load_parents(parents, self.config, data)
            check_metrics(self.config.metric, programs)
            samples = self._samples(programs, data)
        with self.stages("analyse"):
            supernet = self._supernet(programs)
        if self.config.dry_run:
            return self._merged(supernet.program, supernet, parents, {})
        held, kept = figures.split(samples)
        with self.stages("train") as tell:
            torch.manual_seed(self.config.seed)
            job = self._job(supernet, kept, tell)
            outcome = self._outcome(job)
        with self.stages("fold"):
            folded = self._fold(outcome.program, supernet)
        with self.stages("verify"):
            probes = figures.probes(folded, supernet, samples)
            checks = self._verify(outcome, folded, probes)
            measured = self._figures(outcome, supernet, folded, held, samples) | {"checks": checks}
        merged = self._merged(self._with_assets(folded, programs[supernet.template]), supernet, parents, measured)
        if self.config.out:
            with self.stages("export"):
                checks["onnx_max_abs"] = save_merged(
                    merged, self.config.out, opset=self.config.opset, overwrite=self.config.overwrite,
                    samples=probes[0], tolerance=self.config.atol,
                )  # fmt: skip
        merged.result["seconds"] = {name: round(seconds, 3) for name, seconds in self.stages.seconds.items()}
        merged.result["peak_rss_mib"] = figures.peak_memory()
        return merged

    # -- parents and samples -------------------------------------------------------------------------

    def _samples(self, programs: list[Program], data: Any) -> list[Samples] | None:
        """Samples of every task by input name; None if there are none and the method needs none."""
        given = by_task(data, programs)
        found = []
        for program in programs:
            samples = self._of_task(program, given.get(program.task, given.get("")))
            if not samples:
                if self.method.needs_data:
                    free = ", ".join(m.name for m in self.known.methods if not m.needs_data)
                    raise DataError(
                        f"no samples for {program.task}: none given with --data and none in the bundle",
                        f"give --data {program.task}=PATH, or choose a --method that needs none ({free})",
                    )
                return None
            check_samples(samples, program, f"the samples of {program.task}")
            found.append(samples)
        return found

    def _of_task(self, program: Program, value: Any) -> Samples:
        if value is None:
            return dict(program.samples)
        axis = self.config.batch_axis
        if isinstance(value, Tensor):
            return rows_first({program.inputs[0].name: value}, program, axis)
        if isinstance(value, Mapping):
            return rows_first(named_tensors(value), program, axis)
        loaded = load_samples(value, program, batch_axis=axis)
        self.notes += loaded.notes
        return dict(loaded.inputs)

    # -- the SuperNet and the job ----------------------------------------------------------------------

    @cached_property
    def pipeline(self) -> Pipeline:
        """The built-in passes, with those of extensions where they ask to be."""
        builtin = set(passes().BUILTIN.passes)
        pipeline: Pipeline = passes().PIPELINE
        return pipeline.having(*(each() for each in self.known.passes if each not in builtin))

    @cached_property
    def watch(self) -> Watch:
        return Watch.from_environment([each.name for each in self.known.passes])

    def _pass(self, name: str, program: Program, **options: Any) -> Program:
        """Run one of the driver's own passes."""
        return run_pass(self.known.find("pass", name)(**options), program, self.known, self.watch)

    def _supernet(self, programs: list[Program]) -> SuperNet:
        normal = [self.pipeline.run("parent", program, self.known, self.watch) for program in programs]
        join = self.known.find("pass", "insert-merge")(
            template=self.config.like, width_scale=self.config.width_scale or 1.0
        )
        try:
            supernet: SuperNet = join.join(normal, self.known)
        except GuardOnDataDependentSymNode as error:
            raise _unsized(normal) from error
        return supernet.with_program(self.pipeline.run("supernet", supernet.program, self.known, self.watch))

    def _job(self, supernet: SuperNet, samples: list[Samples] | None, tell: Any) -> Job:
        config, trained = self.config, self.trained

        def hoist(program: Program) -> Program:
            return self._pass("hoist", program, order="auto", rows=trained.batch_size)

        def fold_trunk(program: Program) -> Program:
            hoisted = self._pass("hoist", program, tails=False)
            return self._pass("fold-merge", hoisted, tasks=supernet.tasks, template=supernet.template, tails=False)

        recipe = Recipe(trained.augment, trained.pool, trained.batch_size, config.seed)
        pools = Pools(supernet, samples, recipe) if samples is not None and self.method.needs_data else None
        return Job(
            supernet=supernet,
            pool=None if pools is None else pools.pool(pools.kinds[0]),
            pools=pools,
            settings=Settings(
                steps=trained.steps,
                batch_size=trained.batch_size,
                lr=trained.lr,
                weight_decay=trained.weight_decay,
                seed=config.seed,
                device=figures.device_of(config.device),
                dtype=getattr(torch, trained.dtype),
                memory=budget(config.memory),
            ),
            options=trained,
            hoist=hoist,
            fold_trunk=fold_trunk,
            progress=tell or silent,
            state=Path(config.resume) / "training.pt" if config.resume else None,
        )

    def _outcome(self, job: Job) -> Outcome:
        """What the method makes; an extension's method that fails is named with its owner."""
        try:
            outcome = self.method(job)
        except FxmergeError:
            raise
        except Exception as error:
            self.known.blame("method", self.method.name, error)
            raise
        self.notes += job.notes
        return outcome

    # -- fold and verify -----------------------------------------------------------------------------

    def _fold(self, program: Program, supernet: SuperNet) -> Program:
        outputs = [f"{p.task}.{port.name}" for p in supernet.parents for port in p.outputs]
        hoisted = self._pass("hoist", program.only(outputs))
        folded = self._pass("fold-merge", hoisted, tasks=supernet.tasks, template=supernet.template)
        return self.pipeline.run("merged", folded, self.known, self.watch)

    def _verify(self, outcome: Outcome, folded: Program, probes: list[Samples]) -> dict[str, Any]:
        """Gradients reached every map, and the folded model is the SuperNet. Raises `VerificationError`."""
        if outcome.unreached:
            more = " …" if len(outcome.unreached) > 3 else ""
            raise VerificationError(
                f"no gradient reached {', '.join(outcome.unreached[:3])}{more}",
                "start from --init average, or train for more steps; if it stays, please report it",
            )
        worst = 0.0
        for inputs in probes:
            found = compare(outcome.program, folded, inputs, [port.name for port in folded.outputs])
            require("the folded model is not the SuperNet", found, self.config.atol)
            worst = max(worst, found.absolute)
        return {"fold_max_abs": worst, "onnx_max_abs": None, "all_gradients": True if outcome.log else None}

    # -- figures -------------------------------------------------------------------------------------

    def _figures(
        self, outcome: Outcome, supernet: SuperNet, folded: Program, held: Any, samples: Any
    ) -> dict[str, Any]:
        tasks = []
        for k, parent in enumerate(supernet.parents):
            own: Samples | None = (held or samples)[k] if samples else None
            outputs = figures.scores(folded, supernet, k, self.given[k], own, self.config.metric) if own else []
            self.notes += [note for score in outputs for note in score.notes(parent.task)]
            tasks.append(
                {
                    "task": parent.task,
                    "samples": figures.rows_of(samples[k]) if samples else 0,
                    "held_back": figures.rows_of(held[k]) if held else 0,
                    "agreement": figures.agreement(outputs),
                    "feature_r2": figures.feature_score(outcome.program, supernet, k, own) if own else None,
                    "outputs": [score.figures() for score in outputs],
                }
            )
        log = outcome.log
        if log is not None:
            self.training = {
                "augmentation": dict(outcome.augmentation),
                "steps": log.steps,
                "loss_first": log.loss_first,
                "loss_last": log.loss_last,
                "losses": [round(loss, 6) for loss in log.losses[:: max(1, len(log.losses) // 100)]],
                "samples_per_second": log.samples_per_second,
            }
        return {"init": outcome.init, "tasks": tasks, "trainable": outcome.trainable}

    def _with_assets(self, program: Program, template: Program) -> Program:
        """The folded program with the template's files; a config.json only if the weights still fit it."""
        assets = dict(template.assets)
        if "config.json" in assets and (misfit := figures.misfit(program, template)):
            del assets["config.json"]
            self.notes.append(f"the config.json of {template.task} is left out: the merged model differs in {misfit}")
        return program.evolve(assets=assets)

    def _merged(self, program: Program, supernet: SuperNet, given: list[Parent], measured: dict[str, Any]) -> Merged:
        spaces = supernet.parents[supernet.template].get(passes().SpacesOf(self.known.rules))
        parents = [
            {
                "task": program.task,
                "source": None if isinstance(source, Program) else str(source),
                "sha256": figures.digest(source, program),
                "parameters": program.count(),
            }
            for source, program in zip(given, supernet.parents, strict=True)
        ]
        counts = {"parameters": program.count(), "spaces": len(spaces.spaces), "opaque_axes": len(spaces.opaque)}
        result = {
            "fxmerge": __version__,
            "method": self.method.name,
            "init": measured.get("init", self.trained.init),
            "seed": self.config.seed,
            "out": self.config.out,
            "parents": parents,
            "merged": counts | {"trainable": measured.get("trainable", 0)},
            "tasks": measured.get("tasks", []),
            "checks": measured.get("checks", {}),
            "training": self.training,
            "notes": list(dict.fromkeys([*self.notes, *program.notes, *self._opaque(supernet)])),
            "seconds": {},
            "peak_rss_mib": 0,
        }
        labels = {parent.task: parent.labels for parent in supernet.parents}
        named = replace(program, task="+".join(supernet.tasks))
        return Merged(named, result, supernet.tasks, labels, tuple(self.given))

    def _opaque(self, supernet: SuperNet) -> list[str]:
        """A note for every call that holds axes of parameters still."""
        found = [parent.get(passes().SpacesOf(self.known.rules)) for parent in supernet.parents]
        return [opaque.note for spaces in found for opaque in spaces.opaque]


def _unsized(programs: Sequence[Program]) -> CaptureError:
    """What to say of parents with values whose sizes depend on the data."""
    found = next((node for node in map(first_unsized, programs) if node is not None), None)
    at = f" (at {found.meta['source']})" if found is not None and "source" in found.meta else ""
    return CaptureError(
        f"a size depends on what the inputs hold, not on their shapes{at}",
        "compute all rows and choose with torch.where, in place of indexing with a mask",
    )


def by_task(data: Any, programs: Sequence[Program]) -> dict[str, Any]:
    """`data` as given to `merge`, by task; the key "" stands for every task."""
    if data is None or (isinstance(data, Mapping) and not data):
        return {}
    if not isinstance(data, Mapping):
        return {"": data}
    tasks = [program.task for program in programs]
    if set(data) <= {*tasks, ""}:
        return dict(data)
    if set(data) <= {port.name for port in programs[0].inputs}:
        return {"": data}
    wrong = next(name for name in data if name not in tasks)
    raise DataError(f"there is no task named {wrong}{nearest(wrong, tasks)}", f"the tasks are {', '.join(tasks)}")
