"""Which tensors of a file are a model's weights, and under which of the file's names the model finds its own.

Training scripts keep weights at any depth (`{"epoch": 3, "model_state": {…}}`), in several versions (raw and averaged),
under names that wrappers lengthen (`module.`, `_orig_mod.`). One rule reads them all: the mapping of tensors, and the
prefix in it, that torch itself loads into the model without a name missing or left over.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxmerge.errors import SourceError
from fxmerge.messages import listed, nearest, printable, reason

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that DataParallel, torch.compile, FSDP and checkpointing put anywhere in them."""
BOOKKEEPING = "n_averaged"
"""A counter that torch's AveragedModel keeps beside the weights."""
DEPTH = 12
"""Levels of mappings that are looked into."""
NAMES = "names"
"""What is wrong when names are missing or too many, not sizes."""
TRIED = 8
"""Prefixes of one mapping that are tried on the model, those with most names in common first."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Fit:
    """One way to read a mapping of a file as the weights of a model."""

    key: str
    """Where the weights are: the keys that lead to them and the prefix of their names, joined by dots."""
    state: State
    """Tensors by the model's names."""
    home: str
    """Keys that lead to the mapping that holds them."""
    renamed: Mapping[str, str]
    """The model's name by the file's name in that mapping, of all tensors taken."""
    common: int
    """How many names the model has too."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds: mappings in mappings, with tensors at their ends."""

    path: Path
    tree: Mapping[Any, Any] = field(repr=False)
    key: str | None = None
    """Where the user says the weights are; None to look for them."""
    ignored: tuple[str, ...] = ()
    """Patterns of names that are left out."""

    def choosing(self, key: str | None, ignored: Sequence[str]) -> Checkpoint:
        return replace(self, key=key, ignored=tuple(ignored))

    @property
    def largest(self) -> State:
        """The mapping with the most tensors, as it is named there."""
        return max((state for _, state in _mappings(self.tree)), key=len, default={})

    def put_into(self, model: nn.Module, arch: str) -> tuple[str, ...]:
        """Load the weights that fit into `model`; notes that say which were taken.

        Raises `SourceError` with the names and sizes that do not fit, if none do.
        """
        own = model.state_dict().keys()
        tried = self._fits(own)
        verdicts = {id(fit): _loaded(model, fit.state) for fit in tried}
        whole = [fit for fit in tried if not verdicts[id(fit)]]
        fitting = [fit for fit in whole if not self._left(fit, whole)]
        if not fitting:
            best = (whole or tried)[0]
            raise _misfit(model, best.state, self._left(best, whole), verdicts[id(best)], arch)
        chosen = fitting[0]
        if len(verdicts) > 1:  # those tried after it are in the model now
            _loaded(model, chosen.state)
        return self._notes(chosen, [fit.key for fit in fitting[1:]])

    def named_like(self, own: Collection[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The weights that share most names with `own`, by those names, the rest of their mapping as it is; notes."""
        fits = self._fits(own)
        best = fits[0]
        rest = {name: self._at(best.home)[name] for name in self._left(best, fits)}
        others = [fit.key for fit in fits[1:] if fit.common == best.common]
        return {**best.state, **rest}, self._notes(best, others)

    def _at(self, home: str) -> State:
        return next(state for key, state in _mappings(self.tree) if key == home)

    def _fits(self, own: Collection[str]) -> list[Fit]:
        """Every mapping under every prefix that has names in common with the model, the most promising first."""
        found: dict[str, Fit] = {}
        for home, state in _mappings(self.tree):
            kept = {n: t for n, t in state.items() if not self._ignores(n) and (n in own or not _counts(n))}
            for key, renamed, common in _renamings(kept, own):
                where = ".".join(part for part in (home, key) if part)
                if where not in found and self._asked(where):
                    named = _with_metadata(state, {renamed[n]: t for n, t in kept.items() if n in renamed}, renamed)
                    found[where] = Fit(where, named, home, renamed, common)
        if not found:
            keys = [key for key, _ in _mappings(self.tree) if key]
            raise SourceError(
                f"{self.path} has no weights under {self.key!r}{nearest(self.key or '', keys)}",
                f"it has {listed(keys)}; --key TASK=NAME is for one parent of several"
                if keys
                else "leave --key out: the weights are not under any key",
            )
        most = max(fit.common for fit in found.values())
        return [fit for fit in found.values() if 2 * fit.common >= most]

    def _asked(self, where: str) -> bool:
        return self.key is None or where == self.key or where.startswith(f"{self.key}.")

    def _ignores(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.ignored)

    def _left(self, fit: Fit, others: Sequence[Fit]) -> list[str]:
        """Names in the mapping of `fit` that belong neither to it nor to another set of weights beside it.

        One of several numbered layers is no set of weights: the layers beside it are left.
        """
        if self.key is not None:
            return []
        beside = [o for o in others if o.home == fit.home and not o.key.rpartition(".")[2].isdigit()]
        taken = set(fit.renamed).union(*(other.renamed for other in beside))
        return [n for n in self._at(fit.home) if n not in taken and not self._ignores(n) and not _counts(n)]

    def _notes(self, chosen: Fit, others: Sequence[str]) -> tuple[str, ...]:
        notes = []
        if chosen.key:
            notes.append(f"{self.path}: took the weights under {chosen.key!r}")
        else:
            said = sorted({part for name in chosen.renamed for part in name.split(".") if part in WRAPPERS})
            if said and any(name != ours for name, ours in chosen.renamed.items()):
                notes.append(f"{self.path}: read its names without {listed(said)}")
        if others:
            names = printable(listed(map(repr, others)))
            notes.append(f"{self.path} has other weights that fit: {names} (--key NAME takes them)")
        dropped = [name for name in self._at(chosen.home) if self._ignores(name)]
        if dropped:
            notes.append(f"{self.path}: ignored {len(dropped)} tensors: {printable(listed(dropped, 3))}")
        if any(t.dtype in (torch.float16, torch.bfloat16) for t in chosen.state.values()):
            notes.append(f"{self.path}: weights in half precision were read as float32")
        return tuple(notes)


def modules_in(tree: Any) -> dict[str, nn.Module]:
    """Whole modules of a checkpoint by the keys that lead to them."""
    if isinstance(tree, nn.Module):
        return {"": tree}
    return {key: value for key, value in _walk(tree) if isinstance(value, nn.Module)}


def _walk(tree: Any, key: str = "", depth: int = 0, seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Everything in nested mappings by its keys, what an optimizer keeps aside; inner mappings before outer ones."""
    seen = set() if seen is None else seen
    if isinstance(tree, Mapping):
        if id(tree) in seen or depth > DEPTH or "param_groups" in tree:
            return
        seen.add(id(tree))
        for name, value in tree.items():
            yield from _walk(value, f"{key}.{name}" if key else str(name), depth + 1, seen)
    yield key, tree


def _mappings(tree: Mapping[Any, Any]) -> Iterator[tuple[str, State]]:
    """Every mapping that holds tensors at any depth, by its keys, with the names below it joined by dots."""
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in _walk(tree):
        if isinstance(value, Tensor):
            tensors[key] = value.detach()
        elif isinstance(value, Mapping):
            start = f"{key}." if key else ""
            inside = OrderedDict((n.removeprefix(start), t) for n, t in tensors.items() if n.startswith(start))
            if hasattr(value, "_metadata"):  # versions of modules, which torch reads names by
                inside._metadata = value._metadata  # type: ignore[attr-defined]
            if inside:
                yield key, inside


def _counts(name: str) -> bool:
    return name.rpartition(".")[2] == BOOKKEEPING


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _renamings(state: State, own: Collection[str]) -> Iterator[tuple[str, dict[str, str], int]]:
    """(prefix, the model's name by the file's, how many the model has) of every prefix that some names agree on."""
    theirs = {name: _bare(name) for name in state}
    if len(set(theirs.values())) < len(theirs):
        theirs = {name: name for name in state}
    ours = {_bare(name): name for name in own}
    if len(ours) < len(set(own)):
        ours = {name: name for name in own}
    votes = Counter({("", ""): 0})
    for bare in theirs.values():
        votes.update((start, "") for start, rest in _ends(bare) if rest in ours)
    known = set(theirs.values())
    for bare in ours:
        votes.update(("", start) for start, rest in _ends(bare) if start and rest in known)
    plain = sum(name in own for name in state)
    if plain == len(state):
        votes[("", "")] = plain
    for (drop, add), common in votes.most_common(TRIED):
        renamed = {}
        for name, bare in theirs.items():
            if bare.startswith(drop):
                fitted = add + bare.removeprefix(drop)
                renamed[name] = ours.get(fitted, fitted)
        if len(set(renamed.values())) == len(renamed):
            yield drop.rstrip("."), renamed, common


def _ends(name: str) -> Iterator[tuple[str, str]]:
    """(start, rest) of a dotted name, cut at every dot: the start keeps its dot."""
    parts = name.split(".")
    for i in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:i]), ".".join(parts[i:])


