"""Runs pip or npm, bounded in time, for `carriers` and `npm`; no shell, and nobody is asked anything."""

from __future__ import annotations

import asyncio
from pathlib import Path

from inferhub.core.errors import SetupError


async def run_tool(*command: str, timeout_s: float) -> tuple[int, bytes, bytes]:
    """Exit status, output, complaints. Raises `SetupError` where it cannot be started or does not end."""
    pipe = asyncio.subprocess.PIPE
    tool = Path(command[0]).name
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
    except OSError as error:
        raise SetupError(f"Cannot start {tool}, which finds weights: {error.strerror}.") from error
    try:
        async with asyncio.timeout(timeout_s):
            output, complaints = await process.communicate()
    except TimeoutError as error:
        raise SetupError(f"{tool} found no weights carriers within {timeout_s:.0f} s.") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    return process.returncode or 0, output, complaints
