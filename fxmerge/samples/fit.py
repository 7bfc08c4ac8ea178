"""Samples as a program takes them: arrays matched to its inputs by name, converted where nothing is lost, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxmerge.errors import DataError
from fxmerge.ir.program import Port, Program
from fxmerge.ir.row_blocks import is_batch
from fxmerge.messages import listed, nearest, printable, reason
from fxmerge.samples.arrays import Array, as_tensor
from fxmerge.samples.reading import USUAL, Broken, Reading


@dataclass(frozen=True)
class Samples:
    """Inputs by port name, rows first, and one class index per row where labels were given."""

    inputs: dict[str, Tensor]
    labels: Tensor | None = None
    notes: tuple[str, ...] = ()
    """What reading had to decide and the user should know."""
    skipped: int = 0
    """Broken files and rows that were left out."""

    @property
    def rows(self) -> int:
        return max((t.shape[0] for t in self.inputs.values() if t.ndim), default=0)


@dataclass(frozen=True)
class Raw:
    """What a file holds before it is matched to a program: arrays by name, labels of any kind, notes."""

    arrays: Mapping[str, Array]
    labels: Any = None
    notes: tuple[str, ...] = ()
    as_model: bool = False
    """Whether the arrays lie as the model itself takes them, also where it has the batch on another axis."""


def fit(raw: Raw, program: Program, where: str, reading: Reading = USUAL, broken: Broken | None = None) -> Samples:
    """The rows of `raw` that `reading` asks for, as `program` takes them, with notes on what was converted or left out.

    A single array fits a single input whatever its name. Arrays for inputs that the model takes with the batch on
    another axis lie as the model takes them, unless `reading` says otherwise. Raises `DataError`.
    """
    broken, batch_axis, limit = broken or Broken(reading.strict), reading.batch_axis, reading.limit
    ports = {port.name: port for port in program.inputs}
    arrays, notes = raw.arrays, list(raw.notes)
    if len(arrays) == len(ports) == 1:
        arrays = {next(iter(ports)): next(iter(arrays.values()))}
    _check_names(arrays, program, where)
    if left := [name for name in arrays if name not in ports]:
        notes.append(f"{where}: not used: {listed(left)}")
    inputs, by_row = {}, row_ports(program)
    for name, port in ports.items():
        inputs[name], note = _convert(arrays[name], port, program, where)
        notes += [note] if note else []
    if raw.as_model and program.turned:
        inputs = rows_first(inputs, program, batch_axis)
        notes.append(f"{where}: {turned_note(program, batch_axis)}")
    rows, whole = next((len(inputs[n]) for n in by_row if inputs[n].ndim), 0), _whole(inputs, by_row, where, broken)
    chosen = slice(limit) if whole is None else whole.nonzero()[:limit, 0]
    if whole is not None:
        inputs = {name: t[whole] if name in by_row else t for name, t in inputs.items()}
    check_samples(inputs, program, where)
    labels = None
    if raw.labels is not None and reading.labels:
        labels, note = fit_labels(raw.labels, rows, program, where)
        labels, notes = labels[chosen], notes + ([note] if note else [])
    inputs = {name: t[:limit] if name in by_row else t for name, t in inputs.items()}
    return Samples(inputs, labels, (*notes, *broken.notes(where)), broken.count)


def fit_given(value: Any, program: Program, where: str, reading: Reading = USUAL) -> Samples:
    """`fit` for a tensor or array given in Python, or several by input name, nested as the model takes them."""
    named = named_tensors(value) if isinstance(value, Mapping) else {program.inputs[0].name: value}
    for name, each in named.items():
        if not isinstance(each, Tensor | np.ndarray):
            raise DataError(f"{where}: {name} is a {type(each).__name__}, not a tensor", wanted(program))
    held = {name: each.detach() if isinstance(each, Tensor) else each for name, each in named.items()}
    return fit(Raw(held, as_model=True), program, where, reading)


def _whole(inputs: Mapping[str, Tensor], by_row: frozenset[str], where: str, broken: Broken) -> Tensor | None:
    """Which rows hold finite numbers alone; None where all do, or none, and where arrays have other numbers of rows."""
    floats = {n: inputs[n] for n in by_row if inputs[n].is_floating_point() and inputs[n].ndim}
    if broken.strict or len({len(inputs[n]) for n in by_row if inputs[n].ndim}) != 1 or not floats:
        return None
    finite = {n: torch.isfinite(t).reshape(len(t), math.prod(t.shape[1:])).all(1) for n, t in floats.items()}
    whole = torch.stack(list(finite.values())).all(0)
    if bool(whole.all()) or not bool(whole.any()):
        return None
    name, first = next((n, int((~rows).nonzero()[0])) for n, rows in finite.items() if not bool(rows.all()))
    what = f"{where}: {name} holds NaN or infinite values in row {first}"
    broken.add(DataError(what, "remove that row, or repair it"), int((~whole).sum()))
    return whole


def rows_first(inputs: Mapping[str, Tensor], program: Program, batch_axis: int | None = None) -> dict[str, Tensor]:
    """Inputs as the model itself takes them (or with the batch on `batch_axis`), with the rows first."""
    axes = {name: axis if batch_axis is None else batch_axis for name, axis in program.turned.items()}
    return {n: t.movedim(a, 0) if (a := axes.get(n, 0)) and t.ndim > a else t for n, t in inputs.items()}


def named_tensors(value: Mapping[str, Any], name: str = "") -> dict[str, Tensor]:
    """Tensors nested in dicts, lists and tuples, by their path as capture names inputs: {"maps": [x]} is "maps.0"."""
    found: dict[str, Tensor] = {}
    for key, item in value.items():
        path = f"{name}.{key}" if name else str(key)
        if isinstance(item, list | tuple):
            item = {str(i): each for i, each in enumerate(item)}
        found |= named_tensors(item, path) if isinstance(item, Mapping) else {path: item}
    return found


def turned_note(program: Program, batch_axis: int | None = None) -> str:
    """What to say of arrays that were read with the batch on another axis than the first."""
    read = ", ".join(f"{n} on axis {a if batch_axis is None else batch_axis}" for n, a in program.turned.items())
    return f"the batch is read off {read}" + (", as the model takes it" if batch_axis is None else "")


def check_samples(inputs: Mapping[str, Tensor], program: Program, where: str = "the samples") -> None:
    """Raise `DataError` unless the program runs on `inputs`: names, ranks, sizes, types, finite values, indices."""
    ports = {port.name: port for port in program.inputs}
    _check_names(inputs, program, where)
    for name in inputs:
        if name not in ports:
            raise DataError(
                f"{where} hold {name!r}, which is no input of {program.task}{nearest(name, ports)}", wanted(program)
            )
    sizes: dict[str, tuple[int, str]] = {}
    for name, port in ports.items():
        _check_input(inputs[name], port, program, where, sizes)
    _try(inputs, program, where)


def fit_labels(labels: Any, rows: int, program: Program, where: str) -> tuple[Tensor, str]:
    """Class indices, one per row, and a note. Text is looked up among the program's labels, else numbered as sorted."""
    values = labels.numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or len(values) != rows:
        raise DataError(
            f"{where}: {len(values) if values.ndim else 0} labels of shape {values.shape} for {rows} rows",
            "give one class index (or name) per row",
        )
    if values.dtype.kind in "iub":
        return torch.from_numpy(values.astype(np.int64)), ""
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == values.round()).all():
        return torch.from_numpy(values.astype(np.int64)), ""
    names = [str(v).strip() for v in values]
    own = {name: i for i, name in enumerate(program.labels or ())}
    unknown = [name for name in names if name not in own]
    if unknown and all(re.fullmatch(r"-?\d{1,18}", name, re.ASCII) for name in names):
        return torch.tensor([int(name) for name in names]), ""
    if own and unknown:
        raise DataError(
            f"{where}: the label {printable(unknown[0])!r} is none of {program.task}'s{nearest(unknown[0], own)}",
            f"its labels are {printable(listed(own))}",
        )
    if own:
        return torch.tensor([own[name] for name in names]), ""
    order = sorted(set(names))
    note = f"{where}: labels numbered in sorted order: {printable(listed(order))}"
    return torch.tensor([order.index(name) for name in names]), note


