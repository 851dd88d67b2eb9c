"""Short ways for tests to manage a hub over its admin API: keys, limits, prices, and what the ledger says.

Stands on `talk`. Every way asserts that it was let through.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import urlencode

from inferhub.testing.raw_http import Answer
from inferhub.testing.talk import Talk

T = TypeVar("T")

_POLL_S = 0.05
_LEVELS = {"ten": "tenant", "prj": "project", "ih": "key"}


@dataclass(frozen=True, slots=True)
class Member:
    """A key of its own, in a tenant and project of its own."""

    tenant_id: str
    project_id: str
    key_id: str
    talk: Talk


class Admin:
    """One server, with a key whose role is `admin`."""

    def __init__(self, url: str, key: str) -> None:
        self.talk = Talk(url, key)

    async def member(self, name: str = "somebody", **tenant: Any) -> Member:
        made = await self.post("tenants", name=f"{name} {secrets.token_hex(4)}", **tenant)
        key = await self.key(made["id"], made["project_id"], name)
        return Member(made["id"], made["project_id"], key["id"], Talk(self.talk.url, key["key"]))

    async def key(self, tenant_id: str, project_id: str, name: str = "a key", **more: Any) -> dict[str, Any]:
        return await self.post("keys", name=name, tenant_id=tenant_id, project_id=project_id, **more)

    async def limit(self, subject_id: str, limit: int | str, per: str, mode: str = "auto") -> dict[str, Any]:
        """`per` is `UNIT/WINDOW`, such as `requests/minute`; the level follows from the id."""
        unit, _, window = per.partition("/")
        level = _LEVELS[subject_id.partition("_")[0]]
        body = {"level": level, "subject_id": subject_id, "unit": unit, "window": window, "mode": mode}
        return await self.post("limits", **body, limit=limit)

    async def level(self, limit_id: str) -> dict[str, Any]:
        """A limit, and how full it is."""
        return await self.get(f"limits/{limit_id}")

    async def events(
        self, when: Callable[[list[dict[str, Any]]], object], **where: str
    ) -> list[dict[str, Any]]:
        """Single calls of the ledger, oldest first, once `when` holds for all that there are."""
        return await self.until(lambda: self.all_rows("usage/events", 1000, **where), when)

    async def all_rows(self, path: str, limit: int = 1000, **query: str) -> list[dict[str, Any]]:
        """Every row of every page."""
        rows: list[dict[str, Any]] = []
        after = ""
        while True:
            page = await self.get(f"{path}?{_query(limit=str(limit), after=after, **query)}")
            assert len(page["data"]) <= limit
            rows += page["data"]
            if not page["has_more"]:
                return rows
            after = page["next_after"]

    async def until(
        self, ask: Callable[[], Awaitable[T]], when: Callable[[T], object], within_s: float = 60
    ) -> T:
        """What `ask` says once `when` holds for it. Raises `TimeoutError` with what it said last."""
        end_s = monotonic() + within_s
        while not when(said := await ask()):
            if monotonic() > end_s:
                raise TimeoutError(f"it stayed at {str(said)[:1000]}")
            await asyncio.sleep(_POLL_S)
        return said

    async def apply(self, text: str) -> Answer:
        """A hub.yaml, which may be refused."""
        return await self.talk.ask("PUT", "/admin/v1/spec", {}, text.encode())

    async def get(self, path: str) -> dict[str, Any]:
        return _content(await self.talk.get(f"/admin/v1/{path}"))

    async def post(self, path: str, **body: Any) -> dict[str, Any]:
        return _content(await self.talk.post(f"/admin/v1/{path}", body))

    async def delete(self, path: str) -> dict[str, Any]:
        return _content(await self.talk.ask("DELETE", f"/admin/v1/{path}"))


def ended(count: int) -> Callable[[Sequence[Any]], bool]:
    """For `Admin.events`: so many calls are in the ledger."""
    return lambda events: len(events) >= count


def billed(event: Mapping[str, Any]) -> int:
    """What a row of the ledger counts of an answer."""
    return int(event["output_tokens"] + event["reasoning_tokens"])


def check_classes(event: Mapping[str, Any]) -> None:
    """The four classes of a row are disjoint: they add up."""
    names = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    assert min(event[name] for name in names) >= 0, event
    assert event["total_tokens"] == sum(event[name] for name in names), event


def _query(**values: str) -> str:
    return urlencode({name.rstrip("_"): value for name, value in values.items() if value})


def _content(answer: Answer) -> dict[str, Any]:
    assert 200 <= answer.status < 300, (answer.status, answer.body)
    content: dict[str, Any] = answer.json
    return content
