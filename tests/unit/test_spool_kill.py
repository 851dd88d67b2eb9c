"""kill -9 at every write of the ledger, in real processes: upstream ≥ billed ≥ received, each call once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def sweep(folder: Path, *mode: str) -> dict[str, tuple[int, int]]:
    done = subprocess.run(
        [sys.executable, "-m", "inferhub.testing.ledger_sweep", str(folder), *mode],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (line.split() for line in done.stdout.splitlines())
    return {fault: (int(deaths), int(recoveries)) for fault, deaths, recoveries in lines}


def test_kill_9_at_any_write_loses_and_doubles_nothing(tmp_path: Path) -> None:
    found = sweep(tmp_path)
    assert set(found) == {"kill", "half_kill"}
    for deaths, recoveries in found.values():
        assert deaths > 50
        assert recoveries > 20


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kill_9_at_any_write_of_any_recovery_too(tmp_path: Path) -> None:
    for deaths, recoveries in sweep(tmp_path, "full").values():
        assert recoveries > 10 * deaths
