"""How the pool has workers started and stopped, wherever that is.

A launcher keeps what it started running, until it is told to stop it; how many there are is not its concern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Launched:
    """A worker that should run, as its launcher sees it."""

    id: str
    is_running: bool = False
    """It has said that it listens, and has not ended since."""
    is_looping: bool = False
    """It has died several times in a row."""
    restarts: int = 0
    last_end: str = ""
    """How its last life ended, as the end of a sentence."""
    refused: str = ""
    """Its own words, where it ended because it cannot run as it was told."""
    pid: int | None = None
    url: str = ""
    ops_url: str = ""


class Launcher(Protocol):
    async def start(self, id: str) -> None:  # noqa: A002 - the noun everywhere
        """Have a worker of this name from now on. Returns at once; whether it runs, `launched` tells."""

    async def stop(self, id: str, grace_s: float) -> None:  # noqa: A002
        """Let it finish its calls for so long, and make sure of its end; returns when it is gone. Fine where
        there is none."""

    def launched(self) -> Sequence[Launched]:
        """All that were started and not stopped, in that order."""

    async def close(self, grace_s: float) -> None:
        """Stop all of them, at the same time."""
