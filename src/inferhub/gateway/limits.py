"""Bounds of the HTTP surface; every field is a setting of the same name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    max_body_bytes: int = 16 * 1024 * 1024
    max_upload_bytes: int = 25 * 1024 * 1024
    """Of one file, and of all files of a request."""
    max_uploads_bytes: int = 256 * 1024 * 1024
    """Of all files that this process holds at once."""
    max_json_depth: int = 64
    max_header_bytes: int = 32 * 1024
    max_headers: int = 100
    max_target_bytes: int = 8 * 1024
    body_timeout_s: float = 30.0
    """For a whole request to arrive, from its first byte to its last."""
    request_timeout_s: float = 600.0
    write_timeout_s: float = 60.0
    """For a client that does not read."""
    head_hold_s: float = 1.0
    """How long a stream's headers wait for the first token, so that early errors keep their status."""
    ping_interval_s: float = 10.0
    """Between `: ping` comments while a stream is silent."""
    max_sockets: int = 1024
    max_socket_message_bytes: int = 16 * 1024 * 1024
    socket_idle_timeout_s: float = 300.0
    """For a client that says nothing, and waits for nothing."""
    socket_ping_interval_s: float = 20.0
    session_timeout_s: float = 1800.0
