"""Models on demand: one load for all first callers, failures that can be tried again, and room made in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import psutil
import pytest

from inferhub.backends.base import Backend
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import (
    Conflict,
    DeadlineExceeded,
    EndpointLost,
    NoEndpoint,
    Overloaded,
    SetupError,
    Unsupported,
    WeightsMissing,
)
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta
from inferhub.testing.calls import Collector, make_call
from inferhub.worker import host as host_module
from inferhub.worker.host import Host, HostLimits
from inferhub.worker.lifecycle import managed, restarts

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


async def test_more_callers_than_may_wait_hear_when_it_will_be_loaded(host: Host) -> None:
    await host.load(ModelSpec("m", "gated", slots=2, queue_limit=1))
    waiting = [asyncio.create_task(ask(host)) for _ in range(3)]
    await until(lambda: state(host).queued == 3)
    assert (state(host).loading, state(host).loaded, state(host).ready) == (True, False, True)
    with pytest.raises(Overloaded, match="is being loaded, and 3 calls wait") as refused:
        await ask(host)
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s >= 1
    assert refused.value.pending_s == refused.value.retry_after_s
    Gated.gate.set()
    assert await asyncio.gather(*waiting) == ["here"] * 3
    assert (state(host).loading, state(host).queued) == (False, 0)


async def test_how_a_model_is_kept_may_change_while_it_is_loaded(host: Host) -> None:
    spec = ModelSpec("m", "gated")
    await host.load(spec)
    Gated.gate.set()
    assert (await host.load(replace(spec, load="start"))).loaded, "warm"
    for change in ({"pinned": True}, {"pinned": False}, {"idle_ttl_s": 60.0}):
        status = await host.load(replace(spec, **change))
        assert status.loaded
        assert (status.spec.pinned, status.spec.idle_ttl_s) == (
            change.get("pinned", False),
            change.get("idle_ttl_s"),
        )
    assert (Gated.loads, Gated.unloads) == (1, 0)
    with pytest.raises(Conflict):
        await host.load(replace(spec, slots=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"pinned": True}, "runs elsewhere"), ({"idle_ttl_s": 5.0}, "runs elsewhere")],
)
async def test_what_has_no_effect_on_a_remote_model_is_refused(change: dict[str, Any], message: str) -> None:
    host = Host(Path)
    remote = ModelSpec("m", "openai_compatible", options={"base_url": "http://127.0.0.1:9"}, **change)
    with pytest.raises(SetupError, match=message):
        await host.load(remote)
    with pytest.raises(SetupError, match="is pinned"):
        await host.load(ModelSpec("m", "echo", pinned=True, idle_ttl_s=5.0))
    assert host.models() == ()
    await host.close()


async def test_a_load_that_only_others_wait_for_outlives_one_that_gives_up(host: Host) -> None:
    spec = ModelSpec("m", "gated", load="start")
    first, second = (asyncio.create_task(host.load(spec)) for _ in range(2))
    await until(lambda: Gated.loads == 1)
    first.cancel()
    await asyncio.wait([first])
    Gated.gate.set()
    assert (await second).loaded
    assert Gated.loads == 1


async def test_a_load_that_nobody_waits_for_any_more_leaves_nothing(host: Host) -> None:
    load = asyncio.create_task(host.load(ModelSpec("m", "gated", load="start")))
    await until(lambda: Gated.loads == 1)
    assert (state(host).loading, state(host).ready) == (True, False)
    load.cancel()
    await asyncio.wait([load])
    assert host.models() == ()


async def test_closing_does_not_wait_for_a_load(host: Host) -> None:
    load = asyncio.create_task(host.load(ModelSpec("m", "gated", load="start")))
    await until(lambda: Gated.loads == 1)
    async with asyncio.timeout(30):
        await host.close()
    with pytest.raises(EndpointLost):
        await load


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
    monkeypatch.setattr(restarts, "TRY_AGAIN_S", 3600.0)
    await host.load(ModelSpec("m", "gated"))
    Gated.gate.set()
    Gated.failures.append(WeightsMissing("There is no /secret/path."))
    with pytest.raises(NoEndpoint, match=r"'m' could not be loaded \(weights_missing\)") as caught:
        await ask(host)
    assert "secret" not in caught.value.message
    assert "There is no /secret/path." in caplog.text
    assert caught.value.retry_after_s == pytest.approx(3600, abs=100)
    with pytest.raises(NoEndpoint):
        await ask(host)
    assert Gated.loads == 1, "not again at once"
    assert (await host.load(ModelSpec("m", "gated", load="start"))).loaded, "but when asked for by name"
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


async def test_what_is_pinned_never_leaves(tight: Host) -> None:
    pinned = ModelSpec("pinned", "echo", pinned=True)
    status = await tight.load(pinned)
    assert status.loaded, "it is not left to the first call"
    assert state(tight, "pinned").memory_bytes > 10 * MB
    await tight.load(echo("guest"))
    with pytest.raises(NoEndpoint, match="memory_budget"):
        await ask(tight, model="guest")
    assert await ask(tight, "still", model="pinned") == "still"
    await tight.load(replace(pinned, pinned=False))
    assert len(engines()) == 1, "nothing was loaded anew"
    assert state(tight, "pinned").loaded
    with pytest.raises(NoEndpoint, match="memory_budget"):
        await ask(tight, model="guest")  # the answer of before, for a while
    await tight.load(replace(echo("guest"), load="start"))
    assert not state(tight, "pinned").loaded


async def test_what_was_loaded_at_the_start_makes_room_and_comes_back(tight: Host) -> None:
    await tight.load(ModelSpec("first", "echo", load="start"))
    await tight.load(echo("guest"))
    assert await ask(tight, "one", model="guest") == "one"
    assert [(s.spec.name, s.loaded, s.ready) for s in tight.models()] == [
        ("first", False, True),
        ("guest", True, True),
    ]
    assert await ask(tight, "two", model="first") == "two"
    assert tight.tally.unloads == {("first", "room"): 1, ("guest", "room"): 1}


async def test_a_model_that_needs_the_room_of_busy_ones_waits_no_longer_than_it_may(
    tight: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tight._keeper, "_room_wait_s", 0.3)
    await tight.load(echo("busy", gap_s=0.02))
    await tight.load(echo("next"))
    long = asyncio.create_task(ask(tight, "word " * 2000, model="busy"))
    await until(lambda: state(tight, "busy").loaded)
    with pytest.raises(Overloaded, match="busy") as refused:
        await ask(tight, model="next")
    assert refused.value.retry_after_s
    assert not long.done()
    long.cancel()
    await asyncio.wait([long])
    assert await ask(tight, "now", model="next") == "now"


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
    monkeypatch.setattr(managed, "WAIT_S", 100.0)  # on a slow machine too
    await tight.load(echo("a"))
    assert await ask(tight, "one", model="a") == "one"
    (child,) = engines()
    child.kill()
    await until(lambda: not state(tight, "a").loaded)
    assert engines() == [], "nobody needs it now"
    assert state(tight, "a").ready
    assert await ask(tight, "two", model="a") == "two"
    assert len(engines()) == 1
    assert tight.tally.unloads == {("a", "crash"): 1}


async def test_idle_models_leave_when_their_time_is_over(tight: Host) -> None:
    await tight.load(replace(echo("a"), idle_ttl_s=0.2))
    assert await ask(tight, "one", model="a") == "one"
    await until(lambda: not state(tight, "a").loaded)
    await until(lambda: not state(tight, "a").memory_bytes)
    assert not engines()
    assert await ask(tight, "two", model="a") == "two"
    await tight.load(replace(echo("a"), pinned=True))
    assert state(tight, "a").spec.pinned
    assert tight.tally.unloads["a", "idle"] >= 1
    assert tight.tally.loads["a", "ok"] >= 2


async def test_a_call_that_outlasts_the_idle_time_is_not_cut_off(tight: Host) -> None:
    await tight.load(replace(echo("a", gap_s=0.02), idle_ttl_s=0.2))
    assert (await ask(tight, "word " * 60, model="a")).split() == ["word"] * 60
    assert tight.tally.unloads == {}
    await until(lambda: not state(tight, "a").loaded)


async def test_the_usual_idle_time_is_for_models_with_a_process() -> None:
    limits = HostLimits(idle_ttl_s=0.1, load_s=60)
    here = Host(Path, isolation="never", backends=lambda _: Gated, limits=limits)
    Gated.gate.set()
    await here.load(ModelSpec("usual", "gated", load="start"))
    await here.load(ModelSpec("own", "gated", load="start", idle_ttl_s=0.1))
    await until(lambda: not state(here, "own").loaded)
    assert state(here, "usual").loaded
    await here.close()
