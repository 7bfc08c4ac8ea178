"""Calls behind which moves can be carried: entry by entry, along the last axes, products of matrices, attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from fxmerge.coupling import Call
from fxmerge.ir.program import target_name
from passes.line_up.carry_moves.batch_axes import batched
from passes.line_up.carry_moves.moved_view import Form, Group
from passes.line_up.carry_moves.view_graph import Writer, aten, one_atom

UNMINDFUL = frozenset({"dtype", "approximate", "alpha", "rounding_mode"})
"""Keyword arguments that say nothing of axes or memory."""

SDPA = "aten.scaled_dot_product_attention.default"
"""Calls that are written anew on other axes are known by name, for their arguments say where these lie; whatever works
entry by entry goes by its rule, and moves stay in front of everything else."""


def behind(writer: Writer, node: fx.Node) -> Form | None:
    """The form of a call's result if its operands' moves can be carried behind it."""
    name = target_name(node.target)
    if name == SDPA:
        return _batched(writer, node, ["query", "key", "value"], "attn_mask")
    if name == "aten.matmul.default":
        return _batched(writer, node, ["self", "other"])
    if name == "aten.cat.default":
        return _cat(writer, node)
    if writer.operators.pointwise(node):
        return _pointwise(writer, node)
    if name == "aten.embedding.default":
        return _embedding(writer, node)
    form = writer.form(node.args[0]) if node.args else None
    if form is None or form.is_source:
        return None
    if name == "aten.linear.default":
        return _linear(writer, node, form)
    if name in ("aten.layer_norm.default", "aten.rms_norm.default"):
        return _on_last(writer, node, form, len(Call.of(node)["normalized_shape"]))
    if name == "aten.softmax.int" and Call.of(node).dim("dim", "self") == form.rank - 1:
        return _on_last(writer, node, form, 1, {"dim": -1})
    return None


# -- entry by entry ------------------------------------------------------------------------------------------


def _pointwise(writer: Writer, node: fx.Node) -> Form | None:
    """A call on values moved alike, and on vectors over axes that did not move, is done before the move."""
    forms = {n: writer.form(n) for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)}
    known = {n: form for n, form in forms.items() if form is not None}
    if len(known) < len(forms) or not set(node.kwargs) <= UNMINDFUL:
        return None
    whole = [form for form in known.values() if form.shape == writer.measured[node]]
    main = next((form for form in whole if not form.is_source), None)
    if main is None:
        return _spread(writer, node, known) if whole else None
    before = {n: _before(form, main) for n, form in known.items()}
    if None not in before.values():
        written = {n: writer.write(form) for n, form in before.items() if form is not None}
        return Form(_again(writer, node, written), main.axes, main.out)
    order = main.in_order()
    if order is None:
        return _spread(writer, node, known)
    written = {n: writer.write(_padded(form, main.rank).permute(order)) for n, form in known.items() if form.rank}
    return Form(_again(writer, node, written), tuple(main.out[axis] for axis in order), main.out)


def _spread(writer: Writer, node: fx.Node, forms: dict[fx.Node, Form]) -> Form:
    """The call at hand; what is spread over its first axes has no such axes."""
    wanted = writer.measured[node]
    written = {n: writer.write(f if f.shape == wanted else f.without_leading_ones()) for n, f in forms.items()}
    return writer.source(_again(writer, node, written), wanted)


def _before(form: Form, main: Form) -> Form | None:
    """An operand as it stands beside the source of `main`."""
    if not form.rank:
        return form
    if form.alike(main):
        return form.regroup(form.axes)
    vector = form.without_leading_ones()
    return vector if vector.rank and main.still(vector.rank) else None


def _padded(form: Form, rank: int) -> Form:
    return form.regroup((*((),) * (rank - form.rank), *form.out))


def _again(writer: Writer, node: fx.Node, written: dict[fx.Node, fx.Node]) -> fx.Node:
    """The call at hand with some of its operands written in another way."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: written[n] if n in written else writer.tensor(n))
    return writer.add(node.target, *args, **kwargs)


