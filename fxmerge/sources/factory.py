"""Models built by name: the user's own callable, timm or torchvision; weights are put in afterwards."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxmerge.errors import SourceError
from fxmerge.messages import listed, nearest, printable, reason
from fxmerge.sources.checkpoint import Checkpoint
from fxmerge.sources.importing import run_file

FORMS = "module:callable, file.py:callable, timm:NAME, torchvision:NAME or a Hugging Face config.json"


def build(arch: str, weights: Checkpoint | None) -> tuple[nn.Module, tuple[str, ...]]:
    """The model `arch` names with its weights put in, and notes; without `weights` it must come with its own.

    timm and torchvision models get as many classes as the last bias of the weights has. Raises `SourceError`.
    """
    origin, _, name = arch.partition(":")
    if not name:
        raise SourceError(f"--arch {arch!r} is not the name of a factory", f"give {FORMS}")
    if origin in ("timm", "torchvision"):
        if weights is None:
            raise SourceError(f"{arch} without weights is an untrained model", "add --weights FILE with its state dict")
        model = _library(origin, name, weights.largest)
    else:
        model = _own(origin, name)
    notes = () if weights is None else weights.put_into(model, arch)
    return model.eval(), notes


def image_inputs(model: nn.Module, sides: tuple[int, int] | None = None) -> dict[str, Tensor] | None:
    """A random image batch of the size a timm model states, or 3 x 224 x 224, by the name of its first parameter.

    With `sides`, of that height and width.
    """
    config = getattr(model, "default_cfg", None) or getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size") or (3, 224, 224)
    size = (size[0], *(sides or size[1:]))
    return {first_parameter(model): torch.rand(2, *size, generator=torch.Generator().manual_seed(0))}


def first_parameter(model: nn.Module) -> str:
    return next(iter(parameters_of(model)), "x")


def parameters_of(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of a model's forward, by name."""
    return dict(inspect.signature(model.forward).parameters)


def _own(origin: str, name: str) -> nn.Module:
    factory = _callable(origin, name)
    try:
        model = factory()
    except TypeError as error:
        raise SourceError(
            f"{origin}:{name} cannot be called without arguments: {reason(error)}",
            "write a function without parameters that builds the model, and name that",
        ) from error
    except Exception as error:  # it is the user's own code
        raise SourceError(
            f"{origin}:{name} failed: {type(error).__name__}: {reason(error)}", "repair the factory"
        ) from error
    if not isinstance(model, nn.Module):
        raise SourceError(f"{origin}:{name} gives a {type(model).__name__}, not a torch.nn.Module", "return the model")
    return model


def _callable(origin: str, name: str) -> Callable[[], Any]:
    """The callable itself. This runs the user's own module: it is code they named, not code from a model file."""
    try:
        module = run_file(Path(origin)) if origin.endswith(".py") else importlib.import_module(origin)
    except Exception as error:  # importing runs the user's own code
        raise SourceError(
            f"--arch {origin}:{name}: {reason(error)}",
            f"run from the folder that holds the module; give {FORMS}",
        ) from error
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n in dir(found) if callable(getattr(found, n)) and not n.startswith("_")]
            raise SourceError(f"{origin} has no {part!r}{nearest(part, known)}", f"it has {printable(listed(known))}")
        found = getattr(found, part)
    if not callable(found):
        raise SourceError(f"{origin}:{name} is not callable", f"give {FORMS}")
    return found


def _library(origin: str, name: str, state: Mapping[str, Tensor]) -> nn.Module:
    try:
        library = importlib.import_module("timm" if origin == "timm" else "torchvision.models")
    except ImportError as error:
        raise SourceError(f"{origin} is not installed", 'install it: pip install "fxmerge[vision]"') from error
    known = library.list_models()
    if name not in known:
        raise SourceError(f"{origin} has no model {name!r}{nearest(name, known)}", f"see {origin}'s list_models()")
    make = library.create_model if origin == "timm" else library.get_model
    off = {"pretrained": False} if origin == "timm" else {"weights": None}
    biases = [t.shape[0] for n, t in state.items() if n.endswith("bias") and t.ndim == 1]
    options = {"num_classes": biases[-1]} if biases else {}
    model: nn.Module = make(name, **off, **options)
    return model
