"""Draws a pull: bars with speed and time left on a terminal, a line per step anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inferhub.cli._output import console, megabytes

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from inferhub.registry.progress import OnProgress, Progress

_LINE_EVERY = 0.25
"""Share of a download between two lines where there is no terminal."""


@contextmanager
def progress_of_pull(color: str, *, silent: bool) -> Iterator[OnProgress]:
    """What `Weights.pull` is to call."""
    if silent:
        yield lambda _: None
        return
    terminal = console(color)
    if not terminal.is_terminal:
        yield _Lines()
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=terminal) as bars:
        yield _drawing_on(bars)


def _drawing_on(bars: Bars) -> Callable[[Progress], None]:
    tasks: dict[str, TaskID] = {}

    def draw(step: Progress) -> None:
        label = f"{step.weights}: {step.phase.value} {step.file}"
        name = f"{step.weights}/{step.file}"
        if name not in tasks:
            tasks[name] = bars.add_task(label, total=step.total_bytes or None)
        done = step.total_bytes if step.phase.value == "ready" else step.done_bytes
        bars.update(tasks[name], description=label, completed=done, total=step.total_bytes or None)

    return draw


class _Lines:
    """A line for each new step, and for each quarter of a download."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, int]] = {}

    def __call__(self, step: Progress) -> None:
        quarter = int(step.done_bytes / step.total_bytes / _LINE_EVERY) if step.total_bytes else 0
        now = (step.phase.value, quarter if step.phase.value == "downloading" else 0)
        if self._told.get(step.file) == now:
            return
        self._told[step.file] = now
        size = ""
        if step.phase.value == "downloading" and step.total_bytes:
            size = f", {megabytes(step.done_bytes)} of {megabytes(step.total_bytes)}"
        print(f"{step.weights}: {step.phase.value} {step.file}{size}", flush=True)
