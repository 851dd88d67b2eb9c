"""Starting and ending: signals, crashes, and what is found again after them."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import psutil
import pytest

from inferhub.testing.servers import SHAPES, Hub, Shape, fetch, is_ready, running_hub, start_service, wait_for
from inferhub.testing.talk import CHAT, Talk, chat_body, content

SPEC = "models:\n  - {name: echo, backend: echo}\n  - {name: slow, backend: echo, options: {gap_s: 0.05}}\n"
LONG = " ".join(["word"] * 40)
shapes = pytest.mark.parametrize("shape", SHAPES)


def talk_to(hub: Hub) -> Talk:
    return Talk(hub.url, hub.admin_key)


async def busy(hub: Hub, calls: int) -> None:
    await asyncio.to_thread(
        wait_for, lambda: hub.metric("inferhub_requests_inflight") == calls, 10, f"{calls} calls in flight"
    )


@shapes
async def test_sigterm_lets_running_calls_finish(shape: Shape, tmp_path: Path) -> None:
    """Streams and whole answers; meanwhile the operations port says that the server is leaving."""
    with running_hub(shape, tmp_path, SPEC, {"drain_grace_s": 20}) as hub:
        whole = asyncio.create_task(talk_to(hub).chat("slow", LONG))
        async with talk_to(hub).opened(CHAT, chat_body("slow", LONG, stream=True)) as call:
            head = await call.head()
            await busy(hub, 2)
            hub.front.send(signal.SIGTERM)
            await asyncio.to_thread(wait_for, lambda: ops(hub, "/readyz")[0] == 503, 5, "not ready")
            assert ops(hub, "/livez")[0] == 200
            events = [event async for event in call.connection.events(head)]
        assert content(events) == LONG
        assert events[-1].data == "[DONE]"
        assert (await whole).json["choices"][0]["message"]["content"] == LONG
        assert await asyncio.to_thread(hub.front.wait) == 0
        assert "Traceback" not in hub.front.stderr
        assert not is_ready(hub.url)


def ops(hub: Hub, path: str) -> tuple[int, bytes]:
    return fetch(f"{hub.ops_url}{path}")


@pytest.mark.parametrize(("shape", "number"), [("serve", signal.SIGINT), ("split", signal.SIGTERM)])
async def test_calls_that_do_not_finish_in_time_are_told(
    shape: Shape, tmp_path: Path, number: signal.Signals
) -> None:
    """After the grace period an error in the form that fits, and a clean exit."""
    endless = " ".join(["word"] * 2000)
    with running_hub(shape, tmp_path, SPEC, {"drain_grace_s": 1}) as hub:
        whole = asyncio.create_task(talk_to(hub).chat("slow", endless))
        async with talk_to(hub).opened(CHAT, chat_body("slow", endless, stream=True)) as call:
            head = await call.head()
            await busy(hub, 2)
            begin = time.monotonic()
            hub.front.send(number)
            events = [event async for event in call.connection.events(head)]
        assert events[-1].json["error"]["code"] == "draining"
        answer = await whole
        assert (answer.status, answer.error["code"]) == (503, "draining")
        assert await asyncio.to_thread(hub.front.wait) in (0, 130)
        assert time.monotonic() - begin < 15
        assert "Traceback" not in hub.front.stderr


async def test_the_second_signal_ends_at_once(tmp_path: Path) -> None:
    with running_hub("serve", tmp_path, SPEC, {"drain_grace_s": 60}) as hub:
        async with talk_to(hub).opened(
            CHAT, chat_body("slow", " ".join(["word"] * 2000), stream=True)
        ) as call:
            await call.head()
            hub.front.send(signal.SIGINT)
            await asyncio.sleep(0.3)
            assert hub.front.exit_code is None
            hub.front.send(signal.SIGINT)
            assert await asyncio.to_thread(hub.front.wait, 5) == 130


async def test_kill_9_loses_neither_keys_nor_the_applied_spec(tmp_path: Path) -> None:
    first = start_service("serve", tmp_path, {}, name="first")
    try:
        said = first.announcement()
        talk = Talk(said["url"], said["admin_key"])
        applied = SPEC + "  - {name: applied, backend: echo}\n"
        assert (await talk.ask("PUT", "/admin/v1/spec", {}, applied.encode())).status == 200
    finally:
        assert first.kill() == -signal.SIGKILL
    with start_service("serve", tmp_path, {"port": said["url"].rpartition(":")[2]}, name="second") as second:
        again = second.announcement()
        assert again["url"] == said["url"], "the port is free at once"
        assert again["admin_key"] is None, "the first key is not replaced"
        talk = Talk(again["url"], said["admin_key"])
        assert (await talk.chat("applied")).status == 200
        assert (await talk.get("/admin/v1/spec")).body.decode() == applied


async def test_a_killed_worker_is_told_at_once_and_its_successor_found(tmp_path: Path) -> None:
    with running_hub("split", tmp_path, SPEC) as hub:
        gateway, worker = hub.processes
        address = worker.announcement()["url"]
        async with talk_to(hub).opened(
            CHAT, chat_body("slow", " ".join(["word"] * 400), stream=True)
        ) as call:
            head = await call.head()
            events = call.connection.events(head)
            async for event in events:
                if event.data and "word" in event.data:
                    break
            killed_s = time.monotonic()
            worker.kill()
            rest = [event async for event in events]
        assert rest[-1].json["error"]["code"] == "endpoint_lost"
        assert rest[-1].at_s - killed_s < 5
        await asyncio.to_thread(wait_for, lambda: not hub.get("/readyz?verbose")["ready"], 10, "not ready")
        refused = await talk_to(hub).chat("echo")
        assert (refused.status, refused.error["code"]) == (503, "no_endpoint")
        settings = {"worker_listen": address}
        with start_service("worker", tmp_path, settings, name="successor") as successor:
            successor.announcement()
            await asyncio.to_thread(wait_for, lambda: hub.get("/readyz?verbose")["ready"], 20, "ready again")
            assert (await talk_to(hub).chat("echo")).status == 200
        assert gateway.exit_code is None


async def test_a_crashed_engine_is_told_and_comes_back(hub: Hub, talk: Talk) -> None:
    """The engine's process dies in the middle of an answer; the server and the other models do not."""
    body = chat_body("smollm2-135m", "Tell me a long story.", stream=True, max_tokens=2000)
    async with talk.opened(CHAT, body) as call:
        head = await call.head()
        events = call.connection.events(head)
        async for event in events:
            if event.data and '"content"' in event.data:
                break
        gguf_engine(hub).kill()
        rest = [event async for event in events]
    assert rest[-1].json["error"]["code"] == "endpoint_lost"
    assert (await talk.chat("echo")).status == 200
    deadline_s = time.monotonic() + 30
    while (answer := await talk.chat("smollm2-135m", "Hi", max_tokens=1)).status != 200:
        assert answer.status in (502, 503), answer
        assert time.monotonic() < deadline_s, answer
        await asyncio.sleep(0.1)


def gguf_engine(hub: Hub) -> psutil.Process:
    """The process that has a GGUF file in its memory."""
    children = [c for p in hub.processes for c in psutil.Process(p.pid).children(recursive=True)]
    (found,) = [c for c in children if any(".gguf" in m.path for m in c.memory_maps())]
    return found
