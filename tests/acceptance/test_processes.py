"""`inferhub gateway --processes N`: one port, one key, one `/metrics`, whatever happens to one process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from inferhub.testing.raw_http import Head
from inferhub.testing.servers import Hub, fetch, run_command, running_hub, start_service, wait_for
from inferhub.testing.talk import CHAT, Opened, Talk, chat_body, content

SPEC = (
    "models:\n  - {name: echo, backend: echo, slots: 64}\n"
    "  - {name: slow, backend: echo, slots: 64, options: {gap_s: 0.05}}\n"
)
LONG = " ".join(["word"] * 60)
ENDLESS = " ".join(["word"] * 2000)
BACK_S = 30
"""Far more than a start takes: no test is about the machine's speed."""


@contextmanager
def running(folder: Path, processes: int = 2, **settings: object) -> Iterator[Hub]:
    given = {"processes": processes, "drain_grace_s": 20, "worker_refresh_s": 0.1, **settings}
    with running_hub("split", folder, SPEC, given) as hub:
        yield hub


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Two processes, which tests may kill: they come back."""
    with running(tmp_path_factory.mktemp("pair")) as hub:
        yield hub


def talk_to(hub: Hub) -> Talk:
    return Talk(hub.url, hub.admin_key)


def ready(hub: Hub) -> dict[str, object] | None:
    """What the operations port says once every process serves."""
    status, body = fetch(f"{hub.ops_url}/readyz")
    return json.loads(body) if status == 200 else None


def pids(hub: Hub) -> list[int]:
    """By slot, once all serve."""
    state = wait_for(lambda: ready(hub), BACK_S, "all processes to serve")
    return [process["pid"] for process in state["processes"]]  # type: ignore[attr-defined]


def freeze(pid: int) -> None:
    """SIGSTOP, which takes effect a little later."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, BACK_S, f"{pid} to stop")


@contextmanager
def only(pid: int, hub: Hub) -> Iterator[None]:
    """All processes but `pid` are stopped: new connections can only be its own."""
    others = [other for other in pids(hub) if other != pid]
    for other in others:
        freeze(other)
    try:
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(processes: list[int]) -> None:
    wait_for(lambda: all(is_gone(pid) for pid in processes), BACK_S, f"the end of {processes}")


@dataclass(frozen=True)
class Stream:
    """A chat stream that has begun."""

    call: Opened
    head: Head

    async def text(self) -> str | None:
        """All it says, or None where it breaks off."""
        events = []
        try:
            async for event in self.call.connection.events(self.head):
                events.append(event)  # noqa: PERF401 - what came before the break is looked at
        except (AssertionError, EOFError, OSError):
            return None
        return content(events) if events and events[-1].data == "[DONE]" else None


@asynccontextmanager
async def streaming(hub: Hub, words: str = LONG) -> AsyncIterator[Stream]:
    async with talk_to(hub).opened(CHAT, chat_body("slow", words, stream=True)) as call:
        yield Stream(call, await call.head())


async def test_both_answer_on_one_port(pair: Hub) -> None:
    said = pair.front.announcement()
    assert set(said) == {
        "service", "version", "url", "ops_url", "models", "admin_key", "processes",
    }  # fmt: skip
    assert sorted(said["processes"]) == sorted(set(said["processes"]))
    assert pair.front.pid not in said["processes"]
    for pid in pids(pair):
        with only(pid, pair):
            assert (await talk_to(pair).chat("echo")).status == 200


def test_only_the_supervisor_speaks_on_stdout_and_each_line_of_the_log_names_its_process(pair: Hub) -> None:
    assert pair.front.stdout.count("\n") == 1
    lines = [json.loads(line) for line in pair.front.stderr.splitlines()]
    assert {line.get("process") for line in lines if line["message"] == "worker is here"} == {0, 1}
    assert pair.admin_key not in pair.front.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_server_on_the_port_is_refused(pair: Hub, tmp_path: Path, processes: int) -> None:
    port = pair.url.rpartition(":")[2]
    arguments = ("--port", port, "--worker", "127.0.0.1:1", "--processes", str(processes))
    done = run_command("gateway", "--json", *arguments, data_dir=tmp_path, metrics_port=0)
    error = json.loads(done.stderr)["error"]
    assert (done.exit_code, error["code"], error["param"]) == (1, "port_taken", "port")
    assert f"Port {port} on 127.0.0.1 is taken by process" in error["message"]
    assert done.stdout == ""


