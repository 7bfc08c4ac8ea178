"""The page of `inspect --html`: what is drawn, what a click shows, and that it needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxmerge.capturing import capture
from fxmerge.cli.inspect_page import HUES, page
from fxmerge.cli.picture import calls, draw, kind_of
from fxmerge.compiler.inspection import Examined, examine

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEVER_CLOSED = {"meta", "line", "rect", "path", "br"}


class RMSNorm(nn.Module):
    """Written out, as exported models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.think = nn.LayerNorm(16), RMSNorm(16)
        self.qkv, self.out, self.up, self.down = (nn.Linear(*s) for s in ((16, 48), (16, 16), (16, 24), (24, 16)))
        self.scale = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.attend(x)).view(b, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        x = x + self.scale * self.out(y)
        return x + self.down(F.gelu(self.up(self.think(x))))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks, self.head = nn.Linear(6, 16), nn.ModuleList([Block(), Block()]), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


@pytest.fixture(scope="module")
def found() -> Examined:
    torch.manual_seed(0)
    return examine(capture(Model(), (torch.randn(2, 5, 6),), task="<digits> & more"))


@pytest.fixture(scope="module")
def text(found: Examined) -> str:
    return page(found.program, found.spaces, found.described)


class Reader(HTMLParser):
    """Collects elements; fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in NEVER_CLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in NEVER_CLOSED:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        last = self.elements[-1][1] if self.elements else {}
        self.data[str(last.get("id"))] = self.data.get(str(last.get("id")), "") + data


@pytest.fixture(scope="module")
def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def _named(read: Reader, key: str) -> list[dict[str, str | None]]:
    return [attributes for _, attributes in read.elements if key in attributes]


def test_the_page_needs_nothing_else(text: str) -> None:
    assert not re.search(r"""(src|href)\s*=|@import|url\((?!#)|https?://(?!www\.w3\.org/2000/svg)""", text)
    assert "<digits>" not in text
    assert "&lt;digits&gt; &amp; more" in text


def test_every_space_of_a_parameter_is_drawn_once_per_block_and_can_be_clicked(found: Examined, read: Reader) -> None:
    drawn = {str(a["data-id"]) for a in _named(read, "data-id")}
    wanted = {name for name, space in found.described["spaces"].items() if space["role"] in HUES and space["size"] > 1}
    used = {name for name in wanted if found.spaces.spaces[name].readers or found.spaces.spaces[name].writers}
    assert used <= drawn
    details = json.loads(read.data["data"])
    assert drawn <= set(details)
    assert all(a.get("role") == "button" and a.get("tabindex") == "0" for a in _named(read, "data-id"))


def test_residual_stream_heads_and_norms_look_different(found: Examined, read: Reader) -> None:
    classes = [str(a["class"]) for a in _named(read, "data-id")]
    assert sum("lane" in c for c in classes) == 1
    assert sum("norm" in c for c in classes) == 4  # two LayerNorms, two RMSNorms written out
    assert sum("scale" in c.split() for c in classes) == 2  # LayerScale divides nothing by its own size
    roles = [a["data-role"] for a in _named(read, "data-id")]
    assert roles.count("heads") == 2
    assert len(set(HUES.values())) >= 9


def test_a_click_shows_parameters_and_source_lines(found: Examined, read: Reader) -> None:
    details = json.loads(read.data["data"])
    stream = next(name for name, space in found.described["spaces"].items() if space["role"] == "residual")
    uses = details[stream]["uses"]
    assert {use["parameter"] for use in uses if use["how"] == "written by"} >= {"first.weight", "blocks.0.out.weight"}
    assert {use["parameter"] for use in uses if use["how"] == "read by"} >= {"blocks.1.up.weight", "head.weight"}
    assert all(re.fullmatch(r"test_inspect_page\.py:\d+", use["at"]) for use in uses)
    assert next(use for use in uses if use["parameter"] == "blocks.0.qkv.weight")["shape"] == [48, 16]


def test_blocks_follow_the_stream(found: Examined) -> None:
    picture = draw(found.program, found.spaces, found.described["spaces"])
    titles = [block.title for block in picture.blocks]
    assert titles[1:5] == ["blocks.0", "blocks.0", "blocks.1", "blocks.1"]
    kinds = [{item.kind for item in block.items} for block in picture.blocks]
    assert all("norm" in kind for kind in kinds[1:5])
    tops = [block.top for block in picture.blocks]
    assert tops == sorted(tops)
    assert all(edge.how != "write" for edge in picture.blocks[-1].edges)


def test_items_do_not_overlap(found: Examined) -> None:
    picture = draw(found.program, found.spaces, found.described["spaces"])
    for block in picture.blocks:
        for i, a in enumerate(block.items):
            assert a.x + a.width <= picture.width
            assert block.top <= a.y
            assert a.y + a.height <= block.top + block.height
            for b in block.items[i + 1 :]:
                apart = a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y
                assert apart, (a, b)


def test_a_model_without_a_stream_is_drawn_too() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    found = examine(capture(net, (torch.randn(2, 6),)))
    picture = draw(found.program, found.spaces, found.described["spaces"])
    assert picture.lanes == ()
    assert [kind_of(call) for call in calls(found.program, found.spaces, found.described["spaces"])] == ["map", "map"]
    assert "0.weight" in page(found.program, found.spaces, found.described)


# -- in a real browser ---------------------------------------------------------------------------------


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[str], str]:
    """The document after its scripts ran, as headless Chromium has it."""
    if BROWSER is None:
        pytest.skip("needs Chromium")

    def dump(text: str) -> str:
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --virtual-time-budget=2000 --dump-dom"
        )
        command = [
            str(BROWSER),
            *flags.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"file://{tmp_path}/page.html",
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return dump


def test_a_click_in_a_browser(found: Examined, text: str, browse: Callable[[str], str]) -> None:
    space = next(name for name, values in found.described["spaces"].items() if values["role"] == "mlp")
    click = f"""<script>
      const target = document.querySelector('[data-id="{space}"] rect');
      target.dispatchEvent(new MouseEvent("click", {{bubbles: true}}));
    </script></body>"""
    shown = browse(text.replace("</body>", click))
    aside = shown[shown.index("<aside") : shown.index("</aside>")]
    assert f'data-picked="{space}"' in aside
    assert "mlp" in aside
    for part in ("written by", "up.weight", "read by", "down.weight", "test_inspect_page.py:"):
        assert part in aside
    assert re.search(rf'class="item space hit" data-id="{space}"', shown)
    assert "Nothing picked" in browse(text)


def test_no_script_errors_on_any_kind_of_item(found: Examined, text: str, browse: Callable[[str], str]) -> None:
    probe = """<pre id="errors"></pre><script>
      window.onerror = message => { document.getElementById("errors").textContent += message; };
      for (const e of document.querySelectorAll("[data-id], #legend button"))
        e.dispatchEvent(new MouseEvent("click", {bubbles: true}));
      document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
      document.getElementById("errors").textContent += "done";
    </script></body>"""
    shown = browse(text.replace("</body>", probe))
    assert '<pre id="errors">done</pre>' in shown
    assert "picked" not in re.findall(r'<svg[^>]*class="([^"]*)"', shown)
