"""A network namespace that a process of a test can live in, with a cable to here that can be cut.

What is lost on a cut cable is lost without a word, as between machines: no reset, no refusal. Linux, root and
`ip` are needed; where they are not there, `why_not` says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inferhub.testing.servers import wait_for


@dataclass(frozen=True, slots=True)
class Island:
    here: str
    """This side's address."""
    there: str
    """The address of whoever lives in the namespace."""
    within: tuple[str, ...]
    """A command that runs the one behind it in there."""
    _cable: str

    def cut(self) -> None:
        _ip("link", "set", self._cable, "down")

    def heal(self) -> None:
        _ip("link", "set", self._cable, "up")


def why_not() -> str | None:
    """What is missing to make one; None where nothing is."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    missing = [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)  # noqa: S607
    return None if done.returncode == 0 else "no permission to make network namespaces"


@contextmanager
def island() -> Iterator[Island]:
    # Every test process has its own number, so that two of them do not share addresses.
    number = os.getpid() % 250
    here, there = f"10.213.{number}.1", f"10.213.{number}.2"
    cable, far = f"ih{number}h", f"ih{number}t"
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])  # noqa: S607
    try:
        wait_for(lambda: _has_own_network(holder.pid), 10, "the namespace")
        within = ("nsenter", "--target", str(holder.pid), "--net", "--")
        _ip("link", "add", cable, "type", "veth", "peer", "name", far, "netns", str(holder.pid))
        _ip("addr", "add", f"{here}/24", "dev", cable)
        _ip("link", "set", cable, "up")
        _ip("addr", "add", f"{there}/24", "dev", far, within=within)
        _ip("link", "set", far, "up", within=within)
        _ip("link", "set", "lo", "up", within=within)
        yield Island(here, there, within, cable)
    finally:
        holder.kill()
        holder.wait()
        # Gone with its other end, but not before the kernel has cleaned up.
        subprocess.run(["ip", "link", "delete", cable], capture_output=True, check=False)  # noqa: S607


def _has_own_network(pid: int) -> bool:
    return Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()


def _ip(*arguments: str, within: Sequence[str] = ()) -> None:
    subprocess.run([*within, "ip", *arguments], check=True, capture_output=True)
