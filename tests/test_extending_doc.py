"""Every block of docs/extending.md runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))


def run(*command: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, input=stdin, timeout=240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the page tells the reader to write, after its Python was run there."""
    folder = tmp_path_factory.mktemp("extending")
    for kind, name, text in BLOCKS:
        if name:
            assert kind == "python"
            (folder / name).write_text(text, encoding="utf-8")
    script = "\n".join(text for kind, name, text in BLOCKS if kind == "python" and not name)
    (folder / "page.py").write_text(script, encoding="utf-8")
    done = run(sys.executable, "-W", "error", "page.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "find-gate: did not fire; refused: the scale is no vector of the features, at %scale" in done.stdout
    return folder


def test_the_page_has_all_kinds_of_blocks() -> None:
    files = [name for _, name, _ in BLOCKS if name]
    assert files == [
        "gate.py", "gate_rules.py", "gate_rewrites.py", "gate_passes.py", "gate_methods.py", "gate_onnx.py",
        "gate_formats.py", "gate_extension.py",
    ]  # fmt: skip
    assert {kind for kind, _, _ in BLOCKS} == {"python", "sh", "toml"}


COMMANDS = """
import shlex, sys
from fxmerge.cli import main
for line in sys.stdin.read().splitlines():
    program, *arguments = shlex.split(line)
    assert program == "fxmerge", line
    assert main(arguments) == 0, line
"""


def test_its_commands_run(folder: Path) -> None:
    lines = "".join(text for kind, _, text in BLOCKS if kind == "sh")
    assert lines.count("fxmerge ") == 4
    done = run(sys.executable, "-c", COMMANDS, cwd=folder, stdin=lines)
    assert done.returncode == 0, done.stderr
    assert re.search(r"by-size .* from gate_extension.py:extension", done.stdout)
    assert all((folder / name).stat().st_size > 0 for name in ("merged.onnx", "merged.npz"))


def test_its_entry_point_is_the_one_of_the_example() -> None:
    (text,) = (text for kind, _, text in BLOCKS if kind == "toml")
    page = tomllib.loads(text)["project"]["entry-points"]
    example = tomllib.loads((ROOT / "tests/extension_example/pyproject.toml").read_text(encoding="utf-8"))
    assert page.keys() == example["project"]["entry-points"].keys()