def wanted(program: Program) -> str:
    """What the program takes, for the second line of a message."""
    return "give arrays named " + "; ".join(shown(port) for port in program.inputs)


def shown(port: Port) -> str:
    """A port as text: "x: float32 (batch, 1, 28, 28)"."""
    return f"{port.name}: {str(port.dtype).removeprefix('torch.')} ({', '.join(str(s) for s in port.shape)})"


def row_ports(program: Program) -> frozenset[str]:
    """Inputs whose first axis counts rows."""
    return frozenset(p.name for p in program.inputs if p.shape and is_batch(p.shape[0]))


def _check_names(given: Mapping[str, Any], program: Program, where: str) -> None:
    missing = [port.name for port in program.inputs if port.name not in given]
    if missing:
        found = printable(listed(n or "an array without a name" for n in given))
        what = f"{where}: no array for the input {listed(missing)} (found: {found})"
        raise DataError(what + nearest(missing[0], given), wanted(program))


def _convert(array: Array, port: Port, program: Program, where: str) -> tuple[Tensor, str]:
    """The array in the port's type, if no value changes; images in bytes become 0..1 for a float input, with a note."""
    kind = str(array.dtype).removeprefix("torch.")
    array = as_tensor(array, f"{where}: {port.name}")
    if array.dtype == port.dtype:
        return array, ""
    if port.dtype.is_floating_point and array.dtype.is_floating_point:
        return array.to(port.dtype), ""
    if port.dtype.is_floating_point and array.dtype == torch.uint8:
        _check_scale(port, program, where)
        return array.to(port.dtype).div_(
            255
        ), f"{where}: {port.name} holds bytes; they were read as 0..1 (divided by 255)"
    whole = not array.dtype.is_floating_point and not port.dtype.is_floating_point and not array.dtype.is_complex
    if whole and (array.numel() == 0 or torch.equal(array.to(port.dtype).to(array.dtype), array)):
        return array.to(port.dtype), ""
    target = str(port.dtype).removeprefix("torch.")
    raise DataError(
        f"{where}: {port.name} holds {kind} values, the model takes {target}",
        f"convert them with .astype({target!r}) if that is what the model was trained on; it takes {shown(port)}",
    )


