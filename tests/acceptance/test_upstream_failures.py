"""Every scripted failure × (stream, whole) × client's dialect × upstream's dialect, with its exact outcome.

The cells that were selected are all asked at once, of one hub; each test then judges one of them. An outcome
is what the client saw, what was billed, and how often the upstream was asked.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from inferhub.testing.admin import Admin, ended
from inferhub.testing.client_dialects import CLIENTS, Outcome, put
from inferhub.testing.servers import running_hub
from inferhub.testing.upstream_player import CHANGES, INSTEAD, STRIKES
from inferhub.testing.upstream_process import Upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

BASES = {"openai": "/v1", "anthropic": "", "gemini": ""}
"""Upstream dialect → what its base URL ends with. Backends are called the same, but one."""
SETTINGS: dict[str, object] = {
    "first_token_timeout_s": 8,
    "idle_timeout_s": 8,
    # A stream's status waits for the first content, however long that takes here.
    "head_hold_s": 60,
    "ping_interval_s": 1,
    "breaker_failures": 0,
    "retry_budget_ratio": 1,
}
AT_ONCE = 24
WORDS = "word0 word1 word2 word3 "


@dataclass(frozen=True, slots=True)
class Ends:
    """How a call ends. Codes are InferHub's; `CODES` says what other dialects call them."""

    status: int
    """Of HTTP. 200 with a `code`: an error event in a stream that had begun."""
    code: str
    """`ok`, or of the error."""
    tries: int = 1
    """Requests that the upstream saw."""
    text: str = ""
    """What was delivered, each word of it billed."""
    detail: str = ""
    """What clients of OpenAI's dialects read instead of `code`, where that is finer."""


FINE = Ends(200, "ok", text=WORDS)
FAILED = Ends(502, "upstream_error", tries=2)
"""Nothing was said yet: tried twice, because the other time may go better."""
BROKE = Ends(200, "upstream_error", text="word0 word1 ")
"""Something was said: never again, never a clean end, and billed."""
LATE = Ends(504, "endpoint_stalled")
STALLED = Ends(200, "endpoint_stalled", text="word0 word1 ")
REFUSED = Ends(400, "backend_refused")
DENIED = Ends(502, "upstream_denied")
LIMITED = Ends(429, "upstream_rate_limited")
EXHAUSTED = Ends(429, "upstream_quota_exhausted")
BUSY = Ends(503, "overloaded")

STATUSES: Mapping[str, Ends] = {
    **dict.fromkeys(("400", "404"), REFUSED),
    **dict.fromkeys(("401", "403"), DENIED),
    **dict.fromkeys(("408", "500", "502", "302"), FAILED),
    "429": LIMITED,
    "503": BUSY,
}
"""HTTP status of the upstream → what becomes of it, streamed or not. A status is told by its class:
our credentials and our quota are not the client's fault, its request is."""
VENDOR_STATUSES: Mapping[str, Mapping[str, Ends]] = {
    "openai": {"402": EXHAUSTED, "409": REFUSED, "413": REFUSED, "422": REFUSED, "529": BUSY},
    "anthropic": {"402": EXHAUSTED, "409": REFUSED, "413": REFUSED, "529": BUSY},
}
"""Statuses that only some vendors have."""
WHOLE: Mapping[str, Ends] = {
    **dict.fromkeys(("html", "bomb", "empty", "drop"), FAILED),
    **dict.fromkeys(("rst", "cut", "clean_cut", "endless", "oversize", "bad_chunk"), FAILED),
    **dict.fromkeys(("garbage", "half_json", "error", "noterm"), FAILED),
    **dict.fromkeys(("slowhdr", "hang", "keepalive", "role_only", "idle"), LATE),
    **dict.fromkeys(("unstreamed", "wrong_type", "finish_twice", "usage_missing", "gzip"), FINE),
}
EARLY: Mapping[str, Ends] = {
    **WHOLE,
    # Everything was said, also why it ended: what is missing is a formality.
    "noterm": FINE,
    "unstreamed": FAILED,
}
"""In a stream, before anything was said."""
LATER: Mapping[str, Ends] = {
    **dict.fromkeys(("rst", "cut", "clean_cut", "endless", "oversize"), BROKE),
    **dict.fromkeys(("garbage", "half_json", "error", "noterm"), BROKE),
    **dict.fromkeys(("hang", "keepalive", "idle"), STALLED),
}
"""In a stream, after two words."""

_UNENDED = Ends(200, "upstream_error", text=WORDS)
_TOO_LARGE = Ends(400, "backend_refused", detail="request_too_large")
EXCEPT: Mapping[tuple[str, str, bool], Ends] = {
    # Without their last event nobody knows that Anthropic's or Google's answer is whole.
    ("anthropic", "mode=noterm", True): _UNENDED,
    ("gemini", "mode=noterm", True): _UNENDED,
    ("anthropic", "mode=413", True): _TOO_LARGE,
    ("anthropic", "mode=413", False): _TOO_LARGE,
}
"""(upstream, script, stream) → where an upstream's dialect makes a difference."""

CODES: Mapping[str, Mapping[str, str]] = {
    "anthropic_messages": {
        "upstream_error": "api_error",
        "upstream_denied": "api_error",
        "endpoint_stalled": "timeout_error",
        "backend_refused": "invalid_request_error",
        "upstream_rate_limited": "rate_limit_error",
        "upstream_quota_exhausted": "rate_limit_error",
        "overloaded": "overloaded_error",
    },
    # Its error events know only a handful of codes; before them it is as for chat.
    "openai_responses": {"upstream_error": "server_error", "endpoint_stalled": "server_error"},
}


