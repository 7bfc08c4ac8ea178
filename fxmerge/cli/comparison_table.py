"""What `fxmerge compare` prints: a line as each method is done, then one table."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxmerge.cli.bars import duration
from fxmerge.cli.report import number, percent
from fxmerge.compiler.comparison import BEST_BY, Comparison, Row


def progress(row: Row, done: int, total: int) -> str:
    """What there is to say when a method is done."""
    what = f"failed: {row.failed}" if row.failed else f"done in {duration(row.seconds)}"
    return f"{done}/{total} {row.method} {what}"


def table(found: Comparison) -> RenderableType:
    """A row a method, the best one marked; below it by what it is the best, and where it is."""
    rows = Table(title="methods compared", title_justify="left")
    rows.add_column("method")
    for column in ("agreement with parents", "feature R²", "time", "parameters", "of one parent"):
        rows.add_column(column, justify="right")
    rows.add_column("")
    for row in found.rows:
        best = row.method == found.best_method
        name = Text(row.method, style="bold" if best else "")
        if row.failed:
            rows.add_row(name, *["–"] * 5, Text(f"failed: {row.failed}", style="red"))
            continue
        rows.add_row(
            name, percent(row.agreement), number(row.feature_r2), duration(row.seconds), f"{row.parameters:,}",
            percent(row.share), Text("best" if best else "", style="bold green"),
        )  # fmt: skip
    if found.best_method is None:
        return Group(rows, Text("no samples were given, so nothing says which is best", style="dim"))
    lines: list[RenderableType] = [rows, Text(f"best by {BEST_BY}", style="dim")]
    if found.out:
        lines.append(Text(f"written: {found.out} ({found.best_method})", style="bold"))
    return Group(*lines)
