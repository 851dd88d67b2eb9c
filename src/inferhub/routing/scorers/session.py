"""`session`: whether the call's session belongs to an endpoint, by a hash that every gateway shares."""

from __future__ import annotations


def term(id_: str, owner: str | None) -> float | None:
    """A call without a session says nothing about anybody."""
    return None if owner is None else float(id_ == owner)
