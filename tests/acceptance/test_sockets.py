"""WebSockets through the door, in both shapes, with the echo: what is refused, what is answered, how it ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from inferhub.testing.servers import SHAPES, Hub, running_hub

SPEC = """\
models:
  - {name: echo, backend: echo, slots: 8}
  - {name: slow, backend: echo, slots: 8, options: {gap_s: 0.05}}
  - {name: broken, backend: echo, options: {fail_every: 1, fail_at: 2}}
"""
SETTINGS: dict[str, object] = {
    "worker_refresh_s": 0.1,
    "drain_grace_s": 5,
    "max_socket_message_bytes": 100_000,
    "max_sockets": 40,
    "breaker_failures": 0,
}
PATHS = ("/ws/asr", "/ws/llm", "/v1/realtime")
HALF_A_SECOND = bytes(16_000)


@pytest.fixture(scope="module", params=SHAPES)
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(
        request.param, tmp_path_factory.mktemp(f"ws-{request.param}"), SPEC, SETTINGS
    ) as running:
        yield running


class Socket:
    """One connection that speaks JSON."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def say(self, message: Mapping[str, Any] | str | bytes) -> None:
        await self.connection.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(30):
            event: dict[str, Any] = json.loads(await self.connection.recv())
        return event

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """Every event up to the first of that kind."""
        events = [await self.hear()]
        while events[-1]["type"] != kind:
            events.append(await self.hear())
        return events

    async def closed(self) -> tuple[int, str]:
        """(code, reason) with which the server closes."""
        async with asyncio.timeout(40):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self.connection.recv()
        assert self.connection.close_code is not None
        return self.connection.close_code, self.connection.close_reason or ""


@asynccontextmanager
async def opened(hub: Hub, path: str, *, key: str | None = None, **more: Any) -> AsyncIterator[Socket]:
    headers = {"Authorization": f"Bearer {key or hub.admin_key}"} if key != "" else {}
    url = hub.url.replace("http", "ws") + path
    async with connect(url, additional_headers=headers, **more) as connection:
        yield Socket(connection)


async def refused(hub: Hub, path: str, **more: Any) -> tuple[int, dict[str, Any]]:
    """(status, error) instead of an upgrade."""
    with pytest.raises(InvalidStatus) as caught:
        async with opened(hub, path, **more):
            pass
    response = caught.value.response
    error: dict[str, Any] = json.loads(bytes(response.body or b""))["error"]
    return response.status_code, error


def new_key(hub: Hub, **fields: Any) -> dict[str, Any]:
    made = httpx.post(
        f"{hub.url}/admin/v1/keys",
        json={"name": "socket", **fields},
        headers={"Authorization": f"Bearer {hub.admin_key}"},
    )
    made.raise_for_status()
    found: dict[str, Any] = made.json()
    return found


def revoke(hub: Hub, key_id: str) -> None:
    headers = {"Authorization": f"Bearer {hub.admin_key}"}
    httpx.delete(f"{hub.url}/admin/v1/keys/{key_id}", headers=headers).raise_for_status()


def usage(hub: Hub, modality: str) -> list[dict[str, Any]]:
    found = hub.get("/admin/v1/usage/events?limit=200")["data"]
    return [event for event in found if event["modality"] == modality]