async def test_kill_9_fails_only_the_calls_of_that_process(pair: Hub) -> None:
    doomed, other = pids(pair)
    seen = Totals(pair)
    async with AsyncExitStack() as stack:
        calls: dict[int, list[Stream]] = {doomed: [], other: []}
        for pid, begun in calls.items():
            with only(pid, pair):
                begun += [await stack.enter_async_context(streaming(pair)) for _ in range(4)]
        with seen:
            before = pair.metric("inferhub_requests_total", outcome="ok")
            os.kill(doomed, signal.SIGKILL)
            for _ in range(20):
                assert (await talk_to(pair).chat("echo")).status == 200
            assert [await call.text() for call in calls[doomed]] == [None] * 4
            assert [await call.text() for call in calls[other]] == [LONG] * 4
            successor, same = await asyncio.to_thread(pids, pair)
            assert (successor != doomed, same) == (True, other), "a process keeps its slot"
            with only(successor, pair):
                assert (await talk_to(pair).chat("echo")).status == 200
            # What the dead one answered stays counted, and nothing is counted twice.
            assert pair.metric("inferhub_requests_total", outcome="ok") == before + 20 + 4 + 1
    assert pair.metric("inferhub_process_restarts_total", process="0") >= 1


class Totals:
    """Scrapes while the block runs; no counter may ever be lower than before."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._is_over = threading.Event()
        self._fallen: list[str] = []
        self._scrapes = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._look()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._look()
        assert self._fallen == []
        assert self._scrapes > 3
        assert any(name == "gen_ai_server_request_duration_seconds_bucket" for name, _ in self._last)

    def _run(self) -> None:
        while not self._is_over.wait(0.05):
            self._look()

    def _look(self) -> None:
        now = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self._hub.ops_metrics())
            if family.type in {"counter", "histogram"}
            for sample in family.samples
        }
        self._fallen += [
            f"{key} fell from {v} to {now.get(key)}" for key, v in self._last.items() if now.get(key, -1) < v
        ]
        self._last = now
        self._scrapes += 1


async def test_sums_are_of_both_and_the_processes_own_figures_stay_apart(pair: Hub) -> None:
    before = pair.metric("inferhub_requests_total", model="echo", outcome="ok")
    for pid in pids(pair):
        with only(pid, pair):
            assert (await talk_to(pair).chat("echo")).status == 200
    assert pair.metric("inferhub_requests_total", model="echo", outcome="ok") == before + 2
    for process in ("0", "1", "supervisor"):
        assert pair.metric("process_resident_memory_bytes", process=process) > 1e6
    assert pair.metric("inferhub_processes", state="serving") == 2


def test_a_process_that_does_not_answer_is_not_ready_but_the_supervisor_lives(pair: Hub) -> None:
    stopped, _ = pids(pair)
    freeze(stopped)
    try:
        status, body = fetch(f"{pair.ops_url}/readyz")
        assert (status, [p["ready"] for p in json.loads(body)["processes"]]) == (503, [False, True])
        assert fetch(f"{pair.ops_url}/livez")[0] == 200
        assert pair.metric("inferhub_processes", state="serving") == 2, "with what it said last"
    finally:
        os.kill(stopped, signal.SIGCONT)
    wait_for(lambda: ready(pair), BACK_S, "ready again")


async def test_a_process_that_is_stopped_alone_drains_and_is_replaced(pair: Hub) -> None:
    leaving, _ = pids(pair)
    async with AsyncExitStack() as stack:
        with only(leaving, pair):
            call = await stack.enter_async_context(streaming(pair))
        # Twice: a service manager signals every process, and so does the supervisor.
        os.kill(leaving, signal.SIGTERM)
        os.kill(leaving, signal.SIGTERM)
        assert await call.text() == LONG
    await asyncio.to_thread(wait_until_gone, [leaving])
    assert (await asyncio.to_thread(pids, pair))[0] != leaving


async def test_a_process_that_comes_back_serves_the_spec_that_was_applied_meanwhile(tmp_path: Path) -> None:
    """The file that all were started with is older."""
    with running(tmp_path) as hub:
        applied = SPEC + "  - {name: applied, backend: echo}\n"
        assert (await talk_to(hub).ask("PUT", "/admin/v1/spec", {}, applied.encode())).status == 200
        killed = pids(hub)[0]
        os.kill(killed, signal.SIGKILL)
        await asyncio.to_thread(wait_until_gone, [killed])
        for pid in await asyncio.to_thread(pids, hub):
            with only(pid, hub):
                assert (await talk_to(hub).chat("applied")).status == 200


async def test_sigterm_drains_all_and_exits_0(tmp_path: Path) -> None:
    with running(tmp_path) as hub:
        processes = pids(hub)
        async with AsyncExitStack() as stack:
            calls = []
            for pid in processes:
                with only(pid, hub):
                    calls.append(await stack.enter_async_context(streaming(hub)))
            hub.front.send(signal.SIGTERM)
            await asyncio.to_thread(
                wait_for, lambda: fetch(f"{hub.ops_url}/readyz")[0] == 503, BACK_S, "not ready"
            )
            assert [await call.text() for call in calls] == [LONG, LONG]
        assert await asyncio.to_thread(hub.front.wait) == 0
        assert all(is_gone(pid) for pid in processes)
        assert "Traceback" not in hub.front.stderr


def refuses(hub: Hub) -> bool:
    try:
        fetch(f"{hub.url}/livez")
    except OSError as error:
        # One that came in between is reset.
        return "refused" in str(error)
    return False


async def test_the_second_ctrl_c_ends_all_at_once(tmp_path: Path) -> None:
    with running(tmp_path, drain_grace_s=600) as hub:
        processes = pids(hub)
        async with streaming(hub, ENDLESS):
            hub.front.send(signal.SIGINT)
            await asyncio.to_thread(
                wait_for, lambda: fetch(f"{hub.ops_url}/readyz")[0] == 503, BACK_S, "not ready"
            )
            await asyncio.to_thread(wait_for, lambda: refuses(hub), BACK_S, "new connections to be refused")
            assert hub.front.exit_code is None
            hub.front.send(signal.SIGINT)
            assert await asyncio.to_thread(hub.front.wait) == 130
            await asyncio.to_thread(wait_until_gone, processes)


async def test_kill_9_of_the_supervisor_leaves_no_process(tmp_path: Path) -> None:
    """Running calls still finish, and the port is free for the next one."""
    with running(tmp_path) as hub:
        processes = pids(hub)
        async with streaming(hub) as call:
            hub.front.kill()
            assert await call.text() == LONG
        await asyncio.to_thread(wait_until_gone, processes)
        worker = hub.processes[1].announcement()["url"]
        again = {"processes": 2, "port": hub.url.rpartition(":")[2], "spec_file": tmp_path / "hub.yaml"}
        with start_service("gateway", tmp_path, again, "--worker", worker, name="again") as second:
            said = second.announcement()
            assert (said["url"], said["admin_key"]) == (hub.url, None)


async def test_the_first_start_makes_one_admin_key_that_all_accept(tmp_path: Path) -> None:
    with running(tmp_path, processes=3) as hub:
        (key,) = keys(hub.data_dir)
        assert key["role"] == "admin"
        for pid in pids(hub):
            with only(pid, hub):
                assert (await talk_to(hub).chat("echo")).status == 200
        # Nobody would see one that a later life makes.
        assert run_command("keys", "revoke", key["id"], data_dir=hub.data_dir).exit_code == 0
        first = pids(hub)[0]
        os.kill(first, signal.SIGKILL)
        await asyncio.to_thread(wait_until_gone, [first])
        await asyncio.to_thread(pids, hub)
        assert [key["id"] for key in keys(hub.data_dir)] == [key["id"]]


def keys(data_dir: Path) -> list[dict[str, str]]:
    listed: list[dict[str, str]] = json.loads(run_command("keys", "list", "--json", data_dir=data_dir).stdout)
    return listed


@pytest.mark.parametrize("value", ["0", "65", "abc", "-1", "1.5"])
def test_a_wrong_number_of_processes_is_told(value: str, tmp_path: Path) -> None:
    done = run_command("gateway", "--json", f"--processes={value}", data_dir=tmp_path)
    message = json.loads(done.stderr)["error"]["message"]
    assert done.exit_code == 1
    assert message == (
        f"flag --processes: processes cannot be {value!r}; allowed: a whole number from 1 to 64."
    )


def test_what_one_process_cannot_do_ends_the_start_with_its_own_words(tmp_path: Path) -> None:
    """And takes no first key along."""
    settings = {"data_dir": tmp_path, "port": 0, "metrics_port": 0}
    done = run_command("gateway", "--json", "--processes", "2", **settings)
    error = json.loads(done.stderr)["error"]
    assert (done.exit_code, error["code"], error["param"]) == (1, "setup_error", "orchestrator")
    assert done.stdout == ""
    assert keys(tmp_path) == []


def test_serve_has_no_processes(tmp_path: Path) -> None:
    assert run_command("serve", "--processes", "2", data_dir=tmp_path).exit_code == 2
