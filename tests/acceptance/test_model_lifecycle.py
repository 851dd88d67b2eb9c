"""Real models that come and go in a running server: by time, by room, by crash, and never when they are pinned."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from openai import AsyncOpenAI, InternalServerError

from inferhub.testing.servers import Hub, run_command, running_hub, start_service, wait_for

T = TypeVar("T")

SPEC = """
models:
  - {{name: minilm, backend: onnx_embedding, weights: minilm-l6-v2, slots: 1, queue_limit: 1{more}}}
  - {{name: chat, backend: llamacpp, weights: smollm2-135m, slots: 1, pinned: true}}
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Hub]:
    settings = {"cache_dir": cache_dir, "model_idle_ttl_s": 2, "worker_refresh_s": 0.1}
    folder = tmp_path_factory.mktemp("idle")
    with running_hub("serve", folder, SPEC.format(more=""), settings) as running:
        yield running


def model(hub: Hub, name: str) -> dict[str, Any]:
    """As the worker says, not what the gateway makes of it."""
    found = [m for w in hub.get("/admin/v1/workers")["data"] for m in w["models"] if m["name"] == name]
    (only,) = found
    return only  # type: ignore[no-any-return]


def engines(hub: Hub) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(hub.front.pid).children():
        with suppress(psutil.Error):  # one that has just ended
            if "inferhub.worker.child" in child.cmdline():
                found.append(child)
    return found


def engine_of(hub: Hub, file: str) -> psutil.Process:
    (found,) = [e for e in engines(hub) if any(file in mapped.path for mapped in e.memory_maps())]
    return found


def client_of(hub: Hub) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=hub.api, api_key=hub.admin_key, max_retries=0)


async def embed(client: AsyncOpenAI, text: str) -> list[float]:
    return (await client.embeddings.create(model="minilm", input=text)).data[0].embedding


