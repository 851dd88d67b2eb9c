"""The admin API: keys from birth to death, pages, the audit log, and input that is refused with its field."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from inferhub.core.audit import GENESIS, Act, chain
from inferhub.testing.parties import ADMIN, create, make_key, make_party, refused, rows
from inferhub.testing.servers import SHAPES, Hub, running_hub
from inferhub.testing.talk import Talk

SPEC = "models:\n  - {name: echo, backend: echo, slots: 64}\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(
        "serve", tmp_path_factory.mktemp("admin"), SPEC, {"max_target_bytes": 32_000}
    ) as running:
        yield running


@pytest.fixture
def admin(hub: Hub) -> Talk:
    return Talk(hub.url, hub.admin_key)


async def until(talk: Talk, status: int, within_s: float = 1.0, path: str = "/v1/models") -> None:
    begin = time.monotonic()
    while (answer := await talk.get(path)).status != status:
        assert time.monotonic() - begin < within_s, answer.body
        await asyncio.sleep(0.02)


# --- keys ---------------------------------------------------------------------------------------------


async def test_a_key_from_its_making_to_its_end(admin: Talk) -> None:
    party = await make_party(admin)
    body = {"name": "ci", "scopes": ["inference:chat"], "models": ["echo"], "project_id": party.project_id}
    made = await create(party.admin, "keys", **body)
    secret = made.pop("key")
    assert secret.startswith(made["id"] + "_")
    assert (made["name"], made["role"], made["scopes"], made["models"]) == (
        "ci",
        "enterprise",
        ["inference:chat"],
        ["echo"],
    )
    described = await party.admin.get(f"{ADMIN}/keys/{made['id']}")
    assert described.json == made
    caller = Talk(admin.url, secret)
    assert (await caller.chat("echo")).status == 200
    gone = await party.admin.ask("DELETE", f"{ADMIN}/keys/{made['id']}")
    assert gone.status == 200
    assert gone.json["revoked_at"] is not None
    begin = time.monotonic()
    while (await caller.chat("echo")).status != 401:
        assert time.monotonic() - begin < 1
    again = await party.admin.ask("DELETE", f"{ADMIN}/keys/{made['id']}")
    assert again.json == gone.json
    # Its secret was in the one answer: nowhere else, in whatever form.
    everything = (
        str([await rows(admin, f"{ADMIN}/{noun}") for noun in ("keys", "audit")]) + described.body.decode()
    )
    assert secret not in everything
    assert secret.rpartition("_")[2] not in everything
    assert "digest" not in everything


@pytest.fixture(scope="module", params=SHAPES)
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(request.param, tmp_path_factory.mktemp(f"keys-{request.param}"), SPEC) as running:
        yield running


async def test_rotation_overlaps_and_then_ends_the_old_key(either: Hub) -> None:
    admin = Talk(either.url, either.admin_key)
    old_id, old = await make_key(
        admin, name="service", models=["echo"], scopes=["inference:chat", "models:read"]
    )
    answer = await admin.post(f"{ADMIN}/keys/{old_id}/rotate", {"overlap_s": 2})
    assert (answer.status, answer.head["cache-control"]) == (200, "no-store")
    new, replaced = answer.json, answer.json["replaces"]
    assert replaced["rotated_to"] == new["id"]
    assert replaced["expires_at"] <= time.time() + 2
    for same in ("name", "role", "models", "scopes", "project_id", "tenant_id"):
        assert new[same] == replaced[same], same
    fresh = Talk(either.url, new["key"])
    assert (await old.chat("echo")).status == (await fresh.chat("echo")).status == 200
    await until(old, 401, within_s=10)
    assert (await fresh.chat("echo")).status == 200
    refused(await admin.post(f"{ADMIN}/keys/{old_id}/rotate", {}), 409, "conflict", "id")
    at_once = await admin.post(f"{ADMIN}/keys/{new['id']}/rotate", {"overlap_s": 0})
    assert at_once.status == 200
    await until(fresh, 401)
    await admin.ask("DELETE", f"{ADMIN}/keys/{at_once.json['id']}")
    refused(await admin.post(f"{ADMIN}/keys/{at_once.json['id']}/rotate", {}), 409, "conflict", "id")


async def test_a_rotated_key_outlives_nothing_it_was_not_meant_to(admin: Talk) -> None:
    ends_at = int(time.time()) + 3600
    key_id, _ = await make_key(admin, expires_at=ends_at)
    # Without a body: a day of overlap, which ends with the key.
    answer = await admin.post(f"{ADMIN}/keys/{key_id}/rotate", b"")
    assert answer.json["expires_at"] == answer.json["replaces"]["expires_at"] == ends_at
    longer = await admin.post(f"{ADMIN}/keys/{answer.json['id']}/rotate", {"expires_at": ends_at + 60})
    assert longer.json["expires_at"] == ends_at + 60


async def test_a_key_expires_by_itself(admin: Talk) -> None:
    _, caller = await make_key(admin, expires_at=int(time.time()) + 2)
    await until(caller, 200)
    await until(caller, 401, within_s=10)


async def test_when_a_key_was_used_last_appears(admin: Talk) -> None:
    key_id, caller = await make_key(admin)
    assert (await admin.get(f"{ADMIN}/keys/{key_id}")).json["last_used_at"] is None
    begin = int(time.time())
    assert (await caller.chat("echo")).status == 200
    deadline_s = time.monotonic() + 60
    while (used_at := (await admin.get(f"{ADMIN}/keys/{key_id}")).json["last_used_at"]) is None:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.2)
    assert begin <= used_at <= time.time()


async def test_an_admin_names_a_tenant_and_gets_its_first_project(admin: Talk) -> None:
    party = await make_party(admin)
    made = await create(admin, "keys", name="for them", tenant_id=party.id)
    assert made["project_id"] == party.project_id
    answer = await admin.post(f"{ADMIN}/keys", {"name": "x", "tenant_id": "ten_AbCdEf012345"})
    refused(answer, 404, "not_found", "tenant_id")
    answer = await admin.post(
        f"{ADMIN}/keys", {"name": "x", "tenant_id": party.id, "project_id": "prj_default"}
    )
    refused(answer, 404, "not_found", "project_id")


# --- pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noun", ["keys", "projects", "users", "limits", "audit", "tenants"])
async def test_pages_hold_every_row_once_and_in_order(admin: Talk, noun: str) -> None:
    party = await make_party(admin)
    for number in range(5):
        project = await create(party.admin, "projects", name=f"p{number}")
        bound = {
            "level": "project",
            "subject_id": project["id"],
            "unit": "tokens",
            "window": "minute",
            "limit": 9,
        }
        await create(party.admin, "limits", **bound)
        await make_key(party.admin)
        person = {"issuer": "https://id.example", "subject": f"{party.id} {number}", "name": "n"}
        await create(admin, "users", **person, tenant_id=party.id)
    talk = admin if noun == "tenants" else party.admin
    whole = await rows(talk, f"{ADMIN}/{noun}")
    assert len(whole) >= 5 or noun == "tenants"
    for size in (1, 2, len(whole) - 1, len(whole), len(whole) + 1):
        if size >= 1:
            assert await rows(talk, f"{ADMIN}/{noun}", limit=size) == whole, size
    for limit in ("0", "-1", "1001", "x", "1.5"):
        refused(await talk.get(f"{ADMIN}/{noun}?limit={limit}"), 400, "invalid_value", "limit")
    if noun != "audit":
        refused(await talk.get(f"{ADMIN}/{noun}?after=ih_nothing"), 400, "invalid_value", "after")


def cursor(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


@pytest.mark.parametrize(
    "after",
    ["x", "%00", "====", cursor("²", ""), cursor("9" * 30, ""), cursor(1, 2), cursor("1"), cursor("-1", ""),
     base64.urlsafe_b64encode(b"[" * 1400).decode(), base64.urlsafe_b64encode(b"\xff\xff").decode()],
)  # fmt: skip
async def test_a_made_up_cursor_is_refused(admin: Talk, after: str) -> None:
    refused(await admin.get(f"{ADMIN}/usage/events?after={after}"), 400, "invalid_value", "after")


@pytest.mark.parametrize("path", ["usage", "usage/events"])
@pytest.mark.parametrize("param", ["model", "project_id", "key_id", "modality"])
async def test_a_name_that_no_database_takes_is_refused(admin: Talk, path: str, param: str) -> None:
    refused(await admin.get(f"{ADMIN}/{path}?{param}=%00"), 400, "invalid_value", param)
    injection = "%27%20OR%20%271%27%3D%271"
    assert (await admin.get(f"{ADMIN}/{path}?{param}={injection}")).json["data"] == []


# --- the audit log ------------------------------------------------------------------------------------


async def test_every_act_is_in_the_audit_log_and_its_chain_holds(admin: Talk) -> None:
    party = await make_party(admin)
    project = await create(party.admin, "projects", name="p")
    key_id, _ = await make_key(party.admin)
    await party.admin.post(f"{ADMIN}/keys/{key_id}/rotate", {})
    await party.admin.ask("DELETE", f"{ADMIN}/keys/{key_id}")
    bound = {
        "level": "project",
        "subject_id": project["id"],
        "unit": "usd",
        "window": "month",
        "limit": "12.50",
    }
    limit = await create(party.admin, "limits", **bound)
    await party.admin.ask("DELETE", f"{ADMIN}/limits/{limit['id']}")
    await party.admin.ask("PATCH", f"{ADMIN}/projects/{project['id']}", {}, {"disabled": True})
    hook = "https://hooks.example.com/in?token=canary-of-a-webhook"
    patched = await party.admin.ask(
        "PATCH", f"{ADMIN}/tenants/{party.id}", {"x-request-id": "the-request-01"}, {"webhook_url": hook}
    )
    assert patched.status == 200, patched.body
    # What was refused is no act.
    await party.admin.post(f"{ADMIN}/keys", {"name": "", "role": "free"})
    await party.admin.post(f"{ADMIN}/keys", {"name": "x", "role": "admin"})
    acts = await rows(party.admin, f"{ADMIN}/audit")
    assert [entry["action"] for entry in acts][::-1] == [
        "tenant.create", "project.create", "key.create", "project.create", "key.create", "key.rotate",
        "key.revoke", "limit.set", "limit.delete", "project.change", "tenant.change",
    ]  # fmt: skip
    assert (acts[0]["actor"], acts[0]["target"], acts[0]["request_id"]) == (
        party.key_id,
        party.id,
        "the-request-01",
    )
    assert "canary-of-a-webhook" not in str(await rows(admin, f"{ADMIN}/audit"))
    previous, seq = GENESIS, 0
    for entry in reversed(await rows(admin, f"{ADMIN}/audit")):
        act = Act(
            entry["actor"],
            entry["action"],
            entry["target"],
            entry["tenant_id"],
            entry["detail"],
            entry["request_id"],
        )
        made = chain(entry["seq"], entry["at"], act, previous)
        assert (entry["seq"], entry["previous_hash"], entry["hash"]) == (seq + 1, previous, made.hash)
        previous, seq = entry["hash"], entry["seq"]
    assert seq > len(acts)


async def test_the_audit_log_can_only_be_read(admin: Talk) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("audit", "audit/1"):
            assert (await admin.ask(method, f"{ADMIN}/{path}", {}, {})).status in (404, 405)


# --- bad input ----------------------------------------------------------------------------------------

LONG = "n" * 100_000
KEY: dict[str, Any] = {"name": "k"}
LIMIT: dict[str, Any] = {
    "level": "project",
    "subject_id": "prj_default",
    "unit": "tokens",
    "window": "minute",
    "limit": 5,
}
USER: dict[str, Any] = {"issuer": "https://id.example", "subject": "s", "name": "n"}


@pytest.mark.parametrize(
    ("noun", "body", "param"),
    [
        ("keys", {}, "name"),
        ("keys", {"name": ""}, "name"),
        ("keys", {"name": " x"}, "name"),
        ("keys", {"name": "a\nb"}, "name"),
        ("keys", {"name": LONG}, "name"),
        ("keys", {"name": 5}, "name"),
        ("keys", {**KEY, "role": "root"}, "role"),
        ("keys", {**KEY, "role": None}, "role"),
        ("keys", {**KEY, "scopes": []}, "scopes"),
        ("keys", {**KEY, "scopes": ["admin:everything"]}, "scopes"),
        ("keys", {**KEY, "scopes": ["admin:keys"]}, "scopes"),
        ("keys", {**KEY, "scopes": "models:read"}, "scopes"),
        ("keys", {**KEY, "scopes": ["models:read"] * 51}, "scopes"),
        ("keys", {**KEY, "models": []}, "models"),
        ("keys", {**KEY, "models": ["*x"]}, "models"),
        ("keys", {**KEY, "models": [LONG]}, "models"),
        ("keys", {**KEY, "expires_at": 1}, "expires_at"),
        ("keys", {**KEY, "expires_at": -1}, "expires_at"),
        ("keys", {**KEY, "expires_at": 10**13}, "expires_at"),
        ("keys", {**KEY, "expires_at": "tomorrow"}, "expires_at"),
        ("keys", {**KEY, "expires_at": True}, "expires_at"),
        ("tenants", {"name": LONG}, "name"),
        ("tenants", {"name": "w", "webhook_url": "ftp://x"}, "webhook_url"),
        ("tenants", {"name": "w", "webhook_url": "http://127.0.0.1/x"}, "webhook_url"),
        ("tenants", {"name": "w", "webhook_url": "http://169.254.169.254/latest"}, "webhook_url"),
        ("tenants", {"name": "w", "webhook_url": "https://u:p@example.com/"}, "webhook_url"),
        ("tenants", {"name": "w", "webhook_url": f"https://example.com/{LONG}"}, "webhook_url"),
        ("users", {**USER, "subject": LONG}, "subject"),
        ("users", {**USER, "issuer": ""}, "issuer"),
        ("users", {**USER, "role": "owner"}, "role"),
        ("limits", {**LIMIT, "limit": 0}, "limit"),
        ("limits", {**LIMIT, "limit": -5}, "limit"),
        ("limits", {**LIMIT, "limit": 10**13}, "limit"),
        ("limits", {**LIMIT, "limit": "5"}, "limit"),
        ("limits", {**LIMIT, "limit": True}, None),
        ("limits", {**LIMIT, "limit": 1.5}, None),
        ("limits", {**LIMIT, "unit": "words"}, "unit"),
        ("limits", {**LIMIT, "window": "year"}, "window"),
        ("limits", {**LIMIT, "window": "now"}, "window"),
        ("limits", {**LIMIT, "level": "planet"}, "level"),
        ("limits", {**LIMIT, "mode": "fuzzy"}, "mode"),
        ("limits", {**LIMIT, "unit": "usd", "window": "day", "limit": "-1"}, "limit"),
        ("limits", {**LIMIT, "unit": "usd", "window": "day", "limit": "0"}, "limit"),
        ("limits", {**LIMIT, "unit": "usd", "window": "day", "limit": "1e3"}, "limit"),
        ("limits", {**LIMIT, "unit": "usd", "window": "day", "limit": "NaN"}, "limit"),
        ("limits", {**LIMIT, "unit": "usd", "window": "day", "limit": "99999999"}, "limit"),
        ("limits", {**LIMIT, "unit": "usd", "window": "day", "limit": "0.0000000001"}, "limit"),
        ("limits", {**LIMIT, "unit": "usd", "window": "minute", "limit": "1"}, "window"),
        ("limits", {**LIMIT, "unit": "concurrent"}, "window"),
        ("reconciliation", {"rows": []}, "rows"),
        ("reconciliation", {"rows": [{"day": "yesterday", "model": "m"}]}, "rows.0.day"),
        ("reconciliation", {"rows": [{"day": "2030-01-01", "model": "m", "input_tokens": -1}]}, "rows.0.input_tokens"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
async def test_bad_input_is_refused_with_its_field_and_changes_nothing(
    admin: Talk, noun: str, body: dict[str, Any], param: str | None
) -> None:
    before = await everything(admin)
    answer = await admin.post(f"{ADMIN}/{noun}", body)
    assert answer.status == 400, answer.body
    assert len(answer.body) < 4000
    if param is not None:
        assert answer.error["param"] == param, answer.body
    else:
        assert str(answer.error["param"]).startswith("limit"), answer.body
    assert await everything(admin) == before


async def everything(admin: Talk) -> list[dict[str, Any]]:
    """All that is kept; what moves by itself is left out."""
    found = [
        row
        for noun in ("keys", "tenants", "projects", "users", "limits", "audit")
        for row in await rows(admin, f"{ADMIN}/{noun}")
    ]
    return [{k: v for k, v in row.items() if k not in ("last_used_at", "reset_s")} for row in found]


@pytest.mark.parametrize("if_match", ["²", "1" * 5000, "x", "-1", "1.0", '"', "1, 2"])
async def test_a_strange_revision_is_refused(admin: Talk, if_match: str) -> None:
    answer = await admin.ask("PUT", f"{ADMIN}/spec", {"if-match": if_match}, SPEC.encode())
    refused(answer, 400, "invalid_value", "If-Match")


@pytest.mark.parametrize(
    "month", ["2030", "2030-13", "2030-1", "x%0d%0aset-cookie:a=b", "²030-01", "9" * 5000]
)
async def test_a_strange_month_is_refused(admin: Talk, month: str) -> None:
    for form in ("json", "csv"):
        answer = await admin.get(f"{ADMIN}/invoices/{month}?format={form}")
        assert answer.status in (400, 404), answer.body
        assert answer.head["set-cookie"] is None


async def test_a_disabled_default_would_lock_everybody_out(admin: Talk) -> None:
    for path in ("tenants/ten_default", "projects/prj_default"):
        answer = await admin.ask("PATCH", f"{ADMIN}/{path}", {}, {"disabled": True})
        assert (answer.status, answer.error["code"]) == (409, "conflict")
    assert (await admin.get("/v1/models")).status == 200
