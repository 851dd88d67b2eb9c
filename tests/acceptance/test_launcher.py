"""`inferhub serve --workers N` and `inferhub orchestrator --launcher process`: workers that come by themselves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from inferhub.testing.servers import Hub, Process, fetch, is_ready, running_hub, start_service, wait_for
from inferhub.testing.talk import CHAT, Opened, Talk, chat_body, content

SPEC = (
    "models:\n  - {name: echo, backend: echo, slots: 64}\n"
    "  - {name: slow, backend: echo, slots: 64, options: {gap_s: 0.05}}\n"
    "  - {name: single, backend: echo, slots: 1, queue_limit: 500, options: {first_token_s: 0.3}}\n"
)
SAID = " ".join(["word"] * 40)
ENDLESS = " ".join(["word"] * 4000)
PATIENT_S = 60
"""Far more than a start takes: no test is about the machine's speed."""


@contextmanager
def running(folder: Path, workers: int = 2, **settings: object) -> Iterator[Hub]:
    with running_hub("serve", folder, SPEC, {"workers": workers, "drain_grace_s": 20, **settings}) as hub:
        yield hub


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Two workers, which tests may kill: they come back."""
    with running(tmp_path_factory.mktemp("pair")) as hub:
        yield hub


def talk_to(hub: Hub) -> Talk:
    return Talk(hub.url, hub.admin_key)


def told(hub: Hub) -> dict[str, Any]:
    """What every worker of the gateway's fleet says of itself, by its name."""
    return {
        one["id"]: one for one in hub.get("/admin/v1/workers")["data"] if one["reachable"] and one["models"]
    }


def processes(of: Process) -> list[psutil.Process]:
    """The workers that it started."""
    children = psutil.Process(of.pid).children()
    return [child for child in children if "inferhub.cli._worker_process" in child.cmdline()]


def all_serve(hub: Hub, count: int) -> bool:
    workers = told(hub)
    return len(workers) == count and all(
        len(one["models"]) == 3 and not one["suspect"] and not one["draining"] for one in workers.values()
    )


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_for, condition, PATIENT_S, what)


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@asynccontextmanager
async def streaming(hub: Hub, words: str = SAID) -> AsyncIterator[tuple[Opened, str]]:
    """A stream that has begun, and the worker that answers it."""
    body = chat_body("slow", words, stream=True)
    async with talk_to(hub).opened(CHAT, body, x_inferhub_cache="off") as call:
        head = await call.head()
        assert head.status == 200
        yield call, head["x-inferhub-upstream"] or ""


async def test_calls_are_answered_by_processes_beside_it(pair: Hub) -> None:
    await until(lambda: all_serve(pair, 2), "two workers")
    seen = set()
    for number in range(40):
        answer = await talk_to(pair).chat("echo", f"call {number}")
        assert answer.status == 200
        seen.add(answer.head["x-inferhub-upstream"])
    assert seen <= set(told(pair))
    async with AsyncExitStack() as stack:
        names = {(await stack.enter_async_context(streaming(pair)))[1] for _ in range(8)}
    assert names == set(told(pair)), "the load is shared"


def test_nothing_secret_is_where_other_users_could_read_it(pair: Hub) -> None:
    started = processes(pair.front)
    assert len(started) == 2
    for process in started:
        name = process.cmdline()[-1]
        assert process.cmdline()[1:] == ["-P", "-m", "inferhub.cli._worker_process", name]
        assert os.getpgid(process.pid) == process.pid, "Ctrl-C is the parent's to act on"
        assert not any("TOKEN" in key for key in process.environ())


async def test_a_worker_that_is_killed_comes_back_and_calls_go_on(pair: Hub) -> None:
    await until(lambda: all_serve(pair, 2), "two workers")
    doomed = processes(pair.front)[0]
    doomed.kill()
    for number in range(60):
        assert (await talk_to(pair).chat("echo", f"still {number}")).status == 200
    await until(lambda: doomed.pid not in {one.pid for one in processes(pair.front)}, "the end of it")
    await until(lambda: len(processes(pair.front)) == 2 and all_serve(pair, 2), "its next life")
    lines = [json.loads(line) for line in pair.front.stderr.splitlines() if line.startswith("{")]
    assert any("was ended by SIGKILL; it starts again" in line["message"] for line in lines)
    assert any(line["logger"].startswith("inferhub.worker.") and line.get("worker") for line in lines), (
        "what workers say is in the one log"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_lets_streams_finish_and_leaves_no_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    with running(tmp_path) as hub:
        started = processes(hub.front)
        talk = talk_to(hub)
        streams = [asyncio.create_task(talk.stream("slow", f"{n} {SAID}")) for n in range(6)]
        await until(
            lambda: sum(m["running"] for one in told(hub).values() for m in one["models"]) == 6, "all to run"
        )
        # A service manager signals every process, and so does the parent.
        hub.front.send(number)
        for process in started:
            process.send_signal(signal.SIGTERM)
        assert [content(await stream) for stream in streams] == [f"{n} {SAID}" for n in range(6)]
        assert await asyncio.to_thread(hub.front.wait, PATIENT_S) == 0
        assert all(is_gone(process) for process in started)
        assert "Traceback" not in hub.front.stderr


async def test_kill_9_leaves_no_worker(tmp_path: Path) -> None:
    with running(tmp_path, drain_grace_s=600) as hub:
        started = processes(hub.front)
        assert len(started) == 2
        async with streaming(hub, ENDLESS):
            hub.front.kill()
            await until(lambda: all(is_gone(process) for process in started), "the workers to end")


async def test_more_workers_come_while_work_waits(tmp_path: Path) -> None:
    with running(tmp_path, workers=1, max_workers=3) as hub:
        assert len(processes(hub.front)) == 1
        talk = talk_to(hub)
        calls = [asyncio.create_task(talk.chat("single", f"call {n}")) for n in range(120)]
        await until(lambda: len(processes(hub.front)) > 1, "another worker")
        await until(lambda: len(told(hub)) > 1, "it to take calls")
        statuses = {(await call).status for call in calls}
        assert statuses <= {200, 503}
        assert 200 in statuses
        assert "workers instead of 1" in hub.front.stderr


async def test_an_orchestrator_starts_workers_for_gateways(tmp_path: Path) -> None:
    (tmp_path / "hub.yaml").write_text(SPEC, encoding="utf-8")
    token = tmp_path / "token"
    token.write_text("a-token-that-all-of-them-know", encoding="ascii")
    settings = {"worker_token_file": token, "drain_grace_s": 20}
    launching = {"orchestrator_listen": "127.0.0.1:0", "launcher": "process", "workers": 2}
    orchestrator = start_service("orchestrator", tmp_path, {**settings, **launching})
    with orchestrator:
        said = orchestrator.announcement()
        started = processes(orchestrator)
        assert len(started) == 2
        state = json.loads(fetch(f"{said['ops_url']}/readyz?verbose")[1])
        assert state["pool"]["desired"] == 2
        assert all(one["is_running"] and not one["is_looping"] for one in state["pool"]["launched"])
        given = {**settings, "spec_file": tmp_path / "hub.yaml"}
        with start_service("gateway", tmp_path, given, "--orchestrator", said["url"]) as gateway:
            front = gateway.announcement()
            await until(lambda: is_ready(front["url"]), "the gateway")
            answer = await Talk(front["url"], front["admin_key"]).chat("echo")
            assert answer.status == 200
        orchestrator.send(signal.SIGTERM)
        assert await asyncio.to_thread(orchestrator.wait, PATIENT_S) == 0
        assert all(is_gone(process) for process in started)
        assert token.read_text() not in orchestrator.stderr
