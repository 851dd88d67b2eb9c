"""One real server as a process: started on a free loopback port, broken on purpose, stopped at the end.

Each server's file says how it is started and asked; all else is here. Methods block. `restart` belongs to
the main thread: what another thread starts does not end with a test run that is killed.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import ClassVar, Self

import psutil

from inferhub.testing.servers import Process, StartError, environment, wait_for

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
PROBE_TIMEOUT_S = 2.0
_PORT_ATTEMPTS = 5
_LOWEST_PORT = 10_000
_POLL_S = 0.02


class _PortTaken(StartError):
    """Another process listens where this one was told to."""


class Backing(ABC):
    """A running server. Leaving its `with` block ends every process of it, frozen ones too."""

    name: ClassVar[str]
    """Of its files in the folder."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    process: Process
    """The one that listens; another one after every `restart`."""
    port: int

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Everything it said is in `NAME-N.stdout` and `.stderr`, one pair per start."""
        self._starts = count(1)
        self._is_frozen = False

    @property
    @abstractmethod
    def url(self) -> str:
        """In the form of InferHub's settings."""

    @abstractmethod
    def fresh(self) -> str:
        """The URL of an empty place on this server that no other caller gets."""

    @abstractmethod
    def _arguments(self) -> Sequence[str]:
        """The command line that serves `self.port`."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it serves a client now. May raise `OSError`."""

    @abstractmethod
    def _prepare(self) -> None:
        """Before the first start."""

    def _clean_up(self) -> None:  # noqa: B027 - most have nothing to do
        """After the last process has ended."""

    def _environment(self) -> Mapping[str, str]:
        return environment({})

    # --- faults ------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Stop every process of it where it stands (SIGSTOP): connections stay open, nobody answers."""
        self._is_frozen = True
        with suppress(psutil.NoSuchProcess):
            self._freeze([psutil.Process(self.process.pid)])
        # Its children are looked for once it can start no more of them.
        self._freeze(self._children())

    def thaw(self) -> None:
        """Go on after `freeze`."""
        self._is_frozen = False
        _signal_all(self._children(), signal.SIGCONT)
        self.process.send(signal.SIGCONT)

    def kill(self) -> None:
        """End every process of it at once (SIGKILL), without a goodbye to anyone."""
        self._end_now()

    def stop(self) -> None:
        """Ask it to end, as an operator would; kill it when it does not."""
        if self.process.exit_code is None:
            if self._is_frozen:
                self.thaw()
            self.process.send(self.stop_signal)
            with suppress(TimeoutError):
                self.process.wait(STOP_TIMEOUT_S)
        self._end_now()

    def restart(self) -> None:
        """Start it again on its port and its data, after `kill` or while it runs; back once it answers."""
        self.stop()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self._start()
            except _PortTaken:
                # A connection of its last life may hold the port for a moment.
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_POLL_S)
            else:
                return

    # --- the processes -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self._start_anywhere()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._end_now()
            self._clean_up()

    def _start_anywhere(self) -> None:
        for _ in range(_PORT_ATTEMPTS - 1):
            self.port = free_port()
            with suppress(_PortTaken):
                self._start()
                return
        self.port = free_port()
        self._start()

    def _start(self) -> None:
        """Back once it answers. Raises `StartError`, with nothing of it left running."""
        name = f"{self.name}-{next(self._starts)}"
        self.process = Process(self._arguments(), self.folder, name, self._environment())
        try:
            wait_for(self._is_ready, START_TIMEOUT_S, f"{self.name} to answer")
        except TimeoutError as error:
            self._end_now()
            raise StartError(f"{error}; it said:\n{self.words()}") from error
        except BaseException:
            self._end_now()
            raise
        self._is_frozen = False

    def _freeze(self, processes: Sequence[psutil.Process]) -> None:
        """Back once they do stand still: a signal is only noticed on the way out of the kernel."""
        _signal_all(processes, signal.SIGSTOP)
        wait_for(lambda: all(map(_stands_still, processes)), STOP_TIMEOUT_S, f"{self.name} to freeze")

    def _end_now(self) -> None:
        if self.process.exit_code is None:
            # Nothing that stands still starts another child.
            self.freeze()
            children = self._children()
            _signal_all(children, signal.SIGKILL)
            self.process.kill()
            wait_for(
                lambda: not any(map(_is_alive, children)), STOP_TIMEOUT_S, f"{self.name}'s children to end"
            )
        # Also closes what is still open of it here.
        self.process.wait()

    def _is_ready(self) -> bool:
        if self.process.exit_code is not None:
            kind = _PortTaken if "in use" in (words := self.words()) else StartError
            raise kind(f"{self.name} ended with {self.process.exit_code}; it said:\n{words}")
        try:
            # Whether it is this process that answers: the port may be another's.
            return self._listens() and self._answers()
        except (OSError, psutil.NoSuchProcess):
            return False

    def _listens(self) -> bool:
        connections = psutil.Process(self.process.pid).net_connections("tcp4")
        return any(c.status == psutil.CONN_LISTEN and c.laddr[1] == self.port for c in connections)

    def words(self) -> str:
        """The end of what it said since it was last started."""
        return "\n".join([*self.process.stdout.splitlines()[-20:], *self.process.stderr.splitlines()[-40:]])

    def _children(self) -> list[psutil.Process]:
        # Not by process group: PostgreSQL gives each of its children a group of its own.
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def _signal_all(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _stands_still(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_STOPPED or not _is_alive(process)
    except psutil.NoSuchProcess:
        return True


def _is_alive(process: psutil.Process) -> bool:
    """False for a zombie too: in a container nobody may ever collect it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def find_package(module: str, distribution: str) -> Path:
    """The folder of an installed package, without importing it. Raises `StartError` with the remedy."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise StartError(f"{distribution} is not installed here: run `make env-dev`.")
    return Path(spec.origin).parent


def free_port() -> int:
    """A loopback port that nobody listens on.

    Below the range from which clients' own ports come: a client that tries to come back to a killed server
    must not take its port, or be connected to itself.
    """
    highest = _lowest_client_port()
    for _ in range(200):
        port = random.randrange(_LOWEST_PORT, highest)  # noqa: S311
        if is_free(port):
            return port
    raise StartError(f"no free port between {_LOWEST_PORT} and {highest}")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: connections that ended a moment ago are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _lowest_client_port() -> int:
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except OSError:
        low = 32_768
    return max(low, _LOWEST_PORT + 1_000)


def executable(source: Path, folder: Path) -> Path:
    """`source`, or a copy that may be executed: some installers lose that bit."""
    if os.access(source, os.X_OK):
        return source
    copy = folder / source.name
    copy.write_bytes(source.read_bytes())
    copy.chmod(0o755)
    return copy
