"""The state of a model while it is looked at: eval mode, buffers and attributes as they were, no warnings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module has the mode, the buffers and the attributes that it had."""
    modes = {module: module.training for module in model.modules()}
    attributes = {module: dict(module.__dict__) for module in model.modules()}
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    values = [(b, b.detach().clone()) for _, own in buffers for b in own.values() if b is not None]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for buffer, value in values:
                if buffer.device.type != "meta" and not torch.equal(buffer, value):
                    buffer.copy_(value)
        for module, own in buffers:
            module._buffers.clear()
            module._buffers.update(own)
        for module, mode in modes.items():
            module.__dict__.clear()
            module.__dict__.update(attributes[module])
            module.training = mode


@contextmanager
def forgetting(model: nn.Module) -> Iterator[None]:
    """What modules keep in lists, dicts and sets of their own from a call (what they once computed) is gone afterwards.

    A trace would hold it as a constant, in place of the parameters that it was computed from.
    """
    own = vars(nn.Module()).keys()
    held = [(v, type(v)(v)) for m in model.modules() for name, v in vars(m).items() if name not in own and _keeps(v)]
    try:
        yield
    finally:
        for value, before in held:
            if isinstance(value, list):
                value[:] = before
            else:
                value.clear()
                value.update(before)


def _keeps(value: object) -> bool:
    return type(value) in (dict, list, set)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines of torch's own inside: what fails is tried in another way, or raised."""
    loggers = [logging.getLogger(name) for name in ("torch._subclasses", "torch.fx", "torch._export", "torch.export")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
