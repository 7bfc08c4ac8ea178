"""What columns of text and of labels are called."""

from __future__ import annotations

from collections.abc import Iterable

TEXTS = ("text", "sentence", "content", "document", "review", "question", "title")
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("question", "context"), ("query", "passage"), ("text", "text_pair"), ("text1", "text2"), ("text_a", "text_b"),
)  # fmt: skip
"""Two columns that a tokenizer takes as one row, the first and the second."""
LABELS = ("label", "labels", "y", "class", "target", "sentiment", "category")
KNOWN = frozenset((*TEXTS, *LABELS, *(name for pair in PAIRS for name in pair)))
"""Names that say that the first line of a table is its header."""


def label_column(columns: Iterable[str]) -> str | None:
    """The column of labels: the one whose name says so most plainly."""
    known = {name.lower(): name for name in columns}
    return next((known[name] for name in LABELS if name in known), None)
