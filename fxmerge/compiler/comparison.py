"""Several methods on the same parents and samples, side by side: `fxmerge compare`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fxmerge.compiler.choice import chosen, options_of
from fxmerge.compiler.merging import merge_alone
from fxmerge.compiler.metrics_log import metrics_log
from fxmerge.compiler.parents import Parent
from fxmerge.config import MergeConfig, no_page
from fxmerge.errors import DataError, FxmergeError, OptionError
from fxmerge.installed import known
from fxmerge.io.files import write_text
from fxmerge.messages import listed
from fxmerge.methods.base import Method
from fxmerge.output.formats import ONNX, format_of
from fxmerge.output.merged import Merged
from fxmerge.pipeline.format import check_suffix
from fxmerge.stages import Stages
from fxmerge.version import __version__

BEST_BY = "agreement with the parents on held-back samples, then R²; mean over the tasks"
COMMAS = re.compile(r",(?![^{]*\})")
"""Those between methods: others stand between the options of one."""


@dataclass(frozen=True)
class Row:
    """What one method made: its figures, or the reason why there are none."""

    method: str
    agreement: float | None = None
    """Mean over the tasks whose outputs are class scores."""
    feature_r2: float | None = None
    """Mean over the tasks."""
    seconds: float = 0.0
    """Of the method itself, the fold included; reading and analysing the parents takes all methods the same."""
    parameters: int | None = None
    share: float | None = None
    """Parameters as a share of a parent's, of the parents' mean."""
    failed: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    """What `--result` of this merge says."""

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better; what was not measured is worst."""
        worst = -float("inf")
        first = self.feature_r2 if self.agreement is None else self.agreement
        return (worst if first is None else first, worst if self.feature_r2 is None else self.feature_r2)

    def as_dict(self) -> dict[str, Any]:
        keys = ("method", "agreement", "feature_r2", "seconds", "parameters", "share", "failed")
        found = {key: getattr(self, key) for key in keys}
        return found | {key: self.result.get(key, []) for key in ("tasks", "notes")}


@dataclass(frozen=True)
class Comparison:
    """The rows in the order of the methods, and the best of the merged models."""

    rows: tuple[Row, ...]
    best: Merged | None
    """None where nothing says which is best: there are no samples."""
    best_method: str | None
    seed: int
    out: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `--json` prints it."""
        return {
            "fxmerge": __version__, "seed": self.seed, "best": self.best_method, "best_by": BEST_BY, "out": self.out,
            "methods": [row.as_dict() for row in self.rows],
        }  # fmt: skip


def compare(
    parents: Sequence[Parent],
    methods: str | Sequence[str],
    *,
    data: Any = None,
    config: MergeConfig | None = None,
    stages: Callable[[str], Stages] | None = None,
    done: Callable[[Row, int, int], None] | None = None,
    page: Callable[[Merged, MergeConfig, Sequence[Row]], str] | None = None,
    **options: Any,
) -> Comparison:
    """Merge the same parents by several methods, on the same samples and with the same seed.

    `methods`: names, with options as in `foldable{steps=100}`; one text may hold several between commas. `options` are
    fields of `MergeConfig`; each goes to the methods that have it. With `out`, the best is written there.
    A method that fails is a row with its reason; if all do, the first one's error is raised. `done` is called after
    each with its row, its number from one, and how many there are. Figures are written where `result` says; a `report`
    is drawn by `page`, which the command line has.
    """
    config = (config or MergeConfig()).with_options(**options)
    config.check_compared()
    if config.report and page is None:
        raise no_page()
    texts = [each.strip() for each in (COMMAS.split(methods) if isinstance(methods, str) else methods)]
    configs = dict(zip(texts, _configs(config, texts), strict=True))
    if config.out:
        check_suffix(config.out, known(config.extension).formats)
    rows: list[Row] = []
    errors: list[Exception] = []
    best: tuple[Row, Merged] | None = None
    with metrics_log(config) as log:
        for number, (text, own) in enumerate(configs.items(), 1):
            watched = log.watching(stages(text) if stages else None, method=text)
            try:
                merged = merge_alone(parents, data=data, config=own, stages=watched)
            except FxmergeError as error:
                errors.append(error)
                row = Row(text, failed=error.what)
            except Exception as error:  # one method's fault is no reason to lose the others' results
                errors.append(error)
                row = Row(text, failed=f"{type(error).__name__}: {error}".splitlines()[0])
            else:
                row = _row(text, merged.result)
                if row.feature_r2 is not None and (best is None or row.rank > best[0].rank):
                    best = (row, merged)
            rows.append(row)
            if done is not None:
                done(row, number, len(configs))
    if len(errors) == len(rows):
        raise errors[0]
    found = Comparison(tuple(rows), best and best[1], best and best[0].method, config.seed)
    found = _written(found, config) if config.out else found
    if config.result:
        write_text(config.result, json.dumps(found.as_dict(), indent=1), overwrite=config.overwrite)
    if config.report and found.best is not None and page is not None:
        write_text(config.report, page(found.best, config, found.rows), overwrite=config.overwrite)
    return found


def _configs(config: MergeConfig, methods: Sequence[str]) -> list[MergeConfig]:
    """The config of every method, with the options that it has. Raises `OptionError` for one that no method has."""
    if len(methods) < 2 or not all(methods):
        raise OptionError(f"{len(methods)} method to compare", "name two or more: --methods average,condense")
    if twice := next((m for m in methods if methods.count(m) > 1), None):
        raise OptionError(f"{twice} is named twice", "name every method once, or with other options")
    extension = known(config.extension)
    given, used, found = config.of_method(), set(), []
    values = config.model_dump(exclude_unset=True)
    for text in methods:
        name, _, rest = text.partition("{")
        method: Method = extension.find("method", name)
        own = {o for o in given if o in options_of(method) and not re.search(rf"(^|,)\s*{o}\s*=", rest)}
        used |= own
        kept = {n: v for n, v in values.items() if n not in given or n in own}
        found.append(MergeConfig.of(**{**kept, "method": text, "out": None, "opset": None, "log": None}))
        chosen(extension, found[-1])
    if idle := sorted(given.keys() - used):
        raise OptionError(f"no method that is compared takes {listed(idle)}", "leave it out, or name a method with it")
    return found


def _row(text: str, result: dict[str, Any]) -> Row:
    tasks, sizes = result["tasks"], [parent["parameters"] for parent in result["parents"]]
    parameters = result["merged"]["parameters"]
    return Row(
        text,
        agreement=_mean([task["agreement"] for task in tasks]),
        feature_r2=_mean([task["feature_r2"] for task in tasks]),
        seconds=round(result["seconds"].get("train", 0.0) + result["seconds"].get("fold", 0.0), 3),
        parameters=parameters,
        share=parameters * len(sizes) / max(sum(sizes), 1),
        result=result,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _written(found: Comparison, config: MergeConfig) -> Comparison:
    """The best of them, written and read back."""
    if found.best is None:
        raise DataError("there are no samples, so no method is the best", "give --data, or leave out --out")
    best, out = found.best, str(config.out)
    best.facts = replace(best.facts, out=out)
    gaps = best.write(out, opset=config.opset, overwrite=config.overwrite, tolerance=config.atol)
    if best.facts.checks:
        best.facts = replace(best.facts, checks=best.facts.checks.with_written(gaps, format_of(out) is ONNX))
    return replace(found, out=out)
