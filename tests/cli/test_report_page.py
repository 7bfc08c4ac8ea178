"""The report of a real merge: every section has its figures, and the page is at home on a phone without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxmerge.capturing import capture
from fxmerge.cli import answers, report_page
from fxmerge.cli.report_page import SECTIONS
from fxmerge.compiler.comparison import Row
from fxmerge.compiler.merging import merge_alone
from fxmerge.config import MergeConfig
from fxmerge.methods.mixing import mixing
from fxmerge.output.insight import alignment, blocks, furthest
from fxmerge.output.merged import Merged

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CONFIG = MergeConfig.of(method="foldable", init="average", steps=8, augment="none", batch_size=16, report="r.html")
PHONE = 360


class Net(nn.Module):
    """(batch, 1, 8, 8) images to 5 logits, over a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 12, 8)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12)) for _ in range(2)]
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(1)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def merged() -> Merged:
    parents = []
    for k, task in enumerate(("<i>a", "b")):
        torch.manual_seed(k)
        parents.append(capture(Net(), (torch.randn(96, 1, 8, 8),), task=task))
    return merge_alone(parents, data=None, config=CONFIG, stages=None)


@pytest.fixture(scope="module")
def text(merged: Merged) -> str:
    rows = (Row("foldable", 0.5, 0.25, 1.0), Row("ties", failed="it needs <a base>"))
    return report_page.html(merged.result, CONFIG, merged, rows)


class Reader(HTMLParser):
    """Counts elements by the section that they are in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.section, self.counts, self.words = "", {}, {}  # type: ignore[var-annotated]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.section = str(dict(attrs).get("id")) if tag == "section" else self.section
        self.counts[self.section, tag] = self.counts.get((self.section, tag), 0) + 1

    def handle_data(self, data: str) -> None:
        self.words[self.section] = self.words.get(self.section, "") + " " + data.strip()


def test_every_section_has_its_figures(merged: Merged, text: str) -> None:
    read = Reader(text)
    assert {section for section, tag in read.counts if tag == "section"} == set(SECTIONS) - {"stages", "sizes"}
    assert "could not be shown" not in text
    assert read.counts["latency", "tr"] == 1 + 5  # merged, two parents, in turn, at once
    assert read.counts["training", "polyline"] == 2
    assert read.counts["answers", "img"] == 2 * 4
    assert read.counts["mixed", "svg"] == 2 * len(merged.insight.mixed)  # type: ignore[union-attr]
    assert read.counts["blocks", "tr"] == 1 + 3
    assert "layer_norm" in read.words["spaces"]
    assert "it needs <a base>" in read.words["methods"]
    assert len(text) < 200_000


def test_a_page_needs_nothing_else_and_takes_nothing_for_markup(text: str) -> None:
    assert not re.search(
        r"""src\s*=\s*"(?!data:image/png)|href|@import|url\((?!#)|<script|https?://(?!www\.w3\.org)""", text
    )
    assert "<i>a" not in text
    assert "prefers-color-scheme: dark" in text


def test_a_section_that_fails_says_why(merged: Merged, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no <room>\nat all")

    monkeypatch.setattr(report_page, "latencies", fails)
    text = report_page.html(merged.result, CONFIG, merged)
    assert "Latency could not be shown: RuntimeError: no &lt;room&gt;" in text
    assert "Where they differ most" in text


def test_pictures_of_maps_are_those_of_the_average_where_it_is_the_start(merged: Merged) -> None:
    supernet = merged.insight.supernet.start([3.0, 1.0])  # type: ignore[union-attr]
    first = mixing(supernet)[0]
    assert first.role == "residual"
    assert [round(float(matrix.trace()) / first.size, 6) for matrix in first.parents] == [0.75, 0.25]


def test_every_shared_block_is_compared(merged: Merged) -> None:
    insight = merged.insight
    assert insight is not None
    found = blocks(merged.program, insight)
    assert list(found) == ["patch", "blocks.0", "blocks.1"]
    assert all(0 < error < 1 for errors in found.values() for error in errors if error is not None)


def test_alignment_is_blind_to_rotations_and_scales_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 6)
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    assert alignment(x, 3 * x @ turn + 5) == pytest.approx(1)
    assert alignment(x, torch.randn(40, 6)) < 0.5


def test_the_rows_that_differ_most_come_first(merged: Merged) -> None:
    insight = merged.insight
    assert insight is not None and insight.samples is not None
    given = merged.parents[1]
    rows = furthest(merged.program, insight, 1, given)
    every = (merged.program.run(insight.samples[1])["b.logits"] - given.run(insight.samples[1])["logits"]).norm(dim=1)
    worst = insight.samples[1]["x"][every.argmax()]
    assert torch.equal(rows[0].inputs["x"], worst)
    assert [row.by for row in rows] == sorted((row.by for row in rows), reverse=True)


def test_inputs_are_shown_as_what_they_are() -> None:
    vit = capture(Net(), (torch.randn(2, 1, 8, 8),), task="a")
    assert answers.shown_input(vit, {"x": torch.rand(3, 9, 9)})["image"].startswith("data:image/png;base64,")
    assert answers.shown_input(vit, {"x": torch.tensor([1.0, 2.5])}) == {"text": "1, 2.5"}
    assert answers.shown_input(vit, {"x": torch.arange(9)}) == {"text": "0, 1, 2, 3, 4, 5, … (9 numbers)"}


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_in_a_browser_as_wide_as_a_phone(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    frame = f"""<iframe src="page.html" style="width:{PHONE}px;height:900px;border:0"></iframe><pre></pre><script>
      const frame = document.querySelector("iframe");
      frame.onload = () => {{
        const wide = frame.contentDocument.documentElement.scrollWidth;
        const every = frame.contentWindow.performance.getEntriesByType("resource");
        const asked = every.filter(e => !e.name.startsWith("data:"));
        document.querySelector("pre").textContent = `wide ${{wide}} asked ${{asked.length}}`;
      }};
    </script>"""
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=2000 "
        "--enable-logging=stderr --dump-dom"
    )
    command = [str(BROWSER), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path}/frame.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<pre>wide (\d+) asked (\d+)</pre>", done.stdout)
    assert found is not None
    assert (int(found[1]) <= PHONE, found[2]) == (True, "0")
    assert "CONSOLE" not in done.stderr
