"""Hugging Face folders: the class the config names, weights in every layout, nothing downloaded or run."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fxmerge.errors import SourceError, UnsafeFileError
from fxmerge.ir.program import Program
from fxmerge.sources import huggingface
from fxmerge.sources.load import load

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(
        **sizes, num_hidden_layers=1, max_position_embeddings=20, id2label={0: "bad", 1: "good"}
    )
    return transformers.BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def original(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "reviews"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**model.config.to_dict(), "architectures": [type(model).__name__]}))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to change; any connection made meanwhile fails the test."""

    def refuse(*args: Any) -> None:
        raise AssertionError(f"a connection was made: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return Path(shutil.copytree(original, tmp_path / "reviews"))


def same(program: Program, model: Any) -> bool:
    draw = torch.Generator().manual_seed(1)
    inputs = {"input_ids": torch.randint(0, 30, (4, 9), generator=draw), "attention_mask": torch.ones(4, 9).long()}
    return torch.equal(program.run(inputs)["logits"], model(**inputs).logits)


def built(folder: Path, model: Any) -> bool:
    """The folder builds the model, without the time that tracing takes."""
    again, _ = huggingface.build(folder / "config.json", huggingface.read_folder(folder))
    ids = torch.arange(8).reshape(2, 4)
    return torch.equal(again(ids).logits, model(ids).logits)


def test_a_folder_gives_the_model_its_config_names(folder: Path, model: Any) -> None:
    program = load(folder)
    assert same(program, model)
    assert [p.name for p in program.inputs] == ["input_ids", "attention_mask"]
    assert (program.task, program.labels, dict(program.samples)) == ("reviews", ("bad", "good"), {})
    assert any(note.startswith("traced with random inputs: input_ids (2, 16)") for note in program.notes)


def test_weights_in_every_layout(folder: Path, model: Any) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, own in shards.items():
        save_file({n: state[n] for n in own}, folder / shard)
    index = {"weight_map": {n: shard for shard, own in shards.items() for n in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert built(folder, model)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(SourceError, match=r"lacks the shard model-2\.safetensors"):
        load(folder)
    index["weight_map"][names[1]] = "../../etc/passwd"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"lacks the shard \.\./\.\./etc/passwd"):
        load(folder)
    for shard in folder.glob("model*"):
        shard.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert built(folder, model)


def test_a_state_dict_with_a_config(folder: Path, model: Any) -> None:
    (folder / "model.safetensors").rename(folder.parent / "w.safetensors")
    assert same(load(folder.parent / "w.safetensors", arch=str(folder / "config.json")), model)
    with pytest.raises(SourceError, match=r"config without weights\nadd --weights"):
        load(folder / "config.json")
    with pytest.raises(
        SourceError, match=r"no weights \(looked for model\.safetensors.*\nput model\.safetensors there"
    ):
        load(folder)


def test_inputs_given_are_traced_and_kept(folder: Path, model: Any) -> None:
    np.savez(folder / "x.npz", input_ids=np.arange(12).reshape(3, 4), labels=np.zeros(3, dtype=int))
    program = load(folder, inputs=folder / "x.npz")
    assert [p.name for p in program.inputs] == ["input_ids"]
    assert program.samples["input_ids"].shape == (3, 4)


def test_half_precision_is_read_as_float32_and_said(folder: Path) -> None:
    state = {n: t.to(torch.bfloat16) for n, t in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors")
    again, notes = huggingface.build(folder / "config.json", huggingface.read_folder(folder))
    assert notes == ("weights in half precision were read as float32",)
    assert {p.dtype for p in again.parameters()} == {torch.float32}


def test_pickled_weights_are_refused_and_do_not_run(folder: Path, trap: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"bert.pooler.dense.weight": trap.object}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin is a pickled object"):
        load(folder)
    assert not trap.sprung


Change = Callable[[dict[str, Any]], Any]
CONFIGS: dict[str, tuple[Change, str]] = {
    "no type": (lambda c: c.pop("model_type"), r"names no 'model_type'"),
    "type": (lambda c: c.update(model_type="berd"), r"no model type 'berd', did you mean 'bert'\?\ncapture the model"),
    "code": (
        lambda c: c.update(model_type="own", auto_map={"AutoModel": "evil.Model"}),
        r"'own' and brings code of its own, which is not run\ncapture the model where its code is",
    ),
    "class": (lambda c: c.update(architectures=["Evil"]), r"names no model class of transformers \(Evil\)"),
    "function": (lambda c: c.update(architectures=["pipeline"]), r"names no model class of transformers"),
    "no class": (lambda c: c.pop("architectures"), r'\(none\)\nadd the class.*"BertForSequenceClassification"'),
    "quantized": (lambda c: c.update(quantization_config={"bits": 4}), "quantized weights"),
    "endless": (lambda c: c.update(num_hidden_layers=10**9), "num_hidden_layers is 1000000000, but there are"),
    "deeper": (
        lambda c: c.update(num_hidden_layers=2),
        r"the weights lack 16 tensors of BertForSequenceClassification",
    ),
    "vast": (
        lambda c: c.update(hidden_size=10**5, intermediate_size=10**6),
        r"sizes differ from the weights: \d+ parameters, the weights hold \d+\nuse the weights' own config",
    ),
    "wider": (lambda c: c.update(hidden_size=10), "sizes differ from the weights"),
    "heads": (lambda c: c.update(num_attention_heads=3), "cannot be built: The hidden size"),
    "kind": (lambda c: c.update(hidden_size="x"), "not a valid bert config|cannot be built"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_does_not_fit(case: str, folder: Path) -> None:
    change, message = CONFIGS[case]
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=message) as caught:
        load(folder)
    assert caught.value.todo
    assert "\n" not in caught.value.what


def test_kernels_adapters_and_code_named_by_a_folder_are_ignored(folder: Path, model: Any, trap: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"_attn_implementation": "evil/kernel", "attn_implementation": "evil/kernel", "use_kernels": True}
    config |= {"auto_map": {"AutoModelForSequenceClassification": "modeling_evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_evil.py").write_text(trap.text)
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "evil/base", "peft_type": "LORA"})
    )
    assert built(folder, model)
    assert not trap.sprung


@pytest.mark.parametrize(
    ("said", "sides"),
    [
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 24, "width": 32}}, [24, 32]),
        ({"size": {"shortest_edge": 40}, "crop_size": 24, "do_center_crop": False}, [40, 40]),
        ({"size": 48}, [48, 48]),
        ({"size": {"longest_edge": 1333}}, [224, 224]),
        ({}, [224, 224]),
    ],
)
def test_images_have_the_size_that_the_preprocessing_makes(said: dict[str, Any], sides: list[int]) -> None:
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], num_labels=2)
    model = transformers.ResNetForImageClassification(config)
    inputs = huggingface.dummy_inputs(model, {"preprocessor_config.json": json.dumps(said).encode()})
    assert inputs is not None
    assert list(inputs["pixel_values"].shape) == [2, 3, *sides]
    model.config.image_size = 16
    again = huggingface.dummy_inputs(model, {"preprocessor_config.json": json.dumps(said).encode()})
    assert again is not None
    assert list(again["pixel_values"].shape) == [2, 3, 16, 16]


def test_images_of_an_impossible_size_are_not_made(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], num_labels=2)
    model = transformers.ResNetForImageClassification(config)
    model.config.image_size = 10**6
    with pytest.raises(SourceError, match=r"images of 3 x 1000000 x 1000000\nadd --inputs FILE"):
        huggingface.dummy_inputs(model)


def test_a_config_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{" * 100_000)
    with pytest.raises(SourceError, match=r"config\.json is not valid JSON"):
        load(folder)
