"""Find where parameters meet data, which spaces they write and read there, and what belongs to one task alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call, RuleSet, Signature, has_tensor, labels_of, signature
from fxmerge.coupling.law import RESULT, linear_together, parse
from fxmerge.ir.program import Program, target_name
from fxmerge.ir.space import Spaces, leaves
from passes.operators import Operators
from passes.spaces.find import SpacesOf
from passes.spaces.fixed_tables import tables
from passes.supernet.site import AxisUse, Operand, Site, Sites, Value, axes_of, operands
from passes.supernet.trace_positions import trace


@dataclass(frozen=True)
class SitesOf:
    """The sites of a program under a set of coupling rules."""

    rules: RuleSet

    def __call__(self, program: Program) -> Sites:
        return _Finder(program, self.rules).run()


@dataclass
class _Finder:
    program: Program
    rules: RuleSet
    values: dict[fx.Node, Value] = field(default_factory=dict)

    @cached_property
    def tables(self) -> frozenset[str]:
        return tables(self.program, self.operators)

    @cached_property
    def operators(self) -> Operators:
        return Operators(self.rules)

    @property
    def spaces(self) -> Spaces:
        return self.program.get(SpacesOf(self.rules, tables=True))

    def run(self) -> Sites:
        spaces = self.spaces
        for node in self.program.graph.nodes:
            if node.op != "output":
                self.values[node] = self._value(node)
        sites = {n: s for n in self.program.graph.nodes if (s := self._site(n)) is not None}
        written, read = self._touched(sites.values(), spaces)
        outputs = {leaf.space for n in self.program.result for axis in spaces.axes[n] for leaf in leaves(axis)}
        mergeable = frozenset(written - (outputs - read))
        found = Sites(
            self.values, sites, mergeable, self._tail(sites, mergeable, spaces), spaces, self.program, self.operators
        )
        return self._with_answers(self._with_sums(self._with_scalars(found)))

    def _with_scalars(self, found: Sites) -> Sites:
        """Calls that write one number a place are heads where nothing merged follows: a score that is squeezed, say.

        So are those that write several, each with a place of its own (where an answer starts, and where it ends). One
        map for all tasks would leave one number of all of theirs.
        """
        axes, heads = found.spaces.tensors, set(found.tail)
        for node, site in found.sites.items():
            uses = [(axes[o.root][i], u) for o in site.operands for i, u in enumerate(o.uses) if u is not None]
            sizes = [leaf.size for axis, use in uses if use.role == "write" for leaf in leaves(axis)]
            if site.maps and node not in heads and sizes and max(sizes) == 1:
                heads |= self._head(node, found) or set()
        written, _ = self._touched((site for node, site in found.sites.items() if node not in heads), found.spaces)
        one = {name for name in found.mergeable - written if found.spaces.spaces[name].size == 1}
        return replace(found, mergeable=found.mergeable - one, tail=frozenset(heads))

    def _with_sums(self, found: Sites) -> Sites:
        """What becomes of calls whose parameters write no axis (a vector that data are multiplied by, and summed).

        Where nothing merged follows, they are heads; elsewhere no merge map could stand behind them, so their
        parameters enter as they are.
        """
        sites, tail = dict(found.sites), set(found.tail)
        for node in reversed(self.program.graph.nodes):
            site = sites.get(node)
            if site is None or site.kind != "linear" or node in tail or _writes(site):
                continue
            if (behind := self._head(node, found)) is not None:
                tail |= behind
            else:
                plain = tuple(replace(operand, uses=(None,) * len(operand.uses)) for operand in site.operands)
                sites[node] = replace(site, operands=plain, kind="direct")
        return replace(found, sites=sites, tail=frozenset(tail))

    def _with_answers(self, found: Sites) -> Sites:
        """Calls that give an answer in no merged space are a task's own, back to what the trunk reads elsewhere.

        Such are a class that is chosen, a norm, a sum of scores: one for all tasks would be one answer for all.
        """
        trunk = (site for node, site in found.sites.items() if node not in found.tail)
        merged = self._touched(trunk, found.spaces)[1] & found.mergeable
        answers = [n for n in self.program.result if n not in found.tail and not found.merged_axes(n)]
        parts = [part for n in answers if (part := self._behind(n, found, merged)) & found.sites.keys()]
        together = set[fx.Node]().union(*parts)
        tail = set(found.tail)
        for part in [together, *parts]:
            if all(user.op == "output" or user in tail | part for node in part for user in node.users):
                tail |= part
        written, _ = self._touched((site for node, site in found.sites.items() if node not in tail), found.spaces)
        theirs, _ = self._touched((site for node, site in found.sites.items() if node in tail), found.spaces)
        return replace(found, mergeable=found.mergeable - (theirs - written), tail=frozenset(tail))

    def _behind(self, node: fx.Node, found: Sites, merged: Collection[str]) -> set[fx.Node]:
        """All that leads to a value from the inputs, or from values in these spaces."""
        own, todo = set[fx.Node](), [node]
        while todo:
            each = todo.pop()
            met = [leaf for axis in axes_of(found.spaces.axes.get(each, ())) for leaf in leaves(axis)]
            if self.values[each] != "data" or each.op == "placeholder" or each in own or each in found.tail:
                continue
            if each is node or not any(leaf.size > 1 and leaf.space in merged for leaf in met):
                own.add(each)
                todo += each.all_input_nodes
        return own

    def _head(self, node: fx.Node, found: Sites) -> set[fx.Node] | None:
        """A call and all that follows it; None if any of it lies in a merged space of more than one unit."""
        behind, todo = {node}, [node]
        while todo:
            last = todo.pop()
            met = [leaf for axis in axes_of(found.spaces.axes[last]) for leaf in leaves(axis)]
            if any(leaf.size > 1 and leaf.space in found.mergeable for leaf in met):
                return None
            new = [user for user in last.users if user.op != "output" and user not in behind]
            behind.update(new)
            todo += new
        return {each for each in behind if self.values[each] == "data"}

    # -- what each value depends on ------------------------------------------------------------------

    def _value(self, node: fx.Node) -> Value:
        if node.op == "placeholder":
            return "data"
        if node.op == "get_attr":
            own = node.target in self.program.parameters or node.target in self.tables
            return "parameter" if own else "constant"
        if not has_tensor(node):
            return "size"
        kinds = {self.values[n] for n in node.all_input_nodes} - {"size"}
        if "data" in kinds:
            return "data"
        if "parameter" not in kinds:
            return "constant"
        return "parameter" if self._moves(node) else "data"

    def _moves(self, node: fx.Node) -> bool:
        """Whether a call gives a parameter's numbers on as they are; those of rows, if it is told which."""
        moved = self.operators.moved(node)
        return (
            moved is not None
            and not moved.cast
            and self.values[moved.source] == "parameter"
            and all(self.values[n] != "parameter" for n in moved.by)
        )

    # -- sites ---------------------------------------------------------------------------------------

    def _site(self, node: fx.Node) -> Site | None:
        if node.op != "call_function" or self.values[node] != "data":
            return None
        arguments = operands(node)
        own = [n for n in arguments if self.values[n] == "parameter"]
        if not own:
            return None
        inner = self._inner(node)
        if inner is not None:
            return Site(node, tuple(self._operand(n, node, inner.get(n, {})) for n in own), "inner")
        others = [n for n in arguments if self.values[n] in ("data", "constant")]
        if others and self.operators.joined(node).issuperset(own) and isinstance(node.meta["val"], Tensor):
            axes = {
                n: {j: AxisUse("write", n, j) for j, size in enumerate(n.meta["val"].shape) if size != 1} for n in own
            }
            return Site(node, tuple(self._operand(n, node, axes[n]) for n in own), "additive")
        picked = _picked(node)
        if picked is not None and own == [node.args[0]]:
            return Site(node, (self._operand(own[0], node, picked),), "linear")
        sign = signature(self.rules, node)
        if sign is None or not others or not isinstance(node.meta["val"], Tensor):
            return Site(node, tuple(self._operand(n, node, {}) for n in own), "direct")
        given = [i for i, term in enumerate(sign.operands) if term is not None]
        assert len(given) == len(arguments), f"{node}: {sign}"
        terms = [sign.operands[i] or () for i in given]
        roles = {n: self._roles(sign, node, terms, i, arguments) for i, n in enumerate(arguments) if n in own}
        called = [sign.names[given[i]] for i, n in enumerate(arguments) if n in own]
        linear = bool(sign.law) and linear_together(parse(sign.law), called)
        # a contraction, rows of a table, or a vector times numbers: homogeneous in its parameters, which "linear" alone
        # (a fill, say) is not
        found = {use.role for uses in roles.values() for use in (uses or {}).values()}
        pure = "read" in found or self.operators.looks_up(node)
        pure = pure or ("write" in found and self.operators.scales_with(node, own))
        if not linear or not pure or len(set(arguments)) < len(arguments) or None in roles.values():
            return Site(node, tuple(self._operand(n, node, {}) for n in own), "direct")
        return Site(node, tuple(self._operand(n, node, roles[n] or {}) for n in own), "linear")

    def _inner(self, node: fx.Node) -> dict[fx.Node, dict[int, AxisUse]] | None:
        """Per operand what each of its axes writes or reads inside the operator; None for an operator without such."""
        rule = self.rules.find(node)
        if rule is None or not rule.inner:
            return None
        values = {name: value for name, value in Call.of(node).operands if value is not None} | {RESULT: node}
        found: dict[fx.Node, dict[int, AxisUse]] = {}
        for name, uses in rule.inner.items():
            for axis, use in enumerate(uses if name in values else ()):
                if use is not None:
                    role, other, place = use
                    on = values[other]
                    found.setdefault(values[name], {})[axis] = AxisUse(role, on, place % on.meta["val"].ndim)
        return found

    def _roles(
        self, sign: Signature, node: fx.Node, terms: list[tuple[str, ...]], i: int, arguments: list[fx.Node]
    ) -> dict[int, AxisUse] | None:
        """What each axis of operand `i` writes or reads.

        None if a product axis makes that unclear, if two data are summed along with it at once, or if data and result
        share a movable axis with the operand: it then acts on each position of that axis by itself, as a scale does.
        """
        data = [(n, terms[k]) for k, n in enumerate(arguments) if self.values[n] != "parameter"]
        result = sign.results[0]
        roles: dict[int, AxisUse] = {}
        for axis, label in enumerate(terms[i]):
            if label == "1":
                continue
            shared = [(n, labels.index(label)) for n, labels in data if label in labels]
            if label in result:
                if not shared:
                    roles[axis] = AxisUse("write", node, result.index(label))
                elif self._movable(arguments[i], axis):
                    return None
            elif len(shared) > 1:
                return None
            elif shared:
                roles[axis] = AxisUse("read", *shared[0])
            elif set(labels_of(label)) & {part for _, term in data for other in term for part in labels_of(other)}:
                return None
        return roles

    def _movable(self, node: fx.Node, axis: int) -> bool:
        found = (self.spaces.spaces.get(leaf.space) for leaf in leaves(self.spaces.axes[node][axis]))
        return any(space is not None and space.movable for space in found)

    def _operand(self, node: fx.Node, site: fx.Node, axes: Mapping[int, AxisUse]) -> Operand:
        root, chain = node, []
        while root.op != "get_attr":
            chain.append(root)
            root = next(n for n in root.all_input_nodes if self.values[n] == "parameter")
        places, covers = trace(self.program, root, chain[::-1], self.operators)
        uses = []
        for place in places:
            found = {axes.get(j) for j in place}
            uses.append(_joined(found) if len(place) > 1 else found.pop() if found else None)
        single = tuple(place[0] if len(place) == 1 else None for place in places)
        return Operand(node, str(root.target), tuple(uses), covers, single, self._is_dynamic(chain))

    def _is_dynamic(self, chain: list[fx.Node]) -> bool:
        todo = [n for node in chain for n in node.all_input_nodes if n not in chain]
        seen: set[fx.Node] = set()
        while todo:
            node = todo.pop()
            if node.op == "placeholder":
                return True
            if node not in seen:
                seen.add(node)
                todo.extend(node.all_input_nodes)
        return False

    # -- which spaces, and whose ------------------------------------------------------------------------

    def _touched(self, sites: Iterable[Site], spaces: Spaces) -> tuple[set[str], set[str]]:
        """Spaces that linear sites write, and spaces that linear sites read.

        Whatever tensors bring along (tables side by side, tokens put before others) they write too, if it can move.
        """
        written: set[str] = set()
        read: set[str] = set()
        for site in sites:
            alone = all(self.values[n] == "parameter" for n in operands(site.node))
            for operand in site.operands:
                for axis, use in zip(spaces.tensors[operand.root], operand.uses, strict=True):
                    found = {leaf.space for leaf in leaves(axis)}
                    if site.maps and use is not None:
                        (written if use.role == "write" else read).update(found)
                    elif alone or (site.kind == "additive" and use is not None):
                        written.update(name for name in found if spaces.spaces[name].movable)
        return written, read

    def _tail(self, sites: Mapping[fx.Node, Site], mergeable: frozenset[str], spaces: Spaces) -> frozenset[fx.Node]:
        tail: set[fx.Node] = set()
        for node in self.program.graph.nodes:
            if node.op == "output" or self.values[node] != "data":
                continue
            site = sites.get(node)
            writes = [
                leaf.space
                for operand in (site.operands if site and site.maps else ())
                for axis, use in zip(spaces.tensors[operand.root], operand.uses, strict=True)
                if use is not None and use.role == "write"
                for leaf in leaves(axis)
            ]
            if any(n in tail for n in node.all_input_nodes) or (writes and not mergeable.intersection(writes)):
                tail.add(node)
        return frozenset(tail)


