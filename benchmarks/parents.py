"""Trained parents, kept in `benchmarks/.cache` so that a second run measures merging alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CACHE = Path(__file__).parent / ".cache"


def parent(
    name: str, build: Callable[[], nn.Module], fit: Callable[[nn.Module], None], settings: Mapping[str, Any]
) -> nn.Module:
    """The model that `build` and `fit` make under `settings["seed"]`, from the cache if it was made before.

    `settings` must hold everything that changes the result: it names the file.
    """
    path = path_of(name, settings)
    torch.manual_seed(settings["seed"])
    model = build()
    if path.is_file():
        model.load_state_dict(load_file(path), strict=False)  # the file holds a tied weight once
    else:
        begin, spent = time.perf_counter(), time.process_time()
        fit(model)
        print(f"trained {name} in {time.perf_counter() - begin:.0f} s", flush=True)
        facts = {"cpu_seconds": f"{time.process_time() - spent:.2f}"}
        path.parent.mkdir(exist_ok=True)
        shared: dict[int, str] = {}
        kept = {k: v for k, v in model.state_dict().items() if shared.setdefault(v.data_ptr(), k) == k}
        save_file(kept, path, facts)
    return model.eval()


def path_of(name: str, settings: Mapping[str, Any]) -> Path:
    """Where a model of these settings is kept."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:12]
    return CACHE / f"{name}-{digest}.safetensors"


def seconds_of(name: str, settings: Mapping[str, Any]) -> float | None:
    """The process's own seconds that a kept model took to train, where they are known."""
    path = path_of(name, settings)
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        facts = file.metadata() or {}
    return float(facts["cpu_seconds"]) if "cpu_seconds" in facts else None


def averaged(parents: list[nn.Module], heads: Callable[[str], bool]) -> list[nn.Module]:
    """Copies of the parents that share the plain mean of all weights but those for which `heads(name)` is true."""
    import copy

    states = [p.state_dict() for p in parents]
    mean: dict[str, Tensor] = {k: torch.stack([s[k] for s in states]).mean(0) for k in states[0] if not heads(k)}
    models = [copy.deepcopy(p) for p in parents]
    for model in models:
        model.load_state_dict(mean, strict=False)
    return models