def _with_metadata(state: State, named: dict[str, Tensor], renamed: Mapping[str, str]) -> State:
    """The tensors with the versions that `state` keeps of its modules, by the modules' new names."""
    result: OrderedDict[str, Tensor] = OrderedDict(named)
    versions = getattr(state, "_metadata", None)
    if isinstance(versions, Mapping):
        homes = {ours.rpartition(".")[0]: theirs.rpartition(".")[0] for theirs, ours in renamed.items()}
        result._metadata = {  # type: ignore[attr-defined]
            ours: versions[theirs] for ours, theirs in homes.items() if theirs in versions
        }
    return result


def _loaded(model: nn.Module, state: State) -> str:
    """Load a state dict as torch does, version by version and hook by hook; what is wrong, or nothing."""
    try:
        missing, extra = _load(model, state)
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        return reason(error)  # sizes, or a hook of the module that does not find what it looks for
    return NAMES if missing or extra else ""


def _load(model: nn.Module, state: State) -> tuple[list[str], list[str]]:
    """Load what can be loaded: names that are missing, and names too many. A tensor under two names is needed once."""
    wrong = model.load_state_dict(state, strict=False)
    own = model.state_dict(keep_vars=True)
    given = {id(own[name]) for name in own if name in state}
    return [n for n in wrong.missing_keys if n not in own or id(own[n]) not in given], list(wrong.unexpected_keys)


