"""What fxmerge knows, as values: rules, rewrites, passes, methods, ONNX operators and formats, joined by `+`.

The built-in knowledge, an installed package's (entry point group "fxmerge.extensions") and a user's file
(`--extension file.py:NAME`) all come through this door; nothing is registered anywhere by being imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NoReturn

from fxmerge.coupling import Rule, RuleSet
from fxmerge.errors import ExtensionError, OptionError
from fxmerge.from_onnx.call import Operator
from fxmerge.messages import nearest
from fxmerge.methods.base import Method
from fxmerge.pipeline.format import SUFFIXES, Format
from fxmerge.pipeline.passes import Pass, check_class
from fxmerge.rewrite import Rewrite

GROUP = "fxmerge.extensions"
BUILTIN_OWNER = "fxmerge"
"""Owner of the built-in knowledge."""
Kind = Literal["rule", "rewrite", "pass", "method", "ONNX operator", "format"]


@dataclass(frozen=True)
class Item:
    """One thing an extension brings; a rule for several operators is an item for each."""

    kind: Kind
    name: str
    summary: str
    owner: str
    value: Any = field(repr=False)


@dataclass(frozen=True, init=False)
class Extension:
    """Rules, rewrites, passes, methods, ONNX operators, formats under an owner's name.

    `a + b` has both; a clash is an `ExtensionError`.
    """

    name: str
    items: tuple[Item, ...]

    def __init__(
        self,
        name: str = "",
        *,
        rules: Rule | Iterable[Rule] = (),
        rewrites: Rewrite | Iterable[Rewrite] = (),
        passes: type[Pass] | Iterable[type[Pass]] = (),
        methods: Method | Iterable[Method] = (),
        onnx: Operator | Iterable[Operator] = (),
        formats: Format | Iterable[Format] = (),
    ) -> None:
        """One or several of each. `name` is shown as their owner; a file or package sets it if it is empty."""
        found = [_rule_items(rule) for rule in _several(rules)]
        found += [_rewrite_items(each) for each in _several(rewrites)]
        found += [_pass_items(each, name) for each in _several(passes)]
        found += [_method_items(each) for each in _several(methods)]
        found += [_operator_items(each) for each in _several(onnx)]
        found += [_format_items(each) for each in _several(formats)]
        self._fill(name, [replace(item, owner=name) for items in found for item in items])

    def _fill(self, name: str, items: Sequence[Item]) -> Extension:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "items", _without_clash(items))
        return self

    def __add__(self, other: Extension) -> Extension:
        return object.__new__(Extension)._fill(self.name or other.name, self.items + other.items)

    def owned_by(self, owner: str) -> Extension:
        """The same under an owner's name, where it has none of its own."""
        items = [item if item.owner else replace(item, owner=owner) for item in self.items]
        return object.__new__(Extension)._fill(self.name or owner, items)

    # -- what is in it -----------------------------------------------------------------------------------

    def of(self, kind: Kind) -> tuple[Item, ...]:
        """The items of one kind, in the order given."""
        return tuple(item for item in self.items if item.kind == kind)

    @cached_property
    def rules(self) -> RuleSet:
        return RuleSet(tuple(dict.fromkeys(item.value for item in self.of("rule"))))

    @cached_property
    def rewrites(self) -> tuple[Rewrite, ...]:
        return tuple(item.value for item in self.of("rewrite"))

    @cached_property
    def passes(self) -> tuple[type[Pass], ...]:
        return tuple(item.value for item in self.of("pass"))

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        return tuple(item.value for item in self.of("method"))

    @cached_property
    def operators(self) -> dict[str, Operator]:
        """How ONNX operators are read, by their names."""
        return {item.name: item.value for item in self.of("ONNX operator")}

    @cached_property
    def formats(self) -> tuple[Format, ...]:
        """Ways to write a model beside the built-in ones."""
        return tuple(item.value for item in self.of("format"))

    def find(self, kind: Kind, name: str) -> Any:
        """The thing of this name. Raises `OptionError` naming the nearest one."""
        table = {item.name: item.value for item in self.of(kind)}
        if name not in table:
            raise OptionError(f"unknown {kind} {name!r}{nearest(name, table)}", f"`fxmerge {_plural(kind)}` lists them")
        return table[name]

    def owner(self, kind: Kind, name: str) -> str:
        """Who brought the thing of this name."""
        return next((item.owner for item in self.of(kind) if item.name == name), "") or "an unnamed extension"

    def blame(self, kind: Kind, name: str, error: Exception) -> None:
        """Raise an `ExtensionError` that names the owner of what failed, unless that is built in: then it is a bug."""
        owner = self.owner(kind, name)
        if owner != BUILTIN_OWNER:
            raise ExtensionError(
                f"{kind} {name} of {owner} failed: {type(error).__name__}: {error}",
                "report it to its owner, or run without that extension",
            ) from error


def _without_clash(items: Iterable[Item]) -> tuple[Item, ...]:
    """Every item once. Raises `ExtensionError` for two things of one kind and name, naming both owners."""
    table: dict[tuple[str, str], Item] = {}
    for item in items:
        old = table.setdefault((item.kind, item.name), item)
        if old.value != item.value:
            owners = [each.owner or "an unnamed extension" for each in (old, item)]
            raise ExtensionError(
                f"two {_plural(item.kind)} named {item.name!r}: one from {owners[0]}, one from {owners[1]}",
                "rename one of them, or leave one of the extensions out",
            )
    return tuple(table.values())