@dataclass(frozen=True, slots=True)
class Cell:
    client: str
    upstream: str
    script: str
    stream: bool
    ends: Ends

    @property
    def model(self) -> str:
        """A credential rests after it was refused, so every call that ends so has a model of its own."""
        if not re.fullmatch(r"mode=[45]\d\d", self.script):
            return self.upstream
        return f"{self.upstream}-{self.client}-{self.script.removeprefix('mode=')}-{self.stream}".lower()

    @property
    def code(self) -> str | None:
        """As this client knows it."""
        if self.ends.code == "ok":
            return None
        has_begun = self.ends.status == 200
        known = {} if self.client == "openai_responses" and not has_begun else CODES.get(self.client, {})
        return known.get(self.ends.code, self.ends.detail or self.ends.code)

    @property
    def status(self) -> int:
        is_anthropic = self.client == "anthropic_messages"
        return 529 if is_anthropic and self.ends.status == 503 else self.ends.status

    def __str__(self) -> str:
        return f"{self.client}-{self.upstream}-{self.script}-{'stream' if self.stream else 'whole'}"


def cells_of(client: str, upstream: str) -> list[Cell]:
    table: list[tuple[str, bool, Ends]] = []
    for stream in (False, True):
        statuses = {**STATUSES, **VENDOR_STATUSES.get(upstream, {})}
        table += [(f"mode={status}", stream, ends) for status, ends in statuses.items()]
        table += [(f"mode={mode}", stream, ends) for mode, ends in (EARLY if stream else WHOLE).items()]
    table += [(f"fail_at=2,mode={mode}", True, ends) for mode, ends in LATER.items()]
    return [
        Cell(client, upstream, script, stream, EXCEPT.get((upstream, script, stream), ends))
        for script, stream, ends in table
    ]


def is_offered(client: str, upstream: str) -> bool:
    """Only vendors of OpenAI's kind complete prompts."""
    return client != "completion" or upstream == "openai"


CELLS = [c for client in CLIENTS for up in BASES if is_offered(client, up) for c in cells_of(client, up)]


def spec(url: str) -> str:
    rows = {cell.model: cell.upstream for cell in CELLS}
    lines = ["models:"]
    for name, upstream in rows.items():
        backend = "openai_compatible" if upstream == "openai" else upstream
        options = f'{{base_url: "{url}{BASES[upstream]}", api_key: k, upstream_model: m}}'
        lines.append(f"  - {{name: {name}, backend: {backend}, slots: 512, options: {options}}}")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Found:
    """What was seen of one call, from all three sides."""

    outcome: Outcome
    event: Mapping[str, Any]
    """Of the ledger."""
    tries: int


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mapping[Cell, Found]]:
    """Every selected cell, played."""
    specs = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    selected = [each.params["cell"] for each in specs if each is not None and "cell" in each.params]
    async with Upstream() as upstream:
        with running_hub("serve", tmp_path_factory.mktemp("failures"), spec(upstream.url), SETTINGS) as hub:
            admin = Admin(hub.url, hub.admin_key)
            member = await admin.member()
            gate = asyncio.Semaphore(AT_ONCE)

            async def play(cell: Cell) -> Outcome:
                client = CLIENTS[cell.client]
                # A pause before each word, so that the network hands over one word at a time.
                body = client.ask(cell.model, f"script:n=4,gap_ms=20,{cell.script}\nFor {cell}, please.")
                async with gate:
                    return await put(client, member.talk, body, stream=cell.stream)

            outcomes = await asyncio.gather(*map(play, selected))
            events = await admin.events(ended(len(selected)), tenant_id=member.tenant_id)
            by_request = {event["request_id"]: event for event in events}
            assert len(by_request) == len(events) == len(selected)
            tries = [len(await upstream.records(outcome.request_id)) for outcome in outcomes]
    yield {
        cell: Found(outcome, by_request[outcome.request_id], count)
        for cell, outcome, count in zip(selected, outcomes, tries, strict=True)
    }


def billed(event: Mapping[str, Any]) -> int:
    return int(event["output_tokens"] + event["reasoning_tokens"])


@pytest.mark.parametrize("cell", CELLS, ids=str)
async def test_each_failure_has_its_one_outcome(found: Mapping[Cell, Found], cell: Cell) -> None:
    seen, ends = found[cell], cell.ends
    outcome, event = seen.outcome, seen.event
    assert (outcome.status, outcome.code, outcome.text) == (cell.status, cell.code, ends.text), outcome
    assert outcome.is_complete == (ends.code == "ok")
    assert (event["status"], seen.tries, event["attempts"]) == (ends.code, ends.tries, ends.tries), event
    words = len(ends.text.split())
    # Where nobody counted, more than the words may be billed; else exactly what was delivered.
    assert billed(event) == words or (billed(event) > words and cell.script == "mode=usage_missing")
    assert (event["source"] == "reported") == (ends.code in COUNTED and "usage_missing" not in cell.script)
    if outcome.error is not None:
        for foreign in ("<html", "Welcome", "not json", "word0"):
            assert foreign not in outcome.error["message"]


COUNTED = frozenset({"ok", "backend_refused", "upstream_denied", "overloaded", LIMITED.code, EXHAUSTED.code})
"""Ends after which it is known what the upstream did; after others it may have worked for nobody."""


async def test_every_fault_is_in_the_table() -> None:
    assert set(WHOLE) == {*INSTEAD, *STRIKES, *CHANGES} - {"by_url", "floats", "inside_url", "short"}
    assert set(EARLY) == set(WHOLE)
    # Silence before the content has no later, and broken chunks take what came with them along.
    assert set(LATER) == set(STRIKES) - {"role_only", "bad_chunk"}
