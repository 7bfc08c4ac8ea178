"""The model card of a merged model's folder: what the Hugging Face Hub shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def model_card(facts: Mapping[str, Any], classes: Mapping[str, str]) -> str:
    """Markdown with a metadata block, from what `Result.as_dict` says; `classes`: by task, what loads its folder."""
    parents = facts.get("parents", [])
    figures = [
        f"| {each['task']} | {each['samples']} | {_share(each.get('agreement'))} | {_number(each.get('feature_r2'))} |"
        for each in facts.get("tasks", [])
    ]
    checks = facts.get("checks", {})
    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        "- merge",
        "- fxmerge",
        "base_model:",
        *(f"- {Path(parent['source']).name if parent.get('source') else parent['task']}" for parent in parents),
        "---",
        "",
        f"# {' + '.join(parent['task'] for parent in parents)}",
        "",
        f"One network for {len(parents)} tasks, merged by fxmerge {facts.get('fxmerge', '')} with the method"
        f" `{facts.get('method', '')}` (start `{facts.get('init', '')}`, seed {facts.get('seed', 0)}).",
        "",
        "| task | samples | agreement with its parent | feature R² |",
        "|---|--:|--:|--:|",
        *figures,
        "",
        f"{facts.get('merged', {}).get('parameters', 0):,} parameters. The parents have"
        f" {' and '.join(format(parent['parameters'], ',') for parent in parents)}.",
        "Largest differences, as a share of an output's spread: folded from trained"
        f" {_small(checks.get('fold_max_abs'))}, parents rewritten {_small(checks.get('rewrite_max_abs'))}.",
        "",
        *(_gate(facts["gate"]) if facts.get("gate") else ()),
        *(_use(*next(iter(classes.items()))) if classes else ()),
        "`fxmerge.json` holds all figures.",
        "",
    ]
    return "\n".join(lines)


def _use(task: str, name: str) -> list[str]:
    return [
        "## Use",
        "",
        "Each task has a folder that its parent's own class loads:",
        "",
        "```python",
        f"from transformers import {name}",
        f'model = {name}.from_pretrained("merged/{task}")',
        "```",
        "",
    ]


def _gate(gate: Mapping[str, Any]) -> list[str]:
    return [
        f"A linear map of the mean of what `{gate['after']}` gives, then softmax, is the probability of each task, in"
        f" the order {', '.join(gate['tasks'])} (right for {_share(gate['accuracy'])} of held-back samples). No class"
        f" of transformers has it: its weights are the tensors `{gate['output']}.weight` and `{gate['output']}.bias`.",
        "",
    ]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _small(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"
