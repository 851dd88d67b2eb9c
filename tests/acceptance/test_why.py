"""`inferhub why`: two real workers, a gateway that chooses between them, and its account of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from inferhub.testing.servers import Done, Hub, ready_hub, run_command, start_service, wait_for
from inferhub.testing.servers import fetch as get
from inferhub.testing.talk import Talk

SPEC = """\
models:
  - {name: echo, backend: echo, slots: 8}
  - {name: broken, backend: echo, options: {fail_every: 1}}
scheduler:
  weights: {prefix: 5}
  explore: 0
"""
LONG = "The lighthouse keeper writes everything down. " * 40
BOTH = {"left", "right"}


def workers_of(url: str, key: str) -> set[str]:
    """Those who have loaded the model."""
    status, body = get(f"{url}/admin/v1/workers", {"authorization": f"Bearer {key}"})
    assert status == 200
    cards = json.loads(body)["data"]
    return {
        c["id"] for c in cards if c.get("reachable") and any(m["name"] == "echo" for m in c["models"])
    } & BOTH


@pytest.fixture(scope="module")
def why_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder: Path = tmp_path_factory.mktemp("why")
    spec = folder / "hub.yaml"
    spec.write_text(SPEC, encoding="utf-8")
    settings: dict[str, object] = {"worker_refresh_s": 0.1}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(start_service("worker", folder, {**settings, "worker_id": name}, name=name))
            for name in sorted(BOTH)
        ]
        named = [part for worker in workers for part in ("--worker", worker.announcement()["url"])]
        gateway = stack.enter_context(
            start_service("gateway", folder, {**settings, "spec_file": spec}, *named)
        )
        hub = ready_hub("split", folder, (gateway, *workers))
        wait_for(lambda: workers_of(hub.url, hub.admin_key) == BOTH, 30, "both workers")
        yield hub


@pytest.fixture
def talk(why_hub: Hub) -> Talk:
    return Talk(why_hub.url, why_hub.admin_key)


async def why(hub: Hub, request_id: str, *arguments: str, key: str | None = None) -> Done:
    asked = ("--url", hub.url, "--key", key or hub.admin_key, *arguments)
    return await asyncio.to_thread(run_command, "why", request_id, *asked)


async def told(hub: Hub, request_id: str | None) -> list[dict[str, Any]]:
    assert request_id is not None
    done = await why(hub, request_id, "--json")
    assert done.exit_code == 0, done.stderr
    [call] = json.loads(done.stdout)
    assert call["request_id"] == request_id
    steps: list[dict[str, Any]] = call["steps"]
    return steps


async def test_each_term_of_each_candidate_and_the_outcome(why_hub: Hub, talk: Talk) -> None:
    first = await talk.chat("echo", LONG)
    choice, end = await told(why_hub, first.head["x-request-id"])
    assert choice["endpoint"] == end["endpoint"] == first.head["x-inferhub-upstream"]
    assert end["outcome"] == "ok"
    assert {one["endpoint"] for one in choice["candidates"]} == BOTH
    assert choice["weights"]["prefix"] == 5.0
    for one in choice["candidates"]:
        assert one["terms"].keys() == choice["weights"].keys()
        assert all(0 <= value <= 1 for value in one["terms"].values())
        total = sum(one["terms"][name] * weight for name, weight in choice["weights"].items())
        assert one["score"] == pytest.approx(total, abs=0.02)


async def test_a_conversation_goes_on_where_it_began(why_hub: Hub, talk: Talk) -> None:
    first = await talk.chat("echo", LONG + "And now?")
    home = first.head["x-inferhub-upstream"]
    for turn in range(6):
        answer = await talk.chat("echo", LONG + "And now?" + " More." * (turn + 1))
        assert answer.head["x-inferhub-upstream"] == home
    choice, _ = await told(why_hub, answer.head["x-request-id"])
    read = {one["endpoint"]: one["terms"]["prefix"] for one in choice["candidates"]}
    assert read[home] > 0.5
    assert max(value for id_, value in read.items() if id_ != home) < read[home]


async def test_a_table_that_people_can_read(why_hub: Hub, talk: Talk) -> None:
    answer = await talk.chat("echo", LONG + "Read me.")
    done = await why(why_hub, str(answer.head["x-request-id"]))
    assert done.exit_code == 0
    for word in ("asked for echo", "ENDPOINT", "PREFIX x5", "PENDING x2", "left", "right", "answered."):
        assert word in done.stdout


async def test_every_attempt_of_a_call_that_failed(why_hub: Hub, talk: Talk) -> None:
    answer = await talk.chat("broken", "unlike any other")
    assert answer.status == 502
    steps = await told(why_hub, answer.head["x-request-id"])
    ends = [step for step in steps if step["step"] == "end"]
    assert {end["endpoint"] for end in ends} == BOTH
    assert all(end["outcome"] not in ("ok", "cancelled") for end in ends)
    second = [step for step in steps if step["step"] == "choice"][1]
    assert second["after_failure"] == "failure"
    assert second["not_well"] == [steps[0]["endpoint"]]


async def test_it_is_for_admins_and_says_when_it_remembers_nothing(why_hub: Hub, talk: Talk) -> None:
    done = await why(why_hub, "req_nobody")
    assert done.exit_code == 4
    assert "remembers no call 'req_nobody'" in done.stderr
    made = await talk.post("/admin/v1/keys", {"name": "clerk", "role": "tenant_admin"})
    clerk = Talk(talk.url, made.json["key"])
    assert (await clerk.get("/admin/v1/decisions/req_nobody")).status == 403
    assert (await talk.get("/admin/v1/decisions/req_nobody")).status == 404
