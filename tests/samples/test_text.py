"""Text samples: tables in every format, through the tokenizer that travels with the model, without any connection."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxmerge.capturing import capture
from fxmerge.errors import DataError
from fxmerge.ir.program import Program
from fxmerge.samples.load import Reading, load_samples
from fxmerge.sources.bundle import load_bundle, save, save_bundle
from fxmerge.sources.load import load

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("pyarrow")

WORDS = ["[PAD]", "[UNK]", "good", "bad", "film", "a", "the", ",", '"', "very"]


def tokenizer() -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


@pytest.fixture
def reviews(masked: Program) -> Program:
    return masked.evolve(assets={"tokenizer.json": tokenizer().to_str().encode()})


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"a connection was made: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


ROWS = [("a good film", 1), ("the very bad film , a", 0), ("good", 1)]


def table(path: Path) -> Path:
    rows = [{"text": text, "label": label} for text, label in ROWS]
    if path.suffix == ".csv":
        lines = ["label,text"] + [f'{r["label"]},"{r["text"]}"' for r in rows]
    elif path.suffix == ".tsv":
        lines = ["text\tlabel"] + [f"{r['text']}\t{r['label']}" for r in rows]
    elif path.suffix == ".jsonl":
        lines = [json.dumps(r) for r in rows]
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_of_every_format(suffix: str, reviews: Program, tmp_path: Path) -> None:
    samples = load_samples(table(tmp_path / f"a::b*{suffix}"), reviews)
    assert samples.inputs["input_ids"].tolist() == [
        [5, 2, 4, 0, 0, 0],
        [6, 9, 3, 4, 7, 5],
        [2, 0, 0, 0, 0, 0],
    ]
    assert samples.inputs["attention_mask"].sum(1).tolist() == [3, 6, 1]
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 0, 1]
    assert load_samples(tmp_path / f"a::b*{suffix}", reviews, Reading(2)).rows == 2


def test_a_table_without_header(reviews: Program, tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('train\t1\tgood film\ntest\t0\ta " bad film\n')
    samples = load_samples(path, reviews)
    assert samples.inputs["input_ids"].tolist() == [[2, 4, 0, 0], ids('a " bad film')]
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 0]
    assert samples.notes == (f"{path}: text taken from column 2, labels from 1",)


@pytest.mark.parametrize("cut", [";", "\t"])
def test_a_csv_that_is_cut_otherwise(cut: str, reviews: Program, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'"label"{cut}"text"\n1{cut}"a , good {cut} film"\n0{cut}bad\n')
    samples = load_samples(path, reviews)
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 0]
    assert samples.inputs["input_ids"][1].tolist()[0] == WORDS.index("bad")
    assert samples.inputs["input_ids"][0].tolist()[:3] == ids("a , good")
    assert samples.notes == ()


def test_labels_are_never_taken_for_text(reviews: Program, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("rating,remark,label\n3,good,very_very_bad_film\n4,bad,good\n")
    samples = load_samples(path, reviews.evolve(labels=("good", "very_very_bad_film")))
    assert samples.inputs["input_ids"].tolist() == [[2], [3]]
    assert samples.notes == (f"{path}: text taken from column remark, labels from label",)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_pairs_of_columns_are_one_row(suffix: str, reviews: Program, tmp_path: Path) -> None:
    made = tokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A", pair="$A [PAD]:1 $B:1", special_tokens=[("[PAD]", 0)]
    )
    rows = [("good film", "a", "bad film"), ("bad", "b", "the film")]
    named = [dict(zip(("Hypothesis", "label", "premise"), row, strict=True)) for row in rows]
    lines = ["Hypothesis,label,premise", *map(",".join, rows)] if suffix == ".csv" else map(json.dumps, named)
    path = tmp_path / f"a{suffix}"
    path.write_text("\n".join(lines))
    samples = load_samples(path, reviews.evolve(assets={"tokenizer.json": made.to_str().encode()}))
    assert samples.inputs["input_ids"].tolist() == [ids("bad film [PAD] good film"), ids("the film [PAD] bad [PAD]")]
    assert samples.inputs["attention_mask"].sum(1).tolist() == [5, 4]
    assert f"{path}: pairs of text taken from columns premise and Hypothesis, labels from label" in samples.notes
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1]


def test_a_table_without_a_known_column_of_labels_says_so_to_whoever_asks(reviews: Program, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("category,review,label\n7,good film,1\n8,bad film,0\n")
    found = load_samples(path, reviews)
    assert found.labels is not None and found.labels.tolist() == [1, 0] and found.notes == ()
    path.write_text("review,mood\ngood film,1\nbad film,0\n")
    found = load_samples(path, reviews)
    assert found.labels is None
    said = "no labels: of mood none is called label, labels, y, class, target, sentiment, category"
    assert found.notes == (f"{path}: {said}",)
    assert load_samples(path, reviews, Reading(labels=False)).notes == ()
    path.write_text("review,sentiment\ngood film,1\nbad film,0\n")
    assert (found := load_samples(path, reviews)).labels is not None and found.labels.tolist() == [1, 0]


def test_labels_by_name_and_missing_ones(reviews: Program, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good", "label": "neg"}\n{"text": "bad", "label": "pos"}\n')
    named = load_samples(path, reviews.evolve(labels=("pos", "neg", "none"))).labels
    assert named is not None
    assert named.tolist() == [1, 0]
    path.write_text('{"text": "good", "label": "neg"}\n{"text": "bad", "label": null}\n')
    samples = load_samples(path, reviews)
    assert samples.labels is None
    assert samples.notes == (f"{path}: some rows have no label, so none are used",)


def test_long_rows_are_cut_at_what_the_model_takes(reviews: Program, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good " * 50 + "\nbad film\n")
    program = reviews.evolve(ranges={"batch": (2, 64), "sequence": (2, 8)})
    assert load_samples(tmp_path / "a.txt", program).inputs["input_ids"].shape == (2, 8)


def test_long_rows_are_cut_where_the_tokenizer_says(reviews: Program, tmp_path: Path) -> None:
    made = tokenizer()
    made.enable_truncation(max_length=5)
    (tmp_path / "a.txt").write_text("good " * 50 + "\nbad film\n")
    program = reviews.evolve(assets={"tokenizer.json": made.to_str().encode()})
    assert load_samples(tmp_path / "a.txt", program).inputs["input_ids"].tolist() == [[2] * 5, [3, 4, 0, 0, 0]]


@pytest.mark.parametrize(("said", "most"), [(5, 5), (10**30, 50), (1e30, 50), (None, 50), (-1, 50), (700, 600)])
def test_rows_are_cut_where_the_config_of_the_tokenizer_says(
    said: object, most: int, reviews: Program, tmp_path: Path
) -> None:
    from fxmerge.sources.huggingface import assets_of

    tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": said}))
    (tmp_path / "a.txt").write_text("good " * (600 if said == 700 else 50) + "\n")
    program = reviews.evolve(assets=assets_of(tmp_path), ranges={"batch": (2, 64), "sequence": (2, 650)})
    assert load_samples(tmp_path / "a.txt", program).inputs["input_ids"].shape == (1, most)
    short = program.evolve(ranges={"batch": (2, 64), "sequence": (2, 4)})
    assert load_samples(tmp_path / "a.txt", short).inputs["input_ids"].shape == (1, 4)


def test_what_the_tokenizer_itself_says_goes_first(tmp_path: Path) -> None:
    from fxmerge.sources.bundle import tokenizer_bytes

    made = tokenizer()
    made.enable_truncation(max_length=3)
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 9}')
    assert json.loads(tokenizer_bytes(tmp_path / "tokenizer.json"))["truncation"]["max_length"] == 3
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert json.loads(tokenizer_bytes(tmp_path / "tokenizer.json"))["truncation"]["max_length"] == 9
    (tmp_path / "tokenizer_config.json").write_text("[")
    assert json.loads(tokenizer_bytes(tmp_path / "tokenizer.json"))["truncation"] is None


def test_a_tokenizer_of_another_model_is_refused(reviews: Program, tmp_path: Path) -> None:
    words = {word: 1000 + number for number, word in enumerate(WORDS)}
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    program = reviews.evolve(assets={"tokenizer.json": other.to_str().encode()})
    (tmp_path / "a.txt").write_text("good\n")
    with pytest.raises(
        DataError, match=r"the model does not run on these samples: index .*\ncheck that indices"
    ) as caught:
        load_samples(tmp_path / "a.txt", program)
    assert "\n" not in caught.value.what + caught.value.todo


def test_labels_that_nobody_asks_for_are_not_looked_at(reviews: Program, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\ngood,neither\n")
    program = reviews.evolve(labels=("no", "yes", "both"))
    with pytest.raises(DataError, match=r"the label 'neither' is none of reviews's.*\nits labels are no, yes, both"):
        load_samples(tmp_path / "a.csv", program)
    assert load_samples(tmp_path / "a.csv", program, Reading(labels=False)).labels is None


def test_running_text_is_cut_into_rows(gpt: Program, tmp_path: Path) -> None:
    program = gpt.evolve(assets={"tokenizer.json": tokenizer().to_str().encode()}, ranges={"sequence": (2, 4)})
    (tmp_path / "a.txt").write_text("the very good film ,\n\na bad film , the film\n")
    samples = load_samples(tmp_path / "a.txt", program)
    assert samples.inputs["input_ids"].tolist() == [ids("the very good film"), ids(", a bad film")]
    assert samples.notes == (f"{tmp_path / 'a.txt'}: joined and cut into 2 rows of 4 tokens",)


class Count(nn.Module):
    """Tokens alone, without a mask, to 2 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(12, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.tokens(input_ids).sum(1)


def test_padding_without_a_mask_is_said(tmp_path: Path) -> None:
    program = capture(Count(), (torch.zeros(2, 4, dtype=torch.long),))
    program = program.evolve(assets={"tokenizer.json": tokenizer().to_str().encode()})
    samples = load_samples(table(tmp_path / "a.csv"), program)
    assert samples.notes == (f"{tmp_path / 'a.csv'}: shorter rows are filled with token 0: the model takes no mask",)


def test_the_tokenizer_travels_with_the_bundle(reviews: Program, tmp_path: Path) -> None:
    save_bundle(reviews, tmp_path / "a.pt")
    path = table(tmp_path / "a.csv")
    assert load_samples(path, load_bundle(tmp_path / "a.pt")).rows == 3
    save(Count(), tmp_path / "b.pt", inputs=(torch.zeros(2, 4, dtype=torch.long),), tokenizer=tokenizer())
    assert load_samples(path, load(tmp_path / "b.pt")).rows == 3
    save(Count(), tmp_path / "c.pt", inputs=(torch.zeros(2, 4, dtype=torch.long),))
    with pytest.raises(DataError, match=r"is text, but c has no tokenizer\nput tokenizer\.json beside the model"):
        load_samples(path, load(tmp_path / "c.pt"))
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert load_samples(path, load(tmp_path / "c.pt")).rows == 3


def test_older_tokenizer_files_of_a_folder_are_read(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from fxmerge.sources.huggingface import assets_of

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"]))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    made = tokenizers.Tokenizer.from_str(assets_of(tmp_path)["tokenizer.json"].decode())
    assert made.encode("good film").ids == [2, 5, 6, 3]


BAD: dict[str, tuple[str, str]] = {
    "ragged.csv": ("text,label\ngood,1\nbad,0,1,2,3\n", r"ragged\.csv cannot be read: .*\nrepair the file"),
    "header.csv": ("text,label\n", r"header\.csv has no rows"),
    "numbers.jsonl": ('{"a": 1, "b": 2}\n', r"numbers\.jsonl has no column of text \(it has a, b\)\nname one 'text'"),
    "labels.csv": (
        "price,label\n3,good\n4,bad\n",
        r"labels\.csv has no column of text \(it has price, label\)\nname one",
    ),
    "latin.csv": (
        b"text,label\ngood,1\ncaf\xe9,0\n".decode("utf-8", "surrogateescape"),
        r"row 3 is no text in UTF-8\nsave the file as UTF-8",
    ),
    "mixed.jsonl": ('{"a": 1}\n{"b": "good"}\n', r"mixed\.jsonl: row 1 has no text\nremove that row"),
    "half.jsonl": ('{"text": "good"}\n{"text": nu', r"half\.jsonl cannot be read"),
    "null.jsonl": ('{"text": "good"}\n{"text": null}\n', r"null\.jsonl: row 2 has no text\nremove that row"),
    "noise.parquet": ("noise", r"noise\.parquet cannot be read"),
    "blank.txt": (" \n\n", r"blank\.txt has no rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_tables_that_cannot_be_read(name: str, reviews: Program, tmp_path: Path) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(DataError, match=message) as caught:
        load_samples(tmp_path / name, reviews, Reading(strict=True))
    assert "\n" not in caught.value.what + caught.value.todo


def test_text_for_a_model_of_images_or_with_a_broken_tokenizer(vit: Program, reviews: Program, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv")
    program = vit.evolve(assets={"tokenizer.json": tokenizer().to_str().encode()})
    with pytest.raises(DataError, match=r"is text, which cannot fill the input x\ngive arrays"):
        load_samples(path, program)
    with pytest.raises(DataError, match=r"the tokenizer of reviews cannot be read"):
        load_samples(path, reviews.evolve(assets={"tokenizer.json": b"{}"}))


def test_a_script_beside_a_table_is_not_run(reviews: Program, trap: Any, tmp_path: Path) -> None:
    for name in ("a.py", "data.py", "csv.py"):
        (tmp_path / name).write_text(trap.text)
    assert load_samples(table(tmp_path / "a.csv"), reviews).rows == 3
    assert not trap.sprung