def _cat(writer: Writer, node: fx.Node) -> Form | None:
    """Parts of an axis joined; the other axes come in the order of the first part that was moved (and has them all)."""
    forms = [writer.form(part) for part in node.args[0]]  # type: ignore[union-attr]
    main = next((form for form in forms if form is not None and all(form.out) and not form.is_source), None)
    order = None if main is None else main.in_order()
    if main is None or order is None or any(form is None or form.rank != main.rank for form in forms):
        return None
    axis = Call.of(node).dim("dim", "tensors0")
    parts = [writer.write(form.permute(order)) for form in forms if form is not None]
    copy = writer.add(aten.cat.default, parts, order.index(axis))
    out = list(main.out)
    out[axis] = one_atom(writer.measured[node][axis])
    return Form(copy, tuple(out[i] for i in order), tuple(out))


# -- along the last axes -------------------------------------------------------------------------------------


def _on_last(writer: Writer, node: fx.Node, form: Form, count: int, more: dict[str, Any] | None = None) -> Form:
    """A call that works on the last `count` axes alone: the others come in the order of the source."""
    lead, tail = _lead(form, count), form.out[form.rank - count :]
    return _called(writer, node, form.regroup([*lead, *tail]), (*form.out[: form.rank - count], *tail), more or {})


def _lead(form: Form, count: int) -> list[Group]:
    """The axes of the source without what is in the last `count` axes of the value."""
    used = {atom for group in form.out[form.rank - count :] for atom in group}
    return [group for axis in form.axes if (group := tuple(atom for atom in axis if atom not in used))]


def _called(writer: Writer, node: fx.Node, first: Form, out: tuple[Group, ...], more: dict[str, Any]) -> Form:
    """The call at hand on another first operand and other arguments; its result has the axes of that operand."""
    names = list(Call.of(node).arguments)
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    name = names[0]
    rest = {key: more[key] if key in more else writer.arguments(value) for key, value in given.items() if key != name}
    places = [rest.pop(key) for key in names[1 : len(node.args)]]
    return Form(writer.add(node.target, writer.write(first), *places, **rest), first.out, out)


def _embedding(writer: Writer, node: fx.Node) -> Form | None:
    """Rows of a table, in the order in which their numbers stand."""
    form = writer.form(node.args[1])
    if form is None or (form.is_source and all(form.out)):
        return None
    lead = [group for group in form.axes if group]
    more = writer.arguments(node.args[2:])
    copy = writer.add(node.target, writer.tensor(node.args[0]), writer.write(form.regroup(lead)), *more, **node.kwargs)  # type: ignore[arg-type]
    width = one_atom(writer.measured[node][-1])
    return Form(copy, (*lead, width), (*form.out, width))


def _linear(writer: Writer, node: fx.Node, form: Form) -> Form:
    """A linear map of rows; the features that it reads come in the order of the source too."""
    lead, features = _lead(form, 1), form.out[-1]
    place = {atom: number for number, atom in enumerate(form.atoms())}
    order = sorted(range(len(features)), key=lambda i: place[features[i]])
    weight = writer.form(node.args[1])
    own = weight.reshape([weight.shape[0], *(atom.size for atom in features)]) if weight is not None else None
    more: dict[str, Any] = {}
    if own is not None and order != list(range(len(order))):
        more = {"weight": writer.write(own.regroup([own.out[0], sum((own.out[1 + i] for i in order), ())]))}
        features = tuple(features[i] for i in order)
    result = one_atom(writer.measured[node][-1])
    made = _called(writer, node, form.regroup([*lead, features]), (*form.out[:-1], result), more)
    return Form(made.source, (*lead, result), made.out)


# -- products of matrices ------------------------------------------------------------------------------------


def _batched(writer: Writer, node: fx.Node, names: list[str], mask: str = "") -> Form | None:
    """Products of the last two axes: the leading ones in the order of the first operand, at most two of them."""
    given = Call.of(node).arguments
    forms = [form for name in names if (form := writer.form(given[name])) is not None]
    hidden = writer.form(given.get(mask))
    found = batched(forms, hidden) if len(forms) == len(names) and len(node.args) >= len(names) else None
    if found is None or (given.get(mask) is not None and hidden is None):
        return None
    written: dict[str, Any] = {name: writer.write(form) for name, form in zip(names, found.operands, strict=True)}
    if found.mask is not None:
        written[mask] = writer.write(found.mask)
    args = [written.get(name, writer.arguments(value)) for name, value in zip(given, node.args, strict=False)]
    kwargs = {name: written.get(name, writer.arguments(value)) for name, value in node.kwargs.items()}
    return Form(writer.add(node.target, *args, **kwargs), found.axes, found.out)
