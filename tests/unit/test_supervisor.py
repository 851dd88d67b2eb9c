"""Parts of the supervisor that need no gateway: what it hands over, and when it gives up."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from inferhub.core.errors import SetupError
from inferhub.settings import load_settings
from inferhub.settings.model import SECRETS
from inferhub.settings.plain import from_plain, plain_settings
from inferhub.supervisor.messages import Announced
from inferhub.supervisor.service import supervise
from inferhub.supervisor.slot import START_ATTEMPTS, Muster
from inferhub.telemetry.ports import listen

KEY = "a-secret-of-some-length"


def test_settings_reach_a_process_as_they_were_read(tmp_path: Path) -> None:
    """Secrets too: a process must not read files that may have changed."""
    flags = {"data_dir": tmp_path, "worker": ["a:1", "[::1]:2"], "spec_file": "hub.yaml", "color": "never"}
    env = {f"INFERHUB_{name.upper()}": KEY for name in SECRETS}
    for given in ({}, env):
        loaded = load_settings(flags, env=given, cwd=tmp_path)
        assert from_plain(plain_settings(loaded), loaded.origins, loaded.environment) == loaded
    assert plain_settings(loaded)["pepper"] == KEY


def test_the_first_key_waits_for_all_and_the_announcement_for_the_key() -> None:
    first, second = (Announced("", "", (), key, None) for key in ("key", None))
    told: list[Announced] = []
    muster = Muster(2, told.append)
    muster.prepares(0, 7)
    assert muster.catalog_is_set_up.is_set()
    assert not muster.all_are_prepared.is_set()
    muster.prepares(1, 8)
    assert muster.all_are_prepared.is_set()
    assert not muster.key_is_made.is_set()
    assert muster.spec_revision == 7
    muster.serves(0, first)
    assert muster.key_is_made.is_set()
    muster.serves(0, second)  # its next life
    assert told == []
    muster.serves(1, second)
    muster.serves(1, second)
    assert told == [first]


async def test_processes_that_die_before_they_serve_are_given_up(tmp_path: Path) -> None:
    """`json.tool` finds no such file."""
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    flags = {"processes": 2, "port": port, "metrics_port": 0, "data_dir": tmp_path}
    loaded = load_settings(flags, env={}, cwd=tmp_path)
    announced: list[object] = []
    with pytest.raises(SetupError, match=rf"ended with exit status \d, {START_ATTEMPTS} times"):
        await supervise(
            loaded,
            None,
            module="json.tool",
            announce=lambda *said: announced.append(said),
            on_progress=announced.append,
        )
    assert announced == []
    listen("127.0.0.1", port).close()


# --- replacing processes one after the other ---------------------------------------------------------

SCRIPT = """
import asyncio, os, signal, sys, time
from pathlib import Path
from inferhub.core.errors import SetupError
from inferhub.supervisor.messages import Announced, Prepared, Refused
from inferhub.supervisor.tether import Tether

tether = Tether(int(sys.argv[1]))
place = tether.place()
folder = Path(place.settings["data_dir"])

def note(what):
    with (folder / "notes").open("a") as notes:
        notes.write(f"{place.slot} {os.getpid()} {place.seat} {place.leads} {what}\\n")

if (folder / "broken").exists():
    tether.tell(Refused("setup_error", "The disk is gone.", None))
    sys.exit(1)

async def main():
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    tether.watch(5.0)
    await tether.prepared(1)
    note("serves")
    tether.tell(Announced("url", "ops", (), None, None))
    await end.wait()
    note("leaves")
    await asyncio.sleep(float(place.environment.get("LINGER_S", "0.1")))
    note("is gone")

asyncio.run(main())
"""


class Town:
    """A supervisor of scripted processes, in this very process, and what they noted."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._notes = folder / "notes"
        flags = {"processes": 2, "port": 0, "metrics_port": 0, "data_dir": folder, "drain_grace_s": 20}
        self._loaded = load_settings(flags, env=environment, cwd=folder)
        self.announced = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await supervise(
            self._loaded,
            None,
            module="scripted_gateway",
            announce=lambda *_: self.announced.set(),
            on_progress=lambda _: None,
        )

    def notes(self, what: str = "") -> list[list[str]]:
        """slot, process id, seat, whether it leads, what."""
        text = self._notes.read_text() if self._notes.exists() else ""
        lines = [line.split(maxsplit=4) for line in text.splitlines()]
        return [line for line in lines if what in line[4]]

    async def until(self, condition: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline_s, self.notes()
            assert not self.task.done(), self.task.exception()
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def town(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Awaitable[Town]]]:
    towns: list[Town] = []
    (tmp_path / "scripted_gateway.py").write_text(SCRIPT, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def found(**environment: str) -> Town:
        towns.append(Town(tmp_path, environment))
        await towns[-1].until(towns[-1].announced.is_set)
        return towns[-1]

    yield found
    for one in towns:
        if not one.task.done():
            os.kill(os.getpid(), signal.SIGTERM)
            await one.task
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().remove_signal_handler(number)


async def test_sighup_replaces_one_process_after_the_other_and_a_new_one_serves_first(
    town: Callable[..., Awaitable[Town]],
) -> None:
    one = await town()
    assert sorted(line[0] for line in one.notes("serves")) == ["0", "1"]
    for life in (1, 2):
        before = len(one.notes())
        os.kill(os.getpid(), signal.SIGHUP)
        await one.until(lambda life=life: len(one.notes("is gone")) == 2 * life)
        lines = one.notes()[before:]
        assert [(slot, what) for slot, _, _, _, what in lines] == [
            (slot, what) for slot in ("0", "1") for what in ("serves", "leaves", "is gone")
        ]
        for came, left, gone in (lines[:3], lines[3:]):
            assert came[1] != left[1] == gone[1], "each is another process"
            assert came[2] != left[2], "side by side they need a seat each"
            assert came[3] == "False", "nobody makes a first key again"
    assert len({line[1] for line in one.notes("serves")}) == 6


async def test_a_successor_that_cannot_serve_leaves_the_old_one_where_it_is(
    town: Callable[..., Awaitable[Town]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("inferhub"), "propagate", True)
    one = await town()
    (tmp_path / "broken").touch()
    os.kill(os.getpid(), signal.SIGHUP)
    await one.until(lambda: "process 0 is not replaced, and goes on" in caplog.text)
    assert "The disk is gone." in caplog.text
    assert one.notes("leaves") == []
    (tmp_path / "broken").unlink()
    os.kill(os.getpid(), signal.SIGHUP)
    await one.until(lambda: len(one.notes("is gone")) == 2)


async def test_a_stop_in_the_middle_ends_old_and_new(town: Callable[..., Awaitable[Town]]) -> None:
    one = await town(LINGER_S="0.5")
    os.kill(os.getpid(), signal.SIGHUP)
    await one.until(lambda: one.notes("leaves"))
    os.kill(os.getpid(), signal.SIGTERM)
    await one.task
    assert len(one.notes("is gone")) == len(one.notes("serves")) == 3


async def test_one_that_dies_after_a_renewal_is_still_started_again(
    town: Callable[..., Awaitable[Town]],
) -> None:
    one = await town()
    os.kill(os.getpid(), signal.SIGHUP)
    await one.until(lambda: len(one.notes("is gone")) == 2)
    os.kill(int(one.notes("serves")[-1][1]), signal.SIGKILL)
    await one.until(lambda: len(one.notes("serves")) == 5)
    assert one.notes("serves")[-1][0] == "1"
