"""What a merged model is written as: a folder that the parents' own class loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import fxmerge
from fxmerge.config import MergeConfig
from fxmerge.errors import OutputError
from fxmerge.from_onnx.runtime import run_onnx
from fxmerge.ir.difference import difference
from fxmerge.output.card import model_card
from fxmerge.sources.licenses import license_of

transformers = pytest.importorskip("transformers")


def bert(seed: int, **changes: Any) -> Any:
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(**sizes | changes, num_hidden_layers=1, max_position_embeddings=20)
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(config).eval()


def gpt2(seed: int, **changes: Any) -> Any:
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


def vit(seed: int, **changes: Any) -> Any:
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    torch.manual_seed(seed)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes | changes, num_hidden_layers=1)).eval()


def dinov2(seed: int, **changes: Any) -> Any:
    """Scales what it adds to its stream, and holds a token for hidden patches that a classifier never reads."""
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_attention_heads": 2, "mlp_ratio": 2}
    torch.manual_seed(seed)
    config = transformers.Dinov2Config(**sizes | changes, num_hidden_layers=1, layerscale_value=0.5)
    return transformers.Dinov2ForImageClassification(config).eval()


def resnet(seed: int, **changes: Any) -> Any:
    """Batch norms count how often they were trained, which no answer reads."""
    torch.manual_seed(seed)
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", **changes)
    return transformers.ResNetForImageClassification(config).eval()


def masked(seed: int, **changes: Any) -> Any:
    """A head whose table and whose bias the class has twice."""
    return transformers.BertForMaskedLM(bert(seed, **changes).config).eval()


def esm(seed: int, **changes: Any) -> Any:
    """Turns by a table that the class saves, and a head for another task that no answer reads."""
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    torch.manual_seed(seed)
    more: dict[str, Any] = {"position_embedding_type": "rotary", "mask_token_id": 3, "pad_token_id": 1}
    return transformers.EsmForSequenceClassification(
        transformers.EsmConfig(**sizes | more | changes, num_hidden_layers=1)
    ).eval()


@pytest.mark.parametrize("build", [bert, gpt2, vit, dinov2, resnet, masked, esm])
def test_every_task_loads_into_its_parents_class(build: Any, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    labels = [
        {"id2label": {k: f"c{k}" for k in range(n)}, "num_labels": n} if build is not gpt2 else {} for n in (2, 3)
    ]
    models = [build(seed, **label) for seed, label in enumerate(labels)]
    if build in (vit, dinov2, resnet):
        inputs = {"pixel_values": torch.randn(4, 3, 8, 8)}
        for model, name in zip(models, ("first", "second"), strict=True):
            fxmerge.save(model, tmp_path / f"{name}.pt", inputs=inputs)
        paths = [tmp_path / "first.pt", tmp_path / "second.pt"]
    else:
        inputs, paths = tokens(), bundles(models, tmp_path)
    merged = fxmerge.merge(paths, method="average", out=out)
    assert not [note for note in merged.result["notes"] if note.startswith("no folder")], merged.result["notes"]
    merged.export_onnx(tmp_path / "merged.onnx")
    exact = run_onnx(tmp_path / "merged.onnx", inputs)
    for task, model in zip(("first", "second"), models, strict=True):
        loaded, found = type(model).from_pretrained(out / task, output_loading_info=True)
        assert not any(found.values()), found
        given = loaded.eval()(**inputs).logits
        assert difference(merged(**inputs)[task], given).relative < 1e-5
        assert difference(exact[f"{task}.logits"], given).relative < 1e-5
        assert loaded.config.id2label == model.config.id2label
    shards = [out / task / "model-00001-of-00002.safetensors" for task in ("first", "second")]
    assert all(shard.samefile(out / "model.safetensors") for shard in shards)
    names = set(load_file(out / "model.safetensors"))
    assert names <= {f"{n}" for n in models[0].state_dict()}, "no buffer that the class makes itself"
    card = (out / "README.md").read_text()
    assert f'{type(models[0]).__name__}.from_pretrained("merged/first")' in card
    assert f"outputs = model({', '.join(f'{name}={name}' for name in inputs)})" in card
    made = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert MergeConfig.of(**made) == MergeConfig.of(parents=[str(p) for p in paths], method="average", out=str(out))


def test_hidden_states_may_be_in_units_of_the_merged_model(tmp_path: Path) -> None:
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.CLIPTextConfig(**sizes, num_hidden_layers=1, projection_dim=4, eos_token_id=29)
    models = [transformers.CLIPTextModelWithProjection(config).eval() for _ in range(2)]
    merged = fxmerge.merge(bundles(models, tmp_path), data=tokens(), method="condense", out=tmp_path / "merged")
    said = [note for note in merged.result["notes"] if note.startswith("folder first")]
    assert said == ["folder first: last_hidden_state in units of the merged model, not the parent's"]
    loaded = type(models[0]).from_pretrained(tmp_path / "merged" / "first").eval()
    expected = merged(**tokens())["first"]["text_embeds"]
    torch.testing.assert_close(loaded(**tokens()).text_embeds, expected, rtol=1e-4, atol=1e-4)


def test_a_task_whose_class_cannot_hold_it_has_no_folder_and_that_is_said(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merged = fxmerge.merge(bundles([bert(0), bert(1, intermediate_size=10)], tmp_path), method="average", out=out)
    assert [note for note in merged.result["notes"] if note.startswith("no folder second: ")]
    assert (out / "first").is_dir() and not (out / "second").exists()


def test_what_folded_into_no_weight_is_said_to_have_no_place(tmp_path: Path) -> None:
    """A post-norm stream that ends in the middle: what stays apart reads it beside the skip, through a matrix."""
    paths, out = bundles([bert(0), bert(1)], tmp_path), tmp_path / "merged"
    merged = fxmerge.merge(paths, data=tokens(), method="condense", share_until="0", out=out)
    notes = [note for note in merged.result["notes"] if note.startswith("no folder")]
    assert len(notes) == 2
    assert all("has no place for unmerge" in note and "--share-until" in note for note in notes)


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
    fxmerge.merge(paths, method="average", out=out, overwrite=True)
    assert (out / "config.json").is_file()


def test_a_folder_with_other_things_in_it_is_not_replaced(tmp_path: Path) -> None:
    paths, out = bundles([bert(0), bert(1)], tmp_path), tmp_path / "photographs"
    out.mkdir()
    (out / "one.png").touch()
    with pytest.raises(OutputError, match="other things"):
        fxmerge.merge(paths, method="average", out=out, overwrite=True)
    assert [each.name for each in out.iterdir()] == ["one.png"]


def test_a_card_carries_the_license_that_all_parents_name() -> None:
    def card(*licenses: str | None) -> tuple[dict[str, Any], str]:
        names = [{"task": task, "source": f"hub/{task}", "parameters": 9, "license": each}
                 for task, each in zip("ab", licenses, strict=True)]  # fmt: skip
        text = model_card({"parents": names}, {})
        _, block, rest = text.split("---\n", 2)
        return yaml.safe_load(block), rest

    block, text = card("mit", "mit")
    assert block == {
        "library_name": "transformers", "license": "mit", "tags": ["merge", "fxmerge"], "base_model": ["a", "b"],
    }  # fmt: skip
    assert "All parents name `mit`." in text
    block, text = card("mit", None)
    assert "license" not in block
    assert "The parents' licenses differ: a `mit`, b none." in text
    assert "name no license" in card(None, None)[1]


@pytest.mark.parametrize(
    ("card", "config", "found"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# Model\n", "{}", "apache-2.0"),
        ("# no front matter\nlicense: mit\n", '{"license": "mit"}', "mit"),
        ("---\nlicense: &a mit\nother: *a\n---\n", "{}", None),
        ("---\nlicense: mit\n", "{}", None),
        ("---\nlicense: [mit]\n---\n", "[]", None),
        (None, None, None),
    ],
)
def test_a_license_is_read_as_it_stands_in_a_folder(
    card: str | None, config: str | None, found: str | None, tmp_path: Path
) -> None:
    for name, text in (("README.md", card), ("config.json", config)):
        if text is not None:
            (tmp_path / name).write_text(text)
    assert license_of(tmp_path) == found
    assert license_of(tmp_path / "README.md") is None