def _picked(node: fx.Node) -> dict[int, AxisUse] | None:
    """What the axes of a tensor write of which data picks parts along one axis: the weights of some experts, say.

    Known by name: this is the call in which data say along any axis what they take, its arguments alone say which.
    """
    if target_name(node.target) != "aten.index.Tensor" or not isinstance(node.args[0], fx.Node):
        return None
    given = [(axis, index) for axis, index in enumerate(node.args[1]) if index is not None]  # type: ignore[arg-type]
    if len(given) != 1 or not isinstance(given[0][1], fx.Node) or given[0][1].meta["val"].dtype == torch.bool:
        return None
    ((axis, index),) = given
    more, rank = index.meta["val"].ndim - 1, node.args[0].meta["val"].ndim
    return {i: AxisUse("write", node, i if i < axis else i + more) for i in range(rank) if i != axis}


def _writes(site: Site) -> bool:
    return any(use is not None and use.role == "write" for operand in site.operands for use in operand.uses)


def _joined(found: set[AxisUse | None]) -> AxisUse | None:
    """One use for an axis that became several: all of one role on one value, or none."""
    uses = [u for u in found if u is not None]
    same = len(uses) == len(found) and len({(u.role, u.on) for u in uses}) == 1
    return AxisUse(uses[0].role, uses[0].on, None) if same and uses else None