def _plural(kind: str) -> str:
    return kind + ("es" if kind.endswith("s") else "s")


def _several(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, list | tuple | RuleSet | Iterator) else (values,)


def _rule_items(rule: Any) -> list[Item]:
    _require(isinstance(rule, Rule), rule, "rules", "made by couples, moves or fills")
    form = rule.couples
    if callable(form) or rule.moves is not None:
        form = ((form or rule.moves).__doc__ or "").strip().partition("\n")[0] or "a function of the call"
    form = form if isinstance(form, str) else form[0] if form else "a constant"
    return [Item("rule", name, form, "", rule) for name in rule.ops]


def _rewrite_items(each: Any) -> list[Item]:
    _require(isinstance(each, Rewrite), each, "rewrites", "made by rewrite or Rewrite")
    return [Item("rewrite", each.name, each.summary, "", each)]


def _pass_items(each: Any, owner: str) -> list[Item]:
    _require(isinstance(each, type) and issubclass(each, Pass), each, "passes", "classes derived from Pass")
    check_class(each, owner or each.__module__)
    return [Item("pass", each.name, each.summary(), "", each)]


def _method_items(each: Any) -> list[Item]:
    wanted = ("name", "summary", "needs_data", "__call__")
    fits = not isinstance(each, type) and all(hasattr(each, name) for name in wanted)
    _require(fits, each, "methods", "objects with name, summary and needs_data that are called with a Job")
    return [Item("method", each.name, each.summary, "", each)]


def _operator_items(each: Any) -> list[Item]:
    _require(isinstance(each, Operator), each, "ONNX operators", "made by from_onnx")
    return [Item("ONNX operator", name, each.summary, "", each) for name in each.names]


def _format_items(each: Any) -> list[Item]:
    _require(isinstance(each, Format), each, "formats", "made by Format")
    suffix = each.suffix
    plain = len(suffix) > 1 and suffix[0] == "." and not set(suffix[1:]) & set("./\\")
    _require(plain and suffix not in SUFFIXES, suffix, "suffixes", "a dot and a word, and none of the built-in ones")
    return [Item("format", suffix, each.summary, "", each)]


def _require(fits: bool, value: Any, what: str, wanted: str) -> None:
    if not fits:
        raise ExtensionError(f"{value!r} stands among the {what} of an extension", f"{what} are {wanted}")


# -- loading -----------------------------------------------------------------------------------------------


def collect(builtin: Extension, files: Sequence[str] = (), installed: bool = True) -> Extension:
    """The built-in knowledge, that of installed packages, and that of `FILE:NAME`s, together."""
    known = builtin
    for more in from_packages() if installed else ():
        known = known + more
    for file in dict.fromkeys(files):
        known = known + from_file(file)
    return known


def from_packages() -> Iterator[Extension]:
    """The extensions of installed packages, in the order of their names."""
    points = importlib.metadata.entry_points(group=GROUP)
    for point in sorted(points, key=lambda p: (p.name, p.value)):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        try:
            value = point.load()
        except Exception as error:
            raise ExtensionError(
                f"extension {point.name} of package {package} cannot be loaded: {type(error).__name__}: {error}",
                "update or uninstall that package",
            ) from error
        yield _extension(value, f"{point.name} of package {package}").owned_by(package)


def from_file(text: str) -> Extension:
    """The extension in `FILE:NAME`. The file is run: it is code the user chose."""
    file, colon, name = text.rpartition(":")
    path = Path(file).expanduser()
    if not colon or not file or not name.isidentifier():
        raise OptionError(f"--extension {text} does not say which name to take", "write it as --extension file.py:NAME")
    if not path.is_file():
        raise ExtensionError(f"there is no file {path}", "check the path before the colon of --extension file.py:NAME")
    module = _run(path.resolve())
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if isinstance(value, Extension)]
        raise ExtensionError(
            f"{path} has no {name!r}{nearest(name, known)}", f"it has the extensions: {', '.join(known) or 'none'}"
        )
    return _extension(getattr(module, name), text).owned_by(text)


def _run(path: Path) -> ModuleType:
    """The module of a file, run once in this process."""
    unique = f"fxmerge_extension_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ExtensionError(f"{path} is no Python file", "give --extension a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    sys.path.insert(0, str(path.parent))  # A file may import its neighbours, as a script may.
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[unique]
        _not_run(path, error)
    finally:
        sys.path.remove(str(path.parent))
    return module


def _not_run(path: Path, error: Exception) -> NoReturn:
    trace = error.__traceback__
    line = 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    line = getattr(error, "lineno", None) or line
    raise ExtensionError(
        f"{path} line {line}: {type(error).__name__}: {error}", "correct the file, or leave --extension out"
    ) from error


def _extension(value: Any, where: str) -> Extension:
    if not isinstance(value, Extension):
        raise ExtensionError(
            f"{where} is a {type(value).__name__}, not an Extension", "make it one: Extension(rules=..., methods=...)"
        )
    return value
