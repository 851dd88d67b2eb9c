"""A cancelled call gives its slot back, whatever it was doing. The engine itself counts its slots.

How fast is measured in batches that the engine still computed, which no slow machine can falsify.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from inferhub.backends.llamacpp import LlamaCpp
from inferhub.core.call import Call
from inferhub.core.errors import ContextOverflow
from inferhub.testing.calls import make_call
from inferhub.testing.contract import finish

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG_PROMPT = "The sea was calm and the ship went on. " * (3000 // 9)
PATIENCE_S = 60.0


def chat(text: str = "Say hello.", **params: Any) -> Call:
    return make_call(
        "chat", messages=[{"role": "user", "content": text}], **{"temperature": 0, "max_tokens": 8} | params
    )


def complete(prompt: Any = "Once upon a time", **params: Any) -> Call:
    return make_call("completion", prompt=prompt, **{"temperature": 0, "max_tokens": 4} | params)


async def until_free(backend: LlamaCpp) -> float:
    """Seconds until the engine itself says that no slot is taken."""
    started = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        while await backend.slots_busy():
            await asyncio.sleep(0.02)
    return time.monotonic() - started


async def batches(backend: LlamaCpp) -> int:
    """How many batches the engine has computed."""
    metrics = await asyncio.to_thread(backend._engine._server.handle_metrics)
    found = re.search(r"^llamacpp:n_decode_total (\d+)", str(metrics), re.MULTILINE)
    assert found
    return int(found[1])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0.02)


def begin(backend: LlamaCpp, call: Call, received: list[Any] | None = None) -> asyncio.Task[Any]:
    """Like the worker: a task that pulls chunks until it is cancelled."""
    kept = [] if received is None else received

    async def pull() -> None:
        async with aclosing(backend.run(call)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                kept.append(chunk)

    return asyncio.create_task(pull())


async def cancel(task: asyncio.Task[Any]) -> None:
    assert not task.done(), "ended before it could be cancelled"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("stream", [True, False])
async def test_contract_018_cancel_while_the_prompt_is_processed(llama: LlamaCpp, stream: bool) -> None:
    received: list[Any] = []
    before = await batches(llama)
    task = begin(llama, chat(f"{time.monotonic()} {LONG_PROMPT}", stream=stream, max_tokens=None), received)

    async def is_processing() -> bool:
        return await batches(llama) > before + 2

    await until(is_processing)
    before = await batches(llama)
    await cancel(task)
    assert not received, "the prompt was through already: its batches are too large"
    await until_free(llama)
    # Of about 110. In time: two batches, the one being computed and the one the engine began meanwhile.
    assert await batches(llama) - before <= 4


@pytest.mark.parametrize("stream", [True, False])
async def test_contract_018_cancel_mid_stream(llama: LlamaCpp, stream: bool) -> None:
    call = complete("1, 2, 3,", max_tokens=5000, logit_bias={"0": -100, "2": -100}, stream=stream)
    before = await batches(llama)
    task = begin(llama, call)

    async def is_speaking() -> bool:
        return await batches(llama) > before + 5

    await until(is_speaking)
    before = await batches(llama)
    await cancel(task)
    await until_free(llama)
    assert await batches(llama) - before <= 20


async def test_contract_018_cancel_in_the_queue(llama: LlamaCpp) -> None:
    holders = [begin(llama, complete("1, 2, 3,", max_tokens=5000)) for _ in range(llama.spec.slots)]

    async def is_full() -> bool:
        return await llama.slots_busy() == llama.spec.slots

    await until(is_full)
    waiting = begin(llama, chat())
    await asyncio.sleep(0)
    # Nothing waits inside the engine, where it could not be reached.
    assert await llama.slots_busy() == llama.spec.slots
    await cancel(waiting)
    for holder in holders:
        await cancel(holder)
    await until_free(llama)
    assert (await finish(llama, chat())).text()


async def test_a_cancelled_call_of_many_answers_frees_every_slot(llama: LlamaCpp) -> None:
    task = begin(llama, complete("1, 2, 3,", max_tokens=5000, n=6))

    async def is_full() -> bool:
        return await llama.slots_busy() == llama.spec.slots

    await until(is_full)
    await cancel(task)
    await until_free(llama)
    assert (await finish(llama, chat())).text()


async def test_an_error_in_one_answer_stops_the_others(llama: LlamaCpp) -> None:
    with pytest.raises(ContextOverflow):
        await finish(llama, complete(["1, 2, 3,", "sea " * 9000], max_tokens=5000))
    await until_free(llama)
