"""Real InferHub processes for tests: both shapes, started through the CLI, on free loopback ports.

For acceptance tests, also those of plug-in authors. Never imports a service: what is tested is what
a user starts. Every process is stopped by its own id, and its words are kept in a folder.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from prometheus_client.parser import text_string_to_metric_families

Shape = Literal["serve", "split"]
"""`serve` is one process; `split` is a gateway and a worker with gRPC between them."""
SHAPES: tuple[Shape, ...] = ("serve", "split")

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
_PR_SET_PDEATHSIG = 1

T = TypeVar("T")


class StartError(Exception):
    """A process ended, or kept silent, before it was ready; holds what it said."""


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _end_with_parent() -> None:
    """In the new process: it ends when the one that started it is gone, so that killed tests leave none."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """A running command. Its stdout and stderr go to files, so that nothing ever blocks on a pipe."""

    def __init__(self, arguments: Sequence[str], folder: Path, name: str, env: Mapping[str, str]) -> None:
        self.name = name
        self._is_ending = False
        self._stdout = folder / f"{name}.stdout"
        self._stderr = folder / f"{name}.stderr"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            # A session of its own: Ctrl-C in the terminal of the tests is not Ctrl-C here.
            self._process = subprocess.Popen(
                arguments,
                cwd=folder,
                env=env,
                # Held open: commands that end with their standard input end with us.
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=_end_with_parent if _is_main_thread() else None,  # noqa: PLW1509
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number when a signal ended it."""
        return self._process.poll()

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(encoding="utf-8", errors="replace")

    def announcement(self, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """The line of JSON that says it is ready. Raises `StartError`."""

        def line() -> str | None:
            has_ended = self.exit_code is not None
            text = self.stdout
            if "\n" in text:
                return text.partition("\n")[0]
            if has_ended:
                raise StartError(f"{self.name} ended with {self.exit_code}:\n{self.stderr}")
            return None

        try:
            parsed: dict[str, Any] = json.loads(wait_for(line, timeout_s, f"{self.name} to be ready"))
        except TimeoutError as error:
            raise StartError(f"{self.name} was not ready in {timeout_s:g} s:\n{self.stderr}") from error
        return parsed

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit code. Raises `TimeoutError` when it goes on running."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{self.name} still runs after {timeout_s:g} s:\n{self.stderr}") from error
        if self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def end(self) -> None:
        """SIGTERM, once, if it still runs."""
        if self.exit_code is None and not self._is_ending:
            self._is_ending = True
            self.send(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM, and SIGKILL for one that does not listen. The exit code."""
        self.end()
        try:
            return self.wait()
        except TimeoutError:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL. The exit code."""
        self._process.kill()
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True, slots=True)
class Hub:
    """A running InferHub, whichever its shape."""

    shape: Shape
    folder: Path
    """Working directory of its processes; `data` and everything they said is inside."""
    url: str
    ops_url: str
    admin_key: str
    models: tuple[str, ...]
    processes: tuple[Process, ...]
    """The one that answers HTTP first."""

    @property
    def api(self) -> str:
        """What clients call the base URL."""
        return f"{self.url}/v1"

    @property
    def front(self) -> Process:
        return self.processes[0]

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def get(self, path: str, *, key: str | None = None, timeout_s: float = 10.0) -> Any:
        """A GET of JSON, outside any event loop; the body whatever the status."""
        headers = {"Authorization": f"Bearer {key or self.admin_key}"}
        return json.loads(fetch(self.url + path, headers, timeout_s=timeout_s)[1])

    def ops_metrics(self) -> str:
        """The whole text of `/metrics`."""
        return fetch(f"{self.ops_url}/metrics")[1].decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum over every sample of this name that has these labels; 0 where there is none."""
        families = text_string_to_metric_families(self.ops_metrics())
        samples = (sample for family in families for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def command(verb: str, *arguments: str) -> list[str]:
    """How a test runs `inferhub VERB …` with the Python that runs the test."""
    return [sys.executable, "-m", "inferhub", verb, *arguments]


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """This process's environment, with nothing of InferHub in it but `settings`."""
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(("INFERHUB_", "OPENAI_"))}
    return kept | {f"INFERHUB_{name.upper()}": str(value) for name, value in settings.items()}


def start_service(
    verb: str,
    folder: Path,
    settings: Mapping[str, object],
    *arguments: str,
    name: str | None = None,
    within: Sequence[str] = (),
) -> Process:
    """`inferhub VERB` on free ports, with its data in `folder`. Not yet ready: ask its `announcement`.

    `within` is a command that runs the command behind it, such as `nsenter`."""
    defaults: dict[str, object] = {"data_dir": folder / "data", "metrics_port": 0, "log_level": "info"}
    if verb in ("worker", "orchestrator"):
        defaults[f"{verb}_listen"] = "127.0.0.1:0"
    else:
        defaults["port"] = 0
    env = environment({**defaults, **settings})
    return Process([*within, *command(verb, "--json", *arguments)], folder, name or verb, env)


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    exit_code: int
    stdout: str
    stderr: str


def run_command(verb: str, *arguments: str, **settings: object) -> Done:
    """`inferhub VERB …` to its end, with `settings` in its environment."""
    done = subprocess.run(
        command(verb, *arguments),
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=START_TIMEOUT_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def running_hub(
    shape: Shape, folder: Path, spec: str, settings: Mapping[str, object] | None = None
) -> Iterator[Hub]:
    """An InferHub that serves `spec` and is ready; stopped at the end."""
    spec_file = folder / "hub.yaml"
    spec_file.write_text(spec, encoding="utf-8")
    given = {**(settings or {}), "spec_file": spec_file}
    started: list[Process] = []
    try:
        if shape == "serve":
            started.append(start_service("serve", folder, given))
        else:
            ours = {name: value for name, value in given.items() if name != "spec_file"}
            worker = start_service("worker", folder, ours)
            started.append(worker)
            target = worker.announcement()["url"]
            started.insert(0, start_service("gateway", folder, given, "--worker", target))
        yield ready_hub(shape, folder, tuple(started))
    finally:
        for process in started:
            process.end()
        for process in started:
            process.stop()


def ready_hub(shape: Shape, folder: Path, processes: tuple[Process, ...]) -> Hub:
    """Of processes that were just started, once they are ready."""
    said = processes[0].announcement()
    wait_for(lambda: is_ready(said["url"]), START_TIMEOUT_S, f"{said['url']}/readyz")
    key = said["admin_key"]
    if key is None:
        # Shown once only: a hub that starts again on its old data has the old one.
        key = (folder / "admin_key").read_text(encoding="ascii")
    (folder / "admin_key").write_text(key, encoding="ascii")
    return Hub(shape, folder, said["url"], said["ops_url"], key, tuple(said["models"]), processes)


def is_ready(url: str) -> bool:
    """What `/readyz` says; False for a server that does not answer."""
    try:
        return fetch(f"{url}/readyz")[0] == 200
    except OSError:
        return False


def fetch(
    url: str, headers: Mapping[str, str] | None = None, *, timeout_s: float = 10.0
) -> tuple[int, bytes]:
    """(status, body) of a GET, for checks outside an event loop. Raises `OSError` without an answer."""
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 - a test's own address
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
            return int(response.status), bytes(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def wait_for(probe: Callable[[], T | None], timeout_s: float, what: str) -> T:
    """The first truthy answer of `probe`, asked until the deadline. Raises `TimeoutError` naming `what`."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := probe()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.02)
    return found
