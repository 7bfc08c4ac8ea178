"""Folders of low-rank adapters (PEFT) beside their base: merged into its weights exactly, W + scale · B A.

Only what LoRA writes is known (Hu et al. 2022; rank-stabilised scales, Kalajdzievski 2023): anything else is refused by
name. The base has to be a folder on this machine: nothing is downloaded.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fxmerge.errors import SourceError
from fxmerge.io.files import read_json
from fxmerge.messages import listed, printable
from fxmerge.sources import huggingface
from fxmerge.sources.bundle import KNOWN_ASSETS
from fxmerge.sources.checkpoint import Checkpoint
from fxmerge.sources.state_dict import read_weights

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
PAIRS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
"""What the two factors are called."""
TASKS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
MERGE_IT = "merge it where it was trained: model.merge_and_unload().save_pretrained('merged')"


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter, and no model of its own."""
    return (path / CONFIG).is_file() and not (path / huggingface.CONFIG).is_file()


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder: what its config says, and the folder of its base."""

    path: Path
    config: Mapping[str, Any]
    base: Path

    @classmethod
    def of(cls, path: Path) -> Adapter:
        """Raises `SourceError` for an adapter of another kind, or whose base is not here."""
        config = read_json(path / CONFIG)
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            kind = config.get("peft_type") if isinstance(config, dict) else None
            raise SourceError(
                f"{path} is an adapter of the kind {printable(str(kind))}, and LoRA alone is read", MERGE_IT
            )
        if config.get("use_dora"):
            raise SourceError(f"{path} is a DoRA adapter, which is no low-rank change of weights", MERGE_IT)
        named = str(config.get("base_model_name_or_path"))
        places = (path / named, path.parent / named, path.parent / Path(named).name, Path(named))
        base = next((place for place in places if (place / huggingface.CONFIG).is_file()), None)
        if base is None:
            raise SourceError(
                f"{path} is an adapter of {printable(named)}, which is no folder on this machine",
                f"put the base's folder at {path.parent / printable(Path(named).name)}: nothing is downloaded",
            )
        return cls(path, config, base)

    def write(self, folder: Path) -> Checkpoint:
        """The base's weights with the adapter in them; its config and the files beside it go to `folder`."""
        state = self._state()
        values = read_json(self.base / huggingface.CONFIG)
        (folder / huggingface.CONFIG).write_text(json.dumps(self._described(values, state)), encoding="utf-8")
        for name in (*KNOWN_ASSETS, *huggingface.OLDER_TOKENIZERS):
            here = next((f for f in (self.path / name, self.base / name) if f.is_file()), None)
            if here is not None and name != huggingface.CONFIG:
                shutil.copyfile(here, folder / name)
        return Checkpoint(self.path, state)

    # -- weights -----------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Tensor]:
        state = huggingface.read_folder(self.base)
        file = next((self.path / name for name in WEIGHTS if (self.path / name).is_file()), None)
        if file is None:
            raise SourceError(f"{self.path} has no weights (looked for {listed(WEIGHTS)})", "copy the folder again")
        found = read_weights(file)
        assert isinstance(found, Checkpoint)
        tensors = {name.removeprefix(PREFIX): value for name, value in found.largest.items()}
        for name, value in tensors.items():
            first = next((end for end in PAIRS if name.endswith(end)), None)
            if first is not None:
                module = name.removesuffix(first)
                other = tensors.get(module + PAIRS[first])
                if other is None:
                    raise SourceError(f"{file} lacks {printable(module + PAIRS[first])}", "copy the folder again")
                weight = self._name(f"{module}.weight", state, file)
                state[weight] = self._changed(state[weight], value, other, module, table="embedding" in first)
            elif "lora_" not in name:  # trained as it is, a head say
                state[self._place(name, state) or name] = value
            elif not any(name.endswith(end) for end in PAIRS.values()):
                raise SourceError(f"{file}: {printable(name)} is no part of a LoRA adapter that is known", MERGE_IT)
        return state

    def _changed(self, weight: Tensor, a: Tensor, b: Tensor, module: str, *, table: bool) -> Tensor:
        rank = a.shape[0]
        alpha = float(self._of(module, "alpha_pattern", self.config.get("lora_alpha", rank)))
        scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        change = b.double().flatten(1) @ a.double().flatten(1)
        turned = table or bool(self.config.get("fan_in_fan_out"))
        change = (change.T if turned else change) * scale
        if change.numel() != weight.numel() or b.shape[1] != rank:
            raise SourceError(
                f"{self.path}: {printable(module)} changes {list(change.shape)}, and the base has {list(weight.shape)}",
                "give the base that the adapter was trained on",
            )
        return (weight.double() + change.reshape(weight.shape)).to(weight.dtype)

    def _of(self, module: str, pattern: str, usual: Any) -> Any:
        """What the config says of one module, whose name a pattern may end."""
        found = self.config.get(pattern) or {}
        return next(
            (value for name, value in found.items() if re.fullmatch(rf"(.*\.)?{re.escape(name)}", module)), usual
        )

    def _name(self, name: str, state: Mapping[str, Tensor], file: Path) -> str:
        found = self._place(name, state)
        if found is None:
            raise SourceError(
                f"{file} changes {printable(name)}, which {self.base} has not",
                "give the base that the adapter was trained on",
            )
        return found

    def _place(self, name: str, state: Mapping[str, Tensor]) -> str | None:
        """The base's name of a tensor: saved without a head, it lacks the first parts, or has more of them."""
        if name in state:
            return name
        alike = [own for own in state if name.endswith(f".{own}") or own.endswith(f".{name}")]
        return alike[0] if len(alike) == 1 else None

    # -- config ------------------------------------------------------------------------------------------

    def _described(self, values: dict[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The base's config with the class that the adapter's task needs, and as many classes as its head has."""
        transformers = huggingface.library()
        kind, task = values.get("model_type"), TASKS.get(str(self.config.get("task_type")))
        if task is None or kind not in transformers.CONFIG_MAPPING:
            return values
        found = getattr(transformers, task)._model_mapping.get(transformers.CONFIG_MAPPING[kind], None)
        if found is None:
            return values
        first = found[0] if isinstance(found, list | tuple) else found
        values = {**values, "architectures": [first.__name__]}
        heads = {
            state[n].shape[0] for n in state if n.rsplit(".", 2)[-2:-1] in (["classifier"], ["score"]) and state[n].ndim
        }
        if task.endswith("Classification") and len(heads) == 1:
            count = heads.pop()
            if len(values.get("id2label") or {}) != count:
                values["id2label"] = {str(n): f"LABEL_{n}" for n in range(count)}
                values["label2id"] = {f"LABEL_{n}": n for n in range(count)}
        return values
