"""Models ready to answer: what they take, what they compute, and rows that are the same alone and together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fxmerge.serving.engine
from fxmerge.serving.engine import Asked, Engine, Runner
from fxmerge.serving.protocol import InferRequest, RequestError

Write = Callable[..., Path]


def ask(engine: Engine, *outputs: str, **inputs: Any) -> Asked:
    return engine.accept(InferRequest({name: np.asarray(value) for name, value in inputs.items()}, outputs))


def rows(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 8)).astype("f")


def test_a_head_that_nobody_asked_for_is_not_computed(two_tasks: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(two_tasks())
    ran: list[Sequence[str]] = []
    run = Runner.run

    def recorded(self: Runner, values: Any, wanted: Sequence[str]) -> Any:
        ran.append(tuple(self.outputs))
        return run(self, values, wanted)

    monkeypatch.setattr(Runner, "run", recorded)
    [values] = engine.run([ask(engine, "b.logits", x=rows(2))])
    assert list(values) == ["b.logits"] and ran == [("trunk",), ("b.logits",)]


def test_a_task_may_be_called_like_the_beginning_of_another(apart: Write) -> None:
    path = apart()
    model = onnx.load(str(path))
    names = {"b.sum": "a.b.sum", "b.x": "a.b.x"}
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        for ports in (node.input, node.output):
            ports[:] = [names.get(name, name) for name in ports]
    onnx.helper.set_model_props(model, {"fxmerge.tasks": '["a", "a.b"]'})
    onnx.save(model, str(path))
    engine = Engine(path)
    assert engine.tasks == {"a": ["a.logits"], "a.b": ["a.b.sum"]}
    assert list(engine.run([ask(engine, "a.b.sum", **{"a.b.x": rows(2)})])[0]) == ["a.b.sum"]


def test_rows_together_are_the_rows_alone(two_tasks: Write) -> None:
    engine = Engine(two_tasks())
    assert engine.batched and not engine.notes
    asked = [ask(engine, x=rows(2)), ask(engine, "a.logits", x=rows(1, 1)), ask(engine, "b.logits", x=rows(3, 2))]
    assert len({engine.key(one) for one in asked}) == 1
    together = engine.run(asked)
    assert [list(values) for values in together] == [["a.logits", "b.logits"], ["a.logits"], ["b.logits"]]
    for one, values in zip(asked, together, strict=True):
        for name, value in engine.run([one])[0].items():
            np.testing.assert_allclose(values[name], value, rtol=1e-5, atol=1e-6)


def test_rows_that_depend_on_each_other_are_not_batched(two_tasks: Write) -> None:
    engine = Engine(two_tasks(mixed=True))
    assert not engine.batched and "not batched" in engine.notes[0]
    one, other = ask(engine, x=rows(1)), ask(engine, x=rows(1))
    assert engine.key(one) != engine.key(other)


def test_token_rows_are_padded_and_unpadded(tokens: Write) -> None:
    engine = Engine(tokens())
    assert engine.padded == {"sequence"} and not engine.notes
    draw = np.random.default_rng(0).integers
    asked = [ask(engine, ids=draw(0, 10, (2, n)), mask=np.ones((2, n), np.int64)) for n in (3, 7, 5)]
    assert len({engine.key(one) for one in asked}) == 1
    for one, values in zip(asked, engine.run(asked), strict=True):
        alone = engine.run([one])[0]
        assert values["a.each"].shape == (2, one.sizes["sequence"], 3)
        for name, value in alone.items():
            np.testing.assert_allclose(values[name], value, rtol=1e-5, atol=1e-6)


def test_rows_that_padding_would_change_are_batched_by_length(tokens: Write) -> None:
    engine = Engine(tokens(masked=False))
    assert engine.batched and not engine.padded and "different lengths" in engine.notes[0]
    three, other, five = (ask(engine, ids=np.zeros((1, n), np.int64)) for n in (3, 3, 5))
    assert engine.key(three) == engine.key(other) != engine.key(five)


def test_a_mask_that_says_what_is_padding_is_not_padded_with_zeros(tokens: Write) -> None:
    engine = Engine(tokens(inverted=True))  # ones hide all tokens: nothing but NaN to compare
    assert engine.batched and not engine.padded and "different lengths" in engine.notes[0]


BAD = {
    "output": (("c.logits",), {"x": rows(1)}, "no output 'c.logits', did you mean"),
    "input": ((), {"y": rows(1)}, "no input 'y'"),
    "missing": ((), {}, "'x' is missing"),
    "datatype": ((), {"x": rows(1).astype("f8")}, "is FP64, the model takes FP32"),
    "size": ((), {"x": rows(1)[:, :7]}, r"has the shape \[1, 7\], the model takes \[batch, 8\]"),
    "axes": ((), {"x": rows(1)[0]}, r"has the shape \[8\]"),
    "empty": ((), {"x": rows(0)}, r"has the shape \[0, 8\]"),
    "NaN": ((), {"x": np.where(np.arange(16).reshape(2, 8) == 9, np.nan, rows(2)).astype("f")}, "row 1 of .* NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_requests_that_do_not_fit_say_what_and_what_to_do(case: str, two_tasks: Write) -> None:
    outputs, inputs, what = BAD[case]
    engine = Engine(two_tasks())
    with pytest.raises(RequestError, match=what) as caught:
        ask(engine, *outputs, **inputs)
    assert len(str(caught.value).splitlines()) == 2


def test_inputs_of_different_lengths_are_refused(tokens: Write) -> None:
    with pytest.raises(RequestError, match="'mask' has the shape"):
        ask(Engine(tokens()), ids=np.zeros((1, 3), np.int64), mask=np.ones((1, 4), np.int64))


def test_values_that_the_model_cannot_be_run_on_are_the_clients(tokens: Write) -> None:
    engine = Engine(tokens())
    with pytest.raises(RequestError, match="cannot be run on ids"):
        engine.run([ask(engine, ids=np.full((1, 3), 99), mask=np.ones((1, 3), np.int64))])


def test_weights_beside_the_model_are_found(two_tasks: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = two_tasks()
    expected = Engine(path)
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=100)
    engine = Engine(path)
    assert not engine.notes and engine.version != expected.version
    one = ask(engine, x=rows(2))
    for name, value in expected.run([one])[0].items():
        np.testing.assert_allclose(engine.run([one])[0][name], value, rtol=1e-6)


def test_a_model_that_cannot_be_cut_is_run_whole(two_tasks: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise KeyError("trunk")

    monkeypatch.setattr(fxmerge.serving.engine, "cut", refuse)
    engine = Engine(two_tasks())
    assert "all outputs are computed" in engine.notes[0]
    [values] = engine.run([ask(engine, "b.logits", x=rows(2))])
    assert list(values) == ["b.logits"] and values["b.logits"].shape == (2, 5)
