"""What a launcher and a worker's process say to each other: one JSON object a line.

Over its stdin and stdout; written and read by `process` on one side and `inferhub.cli._worker_process` on
the other. `Task` holds secrets: it goes over a pipe that nobody else can open, and nowhere else.
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_LINE_BYTES = 1024**2


class Task(msgspec.Struct, frozen=True):
    """First and only word to a process. The end of its stdin is the end of its parent."""

    settings: dict[str, Any]
    origins: dict[str, str]
    environment: dict[str, str]


class Listens(msgspec.Struct, frozen=True, tag=True):
    url: str
    ops_url: str


class Refuses(msgspec.Struct, frozen=True, tag=True):
    """It ends, and knows why: an error of ours, which another try will hardly mend."""

    message: str


Word = Listens | Refuses


def line_of(message: Task | Word) -> bytes:
    return msgspec.json.encode(message) + b"\n"


read_task = msgspec.json.Decoder(Task).decode
read_word = msgspec.json.Decoder(Word).decode