async def retried(ask: Callable[[], Awaitable[T]]) -> T:
    """On a slow machine an engine is longer on its way than calls wait for it."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await ask()
            except InternalServerError as refusal:
                assert refusal.status_code == 503
                assert float(refusal.response.headers["retry-after"]) > 0
                await asyncio.sleep(0.2)


async def test_an_idle_model_leaves_and_the_next_call_brings_it_back(hub: Hub) -> None:
    async with client_of(hub) as client:
        assert len(await embed(client, "one")) == 384
        wait_for(lambda: not model(hub, "minilm")["loaded"], 60, "the model to leave")
        wait_for(lambda: not model(hub, "minilm")["memory_bytes"], 30, "its process to end")
        assert len(engines(hub)) == 1
        gone = model(hub, "minilm")
        assert (gone["ready"], gone["state"]) == (True, "unloaded")
        assert len(await embed(client, "two")) == 384
        wait_for(lambda: model(hub, "minilm")["memory_bytes"] > 50_000_000, 30, "its memory to be told")
        pinned = model(hub, "chat")
        assert (pinned["loaded"], pinned["pinned"]) == (True, True), "longer unused than that"
    assert hub.metric("inferhub_model_unloads_total", model="minilm", reason="idle") >= 1
    assert hub.metric("inferhub_model_loads_total", model="minilm", outcome="ok") >= 2
    assert hub.metric("inferhub_model_cold_start_seconds_count", model="minilm") >= 2
    assert hub.metric("inferhub_model_unloads_total", model="chat") == 0


async def test_calls_beyond_the_queue_of_a_cold_model_are_told_when_to_come_back(hub: Hub) -> None:
    async with client_of(hub) as client:
        wait_for(lambda: not model(hub, "minilm")["loaded"], 60, "the model to leave")
        asked = (embed(client, f"cold {number}") for number in range(12))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert 1 <= len(refused) <= 10, "one slot and one place to wait"
    for refusal in refused:
        assert isinstance(refusal, InternalServerError)
        assert refusal.status_code == 503
        assert int(refusal.response.headers["retry-after"]) >= 1


async def test_a_killed_engine_is_waited_for(hub: Hub) -> None:
    async with client_of(hub) as client:
        killed = engine_of(hub, ".gguf")
        killed.kill()
        wait_for(lambda: not killed.is_running() or killed.status() == psutil.STATUS_ZOMBIE, 30, "its death")
        wait_for(lambda: not model(hub, "chat")["loaded"], 30, "its death to be told")
        answer = await retried(
            lambda: client.chat.completions.create(
                model="chat", messages=[{"role": "user", "content": "Say hi."}], max_tokens=2
            )
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
    wait_for(lambda: model(hub, "chat")["loaded"], 30, "the model to be back")
    assert engine_of(hub, ".gguf").pid != killed.pid
    assert hub.metric("inferhub_model_unloads_total", model="chat", reason="crash") == 1


def test_how_a_model_is_kept_changes_without_a_reload(hub: Hub, tmp_path: Path) -> None:
    before = engine_of(hub, ".gguf").pid
    spec = tmp_path / "hub.yaml"
    text = SPEC.format(more=", idle_ttl_s: 3600, load: start")
    spec.write_text(text.replace("pinned: true", "pinned: false, idle_ttl_s: 3600"), encoding="utf-8")
    done = run_command("apply", "-f", str(spec), "--url", hub.url, "--key", hub.admin_key)
    assert done.exit_code == 0, done.stderr
    wait_for(lambda: not model(hub, "chat")["pinned"], 30, "the model to be unpinned")
    wait_for(lambda: model(hub, "minilm")["loaded"], 30, "the other one to be warm")
    assert engine_of(hub, ".gguf").pid == before


@pytest.mark.parametrize("verb", ["serve", "worker"])
def test_a_stop_while_a_model_loads_leaves_nothing(
    verb: str, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> None:
    folder = tmp_path_factory.mktemp("s")  # short: a socket's path has 107 bytes at most
    sockets = folder / "t"
    sockets.mkdir()
    spec = folder / "hub.yaml"
    spec.write_text(SPEC.format(more=""), encoding="utf-8")
    settings = {"cache_dir": cache_dir, "spec_file": spec}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TMPDIR", str(sockets))
        service = start_service(verb, folder, settings)
    with service:
        wait_for(lambda: [*sockets.glob("inferhub-*/worker")], 60, "an engine to be started")
        children = psutil.Process(service.pid).children()
        service.end()
        assert service.wait() in (0, 143)
        wait_for(lambda: not any(child.is_running() for child in children), 30, "its engines to end")
    assert list(sockets.iterdir()) == []
    assert "Traceback" not in service.stderr


async def test_a_model_leaves_for_another_where_both_do_not_fit(tmp_path: Path, cache_dir: Path) -> None:
    settings = {"cache_dir": cache_dir, "memory_budget_bytes": 300 * 1024**2, "worker_refresh_s": 0.1}
    spec = """
models:
  - {name: minilm, backend: onnx_embedding, weights: minilm-l6-v2}
  - {name: ears, backend: whisper, weights: whisper-tiny.en, options: {speakers: ""}}
"""
    with running_hub("serve", tmp_path, spec, settings) as hub:
        assert model(hub, "minilm")["loaded"], "loaded at the start"
        recording = (Path(__file__).parents[1] / "data" / "endgame_nagg_nell.wav").read_bytes()
        async with client_of(hub) as client:
            heard = await client.audio.transcriptions.create(
                model="ears", file=("nell.wav", recording, "audio/wav")
            )
            assert heard.text
            wait_for(lambda: not model(hub, "minilm")["loaded"], 30, "the other one to be gone")
            assert len(await embed(client, "back")) == 384
            wait_for(lambda: not model(hub, "ears")["loaded"], 30, "the other one to be gone")
        assert hub.metric("inferhub_model_unloads_total", reason="room") == 2
