"""Files that are replaced while they are served."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxmerge.errors import OptionError, SourceError
from fxmerge.serving import models
from fxmerge.serving.protocol import InferRequest

ROWS = InferRequest({"x": np.ones((1, 8), "f")})


async def looks(service: Any) -> None:
    """What two rounds of the watch do."""
    for _ in range(2):
        for served in service.models.values():
            await served.look()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is logged of models."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(models, "log", lambda event, **fields: found.append({"event": event} | fields))
    return found


def test_a_file_that_is_replaced_takes_over(two_tasks: Any, serve: Any, hold: Any, lines: Any) -> None:
    path, other = two_tasks(), two_tasks("other.onnx", 1)

    async def go() -> None:
        service = serve(path, max_wait=0)
        held = hold(service)
        before = asyncio.ensure_future(service.infer("two", "", ROWS, "rest"))
        await asyncio.to_thread(held.began.wait, 20)
        other.replace(path)
        await looks(service)
        after = await service.infer("two", "", ROWS, "rest")  # the new model answers while the old one still runs
        assert not before.done()
        held.go.set()
        old = await before
        assert old.version != after.version == service.models["two"].engine.version
        assert not np.allclose(old.outputs["a.logits"], after.outputs["a.logits"])
        await looks(service)
        await service.close()
        assert [line["event"] for line in lines] == ["reloaded"]
        assert 'fxmerge_reloads_total{model="two",result="taken"} 1.0' in service.metrics.text().decode()

    asyncio.run(go())


@pytest.mark.parametrize("damage", ["half", "empty", "gone"])
def test_a_file_that_is_not_whole_does_not(damage: str, two_tasks: Any, serve: Any, lines: Any) -> None:
    path = two_tasks()
    whole = path.read_bytes()

    async def go() -> None:
        service = serve(path)
        version = service.models["two"].engine.version
        if damage == "gone":
            path.unlink()
        else:
            part = path.with_suffix(".part")
            part.write_bytes(whole[: len(whole) // 2] if damage == "half" else b"")
            part.replace(path)
        await looks(service)
        await looks(service)
        assert (await service.infer("two", "", ROWS, "rest")).version == version
        if damage == "gone":
            assert not lines
        else:
            [told] = lines  # once, not at every look
            assert told["event"] == "reload refused" and str(path) in told["what"] and "served on" in told["todo"]
        await service.close()

    asyncio.run(go())


def test_two_files_of_one_name(two_tasks: Any, serve: Any, tmp_path: Path) -> None:
    path = two_tasks()
    (tmp_path / "sub").mkdir()
    shutil.copy(path, tmp_path / "sub")
    with pytest.raises(OptionError, match="two models are called 'two'"):
        serve(path, tmp_path / "sub" / "two.onnx")


def test_a_file_that_is_no_model(tmp_path: Path, serve: Any) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing of that kind")
    with pytest.raises(SourceError, match=r"bad.onnx: ONNX Runtime cannot open it"):
        serve(tmp_path / "bad.onnx")
