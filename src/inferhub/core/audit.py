"""Who changed what: one entry of the append-only audit log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

GENESIS = "0" * 64
"""`previous_hash` of the first entry."""


@dataclass(frozen=True, slots=True)
class Act:
    """What is about to be done, by whom. Written in the same transaction as the change itself."""

    actor: str
    """Id of a key or user, or `cli` for a command on the machine of the catalog."""
    action: str
    """`NOUN.VERB`, for example `key.revoke`."""
    target: str
    """Id of the object."""
    tenant_id: str | None = None
    """Whose object it is; None for the platform's own."""
    detail: Mapping[str, str] = field(default_factory=dict)
    """What changed, for people. Never a secret."""
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An act that happened. `hash` covers every other field, the previous entry's hash included."""

    seq: int
    """1 for the first, without gaps."""
    at: int
    """Unix seconds."""
    act: Act
    previous_hash: str
    hash: str


def chain(seq: int, at: int, act: Act, previous_hash: str) -> AuditEntry:
    """The entry with its hash: SHA-256, hex, of a canonical JSON array of all it says."""
    said = [
        seq,
        at,
        act.actor,
        act.action,
        act.target,
        act.tenant_id,
        dict(sorted(act.detail.items())),
        act.request_id,
        previous_hash,
    ]
    text = json.dumps(said, ensure_ascii=True, separators=(",", ":"))
    return AuditEntry(seq, at, act, previous_hash, hashlib.sha256(text.encode()).hexdigest())
