"""Text and pictures as they are, and classes by name."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from fxmerge import compiler
from fxmerge.errors import SourceError
from fxmerge.output.assets import pack
from fxmerge.output.evaluate import evaluate
from fxmerge.serving import readers
from fxmerge.serving import v2_pb2 as v2
from fxmerge.serving.grpc import read_request, write_answer
from fxmerge.serving.protocol import InferRequest, RequestError
from fxmerge.serving.rest import app

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "good", "bad", "film", "a", "the", ",", '"', "very"]
LABELS = {"a": ["red", "green", "blue"], "b": ["red", "green", "blue"]}
CONFIG = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def tokenizer(words: list[str] = WORDS) -> bytes:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    text: str = made.to_str()
    return text.encode()


def packed(**files: bytes) -> dict[str, Any]:
    """Metadata as a merge writes it; its texts are read as JSON and written again by the fixtures."""
    found = pack({task: {name.removesuffix("_json") + ".json": data for name, data in files.items()} for task in "ab"})
    return {key: json.loads(text) for key, text in found.items()}


def text_model(tokens: Any, words: list[str] = WORDS, **more: Any) -> Path:
    labels = {"fxmerge.labels": {"b": ["w", "x", "y", "z"], "a": None}}
    path: Path = tokens(**packed(tokenizer_json=tokenizer(words)), **labels, **more)
    return path


def picture(color: tuple[int, int, int], kind: str = "PNG", size: int = 9) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (size, size), color).save(made, kind)
    return made.getvalue()


def texts(*values: str | bytes, name: str = "text") -> dict[str, Any]:
    return {name: np.array([v.encode() if isinstance(v, str) else v for v in values], object)}


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def asking(serve: Any) -> Iterator[Callable[..., Ask]]:
    """`asking(path)` serves a file raw; what it returns asks it, and gives the outputs."""
    with asyncio.Runner() as runner:

        def start(path: Path, **limits: Any) -> Ask:
            service = serve(path, raw=True, **limits)

            def ask(inputs: Any, *outputs: str) -> dict[str, Any]:
                return dict(runner.run(service.infer(path.stem, "", InferRequest(inputs, outputs), "rest")).outputs)

            ask.service = service  # type: ignore[attr-defined]
            return ask

        yield start


def test_text_gives_what_its_tokens_give(tokens: Any, asking: Any) -> None:
    ask = asking(text_model(tokens))
    ids = np.array([[5, 2, 4, 0], [6, 9, 3, 4], [1, 0, 0, 0]])
    by_number = ask({"ids": ids, "mask": np.where(ids, 1, 0)})
    by_text = ask(texts("a good film", "the very bad film", "unheard"))
    assert list(by_text) == ["a.each", "b.row", "b.label", "b.probability"]
    for name, value in by_number.items():
        np.testing.assert_array_equal(by_text[name], value)
    shares = np.exp(by_text["b.row"]) / np.exp(by_text["b.row"]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(by_text["b.probability"], shares.max(axis=1), rtol=1e-5)
    assert by_text["b.label"].tolist() == [b"wxyz"[k : k + 1] for k in shares.argmax(axis=1)]
    assert list(ask(texts("a"), "b.label")) == ["b.label"]


def test_pairs_of_texts_are_one_row_in_the_tokenizers_own_template(tokens: Any, asking: Any) -> None:
    made = tokenizers.Tokenizer.from_str(tokenizer().decode())
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A", pair="$A [UNK]:1 $B:1", special_tokens=[("[UNK]", 1)]
    )
    ask = asking(tokens(**packed(tokenizer_json=made.to_str().encode())))
    ids = np.array([[5, 4, 1, 2], [3, 1, 6, 4]])
    by_number = ask({"ids": ids, "mask": np.ones_like(ids)})
    by_text = ask({"text": np.array([[b"a film", b"good"], [b"bad", b"the film"]], object)})
    for name, value in by_number.items():
        np.testing.assert_array_equal(by_text[name], value)


def test_a_long_text_is_cut_and_that_is_said(tokens: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MOST_TOKENS", 6)
    with TestClient(app(serve(text_model(tokens), raw=True))) as client:
        sent = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["good " * 9, "bad"]}]}
        answer = client.post("/v2/models/tokens/infer", json=sent).json()
        assert answer["parameters"] == {"truncated": 1} and answer["outputs"][0]["shape"] == [2, 6, 3]
        assert answer["outputs"][2]["name"] == "b.label" and set(answer["outputs"][2]["data"]) <= set("wxyz")
        told = client.get("/v2/models/tokens").json()
        assert told["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        assert {"name": "b.label", "datatype": "BYTES", "shape": [-1]} in told["outputs"]


def test_a_long_text_is_cut_where_the_tokenizer_cuts_it(tokens: Any, asking: Any) -> None:
    own = {name: json.loads(tokenizer()) for name in ("a", "b")}
    own["a"]["truncation"] = {"max_length": 3, "direction": "Left", "strategy": "LongestFirst", "stride": 0}
    own["b"]["truncation"] = own["a"]["truncation"] | {"max_length": 4}
    places = {task: {"tokenizer.json": f"fxmerge.assets.{task}"} for task in own}
    ask = asking(tokens(**{"fxmerge.assets": places}, **{f"fxmerge.assets.{task}": own[task] for task in own}))
    assert ask(texts("a bad " * 9 + "good film"))["a.each"].shape == (1, 3, 3), "one text is one row, of the shortest"
    np.testing.assert_array_equal(ask(texts("a " * 9 + "good film"))["b.row"], ask(texts("a good film"))["b.row"])


def test_what_lies_beside_a_model_cuts_as_in_a_merge(tokens: Any, asking: Any) -> None:
    path = tokens()
    (path.parent / "tokenizer.json").write_bytes(tokenizer())
    (path.parent / "tokenizer_config.json").write_text('{"model_max_length": 4}')
    assert asking(path)(texts("good " * 9))["a.each"].shape == (1, 4, 3)


@pytest.mark.parametrize("raw", [True, False])
def test_text_and_labels_over_grpc(tokens: Any, serve: Any, raw: bool) -> None:
    message = v2.ModelInferRequest(model_name="tokens")
    value = message.inputs.add(name="text", datatype="BYTES", shape=[1])
    if raw:
        message.raw_input_contents.append(b"\4\0\0\0good")
    else:
        value.contents.bytes_contents.append(b"good")
    asked = read_request(message)
    service = serve(text_model(tokens), raw=True)

    async def go() -> Any:
        answer = await service.infer("tokens", "", asked, "grpc")
        await service.close()
        return write_answer(asked, answer)

    answer = asyncio.run(go())
    place = [output.name for output in answer.outputs].index("b.label")
    label = answer.raw_output_contents[place][4:] if raw else answer.outputs[place].contents.bytes_contents[0]
    assert label in (b"w", b"x", b"y", b"z")


def test_pictures_are_scaled_as_the_model_was_made_for(pictures: Any, asking: Any) -> None:
    path = pictures(**packed(preprocessor_config_json=json.dumps(CONFIG).encode()), **{"fxmerge.labels": LABELS})
    ask = asking(path)
    red, blue = picture((255, 0, 51)), picture((0, 0, 255), "BMP", 4)
    found = ask({"image": np.array([red, blue, base64.b64encode(red)], object)})
    np.testing.assert_allclose(found["a.logits"], [[1, -1, -0.6], [-1, -1, 1], [1, -1, -0.6]], atol=1e-5)
    assert found["a.label"].tolist() == [b"red", b"blue", b"red"]
    np.testing.assert_allclose(found["a.probability"], found["b.probability"], rtol=1e-5)  # b has them already


def test_files_beside_the_model_are_used(pictures: Any, asking: Any) -> None:
    path = pictures()
    (path.parent / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    assert asking(path)({"image": np.array([picture((255, 0, 0))], object)}, "a.logits")["a.logits"].shape == (1, 3)


def test_tasks_that_read_otherwise_have_raw_inputs_of_their_own(pictures: Any, asking: Any) -> None:
    other = json.dumps(CONFIG | {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}).encode()
    files = pack(
        {"a": {"preprocessor_config.json": json.dumps(CONFIG).encode()}, "b": {"preprocessor_config.json": other}}
    )
    ask = asking(pictures(**{key: json.loads(text) for key, text in files.items()}))
    white = np.array([picture((255, 255, 255))], object)
    assert list(ask({"a.image": white})) == ["a.logits"] and list(ask({"b.image": white})) == ["b.shares"]
    with pytest.raises(RequestError, match=r"'b\.shares' is not computed from a\.image"):
        ask({"a.image": white}, "b.shares")
    with pytest.raises(RequestError, match=r"no input 'image', did you mean '[ab]\.image'") as caught:
        ask({"image": white})
    assert caught.value.todo == "send a.image, b.image, x"
    with pytest.raises(RequestError, match="fills 'x' once more"):
        ask({"a.image": white, "b.image": white})


BAD_TEXT = {
    "no UTF-8": (texts("a", b"\xff\xfe"), "row 1 of the input 'text' is no text in UTF-8", 400),
    "nothing": (texts("a", " "), "row 1 of the input 'text' has no tokens", 400),
    "a long one": (texts("a" * 70_000), "row 0 of the input 'text' has 70000 characters", 413),
    "long ones": (texts(*["a" * 60_000] * 20), "has more than 1048576 characters", 413),
    "many": (texts(*["a"] * 20_000), "20000 rows of the input 'text' are more than 1048576 bytes", 413),
    "none": ({"text": np.empty(0, object)}, r"no row of BYTES, but \[0\]", 400),
    "a table": ({"text": np.full((2, 3), b"a", object)}, r"no row of BYTES, but \[2, 3\]", 400),
    "half a pair": (
        {"text": np.array([[b"a", b"\xff"]], object)},
        "row 0 of the input 'text' is no text in UTF-8",
        400,
    ),
    "numbers": ({"text": np.zeros(2)}, "no row of BYTES", 400),
    "a scalar": ({"text": np.array(b"a", object)}, r"no row of BYTES, but \[\]", 400),
    "nothing at all": ({}, "'ids' is missing", 400),
    "another name": (texts("a", name="texts"), "no input 'texts'", 400),
    "text for numbers": (texts("a", name="ids"), "'mask' is missing", 400),
}


def test_bad_text_says_what_and_what_to_do(tokens: Any, asking: Any) -> None:
    ask = asking(text_model(tokens))
    for inputs, what, status in BAD_TEXT.values():
        with pytest.raises(RequestError, match=what) as caught:
            ask(inputs)
        assert caught.value.status == status and len(str(caught.value).splitlines()) == 2
    with pytest.raises(RequestError, match=r"did you mean 'b\.label'"):
        ask(texts("a"), "b.labels")


def test_bad_pictures_say_what_and_what_to_do(pictures: Any, asking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MOST_PIXELS", 100)
    ask = asking(pictures(**packed(preprocessor_config_json=json.dumps(CONFIG).encode())))
    good = picture((9, 9, 9))
    cases = {
        "no picture of a format": b"%!PS-Adobe",
        "truncated": good[:50],
        "decompression bomb": picture((1, 2, 3), size=11),
    }
    for what, value in cases.items():
        with pytest.raises(RequestError, match=f"(?i)row 1 of the input 'image' cannot be read: .*{what}"):
            ask({"image": np.array([good, value], object)})
    with pytest.raises(RequestError, match="more than 1048576 bytes as numbers"):
        ask({"image": np.array([good] * 6000, object)})
    assert ask({"image": np.array([good], object)})["a.logits"].shape == (1, 3)


def test_a_child_that_dies_fails_one_request(tokens: Any, asking: Any) -> None:
    ask = asking(text_model(tokens))
    [(found, _)] = ask.service.models["tokens"].raw.inputs.values()
    for talk in found._children._all:
        if talk._process:
            os.kill(talk._process.pid, signal.SIGKILL)
    with pytest.raises(RequestError, match="ran out of memory or crashed"):
        ask(texts("good"))
    assert ask(texts("good"), "b.label")


def test_a_model_that_is_replaced_reads_with_what_it_brings(tokens: Any, serve: Any) -> None:
    path = text_model(tokens)
    other = text_model(tokens, [WORDS[0], *WORDS[:0:-1]], name="other.onnx")  # the same words with other numbers

    async def go() -> None:
        service = serve(path, raw=True)
        asked = InferRequest(texts("good film"), ("a.each",))
        before = await service.infer("tokens", "", asked, "rest")
        other.replace(path)
        for _ in range(2):
            await service.models["tokens"].look()
        after = await service.infer("tokens", "", asked, "rest")
        assert after.version != before.version
        assert not np.allclose(before.outputs["a.each"], after.outputs["a.each"])
        await service.close()

    asyncio.run(go())


def test_time_and_places_are_bounded(tokens: Any, asking: Any) -> None:
    ask = asking(text_model(tokens), max_queue=2)
    raw = ask.service.models["tokens"].raw
    with pytest.raises(RequestError, match="not read in time") as caught:
        raw._read(InferRequest(texts("a")), 0.0)
    assert caught.value.status == 504
    raw._pending = 2
    with pytest.raises(RequestError, match="2 requests wait to be read") as caught:
        ask(texts("a"))
    assert caught.value.status == 429


def test_a_merge_is_served_as_it_computes(parents: Any, asking: Any, tmp_path: Path) -> None:
    words = [f"w{k}" for k in range(50)]
    of = [p.evolve(assets={"tokenizer.json": tokenizer(["[UNK]", *words[1:]])}) for p in parents("bert")]
    merged = compiler.merge([p.evolve(labels=tuple("uvwxyz"[: p.outputs[0].shape[1]])) for p in of], method="average")
    merged.export_onnx(tmp_path / "m.onnx")
    ask = asking(tmp_path / "m.onnx")
    engine = ask.service.models["m"].engine  # type: ignore[attr-defined]
    assert engine.batched and engine.padded and not engine.notes
    asked = []
    for length in (9, 4, 6):  # together, padded, rows are what they are alone
        ids = np.random.default_rng(length).integers(0, 50, (2, length))
        asked.append(engine.accept(InferRequest({"input_ids": ids, "attention_mask": np.ones_like(ids)})))
    for one, values in zip(asked, engine.run(asked), strict=True):
        for name, value in engine.run([one])[0].items():
            np.testing.assert_allclose(values[name], value, rtol=1e-4, atol=1e-5)
    given = ask(texts("w3 w4 w5", "w9 " * 40), "a.label", "b.logits")
    tokens = torch.zeros(2, 32, dtype=torch.long)  # as long as their table of positions
    tokens[0, :3], tokens[1] = torch.tensor([3, 4, 5]), 9
    mask = torch.ones_like(tokens)
    mask[0, 3:] = 0
    scores = merged(input_ids=tokens, attention_mask=mask)
    np.testing.assert_allclose(given["b.logits"], scores["b"].detach(), rtol=1e-3, atol=1e-4)
    assert given["a.label"].tolist() == [b"uvwxyz"[k : k + 1] for k in scores["a"].argmax(1)]
    (tmp_path / "a.tsv").write_text("text\tlabel\nw3 w4 w5\tu\n")  # and so does `fxmerge eval`
    [found] = evaluate(tmp_path / "m.onnx", {"a": str(tmp_path / "a.tsv")})["tasks"]
    assert found["merged_accuracy"] == (given["a.label"][0] == b"u")


def test_classes_of_what_is_no_number(pictures: Any, asking: Any) -> None:
    path = pictures(**packed(preprocessor_config_json=json.dumps(CONFIG).encode()), **{"fxmerge.labels": LABELS})
    raw = asking(path).service.models["pictures"].raw
    scores = {"a.logits": np.array([[np.nan, 1, 2], [np.inf, 1, np.inf], [-np.inf, 3, 3]], "f")}
    found = raw.answer(scores, ["a.label", "a.probability"])
    assert found["a.label"][2] == b"green" and found["a.probability"].tolist()[2] == 0.5
    assert np.isnan(found["a.probability"][:2]).all()


def test_models_that_cannot_be_served_raw(
    two_tasks: Any, tokens: Any, pictures: Any, serve: Any, tmp_path: Path
) -> None:
    cases = {
        "it has no tokenizer.json": tokens("none.onnx"),
        "neither tokens nor a picture": two_tasks(),
        "it has no preprocessor_config.json": pictures(),
        "its tokenizer cannot be read": tokens("bad.onnx", **packed(tokenizer_json=b"{}")),
        "its tokenizer has 11 tokens": text_model(tokens, [*WORDS, "more"], name="more.onnx"),
        "metadata fxmerge.assets is not what": tokens(
            "damaged.onnx", **{"fxmerge.assets": {"a": {"tokenizer.json": "x"}}}
        ),
    }
    for what, path in cases.items():
        with pytest.raises(SourceError, match=what) as caught:
            serve(path, raw=True)
        assert len(str(caught.value).splitlines()) == 2