def _check_scale(port: Port, program: Program, where: str) -> None:
    """Bytes can be read as 0..1 only if the model's own samples, where it has some, lie there."""
    own = program.samples.get(port.name)
    if own is None or own.numel() == 0:
        return
    low, high = float(own.min()), float(own.max())
    if low < -1e-3 or high > 1.001:
        raise DataError(
            f"{where}: {port.name} holds bytes, but the model's own samples are numbers from {low:.3g} to {high:.3g}",
            "give the arrays as floats, scaled as the model was trained; of images, say --image-mean and --image-std",
        )


def _check_input(value: Tensor, port: Port, program: Program, where: str, sizes: dict[str, tuple[int, str]]) -> None:
    if not isinstance(value, Tensor):
        raise DataError(f"{where}: {port.name} is a {type(value).__name__}, not a tensor", f"give {shown(port)}")
    shape = tuple(value.shape)
    if len(shape) != len(port.shape):
        raise DataError(
            f"{where}: {port.name} has {len(shape)} axes {shape}, the model takes {len(port.shape)}",
            f"give {shown(port)}",
        )
    for axis, (size, want) in enumerate(zip(shape, port.shape, strict=True)):
        if isinstance(want, int) and size != want:
            raise DataError(
                f"{where}: {port.name} has shape {shape}, the model takes {want} on axis {axis}", f"give {shown(port)}"
            )
        if isinstance(want, str):
            _check_size(size, want, port, program, where, sizes)
    if value.dtype != port.dtype:
        kind = str(value.dtype).removeprefix("torch.")
        raise DataError(f"{where}: {port.name} holds {kind} values", f"give {shown(port)}")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        first = (~torch.isfinite(value)).nonzero()[0].tolist()
        raise DataError(
            f"{where}: {port.name} holds NaN or infinite values, first at {first}", "remove those rows, or repair them"
        )


def _check_size(
    size: int, want: str, port: Port, program: Program, where: str, sizes: dict[str, tuple[int, str]]
) -> None:
    if size == 0:
        raise DataError(f"{where}: {port.name} is empty", f"give {shown(port)} with at least one row")
    before, other = sizes.setdefault(want, (size, port.name))
    if before != size:
        raise DataError(
            f"{where}: {other} and {port.name} do not agree: {before} and {size} for {want}",
            "give arrays with the same number of rows (and the same length)",
        )
    low, high = program.ranges.get(want, (0, size))
    if is_batch(want):
        return  # more rows than the graph takes are run in blocks
    if size > high or (low == high and size != low):
        raise DataError(
            f"{where}: {port.name} has {size} for {want}, the model takes at most {high}", "cut the samples"
        )


def _try(inputs: Mapping[str, Tensor], program: Program, where: str) -> None:
    """Run the rows that hold the extreme values of each integer input, so that a bad index shows here."""
    ports = row_ports(program)
    picked = {0}
    for name in ports:
        value = inputs[name]
        if not value.is_floating_point() and value.ndim > 1 and value.numel():
            flat = value.reshape(value.shape[0], -1).to(torch.int64)
            picked |= {int(flat.amax(1).argmax()), int(flat.amin(1).argmin())}
    index = torch.tensor(sorted(picked))
    try:
        with torch.no_grad():
            program.run({n: t[index] if n in ports else t for n, t in inputs.items()})
    except (RuntimeError, IndexError, ValueError) as error:
        raise DataError(
            f"{where}: the model does not run on these samples: {reason(error)}",
            "check that indices (token ids) are smaller than the model's tables, and the sizes: " + wanted(program),
        ) from error
