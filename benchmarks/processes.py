"""Starts the processes of a measure on free loopback ports and stops every one of them at the end.

A contender that does not start is `CannotMeasureError` with the end of what it wrote.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.measure import CannotMeasureError

ROOT = Path(__file__).parent.parent
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 5.0
_POLL_S = 0.02
_QUOTED_CHARACTERS = 300
_FOLDERS = re.compile(r"(?:/[\w.@+-]+)+/")
# Children run in a folder of their own, so that no settings file of the working directory reaches them.
_ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True, slots=True)
class Running:
    """A started process and where it listens."""

    name: str
    pid: int
    url: str
    headers: Mapping[str, str]
    """What its clients have to send."""
    announced: Mapping[str, Any]
    """The JSON line that it printed when it was ready, if that is its way."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """A context manager; `folder` is theirs alone and goes with them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="inferhub-bench-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A stack: one that cannot be stopped, or an interrupt in between, does not save the others.
        with contextlib.ExitStack() as stack:
            stack.callback(self._folder.cleanup)
            for process in self._running:
                stack.callback(stop, process)

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        url: str | None = None,
    ) -> Running:
        """Start and wait until the process has printed `{"url": …}`; one that prints nothing gets its
        `url` from us and is ready when `GET url` is answered 200."""
        said = self.folder / f"{name}-{len(self._running)}.out"
        complaints = said.with_suffix(".err")
        with said.open("wb") as out, complaints.open("wb") as err:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.folder,
                env={**_ENV, **(env or {})},
                start_new_session=True,
            )
        self._running.append(process)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            announced = _announced(said) if url is None else {"url": url} if answers(url) else None
            if announced is not None:
                return Running(name, process.pid, announced["url"], {}, announced)
            if process.poll() is not None:
                raise CannotMeasureError(f"{name} ended with code {process.returncode}: {_end(complaints)}")
            time.sleep(_POLL_S)
        raise CannotMeasureError(f"{name} was not ready after {_START_TIMEOUT_S:g} s: {_end(complaints)}")

    def stop(self, running: Running) -> None:
        """Before the end of the context."""
        process = next(process for process in self._running if process.pid == running.pid)
        self._running.remove(process)
        stop(process)


def module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, then kill. It leads a session of its own, so what it left behind goes with the group."""
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    """Whether a GET is answered 200 now."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=2)
    try:
        connection.request("GET", f"/{path}")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def run_json(
    name: str,
    arguments: Sequence[str],
    *,
    given: Any = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> Any:
    """Run a process to its end; what it prints is JSON, what it reads (if anything) is JSON."""
    # Files, not pipes: readings are megabytes, and a process that prints must not wait for its reader.
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complaints:
        try:
            done = subprocess.run(
                arguments,
                input=json.dumps(given).encode(),
                stdout=said,
                stderr=complaints,
                timeout=timeout_s,
                env={**_ENV, **(env or {})},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CannotMeasureError(f"{name} was not finished after {timeout_s:g} s") from error
        said.seek(0)
        complaints.seek(0)
        if done.returncode:
            words = last_words(complaints.read().decode(errors="replace"))
            raise CannotMeasureError(f"{name} ended with code {done.returncode}: {words}")
        try:
            return json.load(said)
        except ValueError as error:
            raise CannotMeasureError(f"{name} did not answer in JSON: {error}") from error


def _announced(said: Path) -> dict[str, Any] | None:
    for line in said.read_text(errors="replace").splitlines():
        if line.startswith("{") and line.endswith("}"):
            found: dict[str, Any] = json.loads(line)
            return found
    return None


def _end(complaints: Path) -> str:
    return last_words(complaints.read_text(errors="replace"))


def last_words(text: str) -> str:
    """The last line that a failed process wrote, without the folders of this machine: results are kept."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return _FOLDERS.sub("…/", lines[-1])[-_QUOTED_CHARACTERS:] if lines else "it said nothing"
