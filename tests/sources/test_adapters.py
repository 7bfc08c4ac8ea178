"""LoRA folders beside their base are the model with the change in its weights; what is no such folder is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import fxmerge
from fxmerge.errors import SourceError

transformers = pytest.importorskip("transformers")
KEY = "encoder.layer.0.attention.self.key"
SIZES = {"vocab_size": 30, "num_hidden_layers": 1}


def base(folder: Path, kind: str) -> Any:
    """A base, saved as it was pretrained: without the head that the adapter brings."""
    torch.manual_seed(0)
    if kind == "bert":
        config = transformers.BertConfig(
            hidden_size=8, num_attention_heads=2, intermediate_size=12, max_position_embeddings=20, **SIZES
        )
        model = transformers.BertModel(config)
    else:
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=30, n_embd=8, n_head=2, n_layer=1, n_positions=20, n_inner=12)
        )
    model.save_pretrained(folder / "base")
    return model


def adapter(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    path = folder / "adapter"
    path.mkdir()
    save_file(
        {f"base_model.model.{name}": value for name, value in tensors.items()}, path / "adapter_model.safetensors"
    )
    told = {"peft_type": "LORA", "base_model_name_or_path": "someone/base", "lora_alpha": 6, "r": 2, **config}
    (path / "adapter_config.json").write_text(json.dumps(told))
    return path


def logits(path: Path) -> Tensor:
    ids = torch.randint(0, 30, (3, 7), generator=torch.Generator().manual_seed(1))
    program = fxmerge.load(path)
    given = {port.name: ids if "ids" in port.name else torch.ones_like(ids) for port in program.inputs}
    return program.run(given)[program.outputs[0].name]


@pytest.mark.parametrize("stable", [False, True])
def test_a_classifier_on_a_base_without_one(tmp_path: Path, stable: bool) -> None:
    trunk = base(tmp_path, "bert")
    a, b = torch.randn(2, 8), torch.randn(8, 2)
    head = {"classifier.weight": torch.randn(3, 8), "classifier.bias": torch.randn(3)}
    module = "bert.encoder.layer.0.attention.self.query"
    path = adapter(
        tmp_path, {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b, **head},
        task_type="SEQ_CLS", use_rslora=stable,
    )  # fmt: skip
    config = transformers.BertConfig.from_pretrained(tmp_path / "base", num_labels=3)
    whole = transformers.BertForSequenceClassification(config).eval()
    whole.bert.load_state_dict(trunk.state_dict())
    whole.load_state_dict({**whole.state_dict(), **head})
    with torch.no_grad():
        whole.bert.encoder.layer[0].attention.self.query.weight += 6 / (math.sqrt(2) if stable else 2) * b @ a
        ids = torch.randint(0, 30, (3, 7), generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(logits(path), whole(ids, torch.ones_like(ids)).logits, rtol=1e-4, atol=1e-5)


def test_weights_that_are_kept_the_other_way_round_and_alphas_of_their_own(tmp_path: Path) -> None:
    model = base(tmp_path, "gpt2").eval()
    a, b, module = torch.randn(2, 8), torch.randn(24, 2), "transformer.h.0.attn.c_attn"
    path = adapter(
        tmp_path, {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b},
        task_type="CAUSAL_LM", fan_in_fan_out=True, alpha_pattern={"attn.c_attn": 4},
    )  # fmt: skip
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight += 4 / 2 * (b @ a).T
        ids = torch.randint(0, 30, (3, 7), generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(logits(path), model(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"peft_type": "IA3"}, {}, "LoRA alone"),
        ({"use_dora": True}, {}, "DoRA"),
        ({"base_model_name_or_path": "someone/else"}, {}, "no folder on this machine"),
        ({}, {"nowhere.lora_A.weight": torch.ones(2, 8), "nowhere.lora_B.weight": torch.ones(8, 2)}, "has not"),
        ({}, {"x.lora_A.weight": torch.ones(2, 8)}, "lacks x.lora_B.weight"),
        ({}, {"x.lora_magnitude_vector": torch.ones(8)}, "no part of a LoRA adapter"),
        (
            {},
            {
                f"encoder.layer.0.attention.self.key.lora_{n}.weight": torch.ones(s)
                for n, s in (("A", (2, 9)), ("B", (8, 2)))
            },
            "and the base has",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused(
    tmp_path: Path, config: dict[str, Any], tensors: dict[str, Tensor], said: str
) -> None:
    base(tmp_path, "bert")
    path = adapter(tmp_path, tensors or {"x": torch.ones(1)}, **config)
    with pytest.raises(SourceError, match=said):
        fxmerge.load(path)
