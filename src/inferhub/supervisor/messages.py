"""What a supervisor and its gateway processes say to each other: one JSON object a line, over a socket pair.

Written and read by `child` on one side and `tether` on the other. `Place` and `Announced` hold secrets:
they go over this pair, which nobody else can open, and nowhere else.
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_LINE_BYTES = 64 * 1024**2
"""More than the metrics of any process that keeps its labels bounded."""


class Place(msgspec.Struct, frozen=True, tag=True):
    """First word to a process: which one it is, and everything it runs with."""

    slot: int
    seat: int
    """Its place on the board: a process and its successor, which serve side by side, have two."""
    seats: int
    leads: bool
    """The first life of slot 0: it sets up the catalog before the others come, and makes the first key."""
    listener: int
    """File descriptor of the socket that all processes accept from."""
    board: int
    """File descriptor of the memory in which they take turns."""
    ops_url: str
    settings: dict[str, Any]
    """As the supervisor read them: a process that starts later must not run with other ones."""
    origins: dict[str, str]
    environment: dict[str, str]
    spec_text: str | None
    spec_revision: int | None
    """The catalog's when the first process came; a spec that was applied since wins over `spec_text`."""


class Go(msgspec.Struct, frozen=True, tag=True):
    """After `Prepared`: to the one that leads when all are, to the others when the first key is made."""


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Answered by `State`, from a thread of its own, even when the event loop is blocked."""


ToProcess = Place | Go | Ask


class Loading(msgspec.Struct, frozen=True, tag=True):
    model: str


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """The catalog is set up and every model is loaded."""

    spec_revision: int


class Announced(msgspec.Struct, frozen=True, tag=True):
    """It accepts calls. The fields of `assembly.Ready`."""

    url: str
    ops_url: str
    models: tuple[str, ...]
    admin_key: str | None
    chat_model: str | None


class State(msgspec.Struct, frozen=True, tag=True):
    metrics: str
    """In Prometheus' text format."""
    readiness: dict[str, Any]


class Refused(msgspec.Struct, frozen=True, tag=True):
    """It ends, and knows why: an error of ours, which another try will hardly mend."""

    code: str
    message: str
    param: str | None


ToSupervisor = Loading | Prepared | Announced | State | Refused


def line_of(message: ToProcess | ToSupervisor) -> bytes:
    return msgspec.json.encode(message) + b"\n"


read_to_process = msgspec.json.Decoder(ToProcess).decode
read_to_supervisor = msgspec.json.Decoder(ToSupervisor).decode
