"""Nothing but the fetcher opens a URL that a tenant or a request names."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "inferhub"

CLIENTS = {
    "aiohttp", "ftplib", "http.client", "httpx", "pycurl", "pyreqwest", "requests", "smtplib", "telnetlib",
    "urllib.request", "urllib3", "websockets", "xmlrpc",
}  # fmt: skip
CALLS = {"PyJWKClient", "create_connection", "open_connection", "sock_connect", "urlopen"}

MAY_CALL_OUT = {
    "egress/": "the fetcher",
    "backends/http.py": "the vendors and servers that the operator's spec names",
    "registry/download.py": "pinned weights, from where this program or the operator says",
    "client/": "the address that the user of the client gives",
    "gateway/sockets/protocol.py": "nowhere: it reads connections that came to us",
    "cli/": "the address that the user of the command gives",
    "stores/": "the databases that the settings name",
    "testing/": "servers of the tests",
}
"""Where a URL comes from the operator, or from the person at the keyboard. A new line needs such a reason."""


def _calls_out(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = []
            called = getattr(node, "attr", None) or getattr(node, "id", None)
            found |= {called} & CALLS if isinstance(called, str) else set()
        found |= {name for name in names if any(f"{name}.".startswith(f"{client}.") for client in CLIENTS)}
        found |= {name for name in names if name.rpartition(".")[2] in CALLS}
    return found


def test_only_these_files_call_out() -> None:
    callers = {
        file.relative_to(SOURCE).as_posix(): found
        for file in sorted(SOURCE.rglob("*.py"))
        if (found := _calls_out(ast.parse(file.read_text(encoding="utf-8"))))
    }
    assert any(name.startswith("egress/") for name in callers)
    strangers = {
        name: sorted(found) for name, found in callers.items() if not name.startswith(tuple(MAY_CALL_OUT))
    }
    assert not strangers, "use inferhub.egress, or say in MAY_CALL_OUT whose URL it is"


def test_the_check_sees_every_way_of_importing() -> None:
    for code in (
        "import aiohttp", "from aiohttp import ClientSession", "import urllib.request as u",
        "from urllib.request import urlopen", "from urllib import request", "import http.client",
        "def f():\n    import httpx", "asyncio.open_connection('a', 1)", "loop.create_connection(x)",
    ):  # fmt: skip
        assert _calls_out(ast.parse(code)), code
    assert not _calls_out(ast.parse("from urllib.parse import urlsplit\nimport http\nfrom a import b"))
