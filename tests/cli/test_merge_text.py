"""Two Hugging Face text classifiers and two tables of texts of different lengths, merged from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fxmerge.cli.verbs import main

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("pyarrow")

WORDS = ["[PAD]", "[UNK]", *(f"w{number}" for number in range(28))]


def write(folder: Path, seed: int, classes: int, positions: int, longest: int) -> None:
    """A folder with config, weights and tokenizer, and beside it a table of 24 texts of up to `longest` words."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_attention_heads=2, intermediate_size=12, num_hidden_layers=1,
        max_position_embeddings=positions, num_labels=classes,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": [type(model).__name__]}))
    save_file(model.state_dict(), folder / "model.safetensors")
    words = tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    draw = torch.Generator().manual_seed(seed)
    lines = ["text,label"]
    for row in range(24):
        count = longest if row == 0 else int(torch.randint(3, longest, (), generator=draw))
        text = " ".join(WORDS[int(n)] for n in torch.randint(2, len(WORDS), (count,), generator=draw))
        lines.append(f"{text},{row % classes}")
    folder.with_suffix(".csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("texts")
    write(made / "sst2", 1, 2, 64, 32)
    write(made / "trec", 2, 3, 64, 60)
    write(made / "short", 3, 3, 24, 20)
    return made


@pytest.mark.parametrize(
    ("other", "options"),
    [
        ("trec", ["--steps", "10", "--pool", "256", "--batch-size", "16"]),
        (
            "trec",
            ["--method", "distill", "--init", "average", "--steps", "4", "--augment", "none", "--batch-size", "8"],
        ),
        ("trec", ["--method", "average"]),
        ("short", ["--init", "average", "--steps", "4", "--augment", "tokens", "--pool", "64", "--batch-size", "8"]),
    ],
    ids=["foldable", "distill", "average", "other-positions"],
)
def test_texts_of_two_lengths(
    other: str, options: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    out, result = tmp_path / "m.onnx", tmp_path / "m.json"
    data = ["--data", "sst2=sst2.csv", "--data", f"{other}={other}.csv"]
    assert main(["merge", "sst2/", f"{other}/", *data, "--out", str(out), "--result", str(result), *options]) == 0
    found = json.loads(result.read_text())
    assert [task["samples"] for task in found["tasks"]] == [24, 24]
    assert out.exists()
    if options == ["--method", "average"]:
        assert found["training"] == {}, "no pool is made for a method that reads no data"
    else:
        assert found["checks"]["all_gradients"] is True
        assert found["training"]["augmentation"]["kind"] in ("tokens", "none")


def test_a_kind_of_augmentation_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", f"sst2={folder}/sst2.csv", "--data", f"trec={folder}/trec.csv"]
    out = str(tmp_path / "m.onnx")
    assert main(["merge", f"{folder}/sst2", f"{folder}/trec", *data, "--out", out, "--augment", "image"]) == 2
    said = capsys.readouterr().err
    assert "no input is of kind 'image'" in said
    assert "leave the kind to auto, or use none" in said


def test_the_folder_of_a_task_reads_text_as_its_parent_does(folder: Path, tmp_path: Path) -> None:
    said = {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "model_max_length": 7,
        "pad_token": "[PAD]",
    }
    parents = [shutil.copytree(folder / name, tmp_path / name) for name in ("sst2", "trec")]
    for parent in parents:
        (parent / "tokenizer_config.json").write_text(json.dumps({**said, "unk_token": "[UNK]"}))
    out = tmp_path / "merged"
    data = [word for name in ("sst2", "trec") for word in ("--data", f"{name}={folder / name}.csv")]
    assert main(["merge", *map(str, parents), *data, "--method", "average", "--out", str(out), "-q"]) == 0
    read = [transformers.AutoTokenizer.from_pretrained(each) for each in (parents[1], out / "trec")]
    texts = ["w1 w2 w3", "w4 w5 w6 w7 w8 w9 w1 w2 w3"]
    wanted, found = (dict(each(texts, padding=True, truncation=True)) for each in read)
    assert found == wanted and len(found["input_ids"][0]) == 7
    assert [type(each) for each in read] == [type(read[0])] * 2 and read[1].model_max_length == 7
