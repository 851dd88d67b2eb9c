"""The life of an API key in a running gateway, and that no secret is ever written down."""

from __future__ import annotations

import asyncio
import json
import stat
import time

from inferhub.testing.servers import Hub, run_command, wait_for
from inferhub.testing.talk import CHAT, Talk, chat_body

CANARY_PROMPT = "canary-prompt-7Qx2"
CANARY_UPSTREAM = "sk-upstream-canary"


def create_key(hub: Hub, name: str, role: str) -> tuple[str, str]:
    """(id, key), made where the catalog is, as an operator does it."""
    done = run_command("keys", "create", name, "--role", role, "--json", data_dir=hub.data_dir)
    assert done.exit_code == 0, done.stderr
    made = json.loads(done.stdout)
    return made["id"], made["key"]


async def status_with(hub: Hub, key: str, path: str = "/v1/models") -> int:
    return (await Talk(hub.url, key).get(path)).status


async def until(hub: Hub, key: str, status: int) -> float:
    """Seconds until requests with this key get this status."""
    begin = time.monotonic()
    while await status_with(hub, key) != status:
        assert time.monotonic() - begin < 10, f"no {status} within 10 s"
        await asyncio.sleep(0.02)
    return time.monotonic() - begin


async def test_a_key_works_soon_and_stops_soon(plain_hub: Hub) -> None:
    key_id, key = await asyncio.to_thread(create_key, plain_hub, "alice", "enterprise")
    accepted_s = await until(plain_hub, key, 200)
    assert (await Talk(plain_hub.url, key).post(CHAT, chat_body("echo"))).status == 200
    revoked = await asyncio.to_thread(run_command, "keys", "revoke", key_id, data_dir=plain_hub.data_dir)
    assert revoked.exit_code == 0, revoked.stderr
    refused_s = await until(plain_hub, key, 401)
    answer = await Talk(plain_hub.url, key).post(CHAT, chat_body("echo"))
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    print(f"accepted after {accepted_s:.2f} s, refused after {refused_s:.2f} s")
    # The gateway asks the catalog every half second.
    assert max(accepted_s, refused_s) < 5


async def test_revoking_ends_no_running_call(plain_hub: Hub) -> None:
    key_id, key = await asyncio.to_thread(create_key, plain_hub, "bob", "free")
    await until(plain_hub, key, 200)
    talk = Talk(plain_hub.url, key)
    async with talk.opened(CHAT, chat_body("slow", " ".join(["word"] * 80), stream=True)) as call:
        head = await call.head()
        await asyncio.to_thread(run_command, "keys", "revoke", key_id, data_dir=plain_hub.data_dir)
        events = [event async for event in call.connection.events(head)]
    assert events[-1].data == "[DONE]"


async def test_roles(plain_hub: Hub) -> None:
    """Only `admin` manages; the others infer."""
    for role in ("enterprise", "free"):
        _, key = await asyncio.to_thread(create_key, plain_hub, f"role {role}", role)
        await until(plain_hub, key, 200)
        talk = Talk(plain_hub.url, key)
        for method, path in (
            ("GET", "/admin/v1/spec"),
            ("PUT", "/admin/v1/spec"),
            ("GET", "/admin/v1/workers"),
        ):
            answer = await talk.ask(method, path, {}, b"models: []" if method == "PUT" else b"")
            assert (answer.status, answer.error["code"]) == (403, "permission_denied"), (role, path)
        assert (await talk.post(CHAT, chat_body("echo"))).status == 200
    assert await status_with(plain_hub, plain_hub.admin_key, "/admin/v1/spec") == 200


async def test_no_secret_is_written_down(hub: Hub, talk: Talk) -> None:
    """Canaries in every place where a request holds something private, in calls that work and calls that fail."""
    stranger = "ih_" + "Zq9" * 4 + "_" + "Wx7k" * 8
    for model in ("echo", "remote", "broken", "breaks-late", "nope", "remote-dead"):
        for stream in (False, True):
            body = chat_body(
                model, CANARY_PROMPT, stream=stream, user=CANARY_PROMPT, frobnicate=CANARY_PROMPT
            )
            answer = await talk.post(CHAT, body, api_key=CANARY_PROMPT, cookie=CANARY_PROMPT)
            assert answer.status != 401, "the canaries did not even arrive"
            # Two keys that are not the same are none.
            answer = await talk.post(CHAT, body, x_api_key=CANARY_PROMPT)
            assert answer.status == 401
            assert CANARY_PROMPT.encode() not in answer.body
    await talk.post(CHAT, chat_body("remote", CANARY_PROMPT, user="script:mode=400,leak=1"))
    await talk.post(CHAT, b'{"model": "' + CANARY_PROMPT.encode())
    await talk.post(CHAT, {"model": "echo", "messages": CANARY_PROMPT})
    await talk.post(CHAT, chat_body("echo"), authorization=f"Bearer {stranger}")
    await talk.get(f"/v1/models/{CANARY_PROMPT}", authorization=f"Bearer {stranger}")
    wait_for(lambda: hub.metric("inferhub_requests_inflight") == 0, 10, "every call to end")

    for secret in (hub.admin_key, stranger, CANARY_PROMPT, CANARY_UPSTREAM):
        for process in hub.processes:
            assert secret not in process.stderr, f"{secret} is in the log of {process.name}"
        assert secret not in hub.ops_metrics(), "in the metrics"
        # A model's name comes from the client; it may be told back, not stored.
        for path in (path for path in hub.data_dir.rglob("*") if path.is_file()):
            if secret != CANARY_UPSTREAM:
                assert secret.encode() not in path.read_bytes(), path


async def test_secrets_are_readable_by_their_owner_only(hub: Hub) -> None:
    for path in (hub.data_dir, *hub.data_dir.iterdir()):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, f"{path} has mode {mode:04o}"
