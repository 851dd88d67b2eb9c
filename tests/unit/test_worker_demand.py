"""Models on demand: one load for all first callers, failures that can be tried again, and room made in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import msgspec
import psutil
import pytest

from inferhub.backends.base import Backend
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import (
    DeadlineExceeded,
    EndpointLost,
    NoEndpoint,
    SetupError,
    Unsupported,
    WeightsMissing,
)
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta
from inferhub.testing.calls import Collector, make_call
from inferhub.worker import demand
from inferhub.worker import host as host_module
from inferhub.worker.host import Host, HostLimits

MB = 10**6


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    more: str = "further"


class Gated(Backend):
    """Loads when the gate is open, and fails as often as it is told to."""

    Options = Options
    default_load = "demand"
    further_weights = ("more",)
    gate: ClassVar[asyncio.Event]
    loads: ClassVar[int] = 0
    unloads: ClassVar[int] = 0
    failures: ClassVar[list[Exception]] = []
    seen: ClassVar[list[object]] = []
    capabilities = (Capability("chat", frozenset({"stream"})), Capability("embedding"))

    @classmethod
    def offers(cls, spec: ModelSpec) -> tuple[Capability, ...]:
        return cls.capabilities

    async def load(self) -> None:
        type(self).loads += 1
        self.seen.append(self.spec.options)
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop()

    async def unload(self) -> None:
        type(self).unloads += 1

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        yield Delta(ChatDelta(content="here"))
        yield Finished(Usage())


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Gated.gate, Gated.loads, Gated.unloads = asyncio.Event(), 0, 0
    Gated.failures.clear()
    Gated.seen.clear()


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host(Path, isolation="never", backends=lambda _: Gated, limits=HostLimits(load_s=60))
    yield host
    await host.close()


def say(text: str = "hi", *, model: str = "m", timeout_s: float = 60.0) -> Call:
    messages = [{"role": "user", "content": text}]
    return make_call("chat", model=model, stream=True, messages=messages, timeout_s=timeout_s)


async def ask(host: Host, text: str = "hi", *, model: str = "m", timeout_s: float = 60.0) -> str:
    got = Collector()
    await host.infer(say(text, model=model, timeout_s=timeout_s), got)
    return "".join(chunk.payload.content or "" for chunk in got.chunks if isinstance(chunk, Delta))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def state(host: Host, name: str = "m") -> ModelStatus:
    return next(status for status in host.models() if status.spec.name == name)


async def test_it_is_offered_at_once_and_loaded_by_its_first_call(host: Host) -> None:
    status = await host.load(ModelSpec("m", "gated"))
    assert (status.ready, status.loaded, Gated.loads) == (True, False, 0)
    assert [c.modality for c in status.capabilities] == ["chat", "embedding"]
    assert status.spec.load == "demand"
    Gated.gate.set()
    assert await ask(host) == "here"
    assert await ask(host) == "here"
    assert (state(host).loaded, Gated.loads) == (True, 1)
    await host.unload("m")
    assert (host.models(), Gated.unloads) == ((), 1)


async def test_first_callers_wait_for_one_load_each_as_long_as_it_likes(host: Host) -> None:
    await host.load(ModelSpec("m", "gated", slots=8))
    waiting = [asyncio.create_task(ask(host)) for _ in range(3)]
    await until(lambda: Gated.loads == 1)
    with pytest.raises(DeadlineExceeded):
        await ask(host, timeout_s=0.1)
    waiting[0].cancel()
    await asyncio.wait([waiting[0]])
    assert waiting[0].cancelled()
    Gated.gate.set()
    assert await asyncio.gather(*waiting[1:]) == ["here", "here"]
    assert Gated.loads == 1


async def test_a_load_goes_on_when_its_only_caller_gives_up(host: Host) -> None:
    await host.load(ModelSpec("m", "gated"))
    with pytest.raises(DeadlineExceeded):
        await ask(host, timeout_s=0.1)
    Gated.gate.set()
    await until(lambda: state(host).loaded)
    assert Gated.loads == 1


async def test_a_load_that_fails_is_told_and_may_be_tried_again(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await host.load(ModelSpec("m", "gated"))
    Gated.gate.set()
    Gated.failures.append(WeightsMissing("There is no /secret/path."))
    with pytest.raises(NoEndpoint, match=r"'m' could not be loaded \(weights_missing\)") as caught:
        await ask(host)
    assert "secret" not in caught.value.message
    assert "There is no /secret/path." in caplog.text
    assert caught.value.retry_after_s is not None
    with pytest.raises(NoEndpoint):
        await ask(host)
    assert Gated.loads == 1, "not again at once"
    monkeypatch.setattr(demand, "TRY_AGAIN_S", 0.0)
    assert await ask(host) == "here"


async def test_a_foreign_exception_while_loading_stays_in_the_log(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    await host.load(ModelSpec("m", "gated"))
    Gated.gate.set()
    Gated.failures.append(ZeroDivisionError("private"))
    with pytest.raises(NoEndpoint, match="internal_error"):
        await ask(host)
    assert "ZeroDivisionError: private" in caplog.text


async def test_a_load_takes_no_longer_than_allowed() -> None:
    host = Host(Path, isolation="never", backends=lambda _: Gated, limits=HostLimits(load_s=0.1))
    await host.load(ModelSpec("m", "gated"))
    with pytest.raises(NoEndpoint, match="load_timeout"):
        await ask(host)
    await host.close()


async def test_unloading_ends_a_load_that_runs(host: Host) -> None:
    await host.load(ModelSpec("m", "gated"))
    waiting = asyncio.create_task(ask(host))
    await until(lambda: Gated.loads == 1)
    await host.unload("m")
    with pytest.raises(EndpointLost):
        await waiting
    assert host.models() == ()


async def test_further_weights_are_resolved_before_the_backend_is_made(host: Host) -> None:
    Gated.gate.set()
    await host.load(ModelSpec("m", "gated", options={"more": "/some/where"}))
    await host.load(ModelSpec("default", "gated"))
    await host.load(ModelSpec("none", "gated", options={"more": ""}))
    for name in ("m", "default", "none"):
        await ask(host, model=name)
    assert Gated.seen == [{"more": "/some/where"}, {"more": "further"}, {"more": ""}]


async def test_the_spec_decides_over_the_backend(host: Host) -> None:
    Gated.gate.set()
    assert (await host.load(ModelSpec("m", "gated", load="start"))).loaded
    assert Gated.loads == 1


class Unsure(Gated):
    @classmethod
    def offers(cls, spec: ModelSpec) -> None:  # type: ignore[override]
        return None


async def test_a_backend_that_cannot_say_what_it_offers_is_loaded_at_the_start() -> None:
    host = Host(Path, isolation="never", backends=lambda _: Unsure)
    Gated.gate.set()
    assert (await host.load(ModelSpec("m", "unsure"))).loaded
    with pytest.raises(SetupError, match="cannot be loaded on demand"):
        await host.load(ModelSpec("n", "unsure", load="demand"))
    await host.close()


async def test_only_wanted_modalities_are_served() -> None:
    host = Host(Path, isolation="never", backends=lambda _: Gated, modalities={"chat"})
    Gated.gate.set()
    status = await host.load(ModelSpec("m", "gated"))
    assert [c.modality for c in status.capabilities] == ["chat"]
    assert await ask(host) == "here"
    with pytest.raises(Unsupported, match="does not offer embedding; it offers chat"):
        await host.infer(make_call("embedding", model="m", input="a"), Collector())
    await host.close()


async def test_a_model_of_other_modalities_is_reported_and_never_loaded() -> None:
    host = Host(Path, isolation="never", backends=lambda _: Gated, modalities={"speech"})
    status = await host.load(ModelSpec("m", "gated", load="start"))
    assert (status.ready, status.capabilities, Gated.loads) == (False, (), 0)
    assert [model.spec.name for model in host.models()] == ["m"]
    await host.unload("m")
    assert host.models() == ()
    await host.close()


# --- room, with real child processes ---------------------------------------------------------------


@pytest.fixture
async def tight(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    """Room for one child process with a reference model, and not for two."""
    measuring = Host(Path, isolation="always")
    size = (await measuring.load(ModelSpec("one", "echo", load="start"))).memory_bytes
    await measuring.close()
    monkeypatch.setattr(host_module, "PROCESS_BYTES", size)
    host = Host(Path, isolation="always", limits=HostLimits(memory_bytes=size * 3 // 2, load_s=60))
    yield host
    await host.close()
    await until(lambda: not engines())


def engines() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.Error):  # one that has just ended
            if "inferhub.worker.child" in process.cmdline():
                found.append(process)
    return found


def echo(name: str, **options: object) -> ModelSpec:
    return ModelSpec(name, "echo", load="demand", slots=4, options=options)


async def test_an_idle_model_leaves_for_another_and_comes_back(tight: Host) -> None:
    for name in ("a", "b"):
        await tight.load(echo(name))
    assert engines() == []
    assert await ask(tight, "one", model="a") == "one"
    assert state(tight, "a").memory_bytes > 10 * MB
    assert await ask(tight, "two", model="b") == "two"
    assert [(s.spec.name, s.loaded) for s in tight.models()] == [("a", False), ("b", True)]
    assert state(tight, "a").memory_bytes == 0
    assert len(engines()) == 1
    assert await ask(tight, "three", model="a") == "three"
    assert [(s.spec.name, s.loaded) for s in tight.models()] == [("a", True), ("b", False)]


async def test_a_busy_model_is_waited_for(tight: Host) -> None:
    await tight.load(echo("busy", gap_s=0.02))
    await tight.load(echo("next"))
    long = asyncio.create_task(ask(tight, "word " * 60, model="busy"))
    await until(lambda: state(tight, "busy").loaded)
    began_s = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await ask(tight, model="next", timeout_s=0.3)
    assert not long.done(), f"after {time.monotonic() - began_s:.1f} s"
    assert await ask(tight, "now", model="next") == "now"
    assert long.done()
    assert (await long).split() == ["word"] * 60
    assert len(engines()) == 1


async def test_what_is_loaded_at_the_start_never_leaves(tight: Host) -> None:
    await tight.load(ModelSpec("pinned", "echo", load="start"))
    assert state(tight, "pinned").memory_bytes > 10 * MB
    await tight.load(echo("guest"))
    with pytest.raises(NoEndpoint, match="memory_budget"):
        await ask(tight, model="guest")
    assert await ask(tight, "still", model="pinned") == "still"


async def test_calls_to_and_fro_while_only_one_fits(tight: Host) -> None:
    """Every call is answered, though each model is sent away again and again under its callers."""
    for name in ("a", "b", "c"):
        await tight.load(echo(name))
    calls = [ask(tight, f"{name}{i}", model=name, timeout_s=110) for i in range(4) for name in "abc"]
    assert await asyncio.gather(*calls) == [f"{name}{i}" for i in range(4) for name in "abc"]
    assert len(engines()) == 1


async def test_a_crashed_process_is_loaded_again_by_the_next_call(
    tight: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inferhub.worker import process as process_module

    monkeypatch.setattr(process_module, "RESTART_DELAYS_S", ())
    await tight.load(echo("a"))
    assert await ask(tight, "one", model="a") == "one"
    (child,) = engines()
    child.kill()
    await until(lambda: not engines())
    async with asyncio.timeout(60):
        while True:
            try:
                assert await ask(tight, "two", model="a") == "two"
                break
            except (NoEndpoint, EndpointLost):
                await asyncio.sleep(0.05)
    assert len(engines()) == 1
