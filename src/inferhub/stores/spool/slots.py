"""Which folder below `spool_dir` is this process's: the first that no living process holds.

Called by assembly. A number is no identity: a folder left behind by a dead process is taken over with
everything in it, by its successor or by whoever starts next.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from inferhub.core.errors import Conflict, SetupError
from inferhub.stores.spool.files import Files
from inferhub.stores.spool.recovery import Bill, free_of_charge
from inferhub.stores.spool.segments import segments_of
from inferhub.stores.spool.spool import Spool

_log = logging.getLogger(__name__)

MAX_SLOTS = 1024


@dataclass(frozen=True, slots=True)
class Spools:
    own: Spool
    orphans: tuple[Spool, ...]
    """Nobody writes to them any more; the drain empties and closes them."""


def open_spool(
    root: Path,
    max_bytes: int,
    *,
    fsync: bool = False,
    bill: Bill = free_of_charge,
    files: Files | None = None,
) -> Spools:
    """Raises `SetupError`; an orphan that cannot be used is left alone and logged."""
    own: Spool | None = None
    orphans = []
    for slot in range(MAX_SLOTS):
        folder = root / str(slot)
        if own is not None and not _holds_segments(folder):
            if not folder.exists():
                break
            continue
        try:
            spool = Spool(folder, max_bytes, fsync=fsync, bill=bill, files=files)
        except Conflict:
            continue
        except SetupError as error:
            if own is None:
                raise
            _log.error("%s", error.message)
            continue
        if own is None:
            own = spool
        else:
            orphans.append(spool)
    if own is None:
        raise SetupError(f"{MAX_SLOTS} processes keep their ledger in {root}.", param="spool_dir")
    return Spools(own, tuple(orphans))


def _holds_segments(folder: Path) -> bool:
    try:
        return any(segment.size for segment in segments_of(folder))
    except OSError:
        return False
