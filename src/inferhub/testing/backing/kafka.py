"""One broker that speaks Kafka's protocol, from the wheel `noida-db`.

It proves our use of the protocol; it cannot prove what several brokers do together (replicas, leaders).
"""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from inferhub.testing.backing.base import HOST, PROBE_TIMEOUT_S, Backing, executable, find_package

_SAVE_TIMEOUT_S = 60.0
_CORRELATION_ID = 7
# ApiVersions (key 18) in version 0, without a client id.
_API_VERSIONS = struct.pack(">ihhih", 10, 18, 0, _CORRELATION_ID, -1)


@contextmanager
def running_kafka(folder: Path) -> Iterator[Kafka]:
    """A broker whose acknowledged messages and committed offsets outlive `kill`."""
    with Kafka(folder) as kafka:
        yield kafka


class Kafka(Backing):
    name = "kafka"

    @property
    def url(self) -> str:
        return f"kafka://{self.bootstrap}"

    @property
    def bootstrap(self) -> str:
        """What Kafka's clients call `bootstrap_servers`."""
        return f"{HOST}:{self.port}"

    def fresh(self) -> str:
        """The same URL: tests choose topics and groups of their own."""
        return self.url

    def kill(self) -> None:
        """Cut every client off and end it.

        A real broker's acknowledged messages outlive its process. This one writes them once a second, so
        that SIGKILL alone would lose some: it closes its port and writes first.
        """
        if self.process.exit_code is None:
            if self._is_frozen:
                self.thaw()
            self._close_and_save()
        super().kill()

    def stop(self) -> None:
        """As `kill`: after SIGTERM it goes on acknowledging what it no longer writes."""
        self.kill()

    def _close_and_save(self) -> None:
        done = subprocess.run(
            [str(self._binary), "stop", "kafka", "--data-dir", str(self._data_dir)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=_SAVE_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def _start(self) -> None:
        # Names the process of its last life, whose id may be another's by now.
        (self._data_dir / "noida.control.json").unlink(missing_ok=True)
        super()._start()

    def _prepare(self) -> None:
        self._data_dir = self.folder / "kafka-data"
        self._data_dir.mkdir(exist_ok=True)
        self._binary = executable(find_package("noida_db", "noida-db") / "noida-db", self.folder)

    def _arguments(self) -> Sequence[str]:
        options = ["--only", "kafka", "--kafka-port", str(self.port), "--data-dir", str(self._data_dir)]
        return [str(self._binary), "start", "--host", HOST, *options]

    def _answers(self) -> bool:
        with socket.create_connection((HOST, self.port), PROBE_TIMEOUT_S) as connection:
            connection.sendall(_API_VERSIONS)
            with connection.makefile("rb") as answers:
                head = answers.read(10)
        return len(head) == 10 and struct.unpack(">iih", head)[1:] == (_CORRELATION_ID, 0)
