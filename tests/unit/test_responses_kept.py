"""Kept responses over a real store: how long, how far back, for whom, and what happens when it is down."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from inferhub.core.errors import Invalid, NotFound, StoreFailed
from inferhub.gateway.responses import kept as kept_module
from inferhub.gateway.responses.kept import KeptResponses
from inferhub.stores.responses.sqlite import SqliteResponses, open_responses

OWNER = "ten_1/prj_1"


@dataclass
class Setup:
    kept: KeptResponses
    store: SqliteResponses
    now_s: list[float]


@pytest_asyncio.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    now_s = [time.time()]
    url = f"sqlite:///{tmp_path}/r.db"
    store = await open_responses(url, max_bytes=2**30, clock=lambda: now_s[0], timeout_s=30)
    yield Setup(KeptResponses(store, ttl_s=100, max_history_bytes=50_000), store, now_s)
    await store.close()


async def keep(setup: Setup, name: str, previous: str | None = None, **more: Any) -> bool:
    fields = {"id": name, "status": "completed", "output": [item(f"msg_{name}")], **more}
    return await setup.kept.keep(OWNER, msgspec.json.encode(fields), [item(f"in_{name}")], previous)


def item(name: str, text: str = "a") -> dict[str, Any]:
    return {"id": name, "type": "message", "role": "user", "content": text}


async def refusal(setup: Setup, name: str) -> Invalid:
    with pytest.raises(Invalid) as caught:
        await setup.kept.history(OWNER, name)
    assert caught.value.param == "previous_response_id"
    return caught.value


async def test_a_conversation_is_read_from_its_beginning(setup: Setup) -> None:
    for name, previous in (("r1", None), ("r2", "r1"), ("r3", "r2")):
        assert await keep(setup, name, previous)
    history = await setup.kept.history(OWNER, "r3")
    expected = ["in_r1", "msg_r1", "in_r2", "msg_r2", "in_r3", "msg_r3"]
    assert ([one["id"] for one in history.items], history.root_id) == (expected, "r1")


async def test_it_is_kept_as_long_as_it_was_set(setup: Setup) -> None:
    await keep(setup, "r1")
    setup.now_s[0] += 99
    await setup.kept.find(OWNER, "r1")
    setup.now_s[0] += 2
    with pytest.raises(NotFound):
        await setup.kept.find(OWNER, "r1")


async def test_a_conversation_with_a_gap_is_not_continued(setup: Setup) -> None:
    for name, previous in (("r1", None), ("r2", "r1"), ("r3", "r2")):
        await keep(setup, name, previous)
    await setup.kept.delete(OWNER, "r2")
    error = await refusal(setup, "r3")
    assert error.wire_code == "previous_response_not_found"
    assert "'r2'" in error.message
    assert (await setup.kept.history(OWNER, "r1")).root_id == "r1"


async def test_a_conversation_has_a_most_of_bytes_and_of_responses(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(setup, "b0")
    await keep(setup, "b1", "b0", output=[item("m1", "x" * 30_000)])
    assert len((await setup.kept.history(OWNER, "b1")).items) == 4
    await keep(setup, "b2", "b1", output=[item("m2", "x" * 30_000)])
    await keep(setup, "b3", "b2")
    assert "too long" in (await refusal(setup, "b3")).message
    monkeypatch.setattr(kept_module, "MAX_DEPTH", 3)
    for number in range(4):
        await keep(setup, f"d{number}", f"d{number - 1}" if number else None)
    assert (await setup.kept.history(OWNER, "d2")).root_id == "d0"
    assert "too long" in (await refusal(setup, "d3")).message


async def test_one_that_failed_is_read_but_not_continued(setup: Setup) -> None:
    await keep(setup, "r1", status="failed")
    await keep(setup, "r2", "r1")
    assert b'"failed"' in bytes((await setup.kept.find(OWNER, "r1")).response)
    for name in ("r1", "r2"):
        assert "failed" in (await refusal(setup, name)).message


@pytest.mark.parametrize("name", ["", "../etc", "a b", "x" * 257, "ünïcode"])
async def test_what_is_no_id_is_not_asked_for(setup: Setup, name: str) -> None:
    assert not await keep(setup, name)
    for asked in (setup.kept.find(OWNER, name), setup.kept.delete(OWNER, name)):
        with pytest.raises(NotFound):
            await asked
    await refusal(setup, name)


async def test_what_is_no_response_is_not_kept(setup: Setup) -> None:
    for junk in (b"", b"[]", b'{"id":7}', b'{"output":[]}', b'{"id":"r1","output":7}'):
        assert not await setup.kept.keep(OWNER, junk, [], None)
    assert setup.kept.is_up, "it is not the store's fault"


async def test_a_store_that_failed_is_left_alone_for_a_while(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(setup, "r1")
    await setup.store.close()
    with pytest.raises(StoreFailed):
        await setup.kept.find(OWNER, "r1")
    assert setup.kept.is_up, "reading says nothing about the next answer's end"
    assert not await keep(setup, "r2")
    assert not setup.kept.is_up
    monkeypatch.setattr(setup.store, "put", None)
    assert not await keep(setup, "r3"), "nobody is asked"
