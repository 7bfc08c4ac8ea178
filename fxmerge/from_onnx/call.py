"""What an operator of an ONNX file is read with: its call, and values that are known without running anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxmerge.errors import ExtensionError, SourceError

Value = Any
"""A tensor, a `Known`, a list of them (a sequence), or None for what is left out."""

DOMAINS = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators: they are called by their name alone."""


class Unreadable(SourceError):
    """A node says something that its operator, as it is read here, does not take."""


@dataclass(frozen=True)
class Known:
    """Numbers that are known while a model is traced: constants and sizes (which may be symbols), as Python values."""

    values: np.ndarray[Any, Any]
    """An array of objects: int, float, bool, or a size of torch's."""
    dtype: torch.dtype
    held: Tensor | None = None
    """The same as a tensor of the model, where the file holds it as one."""

    @property
    def single(self) -> Any:
        """The only number, as a Python value."""
        return self.values.reshape(-1)[0]

    def tensor(self) -> Tensor:
        """The numbers as a tensor of their dtype; sizes stay symbols."""
        if self.held is not None:
            return self.held
        flat = list(self.values.reshape(-1))
        if not any(isinstance(v, torch.SymInt | torch.SymFloat | torch.SymBool) for v in flat):
            return torch.tensor(flat, dtype=self.dtype).reshape(self.values.shape)
        made = [torch.scalar_tensor(v, dtype=self.dtype) for v in flat]
        return torch.stack(made).reshape(self.values.shape)


def known(values: Any, dtype: torch.dtype = torch.int64) -> Known:
    """Python numbers, nested in lists as they like, as a `Known`."""
    if isinstance(values, np.ndarray):
        return Known(values if values.dtype == object else values.astype(object), dtype)
    if isinstance(values, list | tuple):
        found = np.empty(len(values), dtype=object)
        found[:] = values
        return Known(found, dtype)
    found = np.empty((), dtype=object)
    found[()] = values
    return Known(found, dtype)


@dataclass(frozen=True)
class Call:
    """One node of a file: its operator, its attributes and its inputs' values."""

    operator: str
    """The operator's name, after its domain and a dot unless that is ONNX's own."""
    name: str
    version: int
    """The operator set of its domain that the file was written for."""
    attributes: Mapping[str, Any]
    inputs: Sequence[Value]
    outputs: tuple[str, ...]
    """Names of its results; "" for those that nobody reads."""

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or what it is where the node leaves it out."""
        return self.attributes.get(name, default)

    def has(self, place: int) -> bool:
        """Whether the input at this place is given."""
        return place < len(self.inputs) and self.inputs[place] is not None

    def tensor(self, place: int = 0) -> Tensor:
        """The input at this place. Raises `Unreadable` if it is left out, or no tensor."""
        value = self.inputs[place] if self.has(place) else None
        if isinstance(value, Known):
            return value.tensor()
        if not isinstance(value, Tensor):
            raise Unreadable(f"its input {place} is {'left out' if value is None else 'no tensor'}", "export it again")
        return value

    def given(self, place: int) -> Tensor | None:
        """The input at this place, or None where it is left out."""
        return self.tensor(place) if self.has(place) else None

    def tensors(self) -> list[Tensor]:
        """All inputs that are given."""
        return [self.tensor(place) for place in range(len(self.inputs)) if self.has(place)]

    def operand(self, place: int) -> Any:
        """The input as a Python number where it is one and that changes no shape, else as a tensor."""
        value = self.inputs[place] if self.has(place) else None
        if isinstance(value, Known) and value.values.size == 1:
            deepest = max((each.ndim for each in self.inputs if isinstance(each, Tensor)), default=0)
            if value.values.ndim <= deepest:
                return value.single
        return self.tensor(place)

    def known(self, place: int) -> Known:
        """The numbers of an input that must be known. Raises `Unreadable` where they are computed from data."""
        value = self.inputs[place] if self.has(place) else None
        if not isinstance(value, Known):
            raise Unreadable(
                f"its input {place} is computed from data, and is read where it is a constant or made of sizes",
                "export the model with constants there",
            )
        return value

    def numbers(self, place: int) -> list[Any]:
        """Those numbers as a list."""
        return list(self.known(place).values.reshape(-1))

    def number(self, place: int, default: Any = None) -> Any:
        """The single number of an input, or what it is where it is left out."""
        return self.known(place).single if self.has(place) else default

    def sizes(self, name: str, place: int, default: Any = None) -> Any:
        """Numbers that older operator sets have as an attribute, newer ones as an input."""
        if name in self.attributes:
            return list(self.attributes[name])
        return self.numbers(place) if self.has(place) else default

    def refuse(self, what: str, todo: str = "export the model in another way") -> Unreadable:
        """The error for what this node asks for and is not read."""
        return Unreadable(what, todo)


Read = Callable[[Call], Any]
"""The results of a call: one value, or a tuple."""


@dataclass(frozen=True)
class Operator:
    """How operators of ONNX files are read: with calls of torch, and on known numbers without any."""

    names: tuple[str, ...]
    read: Read
    on_known: Read | None = None
    """The same where every input is known; NotImplemented leaves it to `read`."""
    statistics: tuple[int, ...] = ()
    """Inputs that are running statistics: buffers, not parameters."""
    settings: tuple[int, ...] = ()
    """Inputs of real numbers that say what is computed, as scales of a picture do: known, where they are stored."""

    @property
    def summary(self) -> str:
        return (self.read.__doc__ or "").strip().partition("\n")[0] or "a function of the call"


def from_onnx(
    *names: str, on_known: Read | None = None, statistics: tuple[int, ...] = (), settings: tuple[int, ...] = ()
) -> Callable[[Read], Operator]:
    """Make a function read the ONNX operators of these names: "Gelu", or "my.domain.Gate" outside ONNX's own domain.

    The function takes a `Call` and gives the result, or a tuple of them.
    """
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ExtensionError("an ONNX operator has no name", 'write @from_onnx("my.domain.Gate")')

    def made(read: Read) -> Operator:
        return Operator(names, read, on_known, statistics, settings)

    return made


def operator_name(domain: str, op_type: str) -> str:
    """The name of an operator as messages and tables have it."""
    return op_type if domain in DOMAINS else f"{domain}.{op_type}"
