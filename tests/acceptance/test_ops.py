"""Contract item 78: the operations port answers while the event loop is blocked, which is when someone asks."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from inferhub import assembly
from inferhub.settings import load_settings
from inferhub.testing.servers import fetch

BLOCKED_S = 1.5


async def test_contract_078_livez_while_the_loop_is_blocked(tmp_path: Path) -> None:
    """A gateway in this process, so that its loop can really be blocked: by a sleep that does not yield."""
    flags = {"port": 0, "metrics_port": 0, "data_dir": tmp_path}
    loaded = load_settings(flags, env={}, cwd=tmp_path)
    ready: asyncio.Future[assembly.Ready] = asyncio.get_running_loop().create_future()
    spec = "models:\n  - {name: echo, backend: echo}\n"
    serving = asyncio.create_task(assembly.serve(loaded, spec, announce=ready.set_result))
    try:
        async with asyncio.timeout(30):
            await asyncio.wait([ready, serving], return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await serving  # it did not start, and says why
        said = ready.result()
        answered: dict[str, float] = {}

        def ask() -> None:
            time.sleep(0.1)  # by now the loop is blocked
            for path in ("/livez", "/readyz", "/metrics"):
                assert fetch(f"{said.ops_url}{path}", timeout_s=10)[0] == 200
                answered[path] = time.monotonic()
            with pytest.raises(TimeoutError):
                fetch(f"{said.url}/livez", timeout_s=0.2)
            answered["gateway is silent"] = time.monotonic()

        asker = threading.Thread(target=ask)
        asker.start()
        time.sleep(BLOCKED_S)  # noqa: ASYNC251 - this is what is tested
        free_again_s = time.monotonic()
        await asyncio.to_thread(asker.join)
        assert set(answered) == {"/livez", "/readyz", "/metrics", "gateway is silent"}
        assert max(answered.values()) < free_again_s
        assert (await asyncio.to_thread(fetch, f"{said.url}/livez"))[0] == 200
    finally:
        serving.cancel()
        await asyncio.wait([serving])
