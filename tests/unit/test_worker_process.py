"""Models in child processes: they crash alone, come back, and never outlive their parent."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from inferhub.backends import backend_class, backend_names
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import EndpointLost, InferHubError, NoEndpoint, SetupError
from inferhub.core.models import ModelSpec
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.chat import ChatDelta
from inferhub.testing.calls import Collector, make_call
from inferhub.worker.host import Host
from inferhub.worker.lifecycle import managed, restarts
from inferhub.worker.service import Worker

SLOW = ModelSpec("m", "echo", options={"gap_s": 0.02})

PLUGIN = '''
"""A plug-in backend with bad manners."""
import asyncio, os, sys
from inferhub.backends.base import Backend
from inferhub.core.call import Delta, Finished
from inferhub.core.errors import WeightsCorrupt
from inferhub.core.models import Capability
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.chat import ChatDelta

class Rude(Backend):
    isolated = True
    needs_weights = True
    capabilities = (Capability("chat"),)

    async def load(self):
        print("x" * 200_000, file=sys.stderr, flush=True)
        print("on stdout while loading", flush=True)
        print("WARNING on stderr while loading", file=sys.stderr, flush=True)
        assert sys.stdin.read() == ""
        if self.weights.name == "corrupt":
            raise WeightsCorrupt("Bad magic.", param="weights")
        if self.weights.name == "crash":
            os.abort()

    async def run(self, call):
        yield Delta(ChatDelta(content=str(self.weights)))
        if call.request.messages[-1].content == "hang":
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.3)
        yield Finished(Usage())
'''


def children(parent: psutil.Process | None = None) -> list[psutil.Process]:
    """The engine processes of this process or another."""
    found = (parent or psutil.Process()).children()
    return [child for child in found if "inferhub.worker.child" in child.cmdline()]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker("w", Host(Path, isolation="always"), tuple)
    yield worker
    await worker.close()
    await until(lambda: not children())


def say(text: str) -> Call:
    return make_call("chat", stream=True, messages=[{"role": "user", "content": text}])


async def answer(worker: Worker, text: str) -> str:
    got = Collector()
    await worker.infer(say(text), got)
    return "".join(chunk.payload.content or "" for chunk in got.chunks if isinstance(chunk, Delta))


def loaded(worker: Worker) -> bool:
    return worker.models()[0].loaded


async def ready(worker: Worker) -> bool:
    return (await worker.status()).models[0].ready


async def streaming(worker: Worker) -> asyncio.Task[None]:
    """A long answer that has begun to arrive."""
    got = Collector()
    call = asyncio.create_task(worker.infer(say("word " * 2000), got))
    await until(lambda: len(got.chunks) >= 3)
    return call


async def test_a_child_answers_like_any_worker_and_goes_at_unload(worker: Worker) -> None:
    status = await worker.load(ModelSpec("m", "echo", slots=1))
    assert sorted(c.modality for c in status.capabilities) == sorted(modalities())
    assert status.spec == ModelSpec("m", "echo", slots=1, load="start")
    got = Collector()
    await worker.infer(say("a b"), got)
    assert got.chunks[0] == Delta(ChatDelta(content="a"))
    assert got.chunks[-1] == Finished(Usage(2, 2))
    (child,) = children()
    folder = Path(child.cmdline()[-2].removeprefix("unix:")).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    await worker.unload("m")
    assert is_gone(child)
    assert not folder.exists()


async def test_cancelling_a_call_frees_the_childs_slot(worker: Worker) -> None:
    await worker.load(ModelSpec("m", "echo", slots=1, queue_limit=0, options={"gap_s": 0.02}))
    for _ in range(5):
        call = await streaming(worker)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await worker.status()).models[0].running == 0


async def test_a_killed_child_ends_its_calls_at_once_and_comes_back(worker: Worker) -> None:
    await worker.load(SLOW)
    calls = [await streaming(worker) for _ in range(2)]
    (child,) = children()
    child.send_signal(signal.SIGKILL)
    for call in calls:
        with pytest.raises(EndpointLost):
            await asyncio.wait_for(call, 30)
    async with asyncio.timeout(60):
        while True:
            try:
                assert await answer(worker, "again") == "again"
                break
            except (EndpointLost, NoEndpoint):
                await asyncio.sleep(0.01)
    assert await ready(worker)
    assert children() != [child]


async def test_calls_wait_for_a_process_that_is_started_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managed, "WAIT_S", 100.0)  # on a slow machine too
    await worker.load(SLOW)
    (child,) = children()
    child.send_signal(signal.SIGKILL)
    await until(lambda: is_gone(child))
    # Whether its death was noticed yet or not: those that reach it are told that it died, the others wait.
    async with asyncio.timeout(60):
        while loaded(worker):
            await asyncio.sleep(0.001)
    assert await answer(worker, "again") == "again"


async def test_a_child_that_keeps_dying_is_started_ever_more_slowly(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "DELAYS_S", (0.01, 3600.0))
    await worker.load(SLOW)
    for _ in range(2):
        await until(lambda: loaded(worker))
        (child,) = children()
        child.send_signal(signal.SIGKILL)
        await until(lambda: not loaded(worker))
    assert not await ready(worker)
    with pytest.raises(NoEndpoint, match="starting again") as refused:
        await answer(worker, "hello")
    assert refused.value.retry_after_s == pytest.approx(3600, abs=100)
    await worker.load(SLOW)  # asked for by name: at once
    assert await ready(worker)
    assert await answer(worker, "hello") == "hello"


async def test_calls_wait_for_a_restart_no_longer_than_they_should(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "DELAYS_S", (1.0,))
    monkeypatch.setattr(managed, "WAIT_S", 1.0)
    await worker.load(SLOW)
    children()[0].send_signal(signal.SIGKILL)
    await until(lambda: not loaded(worker))
    assert await ready(worker), "whoever comes now is let wait"
    with pytest.raises(NoEndpoint, match="starting again") as refused:
        await answer(worker, "hello")
    assert refused.value.retry_after_s
    await until(lambda: loaded(worker))
    assert await answer(worker, "hello") == "hello"


async def test_a_restarting_model_can_be_unloaded(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "DELAYS_S", (3600.0,))
    await worker.load(SLOW)
    children()[0].send_signal(signal.SIGKILL)
    await until(lambda: not loaded(worker))
    await worker.unload("m")
    assert (await worker.status()).models == ()


async def test_the_terminal_and_the_service_manager_do_not_stop_a_child(worker: Worker) -> None:
    await worker.load(SLOW)
    call = await streaming(worker)
    (child,) = children()
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    assert await answer(worker, "still here") == "still here"
    assert children() == [child]
    call.cancel()
    await asyncio.wait([call])


PARENT = """
import asyncio
from pathlib import Path
from inferhub.core.models import ModelSpec
from inferhub.worker.host import Host

