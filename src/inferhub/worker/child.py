"""The child process that holds one engine: `python -m inferhub.worker.child LISTEN LOG_LEVEL`.

`process` starts it, tells it over gRPC what to load, and ends it by closing its standard input. It never
outlives its parent, never decides to stop by itself and never reads from the terminal.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from inferhub.modalities import modalities
from inferhub.transport.codec import Codec
from inferhub.transport.grpc_server import serve
from inferhub.worker.host import Host
from inferhub.worker.service import Worker

READY = b"ready\n"
_PR_SET_PDEATHSIG = 1


def main() -> None:
    listen, log_level = sys.argv[1:]
    # Ctrl-C and a service manager's stop reach the whole process group; the parent decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    logging.basicConfig(stream=sys.stderr, level=int(log_level), format="%(levelname)s %(name)s: %(message)s")
    # The parent says the same about this very model.
    logging.getLogger("inferhub.worker.lifecycle").setLevel(logging.WARNING)
    asyncio.run(_serve(listen))


async def _serve(listen: str) -> None:
    codec = Codec(modalities())
    worker = Worker("child", Host(Path, isolation="never"), tuple)
    server = await serve(worker, listen, codec)
    os.write(sys.stdout.fileno(), READY)
    # Whatever an engine prints from here on belongs to the log.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    await server.wait()


def _die_with_parent() -> None:
    """Twice: the kernel's signal works while an engine holds the GIL, the pipe works everywhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.dup(sys.stdin.fileno())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)

    def wait_for_end() -> None:
        while os.read(parent, 1):
            pass
        os._exit(0)

    threading.Thread(target=wait_for_end, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    main()
