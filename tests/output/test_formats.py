"""What a merged model is written as: a folder that the parents' own class loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fxmerge

transformers = pytest.importorskip("transformers")


def bert(seed: int, **changes: Any) -> Any:
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(**sizes | changes, num_hidden_layers=1, max_position_embeddings=20)
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(config).eval()


def gpt2(seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=30, n_embd=8, n_head=2, n_layer=1, n_positions=20, n_inner=12)
    return transformers.GPT2LMHeadModel(config).eval()


def tokens() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(0, 30, (4, 9), generator=draw)}


def bundles(models: list[Any], folder: Path) -> list[Path]:
    paths = [folder / f"{name}.pt" for name in ("first", "second")]
    for model, path in zip(models, paths, strict=True):
        model.config.use_cache = False
        fxmerge.save(model, path, inputs=tokens())
    return paths


@pytest.mark.parametrize("build", [bert, gpt2])
def test_the_trunk_loads_into_the_parents_class(build: Any, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    models = [build(0), build(1)]
    merged = fxmerge.merge(bundles(models, tmp_path), method="average", out=out)
    assert not [note for note in merged.result["notes"] if "config.json" in note]
    loaded, found = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
    assert type(loaded) is type(models[0].base_model)
    assert not found["missing_keys"] and not found["mismatched_keys"]
    weights = load_file(out / "model.safetensors")
    assert json.loads((out / "fxmerge.json").read_text())["method"] == "average"
    prefix = type(models[0]).base_model_prefix
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, weights[f"{prefix}.{name}"]), name


def test_a_config_that_no_longer_fits_is_left_out_and_said(tmp_path: Path) -> None:
    paths = bundles([bert(0), bert(1)], tmp_path)
    out = tmp_path / "merged"
    merged = fxmerge.merge(paths, method="average", out=out, width_scale=1.5)
    assert [note for note in merged.result["notes"] if "config.json of first is left out" in note]
    assert not (out / "config.json").exists() and (out / "model.safetensors").is_file()
