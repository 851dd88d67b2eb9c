"""Runs a command as another user: `_as_user.py UID GID FOLDER COMMAND…`; some servers refuse to be root's.

Started by `testing.backing.postgres` as a file of its own; it becomes the command, with the same process id.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2


def main() -> None:
    uid, gid, folder, *command = sys.argv[1:]
    libc = ctypes.CDLL(None)
    death_signal = ctypes.c_int(0)
    is_linux = sys.platform == "linux"
    if is_linux:
        libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(death_signal))
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
    if is_linux:
        # The kernel forgets with the user that this process ends with its parent.
        libc.prctl(_PR_SET_PDEATHSIG, death_signal.value)
    # The folder of the tests may be closed to this user, and the command asks where it is.
    os.chdir(folder)
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