# --- who gets in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_key_there_is_no_upgrade(hub: Hub, path: str) -> None:
    assert (await refused(hub, path, key=""))[0] == 401
    status, error = await refused(hub, path, key="ih_nonsense")
    assert (status, error["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("path", PATHS)
async def test_a_key_in_the_query_is_not_read_and_not_logged(hub: Hub, path: str) -> None:
    assert (await refused(hub, f"{path}?api_key={hub.admin_key}", key=""))[0] == 401
    assert all(hub.admin_key not in process.stderr for process in hub.processes)


@pytest.mark.parametrize("path", PATHS)
async def test_a_key_without_the_scope_is_forbidden(hub: Hub, path: str) -> None:
    key = new_key(hub, scopes=["models:read"])["key"]
    status, error = await refused(hub, path, key=key)
    assert status == 403
    assert "inference:" in error["message"]


@pytest.mark.parametrize(
    ("path", "offered", "agreed"),
    [("/ws/asr", "inferhub", "inferhub-key."), ("/v1/realtime", "realtime", "openai-insecure-api-key.")],
)
async def test_a_browser_shows_its_key_as_a_subprotocol(
    hub: Hub, path: str, offered: str, agreed: str
) -> None:
    protocols = [offered, f"{agreed}{hub.admin_key}", "openai-beta.realtime-v1"]
    async with opened(hub, path, key="", subprotocols=protocols) as socket:
        # Never the one with the key in it.
        assert socket.connection.subprotocol == offered


async def test_another_address_is_not_found(hub: Hub) -> None:
    status, error = await refused(hub, "/ws/nothing")
    assert (status, error["code"]) == (404, "not_found")


async def test_a_plain_request_to_a_socket_is_told_what_it_is(hub: Hub) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{hub.url}/ws/asr", headers={"authorization": f"Bearer {hub.admin_key}"})
    assert answer.status_code == 404


async def test_a_head_that_is_too_long_is_refused_before_any_upgrade(hub: Hub) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with connect(
            f"{hub.url.replace('http', 'ws')}/ws/asr", additional_headers={"x-long": "x" * 40_000}
        ):
            pass
    assert caught.value.response.status_code == 431


async def test_no_more_sockets_than_allowed_are_open(hub: Hub) -> None:
    async with AsyncSockets(hub, 40):
        status, error = await refused(hub, "/ws/asr")
        assert (status, error["code"]) == (503, "overloaded")
    async with opened(hub, "/ws/llm") as socket:
        await socket.say({"type": "cancel", "id": "x"})
        assert (await socket.hear())["type"] == "error"


class AsyncSockets:
    """Many connections at once."""

    def __init__(self, hub: Hub, count: int) -> None:
        self._hub = hub
        self._count = count
        self._open: list[Any] = []

    async def __aenter__(self) -> None:
        for _ in range(self._count):
            context = opened(self._hub, "/ws/asr")
            await context.__aenter__()
            self._open.append(context)

    async def __aexit__(self, *_: object) -> None:
        for context in self._open:
            await context.__aexit__(None, None, None)


# --- what ends a connection, and what does not -----------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "message", ["", "nope", "[1]", "7", '{"type": 5}', '{"type": "zap"}', b"\0\1", "{" * 99]
)
async def test_nonsense_is_answered_by_an_error_and_the_connection_lives_on(
    hub: Hub, path: str, message: str | bytes
) -> None:
    async with opened(hub, path) as socket:
        if path == "/v1/realtime":
            assert (await socket.hear())["type"] == "session.created"
        for _ in range(2):
            await socket.say(message)
            if path == "/ws/asr" and message == b"\0\1":
                continue  # told once, tested below
            event = await socket.hear()
            assert event["type"] == "error"
            assert event["error"]["type"] == "invalid_request_error"
            assert event["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_message_that_is_too_long_closes_with_1009(hub: Hub, path: str) -> None:
    async with opened(hub, path) as socket:
        await socket.say("x" * 150_000)
        assert (await socket.closed())[0] == 1009


async def test_a_compressed_message_is_never_agreed_to(hub: Hub) -> None:
    async with opened(hub, "/ws/llm", compression="deflate") as socket:
        assert not socket.connection.protocol.extensions


async def test_a_key_that_is_revoked_closes_what_it_opened(hub: Hub) -> None:
    made = new_key(hub)
    async with opened(hub, "/ws/asr", key=made["key"]) as socket:
        await asyncio.to_thread(revoke, hub, made["id"])
        assert (await socket.closed())[0] == 1008


# --- /ws/asr -----------------------------------------------------------------------------------


async def test_sound_before_start_is_one_error_and_not_many(hub: Hub) -> None:
    async with opened(hub, "/ws/asr") as socket:
        for _ in range(5):
            await socket.say(HALF_A_SECOND)
        await socket.say({"type": "start", "model": "echo"})
        await socket.say(HALF_A_SECOND)
        events = await socket.until("partial")
    assert [event["type"] for event in events] == ["error", "ready", "speech_started", "partial"]
    assert events[0]["error"]["code"] == "not_started"


async def test_a_transcription_from_start_to_done_and_another(hub: Hub) -> None:
    ids: list[str] = []
    async with opened(hub, "/ws/asr") as socket:
        for _ in range(2):
            await socket.say({"type": "start", "model": "echo"})
            await socket.say(HALF_A_SECOND)
            await socket.say({"type": "commit"})
            await socket.say(HALF_A_SECOND)
            await socket.say({"type": "end"})
            events = await socket.until("done")
            kinds = [event["type"] for event in events]
            assert kinds[0] == "ready"
            assert kinds.count("final") == 2
            assert events[-1]["usage"] == {"audio_ms": 1000}
            ids.append(events[0]["id"])
    for event in await billed(hub, ids):
        assert (event["status"], event["audio_ms"], event["source"]) == ("ok", 1000, "reported")


async def billed(hub: Hub, ids: list[str]) -> list[dict[str, Any]]:
    """What the ledger says of these calls, once it does."""
    async with asyncio.timeout(30):
        while True:
            found = [e for e in usage(hub, "transcription") if e["request_id"] in ids]
            if len(found) == len(ids):
                return found
            await asyncio.sleep(0.1)


async def test_what_is_said_at_the_wrong_time_is_an_error_with_its_id(hub: Hub) -> None:
    async with opened(hub, "/ws/asr") as socket:
        await socket.say({"type": "start", "rate_hz": 3, "event_id": "e1"})
        first = await socket.hear()
        assert (first["error"]["param"], first["event_id"]) == ("rate_hz", None)
        await socket.say({"type": "commit", "event_id": "e2"})
        assert (await socket.hear())["event_id"] == "e2"
        await socket.say({"type": "start", "model": "nobody"})
        await socket.say(HALF_A_SECOND)
        await socket.say(HALF_A_SECOND)
        missing = await socket.hear()
        assert missing["error"]["code"] == "model_not_found"
        await socket.say({"type": "end"})
        await socket.say({"type": "start", "model": "echo"})
        assert (await socket.hear())["type"] == "ready"
        await socket.say({"type": "start", "model": "echo"})
        assert (await socket.hear())["error"]["code"] == "already_started"


async def test_a_model_that_fails_is_told_once_and_the_connection_lives_on(hub: Hub) -> None:
    async with opened(hub, "/ws/asr") as socket:
        await socket.say({"type": "start", "model": "broken"})
        for _ in range(6):
            await socket.say(HALF_A_SECOND)
        events = await socket.until("error")
        assert events[-1]["error"]["code"] == "upstream_error"
        await socket.say({"type": "end"})
        await socket.say({"type": "start", "model": "echo"})
        assert (await socket.hear())["type"] == "ready"


async def test_a_client_that_goes_frees_its_slot_and_is_billed_for_what_was_heard(hub: Hub) -> None:
    async with opened(hub, "/ws/asr") as socket:
        await socket.say({"type": "start", "model": "echo"})
        await socket.say(HALF_A_SECOND)
        ready = (await socket.until("partial"))[0]
    (event,) = await billed(hub, [ready["id"]])
    assert (event["status"], event["audio_ms"], event["source"]) == ("cancelled", 500, "estimated")


# --- /ws/llm -----------------------------------------------------------------------------------


def chat(request_id: str, text: str, **more: Any) -> dict[str, Any]:
    return {"id": request_id, "messages": [{"role": "user", "content": text}], "model": "echo", **more}


def content(events: list[dict[str, Any]], request_id: str) -> str:
    chunks = [e["chunk"] for e in events if e["type"] == "chunk" and e["id"] == request_id]
    return "".join(choice["delta"].get("content") or "" for c in chunks for choice in c["choices"])


async def test_several_requests_are_answered_at_once_each_under_its_id(hub: Hub) -> None:
    async with opened(hub, "/ws/llm") as socket:
        for number in range(6):
            await socket.say(chat(f"r{number}", f"{number} " * 8, model="slow", stream=True))
        events: list[dict[str, Any]] = []
        while len([event for event in events if event["type"] == "done"]) < 6:
            events += await socket.until("done")
    for number in range(6):
        assert content(events, f"r{number}").split() == [str(number)] * 8
    order = [event["id"] for event in events if event["type"] == "chunk"]
    assert order != sorted(order)  # they took turns


async def test_an_answer_that_is_not_streamed_comes_whole(hub: Hub) -> None:
    async with opened(hub, "/ws/llm") as socket:
        await socket.say(chat("a", "one two"))
        answer, done = await socket.until("done")
    assert answer["answer"]["choices"][0]["message"]["content"] == "one two"
    assert done == {
        "type": "done",
        "id": "a",
        "model": "echo",
        "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
    }


async def test_a_cancelled_answer_stops_and_its_id_is_free_again(hub: Hub) -> None:
    async with opened(hub, "/ws/llm") as socket:
        await socket.say(chat("a", "word " * 500, model="slow", stream=True))
        await socket.until("chunk")
        await socket.say(chat("a", "again"))
        taken = (await socket.until("error"))[-1]
        assert taken["error"]["code"] == "conflict"
        await socket.say({"type": "cancel", "id": "a"})
        await socket.until("cancelled")
        await socket.say(chat("a", "again"))
        assert [event["type"] for event in await socket.until("done")] == ["answer", "done"]


async def test_too_many_answers_at_once_are_refused(hub: Hub) -> None:
    async with opened(hub, "/ws/llm") as socket:
        for number in range(17):
            await socket.say(chat(f"r{number}", "word " * 200, model="slow", stream=True))
        error = (await socket.until("error"))[-1]
    assert (error["id"], error["error"]["code"]) == ("r16", "overloaded")


async def test_what_the_http_route_refuses_is_refused_here(hub: Hub) -> None:
    async with opened(hub, "/ws/llm") as socket:
        await socket.say({"id": "a", "model": "echo", "messages": "hello"})
        wrong = await socket.hear()
        assert (wrong["id"], wrong["error"]["param"]) == ("a", "messages")
        await socket.say(chat("b", "x", model="nobody"))
        assert (await socket.hear())["error"]["code"] == "model_not_found"
        await socket.say(chat("c", "x", base_url="http://evil.example"))
        assert (await socket.hear())["error"]["code"] == "unsupported_parameter"


# --- /v1/realtime ---------------------------------------------------------------------------------


async def test_a_session_begins_with_what_it_is_set_to(hub: Hub) -> None:
    async with opened(hub, "/v1/realtime?intent=transcription") as socket:
        created = await socket.hear()
    assert created["type"] == "session.created"
    session = created["session"]
    assert (session["type"], session["object"]) == ("transcription", "realtime.transcription_session")
    assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
    assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"


async def test_the_header_of_the_beta_changes_nothing(hub: Hub) -> None:
    url = f"{hub.url.replace('http', 'ws')}/v1/realtime?model=echo"
    headers = {"Authorization": f"Bearer {hub.admin_key}", "OpenAI-Beta": "realtime=v1"}
    async with connect(url, additional_headers=headers) as connection:
        assert (await Socket(connection).hear())["type"] == "session.created"


@pytest.mark.parametrize(
    ("event", "param"),
    [
        ({"type": "response.create"}, "type"),
        ({"type": "conversation.item.create", "item": {}}, "type"),
        ({"type": "session.update"}, "session"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "session.type"),
        (
            {
                "type": "session.update",
                "session": {"type": "transcription", "audio": {"input": {"format": {"type": "audio/mp3"}}}},
            },
            "session.audio.input.format.type",
        ),
        (
            {
                "type": "session.update",
                "session": {
                    "type": "transcription",
                    "audio": {"input": {"turn_detection": {"type": "semantic_vad"}}},
                },
            },
            "session.audio.input.turn_detection.type",
        ),
        (
            {
                "type": "session.update",
                "session": {
                    "type": "transcription",
                    "audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 7}}},
                },
            },
            None,
        ),
        (
            {"type": "session.update", "session": {"type": "transcription", "include": ["x"]}},
            "session.include",
        ),
        ({"type": "input_audio_buffer.append"}, "audio"),
        ({"type": "input_audio_buffer.append", "audio": "%%%"}, "audio"),
        ({"type": "input_audio_buffer.commit"}, None),
    ],
)
async def test_a_bad_event_is_answered_with_its_id_and_closes_nothing(
    hub: Hub, event: dict[str, Any], param: str | None
) -> None:
    async with opened(hub, "/v1/realtime?model=echo") as socket:
        await socket.hear()
        await socket.say({**event, "event_id": "mine"})
        told = await socket.hear()
        assert told["type"] == "error"
        assert told["error"]["event_id"] == "mine"
        if param is not None:
            assert told["error"]["param"] == param
        await socket.say({"type": "session.update", "session": {"type": "transcription"}})
        assert (await socket.hear())["type"] == "session.updated"


async def test_an_update_changes_what_it_names_and_nothing_else(hub: Hub) -> None:
    async with opened(hub, "/v1/realtime?model=echo") as socket:
        await socket.hear()
        change = {"format": {"type": "audio/pcmu"}, "turn_detection": {"silence_duration_ms": 250}}
        await socket.say(
            {"type": "session.update", "session": {"type": "transcription", "audio": {"input": change}}}
        )
        given = (await socket.hear())["session"]["audio"]["input"]
    assert given["format"]["type"] == "audio/pcmu"
    assert given["turn_detection"] == {
        "type": "server_vad",
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 250,
    }
    assert given["transcription"]["model"] == "echo"


async def test_an_utterance_that_the_client_commits(hub: Hub) -> None:
    sound = base64.b64encode(bytes(24_000)).decode()
    async with opened(hub, "/v1/realtime?model=echo") as socket:
        await socket.hear()
        off = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
        await socket.say({"type": "session.update", "session": off})
        await socket.say({"type": "input_audio_buffer.append", "audio": sound})
        await socket.say({"type": "input_audio_buffer.commit"})
        events = await socket.until("conversation.item.done")
        await socket.say({"type": "input_audio_buffer.clear"})
        assert (await socket.hear())["type"] == "input_audio_buffer.cleared"
    by_kind = {event["type"]: event for event in events}
    committed = by_kind["input_audio_buffer.committed"]
    completed = by_kind["conversation.item.input_audio_transcription.completed"]
    assert committed["previous_item_id"] is None
    assert completed["item_id"] == committed["item_id"]
    assert completed["transcript"] == "500 ms"
    assert completed["usage"] == {"type": "duration", "seconds": 0.5}
    assert by_kind["conversation.item.done"]["item"]["content"][0]["transcript"] == "500 ms"


async def test_a_model_that_fails_fails_the_item_and_not_the_session(hub: Hub) -> None:
    sound = base64.b64encode(bytes(24_000)).decode()
    async with opened(hub, "/v1/realtime?model=broken") as socket:
        await socket.hear()
        for _ in range(3):
            await socket.say({"type": "input_audio_buffer.append", "audio": sound})
        failed = (await socket.until("conversation.item.input_audio_transcription.failed"))[-1]
        assert failed["error"]["code"] == "upstream_error"
        await socket.say({"type": "session.update", "session": {"type": "transcription"}})
        assert (await socket.until("session.updated"))[-1]["type"] == "session.updated"


async def secret(hub: Hub, key: str, **body: Any) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.post(
            f"{hub.api}/realtime/client_secrets", json=body, headers={"Authorization": f"Bearer {key}"}
        )


async def test_an_ephemeral_key_opens_the_session_it_was_made_for_and_nothing_else(hub: Hub) -> None:
    wanted = {"type": "transcription", "audio": {"input": {"transcription": {"model": "echo"}}}}
    made = (await secret(hub, hub.admin_key, session=wanted, expires_after={"seconds": 60})).json()
    assert made["value"].startswith("ek_")
    assert made["session"]["audio"]["input"]["transcription"]["model"] == "echo"
    async with opened(hub, "/v1/realtime", key=made["value"]) as socket:
        session = (await socket.hear())["session"]
        assert session["audio"]["input"]["transcription"]["model"] == "echo"
    assert (await refused(hub, "/ws/asr", key=made["value"]))[0] == 401
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{hub.api}/models", headers={"Authorization": f"Bearer {made['value']}"})
    assert answer.status_code == 401


async def test_an_ephemeral_key_that_was_changed_opens_nothing(hub: Hub) -> None:
    value: str = (await secret(hub, hub.admin_key)).json()["value"]
    middle = len(value) // 2
    changed = value[:middle] + ("A" if value[middle] != "A" else "B") + value[middle + 1 :]
    for wrong in (changed, "ek_", "ek_" + "A" * 100, value[:-4]):
        assert (await refused(hub, "/v1/realtime", key=wrong))[0] == 401


async def test_an_ephemeral_key_goes_with_the_key_that_made_it(hub: Hub) -> None:
    made = new_key(hub)
    value = (await secret(hub, made["key"])).json()["value"]
    async with opened(hub, "/v1/realtime", key=value) as socket:
        assert (await socket.hear())["type"] == "session.created"
        await asyncio.to_thread(revoke, hub, made["id"])
        assert (await socket.closed())[0] == 1008
    assert (await refused(hub, "/v1/realtime", key=value))[0] == 401


async def test_wrong_wishes_for_an_ephemeral_key_are_told(hub: Hub) -> None:
    assert (await secret(hub, hub.admin_key, session={"type": "realtime"})).status_code == 400
    assert (await secret(hub, hub.admin_key, expires_after={"seconds": 5})).status_code == 400
    assert (await secret(hub, "ih_nonsense")).status_code == 401


# --- the end of the server ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_server_that_leaves_finishes_what_is_under_way_and_says_1012(
    shape: Any, tmp_path: Path
) -> None:
    with running_hub(shape, tmp_path, SPEC, SETTINGS) as hub:
        async with opened(hub, "/ws/asr") as asr, opened(hub, "/ws/llm") as llm:
            await asr.say({"type": "start", "model": "echo"})
            await asr.say(HALF_A_SECOND)
            await asr.until("partial")
            await llm.say(chat("a", "word " * 20, model="slow", stream=True))
            await llm.until("chunk")
            hub.front.send(signal.SIGTERM)
            heard = await asr.until("error")
            told = await llm.until("error")
            assert [e["type"] for e in heard][-3:] == ["final", "done", "error"]
            assert told[-2]["type"] == "done"
            assert (await asr.closed())[0] == (await llm.closed())[0] == 1012
        await asyncio.to_thread(hub.front.wait)


async def test_silent_clients_and_endless_sessions_are_ended(tmp_path: Path) -> None:
    settings = {**SETTINGS, "socket_idle_timeout_s": 1, "session_timeout_s": 4}
    with running_hub("serve", tmp_path, SPEC, settings) as hub:
        async with opened(hub, "/ws/asr") as socket:
            assert (await socket.hear())["error"]["code"] == "idle_timeout"
            assert (await socket.closed())[0] == 1008
        async with opened(hub, "/ws/asr") as socket:
            await socket.say({"type": "start", "model": "echo"})

            async def go_on() -> None:
                while True:
                    await socket.say(HALF_A_SECOND)
                    await asyncio.sleep(0.2)

            talking = asyncio.ensure_future(go_on())
            events = await socket.until("error")
            talking.cancel()
            assert [event["type"] for event in events][-3:] == ["final", "done", "error"]
            assert events[-1]["error"]["code"] == "session_expired"
            assert (await socket.closed())[0] == 1008


async def test_a_client_that_does_not_read_loses_the_connection(tmp_path: Path) -> None:
    with running_hub("serve", tmp_path, SPEC, {**SETTINGS, "write_timeout_s": 1}) as hub:
        async with opened(hub, "/ws/llm", max_queue=1, ping_interval=None) as socket:
            for number in range(16):
                await socket.say(chat(f"r{number}", "word " * 4000, stream=True))
            # Nothing is read from here on: the echo would have said some 10 MB by now.
            async with asyncio.timeout(60):
                while not any(event["status"] == "cancelled" for event in usage(hub, "chat")):
                    await asyncio.sleep(0.1)
