"""Thoughts on their way through a client: what a vendor signed is packed into `encrypted_content`, and back.

Called by `writer` and `lower`. A Responses upstream's own sealed thought is passed on as it is.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import msgspec

from inferhub.modalities.chat.deltas import ReasoningDetail
from inferhub.wire.openai_responses.reader import REASONING_FORMAT

_MARK = "ihrd1."
OWN_REASONING = "rs_ih"
"""Begins the id of every thought that was written here: no vendor knows it, so none is asked for it."""

_decode = msgspec.json.Decoder(list[ReasoningDetail]).decode


def pack(details: Sequence[ReasoningDetail]) -> str | None:
    """One text for what has to go back to whoever thought it; None where nothing has to."""
    kept = [detail for detail in details if detail.signature or detail.data or detail.id]
    if not kept:
        return None
    if len(kept) == 1 and kept[0].format == REASONING_FORMAT and kept[0].data:
        return kept[0].data
    return _MARK + base64.urlsafe_b64encode(msgspec.json.encode(kept)).decode()


def unpack(sealed: str, item_id: str | None) -> list[ReasoningDetail]:
    """What `pack` packed. Another's, or one that somebody changed, is sealed data to us."""
    if sealed.startswith(_MARK):
        try:
            return _decode(base64.urlsafe_b64decode(sealed[len(_MARK) :]))
        except (binascii.Error, ValueError):
            return []
    return [ReasoningDetail("reasoning.encrypted", data=sealed, id=item_id, format=REASONING_FORMAT)]
