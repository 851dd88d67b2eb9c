"""A bar on the terminal while a server works: how long it has been, and how much has come.

On standard error, so that results can go anywhere; silent where that is no terminal.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager


class Bar:
    """What the verb tells while it waits."""

    def came(self, size: int) -> None:
        """So many bytes more."""

    def say(self, label: str) -> None:
        """What is being done now."""

    async def counted(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same pieces, counted as they come."""
        async for piece in pieces:
            self.came(len(piece))
            yield piece


@contextmanager
def progress(label: str) -> Iterator[Bar]:
    if not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)

        class Drawn(Bar):
            def came(self, size: int) -> None:
                bars.advance(task, size)

            def say(self, label: str) -> None:
                bars.update(task, description=label)

        yield Drawn()
