"""The process launcher over small scripts in the place of workers: what it hands over, hears and does."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from inferhub.orchestrator.launchers import process
from inferhub.orchestrator.launchers.base import Launched
from inferhub.orchestrator.launchers.process import ProcessLauncher
from inferhub.settings import Loaded, load_settings

TOKEN = "a-secret-of-some-length"
PATIENT_S = 30.0

SCRIPT = """
import json, os, signal, sys, threading, time
task = json.loads(sys.stdin.readline())
end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())
def say(**word):
    print(json.dumps(word), flush=True)
def log(text):
    print(text, file=sys.stderr, flush=True)
def listen():
    say(type="Listens", url="here:1", ops_url="http://here:2")
"""
WAITS = "listen()\nend.wait()"


@pytest_asyncio.fixture
async def launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., ProcessLauncher]]:
    """Makes a launcher whose workers run a script."""
    made: list[ProcessLauncher] = []
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("INFERHUB_PORT", "1")  # not for a worker to read

    def make(script: str, overrides: Mapping[str, object] | None = None) -> ProcessLauncher:
        (tmp_path / "scripted_worker.py").write_text(SCRIPT + script, encoding="utf-8")
        made.append(ProcessLauncher("scripted_worker", loaded(tmp_path), overrides or {}))
        return made[-1]

    yield make
    for launcher in made:
        await launcher.close(0.0)


def loaded(folder: Path) -> Loaded:
    env = {"INFERHUB_WORKER_TOKEN": TOKEN, "INFERHUB_WORKERS": "3", "VENDOR_KEY": "a-vendors-key"}
    return load_settings({"data_dir": folder, "launcher": "process"}, env=env, cwd=folder)


async def until(launcher: ProcessLauncher, condition: Callable[[Launched], object]) -> Launched:
    """The first of its workers, once it is so."""
    deadline_s = time.monotonic() + PATIENT_S
    while not condition(state := launcher.launched()[0]):
        assert time.monotonic() < deadline_s, state
        await asyncio.sleep(0.01)
    return state


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_it_hands_over_the_settings_by_pipe_and_nothing_else(
    launch: Callable[..., ProcessLauncher], tmp_path: Path
) -> None:
    script = f"open({str(tmp_path / 'told')!r}, 'w').write(json.dumps(task))\n" + WAITS
    launcher = launch(script, {"orchestrator": ["127.0.0.1:7"], "worker_listen": "127.0.0.1:0"})
    await launcher.start("w-0")
    await launcher.start("w-0")
    state = await until(launcher, lambda one: one.is_running)
    assert (state.id, state.url, state.ops_url, state.restarts) == ("w-0", "here:1", "http://here:2", 0)
    told = json.loads((tmp_path / "told").read_text())
    settings = told["settings"]
    assert settings["worker_token"] == TOKEN
    assert told["environment"]["VENDOR_KEY"] == "a-vendors-key"
    assert (settings["worker_id"], settings["orchestrator"]) == ("w-0", ["127.0.0.1:7"])
    # Else it would start workers of its own, on ports of its parent.
    assert (settings["workers"], settings["launcher"], settings["metrics_port"]) == (0, "none", 0)
    assert state.pid is not None
    seen = psutil.Process(state.pid)
    assert seen.cmdline()[1:] == ["-P", "-m", "scripted_worker", "w-0"]
    assert TOKEN not in str(seen.environ())
    assert os.getpgid(state.pid) == state.pid, "Ctrl-C in a terminal is not its own to hear"
    assert len(launcher.launched()) == 1


async def test_what_it_says_is_in_our_log_under_its_name(
    launch: Callable[..., ProcessLauncher], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("inferhub"), "propagate", True)
    caplog.set_level(logging.DEBUG, "inferhub")
    entry = {"level": "warning", "logger": "inferhub.worker.host", "message": "100 % full", "model": "m"}
    foreign = {"level": "error", "logger": "root", "message": "of a library", "exception": "Traceback"}
    launcher = launch(
        f"log({json.dumps(entry)!r}); log({json.dumps(foreign)!r}); log('segfault %s'); log('{{\"level\": 1}}')\n"
        "log('x' * 3_000_000); log('end')\n" + WAITS
    )
    await launcher.start("w-0")
    await until(launcher, lambda _: any(r.getMessage() == "end" for r in caplog.records))
    said = [r for r in caplog.records if getattr(r, "worker", None) == "w-0"]
    lines = [(r.levelname, r.name, r.getMessage()) for r in said]
    launchers = "inferhub.orchestrator.launchers.log"
    assert lines[:4] == [
        ("WARNING", "inferhub.worker.host", "100 % full"),
        ("ERROR", launchers, "of a library\nTraceback"),
        ("INFO", launchers, "segfault %s"),
        ("INFO", launchers, '{"level": 1}'),
    ]
    assert said[0].__dict__["model"] == "m"
    assert lines[-1][2] == "end", "a line that never ends is no reason to stop listening"


async def test_one_that_dies_is_started_again_later_and_later(
    launch: Callable[..., ProcessLauncher], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("inferhub"), "propagate", True)
    launcher = launch("listen(); log('last words'); os.kill(os.getpid(), signal.SIGSEGV)")
    await launcher.start("w-0")
    state = await until(launcher, lambda one: one.restarts >= 4)
    assert state.last_end == "was ended by SIGSEGV"
    assert state.is_looping
    assert not state.refused
    delays_s = [float(r.getMessage().split()[-2]) for r in caplog.records if "starts again" in r.getMessage()]
    # Each from half to all of 0.1, 0.2, 0.4, 0.8.
    assert delays_s[3] > delays_s[0]
    assert all(0.04 * 2**n <= delay_s <= 0.1 * 2**n + 0.05 for n, delay_s in enumerate(delays_s[:4]))
    assert "died 3 times in a row" in caplog.text


async def test_one_that_lived_long_enough_begins_from_the_first_delay(
    launch: Callable[..., ProcessLauncher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "STABLE_S", 0.0)
    launcher = launch("listen(); sys.exit(3)")
    await launcher.start("w-0")
    state = await until(launcher, lambda one: one.restarts >= 5)
    assert (state.is_looping, state.last_end) == (False, "ended with exit status 3")


async def test_one_that_never_listens_is_killed_and_counts_as_dead(
    launch: Callable[..., ProcessLauncher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "START_TIMEOUT_S", 0.5)
    launcher = launch("end.wait()")
    await launcher.start("w-0")
    state = await until(launcher, lambda one: one.restarts)
    assert state.last_end == "was ended by SIGKILL"


async def test_one_that_refuses_says_why(launch: Callable[..., ProcessLauncher]) -> None:
    launcher = launch("say(type='Refuses', message='No such device.'); sys.exit(1)")
    await launcher.start("w-0")
    state = await until(launcher, lambda one: one.refused)
    assert (state.refused, state.is_running) == ("No such device.", False)
    assert state.last_end == "ended with exit status 1: No such device."


async def test_stop_lets_it_finish(launch: Callable[..., ProcessLauncher], tmp_path: Path) -> None:
    finished = tmp_path / "finished"
    launcher = launch(f"listen(); end.wait(); time.sleep(0.3); open({str(finished)!r}, 'w').close()")
    await launcher.start("w-0")
    pid = (await until(launcher, lambda one: one.is_running)).pid
    await launcher.stop("w-0", 20.0)
    assert finished.exists()
    assert pid is not None
    assert is_gone(pid)
    assert launcher.launched() == []
    await launcher.stop("w-0", 20.0)


async def test_stop_kills_what_does_not_end_with_all_that_it_started(
    launch: Callable[..., ProcessLauncher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "KILL_MARGIN_S", 0.2)
    engine = tmp_path / "engine"
    launcher = launch(
        "import subprocess\nengine = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(engine)!r}, 'w').write(str(engine.pid))\nlisten()\nwhile True: end.wait(); end.clear()"
    )
    await launcher.start("w-0")
    pid = (await until(launcher, lambda one: one.is_running)).pid
    assert pid is not None
    await launcher.stop("w-0", 0.2)
    assert is_gone(pid)
    deadline_s = time.monotonic() + PATIENT_S
    while not is_gone(int(engine.read_text())):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)


async def test_one_that_waits_for_its_next_life_can_be_stopped(
    launch: Callable[..., ProcessLauncher],
) -> None:
    launcher = launch("sys.exit(3)")
    await launcher.start("w-0")
    await until(launcher, lambda one: one.restarts >= 3)
    await launcher.close(20.0)
    assert launcher.launched() == []


_PARENT = """
import asyncio, sys
from pathlib import Path
from inferhub.process import run
from inferhub.orchestrator.launchers.process import ProcessLauncher
from inferhub.settings import load_settings

async def main():
    folder = Path(sys.argv[1])
    settings = load_settings({"data_dir": folder}, env={}, cwd=folder)
    launcher = ProcessLauncher("inferhub.cli._worker_process", settings, {"worker_listen": "127.0.0.1:0"})
    await launcher.start("w-0")
    while not launcher.launched()[0].is_running:
        await asyncio.sleep(0.01)
    print(launcher.launched()[0].pid, flush=True)
    await asyncio.sleep(600)

run(main())  # on the event loop that services have
"""


def test_a_real_worker_listens_and_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", _PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.Process(pid).net_connections("tcp4")
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    deadline_s = time.monotonic() + PATIENT_S
    while not is_gone(pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
