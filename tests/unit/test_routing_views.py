"""What others see of routes: the answer cache, the list of models, the directory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import pytest_asyncio

from inferhub.backends.echo import Echo
from inferhub.core.call import Call, Delta, Emit, Started
from inferhub.core.errors import UpstreamFailed
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import Endpoint
from inferhub.core.traffic import Cause, Fallback, Route, Target, alias
from inferhub.gateway.models import describe
from inferhub.pipeline.attempt import Attempt
from inferhub.pipeline.cache import Cache
from inferhub.pipeline.directory import Directory
from inferhub.pipeline.dispatch import Dispatch
from inferhub.pipeline.onion import build
from inferhub.routing import Router, RouterLimits
from inferhub.stores.cache.memory import MemoryAnswers
from inferhub.stores.cache.tiered import TieredAnswers
from inferhub.testing.admin import Admin
from inferhub.testing.calls import TESTER, Collector, make_call
from inferhub.testing.servers import Hub as Running
from inferhub.testing.servers import running_hub
from inferhub.testing.talk import Talk

MIB = 1024**2
ROUTE = Route("r", (Target("a"), Target("b")), (Fallback("c", frozenset(Cause)),))


class Hub:
    """A cache around an echo of several names."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failing: set[str] = set()
        self.versions = {"a": "a#1", "b": "b#1", "c": "c#1"}
        self.routes = {"r": ROUTE, "same": replace(ROUTE, name="same"), "only": alias("only", "a")}

    async def start(self) -> None:
        self.echo = Echo(ModelSpec("m", "echo"), None)
        await self.echo.load()
        store = TieredAnswers(MemoryAnswers(16 * MIB), MemoryAnswers(16 * MIB))
        attempt = Attempt(Router(RouterLimits(), random=Random(2)), self.directory)
        self.handler = build([Cache(store, self.directory, ttl_s=60), attempt], Dispatch(self.directory))

    def directory(self) -> Directory:
        def endpoint(model: str, version: str) -> Endpoint:
            status = ModelStatus(ModelSpec(version, "echo"), self.echo.capabilities, "cpu")

            async def infer(call: Call, emit: Emit) -> None:
                self.asked.append(model)
                if model in self.failing:
                    raise UpstreamFailed("x")
                async with aclosing(self.echo.run(call)) as items:
                    async for item in items:
                        await emit(item)

            return Endpoint(f"{model}-w", status, infer)

        return Directory({m: (endpoint(m, v),) if v else () for m, v in self.versions.items()}, self.routes)

    async def ask(
        self, model: str, modality: str = "chat", *, tenant: str = "ten_a", **params: Any
    ) -> Started:
        if modality == "chat":
            params.setdefault("temperature", 0)
        call = make_call(modality, model, **params)
        emit = Collector()
        await self.handler(replace(call, principal=replace(TESTER, tenant_id=tenant)), emit)
        started = emit.chunks[0]
        assert isinstance(started, Started)
        assert any(isinstance(chunk, Delta) for chunk in emit.chunks)
        return started


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub()
    await hub.start()
    yield hub
    await hub.echo.unload()


async def test_a_hit_of_a_route_says_which_model_had_answered(hub: Hub) -> None:
    answered = set()
    for i in range(8):
        first = await hub.ask("r", seed=i)
        again = await hub.ask("r", seed=i)
        assert (first.cache, again.cache) == ("miss", "hit")
        assert again.model == first.model
        answered.add(first.model)
    assert answered == {"a", "b"}
    assert len(hub.asked) == 8


async def test_the_answer_of_a_fallback_is_kept_as_its_own(hub: Hub) -> None:
    hub.failing = {"a", "b"}
    assert (await hub.ask("r")).model == "c"
    again = await hub.ask("r")
    assert (again.cache, again.model) == ("hit", "c")


async def test_a_route_shares_with_nobody(hub: Hub) -> None:
    first = await hub.ask("r")
    assert (await hub.ask("r", tenant="ten_b")).cache == "miss", "another tenant"
    assert (await hub.ask("same")).cache == "miss", "another route"
    assert (await hub.ask(first.model)).cache == "miss", "the model by its own name"
    assert (await hub.ask("only")).cache == ("hit" if first.model == "a" else "miss"), (
        "a route to one model is it"
    )
    hub.versions["b"] = "b#2"
    assert (await hub.ask("r")).cache == "miss", "another version"
    hub.versions["b"] = ""
    assert (await hub.ask("r")).cache == "miss", "one model less"


