"""Memory stays flat over a million requests, with keys, limits, budgets, ledger and cache at work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.client import Plan, Target, ask
from benchmarks.cpu import tree_rss_bytes
from inferhub.testing.servers import running_hub
from inferhub.testing.talk import Talk

REQUESTS = 1_000_000
WARM_UP = 100_000
ALLOWED_GROWTH_BYTES = 32 * 1024**2
"""The allocator's own wandering; a leak of 100 bytes a request would be three times as much."""

SPEC = """\
models:
  - {name: echo, backend: echo, slots: 64}
prices:
  - {model: echo, input_per_mtok: "0.15", output_per_mtok: "0.60"}
"""
LIMITS: tuple[tuple[str, str, int | str], ...] = (
    ("requests", "minute", 10_000_000),
    ("tokens", "minute", 100_000_000_000),
    ("concurrent", "now", 100_000),
    ("usd", "month", "100000"),
)


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_memory_is_flat_over_a_million_requests(tmp_path: Path) -> None:
    with running_hub("serve", tmp_path, SPEC) as hub:
        talk = Talk(hub.url, hub.admin_key)
        for unit, window, limit in LIMITS:
            body = {"level": "tenant", "subject_id": "ten_default", "unit": unit, "window": window}
            answer = await talk.post("/admin/v1/limits", {**body, "limit": limit})
            assert answer.status == 200, answer
        bodies = tuple(
            json.dumps(
                {"model": "echo", "messages": [{"role": "user", "content": f"say {n}"}], "temperature": n % 2}
            )
            for n in range(5_000)
        )
        target = Target("hub", f"{hub.api}/chat/completions", _headers(hub.admin_key), bodies)
        done, after_warm_up = 0, 0
        while done < REQUESTS:
            seen = ask(Plan("load", (target,), connections=32, duration_s=30), timeout_s=120)["hub"]
            assert seen.errors == 0
            done += len(seen.total_s)
            if not after_warm_up and done >= WARM_UP:
                after_warm_up = tree_rss_bytes(hub.front.pid)
        growth = tree_rss_bytes(hub.front.pid) - after_warm_up
        assert growth < ALLOWED_GROWTH_BYTES, f"{growth / 1024**2:.1f} MiB more after {done} requests"


def _headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", "content-type": "application/json"}
