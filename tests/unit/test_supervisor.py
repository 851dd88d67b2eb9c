"""Parts of the supervisor that need no gateway: what it hands over, and when it gives up."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferhub.core.errors import SetupError
from inferhub.settings import Settings, load_settings
from inferhub.settings.model import SECRETS
from inferhub.supervisor.messages import Announced
from inferhub.supervisor.service import supervise
from inferhub.supervisor.slot import START_ATTEMPTS, Muster, plain_settings
from inferhub.telemetry.ports import listen

KEY = "a-secret-of-some-length"


def test_settings_reach_a_process_as_they_were_read(tmp_path: Path) -> None:
    """Secrets too: a process must not read files that may have changed."""
    flags = {"data_dir": tmp_path, "worker": ["a:1", "[::1]:2"], "spec_file": "hub.yaml", "color": "never"}
    env = {f"INFERHUB_{name.upper()}": KEY for name in SECRETS}
    for given in ({}, env):
        loaded = load_settings(flags, env=given, cwd=tmp_path)
        assert Settings.model_validate(plain_settings(loaded)) == loaded.settings
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