async def test_vectors_of_a_route_to_several_models_are_not_kept(hub: Hub) -> None:
    for _ in range(3):
        assert (await hub.ask("r", "embedding", input=["x", "y"])).cache == ""
    assert len(hub.asked) == 3
    assert (await hub.ask("only", "embedding", input=["x"])).cache == "miss"
    assert (await hub.ask("only", "embedding", input=["x"])).cache == "hit"


async def test_the_list_names_only_models_that_the_caller_may_ask_for(hub: Hub) -> None:
    detail = describe("r", hub.directory(), lambda name: name in {"r", "b"})
    assert detail["model"] == "b"
    assert detail["ready"] is True
    assert detail["endpoints"] == 3
    assert detail["route"] == {
        "prefer": "weight",
        "targets": [{"model": "b", "weight": 1, "priority": 0}],
        "fallbacks": [],
    }
    assert "backend" not in detail, "of a model that is not shown"
    assert "-w" not in repr(detail), "where endpoints are is nobody's business"
    hidden = describe("r", hub.directory(), lambda name: name == "r")
    assert hidden["model"] is None
    assert hidden["route"]["targets"] == []
    assert hidden["capabilities"]
    full = describe("r", hub.directory(), lambda _: True)
    assert [t["model"] for t in full["route"]["targets"]] == ["a", "b"]
    assert full["route"]["fallbacks"] == [{"model": "c", "on": sorted(Cause)}]
    assert "route" not in describe("a", hub.directory(), lambda _: True)
    hub.versions = dict.fromkeys("abc", "")
    assert describe("r", hub.directory(), lambda _: True)["ready"] is False


async def test_any_model_of_a_route_makes_it_ready_for_a_modality(hub: Hub) -> None:
    hub.versions["a"] = ""
    directory = replace(hub.directory(), routes={"0": ROUTE})
    assert directory.first_for("chat", may_call=lambda name: name == "0") == "0"
    assert directory.first_for("chat") == "b", "models come before routes"


SPEC = """\
models:
  - {name: broken, backend: echo, options: {fail_every: 1}}
  - {name: good, backend: echo}
prices:
  - {model: good, per_request: "5"}
routes:
  - name: both
    targets:
      - broken
      - {model: good, priority: 1}
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_hub("serve", tmp_path_factory.mktemp("routes"), SPEC) as running:
        yield running


async def test_a_route_of_a_running_hub(running: Running) -> None:
    admin = Admin(running.url, running.admin_key)
    caller = await admin.member()
    body = {"model": "both", "messages": [{"role": "user", "content": "hello there"}]}
    answer = await caller.talk.post("/v1/chat/completions", body)
    assert answer.status == 200
    assert answer.head["x-inferhub-model"] == "good"
    assert answer.head["x-inferhub-attempts"] == "2"
    assert answer.json["model"] == "both"
    card = (await caller.talk.get("/v1/models/both")).json["inferhub"]
    assert [target["model"] for target in card["route"]["targets"]] == ["broken", "good"]


async def test_the_list_of_a_key_with_few_models_over_http(running: Running) -> None:
    admin = Admin(running.url, running.admin_key)
    member = await admin.member()
    key = await admin.key(member.tenant_id, member.project_id, models=["both"])
    talk = Talk(running.url, key["key"])
    [card] = (await talk.get("/v1/models")).json["data"]
    assert (card["id"], card["inferhub"]["model"]) == ("both", None)
    assert card["inferhub"]["route"]["targets"] == []
    assert "good" not in str(card)
    assert (await talk.get("/v1/models/good")).status == 404


async def test_a_route_is_let_in_at_the_price_of_its_dearest_model(running: Running) -> None:
    admin = Admin(running.url, running.admin_key)
    member = await admin.member()
    await admin.limit(member.key_id, "1", "usd/day")
    body = {"messages": [{"role": "user", "content": "hello there"}]}
    refused = await member.talk.post("/v1/chat/completions", {**body, "model": "both"})
    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    failed = await member.talk.post("/v1/chat/completions", {**body, "model": "broken"})
    assert failed.status == 502, "let in, because it costs nothing"
