"""What a model's folder says of its license: in the front matter of its card, or in its config.json."""

from __future__ import annotations

from pathlib import Path

from fxmerge.errors import FxmergeError, SourceError
from fxmerge.io.files import read_json
from fxmerge.io.guard import read_bytes
from fxmerge.io.yaml_text import parse_yaml
from fxmerge.messages import printable

MOST_BYTES = 4 << 20
"""Of a card: it may hold pictures."""


def license_of(source: str | Path | None) -> str | None:
    """The license that a folder names, as it is written there; None where nothing says one, or no file is readable."""
    folder = Path(source) if source is not None else None
    if folder is None or not folder.is_dir():
        return None
    try:
        found = _front_matter(folder / "README.md").get("license") or _config(folder / "config.json").get("license")
    except FxmergeError:
        return None
    return printable(found) if isinstance(found, str) and found.strip() else None


def _front_matter(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    lines = read_bytes(path, most=MOST_BYTES).decode("utf-8", "replace").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:]:
        return {}
    block = "\n".join(lines[1 : lines.index("---", 1)])
    values = parse_yaml(block.encode(), path, SourceError, "correct its front matter")
    return values if isinstance(values, dict) else {}


def _config(path: Path) -> dict[str, object]:
    values = read_json(path) if path.is_file() else {}
    return values if isinstance(values, dict) else {}
