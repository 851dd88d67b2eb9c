"""What a crash left in a spool: cuts a torn tail, and writes an end for every call that has none.

Called once, when `spool.Spool` opens its folder. Changes nothing but the tail: the caller appends.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from decimal import Decimal

import msgspec

from inferhub.core.usage import Begin, LostEvent, Usage
from inferhub.stores.spool.files import Files
from inferhub.stores.spool.frames import BEGIN, CARRIED, LOST, decode, encode, pack, parse
from inferhub.stores.spool.progress import Progress
from inferhub.stores.spool.segments import Segment

_log = logging.getLogger(__name__)

Bill = Callable[[str, Usage, int], tuple[Decimal, str]]
"""(model as asked for, usage, Unix seconds) → (cost, price version)."""


def free_of_charge(model: str, usage: Usage, at_s: int) -> tuple[Decimal, str]:
    return Decimal(0), ""


def recover(segments: Sequence[Segment], progress: Progress, files: Files, bill: Bill) -> list[bytes]:
    """The frames that close what was open. Raises `OSError`."""
    if not segments:
        return []
    newest = segments[-1]
    still_open = _open_calls(newest, files)
    ends = []
    for begin, entry in still_open:
        event = _lost(begin, progress.delivered(entry, begin.id), bill)
        ends.append(pack(LOST, 0, encode(event)))
    if ends:
        _log.warning("%d call(s) were cut off when the last process ended and are closed as lost", len(ends))
    return ends


def _open_calls(newest: Segment, files: Files) -> list[tuple[Begin, int]]:
    data = newest.read(0, newest.size)
    parsed = parse(data, is_whole=True)
    good = parsed.frames[-1].end if parsed.frames else 0
    if good < newest.size:
        _log.warning("%s: the last %d bytes are torn and were cut off", newest.path, newest.size - good)
        descriptor = files.open(newest.path, os.O_WRONLY)
        try:
            files.truncate(descriptor, good)
        finally:
            os.close(descriptor)
        newest.size = good
    still_open: dict[str, tuple[Begin, int]] = {}
    for frame in parsed.frames:
        try:
            record = decode(data, frame)
        except msgspec.MsgspecError:
            _log.error("%s: a record at %d is of another version", newest.path, frame.start)
            continue
        if frame.kind in (BEGIN, CARRIED) and isinstance(record, Begin):
            still_open[record.id] = (record, frame.entry)
        else:
            still_open.pop(record.id, None)
    return list(still_open.values())


def _lost(begin: Begin, delivered: int, bill: Bill) -> LostEvent:
    """What the client may have received is billed; where that is nothing, nothing is."""
    usage = Usage(begin.input_tokens, delivered, source="estimated") if delivered else Usage(source="unknown")
    cost, version = bill(begin.model, usage, begin.at_ms // 1000) if delivered else (Decimal(0), "")
    return LostEvent(
        id=begin.id,
        request_id=begin.request_id,
        at_ms=begin.at_ms,
        tenant_id=begin.tenant_id,
        project_id=begin.project_id,
        key_id=begin.key_id,
        modality=begin.modality,
        model=begin.model,
        requested_model=begin.model,
        status="lost",
        is_stream=begin.is_stream,
        source=usage.source,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        cost_usd=cost,
        price_version=version,
        meters=begin.meters,
    )
