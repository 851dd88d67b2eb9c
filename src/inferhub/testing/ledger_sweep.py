"""`python -m inferhub.testing.ledger_sweep FOLDER [full]`: kill -9 at every write of the ledger.

Each n-th write of the workload is the last of its process; then one write of the recovery is, another one
each time, or with `full` every one. One process forks them all, so that a hundred deaths take seconds.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from inferhub.stores.spool.spool import Spool
from inferhub.testing.failing_files import FailingFiles, Fault
from inferhub.testing.ledgers import SEGMENT_BYTES, Ledgers, drain_all, work

_RECOVERY_WRITES = 20

Job = Callable[[Path, FailingFiles], Awaitable[None]]


async def _work(folder: Path, files: FailingFiles) -> None:
    ledgers = Ledgers(folder)
    (await work(folder, ledgers, files)).close()


async def _recover(folder: Path, files: FailingFiles) -> None:
    ledgers = Ledgers(folder)
    spool = Spool(folder / "spool", 64 * 1024**2, files=files, segment_bytes=SEGMENT_BYTES)
    await drain_all(spool, ledgers)
    spool.close()


def _was_killed(job: Job, folder: Path, at: int, fault: Fault) -> bool:
    """Run in a child process; False where it came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            asyncio.run(job(folder, FailingFiles(at, fault)))  # type: ignore[arg-type]
            status = 0
        finally:
            os._exit(status)
    _, outcome = os.waitpid(child, 0)
    if os.WIFSIGNALED(outcome) and os.WTERMSIG(outcome) == signal.SIGKILL:
        return True
    assert os.WEXITSTATUS(outcome) == 0, f"operation {at}: the child failed"
    return False


def _judge(folder: Path) -> None:
    asyncio.run(_recover(folder, FailingFiles()))
    ledgers = Ledgers(folder)
    ledgers.check()
    ledgers.close()


def sweep(root: Path, fault: Fault, *, is_full: bool) -> tuple[int, int]:
    """How many write points the workload and the recoveries had."""
    deaths = recoveries = 0
    is_going = True
    while is_going:
        folder = root / f"{fault}-{deaths}"
        folder.mkdir(parents=True)
        is_going = _was_killed(_work, folder, deaths + 1, fault)
        deaths += is_going
        at = 1 if is_full else deaths % _RECOVERY_WRITES + 1
        while True:
            again = root / "again"
            shutil.copytree(folder, again)
            was_killed = _was_killed(_recover, again, at, fault)
            _judge(again)
            shutil.rmtree(again)
            recoveries += was_killed
            if not (was_killed and is_full):
                break
            at += 1
        shutil.rmtree(folder)
    return deaths, recoveries


if __name__ == "__main__":
    kinds: tuple[Fault, ...] = ("kill", "half_kill")
    for kind in kinds:
        print(kind, *sweep(Path(sys.argv[1]), kind, is_full="full" in sys.argv))
