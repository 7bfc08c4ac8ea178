"""Requests that arrive together run together; each gets its own rows, and only its own troubles."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from fxmerge.serving.protocol import InferRequest, RequestError


def rows(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 8)).astype("f")


def ask(service: Any, x: Any, *outputs: str) -> Any:
    return asyncio.ensure_future(service.infer("two", "", InferRequest({"x": x}, outputs), "rest"))


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def test_those_who_wait_for_a_batch_form_the_next(two_tasks: Any, serve: Any, hold: Any) -> None:
    async def go() -> None:
        service = serve(two_tasks(), max_batch=8, max_wait=0)
        served = service.models["two"]
        alone = [served.engine.run([served.engine.accept(InferRequest({"x": rows(1, k)}))])[0] for k in range(13)]
        held = hold(service)
        asked = [ask(service, rows(1, 0))]
        await until(held.began.is_set)
        asked += [ask(service, rows(1, k), *(["a.logits"] if k % 2 else [])) for k in range(1, 13)]
        await until(lambda: len(served.batcher._queue) == 12)
        held.go.set()
        answers = await asyncio.gather(*asked)
        assert held.batches == [1, 8, 4]
        for k, answer in enumerate(answers):
            assert list(answer.outputs) == (["a.logits"] if k % 2 else ["a.logits", "b.logits"])
            for name, value in answer.outputs.items():
                np.testing.assert_allclose(value, alone[k][name], rtol=1e-5, atol=1e-6)
        await service.close()

    asyncio.run(go())


def test_a_batch_waits_for_others_until_it_is_full(two_tasks: Any, serve: Any, hold: Any) -> None:
    async def go() -> None:
        service = serve(two_tasks(), max_batch=4, max_wait=30)  # far longer than the test may take
        held = hold(service)
        held.go.set()
        asked = [ask(service, rows(1)), ask(service, rows(3))]
        await asyncio.gather(*asked)
        assert held.batches == [4]
        large = await ask(service, rows(9))  # larger than a batch: at once, alone and whole
        assert held.batches == [4, 9] and len(large.outputs["a.logits"]) == 9
        await service.close()

    asyncio.run(go())


def test_too_many_are_refused_and_who_leaves_makes_room(two_tasks: Any, serve: Any, hold: Any) -> None:
    async def go() -> None:
        service = serve(two_tasks(), max_queue=2, max_wait=0)
        held = hold(service)
        first = ask(service, rows(1))
        await until(held.began.is_set)
        waiting = [ask(service, rows(1)), ask(service, rows(1))]
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="2 requests wait") as caught:
            await ask(service, rows(1))
        assert caught.value.status == 429
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        last = ask(service, rows(2))
        await asyncio.sleep(0)
        held.go.set()
        await asyncio.gather(first, waiting[1], last)
        assert held.batches == [1, 3]  # the one that left was not computed
        await service.close()

    asyncio.run(go())


def test_a_request_has_its_time(two_tasks: Any, serve: Any, hold: Any) -> None:
    async def go() -> None:
        service = serve(two_tasks(), timeout=0.05)
        held = hold(service)
        with pytest.raises(RequestError, match=r"not answered within 0.05 s") as caught:
            await ask(service, rows(1))
        assert caught.value.status == 504
        held.go.set()
        service.timeout = 20
        assert (await ask(service, rows(1))).outputs
        await service.close()

    asyncio.run(go())


def test_one_bad_request_fails_alone(tokens: Any, serve: Any, hold: Any) -> None:
    async def go() -> None:
        service = serve(tokens(), max_wait=30, max_batch=3)
        ids = [np.full((1, n), token) for n, token in ((2, 1), (4, 99), (3, 2))]
        asked = [InferRequest({"ids": one, "mask": np.ones_like(one)}) for one in ids]
        answers = await asyncio.gather(
            *(service.infer("tokens", "", one, "rest") for one in asked), return_exceptions=True
        )
        assert isinstance(answers[1], RequestError) and "cannot be run" in answers[1].what
        assert [answers[k].outputs["a.each"].shape for k in (0, 2)] == [(1, 2, 3), (1, 3, 3)]
        await service.close()

    asyncio.run(go())


def test_closing_answers_all_who_wait(two_tasks: Any, serve: Any, hold: Any) -> None:
    async def go() -> None:
        service = serve(two_tasks(), max_batch=2, max_wait=0)
        held = hold(service)
        asked = [ask(service, rows(1)) for _ in range(5)]
        await until(held.began.is_set)
        service.stopping = True
        closing = asyncio.ensure_future(service.close())
        with pytest.raises(RequestError, match="stopping") as caught:
            await ask(service, rows(1))
        assert caught.value.status == 503
        held.go.set()
        await closing
        assert all(one.done() and one.result().outputs for one in asked)

    asyncio.run(go())
