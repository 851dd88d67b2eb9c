"""One worker that an orchestrator started on its own machine.

Started by the process launcher as `python -m inferhub.cli._worker_process ID`; its stdin tells it what to
run, and that its parent lives. The only words on its stdout are the launcher's messages.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from inferhub import assembly
from inferhub.cli._descriptors import raise_limit
from inferhub.core.errors import InferHubError
from inferhub.orchestrator.launchers.messages import Listens, Refuses, Word, line_of, read_task
from inferhub.process import run
from inferhub.settings.plain import from_plain
from inferhub.telemetry.logging import configure_logging

if TYPE_CHECKING:
    from inferhub.assembly import Ready

_ORPHAN_MARGIN_S = 5.0
"""On top of the drain's grace, for an orphan whose event loop never comes back."""


def main() -> None:
    # Someone's Ctrl-C is the parent's to act on; assembly replaces this once it serves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stdin, stdout = sys.stdin.buffer, os.dup(sys.stdout.fileno())
    # Whatever an engine prints belongs to the log.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    line = stdin.readline()
    if not line.endswith(b"\n"):
        return  # the parent ended first
    task = read_task(line)
    loaded = from_plain(task.settings, task.origins, task.environment)
    settings = loaded.settings
    # The launcher reads it again.
    configure_logging(settings.log_level, "json")
    raise_limit(settings.max_inflight)
    _end_with_parent(settings.drain_grace_s)

    def announce(ready: Ready) -> None:
        _say(stdout, Listens(ready.url, ready.ops_url))

    try:
        run(assembly.worker(loaded, None, announce=announce, ends_at_second=False))
    except InferHubError as error:
        _say(stdout, Refuses(error.message))
        sys.exit(1)


def _say(descriptor: int, word: Word) -> None:
    try:
        os.write(descriptor, line_of(word))
    except OSError:
        """Nobody listens any more; the thread sees the same and ends the process."""


def _end_with_parent(drain_grace_s: float) -> None:
    """However that ended, the kernel closes the pipe. Running calls may finish, as if someone stopped us."""
    parent = os.dup(sys.stdin.fileno())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)

    def wait_for_end() -> None:
        while os.read(parent, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(drain_grace_s + _ORPHAN_MARGIN_S)
        os._exit(1)

    threading.Thread(target=wait_for_end, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    main()
