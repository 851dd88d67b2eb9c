"""Tenants, keys and their clients for tests: made over the admin API of a running hub.

Each helper asserts that it was answered as it should be, so that a test can go on with what it made.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from inferhub.testing.raw_http import Answer
from inferhub.testing.talk import Talk

ADMIN = "/admin/v1"


@dataclass(frozen=True, slots=True)
class Party:
    """A tenant, its first project, and a client with a `tenant_admin` key of it."""

    id: str
    project_id: str
    key_id: str
    admin: Talk


async def create(talk: Talk, noun: str, **body: Any) -> dict[str, Any]:
    """What `POST /admin/v1/NOUN` made."""
    answer = await talk.post(f"{ADMIN}/{noun}", body)
    assert answer.status in (200, 201), (noun, body, answer.body)
    made: dict[str, Any] = answer.json
    return made


async def make_key(talk: Talk, **body: Any) -> tuple[str, Talk]:
    """(id, a client that uses the new key)."""
    made = await create(talk, "keys", **{"name": "made by a test", **body})
    return made["id"], Talk(talk.url, made["key"])


async def make_party(talk: Talk, name: str = "") -> Party:
    """`talk` has the role `admin`."""
    tenant = await create(talk, "tenants", name=name or f"tenant {secrets.token_hex(4)}")
    key_id, admin = await make_key(talk, tenant_id=tenant["id"], role="tenant_admin")
    return Party(tenant["id"], tenant["project_id"], key_id, admin)


async def rows(talk: Talk, path: str, *, limit: int = 1000) -> list[dict[str, Any]]:
    """Every row of a list, however many pages it has."""
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        mark = "&" if "?" in path else "?"
        answer = await talk.get(f"{path}{mark}limit={limit}{after}")
        assert answer.status == 200, answer.body
        page = answer.json
        found += page["data"]
        if not page["has_more"]:
            return found
        name = next(key for key in page if key.startswith("next_"))
        after = f"&{name.removeprefix('next_')}={page[name]}"


def refused(answer: Answer, status: int, code: str, param: str | None = None) -> str:
    """The message of the refusal that was expected."""
    error = answer.error
    said = (answer.status, error["code"], error["param"])
    assert said == (status, code, param), answer.body
    message: str = error["message"]
    return message