async def main():
    await Host(Path, isolation="always").load(ModelSpec("m", "echo"))
    print("loaded", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_the_child_dies_with_its_parent(is_stopped: bool) -> None:
    """Also when the child itself cannot run a single instruction of Python."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdout
    assert await parent.stdout.readline() == b"loaded\n"
    (child,) = children(psutil.Process(parent.pid))
    folder = Path(child.cmdline()[-2].removeprefix("unix:")).parent
    if is_stopped and sys.platform == "linux":
        os.kill(child.pid, signal.SIGSTOP)
    parent.kill()
    await parent.communicate()
    await until(lambda: is_gone(child))
    for leftover in folder.iterdir():
        leftover.unlink()
    folder.rmdir()


ON_UVLOOP = """
import asyncio, os, signal
from pathlib import Path
import psutil, uvloop
from inferhub.core.errors import EndpointLost, NoEndpoint
from inferhub.core.models import ModelSpec
from inferhub.testing.calls import Collector, make_call
from inferhub.worker.host import Host

async def main():
    host = Host(Path, isolation="always")
    await host.load(ModelSpec("m", "echo"))
    os.kill(psutil.Process().children()[0].pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while True:
            try:
                await host.infer(make_call("chat"), Collector())
                break
            except (EndpointLost, NoEndpoint):
                await asyncio.sleep(0.01)
    await host.close()
    print(len(psutil.Process().children()))

uvloop.run(main())
"""


def test_on_uvloop_a_restart_does_not_run_grpcs_fork_handlers() -> None:
    done = subprocess.run([sys.executable, "-c", ON_UVLOOP], check=True, capture_output=True, text=True)
    assert done.stdout == "0\n"
    assert "fork" not in done.stderr


# --- a plug-in with bad manners ----------------------------------------------------------------


@pytest.fixture
def rude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the plug-in the way plug-ins are installed, for this process and its children."""
    (tmp_path / "rude_plugin.py").write_text(PLUGIN)
    info = tmp_path / "rude-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rude\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[inferhub.backends]\nrude = rude_plugin:Rude\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    backend_class.cache_clear()
    backend_names.cache_clear()


@pytest.mark.usefixtures("rude")
async def test_an_engines_noise_goes_to_the_log_and_its_questions_to_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    worker = Worker("w", Host(lambda name: Path("/resolved") / name), tuple)
    await worker.load(ModelSpec("m", "rude", weights="good"))
    assert await answer(worker, "x") == "/resolved/good"
    await worker.close()
    levels = {record.getMessage().partition("] ")[2]: record.levelname for record in caplog.records}
    assert levels["on stdout while loading"] == "INFO"
    assert levels["WARNING on stderr while loading"] == "WARNING"
    await until(lambda: not children())


@pytest.mark.usefixtures("rude")
async def test_an_engine_that_is_slow_to_stop_does_not_refuse_the_next_call() -> None:
    worker = Worker("w", Host(Path), tuple)
    await worker.load(ModelSpec("m", "rude", weights="good", slots=1, queue_limit=0))
    got = Collector()
    call = asyncio.create_task(worker.infer(say("hang"), got))
    await until(lambda: len(got.chunks) == 1)
    call.cancel()
    await asyncio.wait([call])
    assert await answer(worker, "x") == "good"
    await worker.close()


@pytest.mark.usefixtures("rude")
@pytest.mark.parametrize(
    ("weights", "code", "message"),
    [("corrupt", "weights_corrupt", "Bad magic"), ("crash", "setup_error", "SIGABRT")],
)
async def test_a_load_that_fails_in_the_child_leaves_nothing_behind(
    weights: str,
    code: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("t")  # short: a socket's path has 107 bytes at most
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    worker = Worker("w", Host(Path), tuple)
    with pytest.raises(SetupError, match=message) as failure:
        await worker.load(ModelSpec("m", "rude", weights=weights))
    assert failure.value.code == code
    assert (await worker.status()).models == ()
    assert not children()
    assert list(folder.iterdir()) == []


async def test_a_cancelled_load_leaves_no_child() -> None:
    worker = Worker("w", Host(Path, isolation="always"), tuple)
    load = asyncio.create_task(worker.load(SLOW))
    await until(lambda: bool(children()))
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    await until(lambda: not children())


async def test_a_child_without_memory_for_a_process_is_a_setup_error(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(InferHubError, match="Cannot start a process"):
        await worker.load(SLOW)


def test_a_child_imports_nothing_that_it_does_not_need() -> None:
    code = "import sys, inferhub.worker.child; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {
        "fastapi",
        "starlette",
        "uvicorn",
        "pydantic",
        "sqlalchemy",
        "aiohttp",
        "numpy",
        "rich",
        "jsonschema",
    }
    assert not heavy & set(done.stdout.split())
