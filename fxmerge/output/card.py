"""The model card of a merged model's folder: what the Hugging Face Hub shows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CHECKS = (
    ("rewrite_max_abs", "parents as rewritten, from parents as given"),
    ("fold_max_abs", "folded model, from what was merged"),
    ("written_max_abs", "this folder, read back"),
)


ANSWERS = {"choose": "the likeliest task's output", "mix": "all tasks' outputs weighed by these probabilities"}


def model_card(facts: Mapping[str, Any], classes: Mapping[str, str], inputs: Sequence[str] = ()) -> str:
    """Markdown with a metadata block, from what `Result.as_dict` says; `classes`: by task, what loads its folder.

    `inputs`: names of what the model takes.
    """
    parents = facts.get("parents", [])
    checks = facts.get("checks", {})
    figures = [
        f"| {each['task']} | {each['samples']} | {_share(each.get('agreement'))} | {_number(each.get('feature_r2'))} |"
        for each in facts.get("tasks", [])
    ]
    lines = [
        "---",
        yaml.safe_dump(_metadata(parents), sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {' + '.join(parent['task'] for parent in parents)}",
        "",
        f"One network for {len(parents)} tasks, merged by fxmerge {facts.get('fxmerge', '')} with the method"
        f" `{facts.get('method', '')}` (start `{facts.get('init', '')}`, seed {facts.get('seed', 0)}).",
        "",
        *(_use(facts, classes, inputs) if classes else ()),
        "## Figures",
        "",
        "| task | samples | agreement with its parent | feature R² |",
        "|---|--:|--:|--:|",
        *figures,
        "",
        f"{facts.get('merged', {}).get('parameters', 0):,} parameters. The parents have"
        f" {' and '.join(format(parent['parameters'], ',') for parent in parents)}.",
        "",
        *(_gate(facts["gate"]) if facts.get("gate") else ()),
        "## Checks",
        "",
        "Largest differences, as a share of an output's spread:",
        "",
        *(f"- {what}: {checks[key]:.1e}" for key, what in CHECKS if checks.get(key) is not None),
        "",
        "## License",
        "",
        _license(parents),
        "",
        *_config(facts.get("options", {})),
        "`fxmerge.json` holds all figures.",
        "",
    ]
    return "\n".join(lines)


def _metadata(parents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The block that the Hub reads. A license stands there only if all parents name the same one."""
    licenses = {parent.get("license") for parent in parents}
    alike = {"license": licenses.pop()} if len(licenses) == 1 and None not in licenses else {}
    names = [Path(parent["source"]).name if parent.get("source") else parent["task"] for parent in parents]
    return {"library_name": "transformers", **alike, "tags": ["merge", "fxmerge"], "base_model": names}


def _license(parents: Sequence[Mapping[str, Any]]) -> str:
    """What the parents say, and where they differ."""
    named = [(parent["task"], parent.get("license")) for parent in parents]
    found = {license for _, license in named}
    if found == {None} or not found:
        return "The parents' folders name no license."
    if len(found) == 1:
        return f"All parents name `{named[0][1]}`."
    each = ", ".join(f"{task} `{license}`" if license else f"{task} none" for task, license in named)
    return f"The parents' licenses differ: {each}. All of them bind the merged model."


def _config(options: Mapping[str, Any]) -> list[str]:
    """The file that makes this model again."""
    if not options:
        return []
    text = yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True).strip()
    return ["## How it was made", "", "`fxmerge merge --config merge.yaml`, with", "", "```yaml", text, "```", ""]


def _use(facts: Mapping[str, Any], classes: Mapping[str, str], inputs: Sequence[str]) -> list[str]:
    task, name = next(iter(classes.items()))
    folder = Path(facts.get("out") or "merged").name
    arguments = ", ".join(f"{each}={each}" for each in inputs if each.isidentifier())
    return [
        "## Use",
        "",
        "Each task has a folder that its parent's own class loads:",
        "",
        "```python",
        f"from transformers import {name}",
        f'model = {name}.from_pretrained("{folder}/{task}")',
        f"outputs = model({arguments})",
        "```",
        "",
        *(f"- `{folder}/{each}`: `{class_}`" for each, class_ in classes.items()),
        "",
    ]


def _gate(gate: Mapping[str, Any]) -> list[str]:
    return [
        f"A linear map of the mean of what `{gate['after']}` gives, then softmax, is the probability of each task, in"
        f" the order {', '.join(gate['tasks'])} (right for {_share(gate['accuracy'])} of held-back samples). No class"
        f" of transformers has it: its weights are the tensors `{gate['output']}.weight` and `{gate['output']}.bias`.",
        *(f"Nor has one `{a['output']}`, {ANSWERS[a['how']]}: {', '.join(a['of'])}." for a in gate.get("answers", ())),
        "",
    ]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
