"""What each space is for, read off the operators that touch it, and which parameters read and write it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import fx

from fxmerge.coupling import Call
from fxmerge.coupling.axes import Axis, Class
from fxmerge.coupling.inference import Inference, Lawful
from fxmerge.coupling.law import RESULT, Sum, names, parse
from fxmerge.coupling.tolerance import Tolerances, occurrences
from fxmerge.ir.space import Use
from passes.spaces.heads import components


@dataclass
class Evidence:
    """What the operators do with the leaf classes."""

    readers: dict[Class, list[Use]] = field(default_factory=lambda: defaultdict(list))
    writers: dict[Class, list[Use]] = field(default_factory=lambda: defaultdict(list))
    others: dict[Class, list[Use]] = field(default_factory=lambda: defaultdict(list))
    tables: set[Class] = field(default_factory=set)
    """Written by looking rows up."""
    maps: set[Class] = field(default_factory=set)
    """Written or read by a linear map."""
    windows: set[Class] = field(default_factory=set)
    """Written or read by a linear map with a window."""
    added: set[Class] = field(default_factory=set)
    """Two computed values are added along it."""
    contracted: set[Class] = field(default_factory=set)
    """Two computed values are contracted over it."""
    beside: set[Class] = field(default_factory=set)
    """Carried by both of two contracted values, and kept."""
    free: set[Class] = field(default_factory=set)
    """Carried by one of two contracted values, and kept."""
    looked_up: set[Class] = field(default_factory=set)
    """Rows of a table that an input of the program chooses."""
    hinted: dict[Class, str] = field(default_factory=dict)


def evidence(inference: Inference) -> Evidence:
    """What every call says about the spaces it touches."""
    found = Evidence()
    home = {
        leaf: (name, number)
        for name, axes in inference.tensors.items()
        if name in inference.transformed
        for number, axis in enumerate(axes)
        for leaf in occurrences(axis)
    }
    for law in inference.lawful:
        _gather(found, inference, law, home)
    return found


def _gather(found: Evidence, inference: Inference, law: Lawful, home: Mapping[Axis, tuple[str, int]]) -> None:
    operands = {name: node for name, node in Call.of(law.node).operands if node is not None}
    fed = {name for name, node in operands.items() if node in inference.fed and node in inference.trained}
    owned = {name for name, node in operands.items() if node in inference.trained and node not in inference.fed}
    expr = parse(law.signature.law)
    mentioned = names(expr)
    contracts = [
        label for label, slots in law.labels.items() if RESULT not in slots and len(slots.keys() & mentioned) > 1
    ]
    rule = inference.rules.find(law.node)
    window = any(label.startswith("_") for label in law.labels)
    for label, slots in law.labels.items():
        if label.startswith("_"):  # windows and places
            continue
        kept = RESULT in slots
        for slot, axis in slots.items():
            for leaf in occurrences(axis):
                cls = leaf.cls
                if rule is not None and label in rule.roles:
                    found.hinted[cls] = rule.roles[label]
                if slot in owned and leaf in home:
                    use = Use(*home[leaf], law.node)
                    if not kept and label in contracts:
                        found.readers[cls].append(use)
                        (found.windows if window else found.maps).add(cls)
                    elif kept and slot in mentioned and _writes(law, slot, contracts):
                        found.writers[cls].append(use)
                        (found.tables if not contracts else found.windows if window else found.maps).add(cls)
                    elif kept:
                        found.others[cls].append(use)
                    elif _chosen_by_input(inference, operands):
                        found.looked_up.add(cls)
        self_fed = slots.keys() & fed & mentioned
        classes = {leaf.cls for axis in slots.values() for leaf in occurrences(axis)}
        if kept and isinstance(expr, Sum) and len(self_fed) > 1:
            found.added |= classes
        if _activations(law, fed, mentioned):
            target = found.contracted if not kept else found.beside if len(self_fed) > 1 else found.free
            if len(self_fed) > 1 or (kept and self_fed):
                target |= classes


def _writes(law: Lawful, slot: str, contracts: list[str]) -> bool:
    """Whether an operand is a linear map or a table: it is contracted with another, or rows of it are looked up."""
    if contracts:
        return any(slot in law.labels[label] for label in contracts)
    return any(RESULT not in slots and slot in slots for slots in law.labels.values())


def _activations(law: Lawful, fed: set[str], mentioned: frozenset[str]) -> bool:
    """Whether two computed values are contracted with each other."""
    return any(
        RESULT not in slots and len(slots.keys() & fed & mentioned) > 1 and not (slots.keys() & mentioned) - fed
        for slots in law.labels.values()
    )


def _chosen_by_input(inference: Inference, operands: Mapping[str, fx.Node]) -> bool:
    """Whether rows are looked up by an input of the program itself, not by something counted or computed."""
    for node in operands.values():
        if node.meta["val"].is_floating_point():
            continue
        while node.op == "call_function" and (rule := inference.rules.find(node)) and rule.moves is not None:
            node = node.all_input_nodes[0]
        if node.op == "placeholder":
            return True
    return False


def roles_of(tolerances: Tolerances, found: Evidence) -> dict[Class, str]:
    """The role of every leaf class that a parameter carries."""
    company: dict[Class, set[Class]] = defaultdict(set)
    for axes in tolerances.tensors():
        for component in components(axes):
            for cls in component:
                company[cls] |= component.keys()
    roles = {}
    for cls, group in tolerances.groups.items():
        roles[cls] = _pinned_role(cls, tolerances, found) if group == "identity" else ""
        roles[cls] = found.hinted.get(cls, "") or roles[cls] or _role(cls, found, company)
    _split_groups(roles, tolerances, found)
    return roles


def _pinned_role(cls: Class, tolerances: Tolerances, found: Evidence) -> str:
    reason = tolerances.reasons.get(cls, "")
    if cls in found.looked_up:
        return "vocabulary"
    return reason if reason in ("input", "output") else ""


def _role(cls: Class, found: Evidence, company: Mapping[Class, set[Class]]) -> str:
    written = {use.tensor for use in found.writers.get(cls, ())}
    linear = cls in found.maps or cls in found.windows
    if cls in found.beside and written:
        return "heads"
    if cls in found.added and len(written) > 1 and linear and cls in found.readers:
        return "residual" if not written <= _tables(cls, found) else "embedding"
    if cls in found.contracted and written:
        return "query_key"
    if cls in found.free and written:
        return "heads" if company[cls] & found.contracted else "value_output"
    if cls in found.tables and not _linear_writers(cls, found):
        return "embedding"
    if cls in found.windows:
        return "channels"
    if cls in found.maps and written and cls in found.readers:
        return "mlp"
    return "other"


def _linear_writers(cls: Class, found: Evidence) -> set[str]:
    return {use.tensor for use in found.writers.get(cls, ())} - _tables(cls, found)


def _tables(cls: Class, found: Evidence) -> set[str]:
    """Tensors that write a class by rows that are looked up."""
    return {use.tensor for use in found.writers.get(cls, ()) if not _contracting(use.node)}


def _contracting(node: fx.Node) -> bool:
    return sum(bool(argument.meta["val"].is_floating_point()) for argument in node.all_input_nodes) > 1


def _split_groups(roles: dict[Class, str], tolerances: Tolerances, found: Evidence) -> None:
    """Of two spaces of heads side by side, the one that keys and values lack counts heads in a group."""
    for axes in tolerances.tensors():
        for component in components(axes):
            pair = [cls for cls in component if roles.get(cls) == "heads"]
            if len(pair) > 1:
                shared = [cls for cls in pair if _everywhere(cls, tolerances, roles)]
                for cls in shared if len(shared) < len(pair) else ():
                    roles[cls] = "kv_groups"


def _everywhere(cls: Class, tolerances: Tolerances, roles: Mapping[Class, str]) -> bool:
    """Whether a class stands beside every query, key and value space of its heads."""
    inner = [
        component
        for axes in tolerances.tensors()
        for component in components(axes)
        if any(roles.get(c) in ("query_key", "value_output") for c in component)
    ]
    mine = {
        c for component in inner if cls in component for c in component if roles.get(c) in ("query_key", "value_output")
    }
    return all(cls in component for component in inner if mine & component.keys())


def uses(found: Evidence, cls: Class) -> Iterator[tuple[Use, ...]]:
    """Readers, writers and other parameters of a class, each once."""
    for kind in (found.readers, found.writers, found.others):
        yield tuple(dict.fromkeys(kind.get(cls, ())))
