"""Operators named by a file: looked up among those registered, refused if they touch files or return no values."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import ops
from torch._ops import OpOverload, OpOverloadPacket

from fxmerge.errors import SourceError, UnsafeFileError
from fxmerge.ir.program import INTEGER_CALLS, target_name
from fxmerge.messages import printable

INTERNAL = re.compile(
    "_?c10d.*|_dtensor|_native|_test|debug.*|export|inductor.*|mkl|mkldnn.*|onednn|prim|profiler|_?quanti[sz].*|rngprims"
    "|sparse|static_runtime|symm_mem"
)
"""Namespaces of torch's own machinery (processes, compilers, packed weights): no float model needs them."""

BACKWARD = re.compile(".*backward.*|.*_grad|_(foreach|fused_(sgd|ada.*)|test)_.*")
"""Operators of training and testing. A forward pass has none, and they trust their arguments to come from one."""

PROVIDERS = {"transformers": "transformers.integrations.moe", "torchvision": "torchvision"}
"""Known libraries whose import registers the operators of a namespace; a file cannot name any other to import."""

PYTHON: Mapping[str, Callable[..., Any]] = {target_name(call): call for call in INTEGER_CALLS}
"""Plain Python callables a graph in a file may name."""

DTYPES: Mapping[str, torch.dtype] = {
    str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)
}
LAYOUTS = {"strided": torch.strided}
MEMORY_FORMATS: Mapping[str, torch.memory_format] = {
    str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.memory_format)
}

MANY, NUMBER, NOTHING, TENSOR = "many", "number", "nothing", "tensor"


def find_operator(name: str, *, mutable: bool = False) -> OpOverload:
    """The registered operator called `name` ("namespace.operator.overload").

    Raises `SourceError` if there is none, `UnsafeFileError` if it reads or writes files, belongs to torch's own
    machinery or to a backward pass, or (without `mutable`) changes its arguments.
    """
    parts = name.split(".")
    if len(parts) != 3 or not all(re.fullmatch(r"[A-Za-z_]\w*", part) for part in parts):
        raise SourceError(f"{printable(name)!r} is not the name of an operator", "write the file again: it is damaged")
    if INTERNAL.fullmatch(parts[0]):
        raise UnsafeFileError(
            f"the graph calls {name}, which belongs to torch's own machinery", "trace the model itself"
        )
    if BACKWARD.fullmatch(parts[1]):
        raise UnsafeFileError(
            f"the graph calls {name}, which no forward pass has", "capture the model itself, in evaluation mode"
        )
    packet = getattr(getattr(ops, parts[0]), parts[1], None)
    if packet is None and parts[0] in PROVIDERS:
        with contextlib.suppress(ImportError):
            importlib.import_module(PROVIDERS[parts[0]])
            packet = getattr(getattr(ops, parts[0]), parts[1], None)
    found = getattr(packet, parts[2], None) if isinstance(packet, OpOverloadPacket) else None
    if not isinstance(found, OpOverload):
        raise SourceError(
            f"the graph calls the operator {name}, which is not registered here",
            f"import the package that defines {parts[0]!r} operators first (--extension FILE:NAME), or update torch",
        )
    schema = found._schema
    if any(str(a.type) == "str" and re.search("file|path", a.name) for a in schema.arguments):
        raise UnsafeFileError(
            f"the graph calls {name}, which reads or writes files", "trace the model itself, without it"
        )
    if schema.is_mutable and not mutable:
        raise UnsafeFileError(f"the graph calls {name}, which changes its arguments", "capture the model again")
    return found


def kind_of(operator: OpOverload) -> str:
    """What a call gives: a tensor, many values (a tuple or list of tensors), a number, or nothing."""
    returns = [str(r.type) for r in operator._schema.returns]
    if not returns:
        return NOTHING
    if returns == ["Tensor"]:
        return TENSOR
    if len(returns) == 1 and returns[0] in ("int", "SymInt", "float", "bool", "number", "Scalar"):
        return NUMBER
    if all(r in ("Tensor", "List[Tensor]", "int", "SymInt", "float", "bool") for r in returns):
        return MANY
    raise UnsafeFileError(f"the graph calls {operator}, which returns no tensor", "trace the model itself, without it")