def _misfit(model: nn.Module, state: State, left: Sequence[str], verdict: str, arch: str) -> SourceError:
    own = model.state_dict()
    missing, extra = _load(model, state) if verdict == NAMES else ([], [])
    extra += left
    for name, tensor in own.items():
        if name in state and tensor.shape != state[name].shape and not missing:
            return SourceError(
                f"the weights do not belong to {arch}: {name} has shape {tuple(state[name].shape)}",
                f"the model it builds has {tuple(tensor.shape)}: check the sizes",
            )
    if not missing and not extra:
        return SourceError(
            f"the weights do not belong to {arch}: {verdict}", "check that --arch builds the trained model"
        )
    what = f"missing: {listed(missing, 3)}; not in the model: {printable(listed(extra, 3))}"
    hints = [nearest(name, extra).removesuffix("?") + f" for {name}?" for name in missing[:3] if nearest(name, extra)]
    todo = "check that --arch builds the trained model"
    if not missing:
        flags = " ".join(f"--ignore '{pattern}'" for pattern in _patterns(extra, own))
        todo += f"; if they are no weights of it: {printable(flags)}"
    return SourceError(f"the weights do not belong to {arch} ({what}){''.join(hints)}", todo)


def _patterns(extra: Sequence[str], own: Collection[str]) -> list[str]:
    """A few patterns that match all of these names and none of the model's."""
    for part in ("*{0[2]}", "{0[0]}.*"):
        found = sorted({part.format((n.partition(".")[0], "", n.rpartition(".")[2])) for n in extra})
        clash = any(fnmatchcase(name, pattern) for name in own for pattern in found)
        if len(found) <= 4 and not clash and all(any(fnmatchcase(n, p) for p in found) for n in extra):
            return found
    return list(extra)
