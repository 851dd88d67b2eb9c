"""Errors → words, remedies and exit codes. Called by `main`; the reference of errors is made from it.

An `InferHubError` never shows a traceback; anything else is a bug of ours and does.
"""

from __future__ import annotations

import json
import re
import sys
from enum import IntEnum

from inferhub.core.errors import InferHubError


class ExitCode(IntEnum):
    """What `inferhub` leaves the process with; stable over versions."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    INTERRUPTED = 130


EXIT_CODES = {
    ExitCode.OK: "Done.",
    ExitCode.FAILED: "Failed on this machine; `doctor` also: it found a problem; `reconcile`: a difference.",
    ExitCode.USAGE: "The command line is wrong; nothing was done.",
    ExitCode.UNREACHABLE: "No server answers at the address.",
    ExitCode.REFUSED: "The server answered with an error.",
    ExitCode.INTERRUPTED: "Interrupted by Ctrl-C.",
}

REMEDIES = {
    "invalid_api_key": "Pass --key, or set OPENAI_API_KEY. `inferhub keys create NAME` makes a key "
    "where the catalog is.",
    "permission_denied": "Use a key of role admin: `inferhub keys create NAME --role admin`.",
    "model_not_found": "`inferhub models served` lists what the server offers.",
    "context_length_exceeded": "Shorten the conversation, or serve the model with a larger context.",
    "conflict": "Read the present state again, then repeat.",
    "no_endpoint": "Wait until a worker offers the model; `inferhub doctor` shows the workers.",
    "overloaded": "Repeat later, or give the model more slots or workers.",
    "draining": "Repeat: another worker will take it.",
    "endpoint_lost": "Repeat; when it happens again, look into the server's log.",
    "upstream_error": "Repeat; when it happens again, look into the server's log.",
    "upstream_rate_limited": "Wait as long as the answer says, then repeat.",
    "timeout": "Raise the setting that the message names, or ask for less.",
    "weights_missing": "Fetch them: `inferhub models pull`.",
    "weights_corrupt": "Replace them: `inferhub models pull`.",
    "url_not_allowed": "Name a public address, or list the host in the setting egress_allow.",
    "rate_limit_exceeded": "Wait as long as `retry-after` says; `inferhub limits list` shows the limits.",
    "insufficient_quota": "Raise the budget with `inferhub limits set`, or wait for its next day or month.",
    "store_failed": "See that the database runs and can be reached; `inferhub doctor` looks closer.",
    "ledger_full": "Free space on the disk of spool_dir, or bring back the store that does not take usage; "
    "`/readyz?verbose` names the backlog.",
    "catalog_corrupt": "Keep a copy of it, and restore the catalog from a backup.",
    "port_taken": "Choose another one with --port, or stop the process that has it.",
    "server_unreachable": "Start it with `inferhub serve`, or name another one with --url. "
    "`inferhub doctor` looks closer.",
    "internal_error": "This is a fault of InferHub: please report it with the server's log.",
}
"""By error code: what to do, where the message itself cannot say it."""

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class ServerRefused(Exception):
    """Wraps an error that came from a server, so that its exit code differs from one of this machine."""

    def __init__(self, error: InferHubError) -> None:
        super().__init__(error.message)
        self.error = error


def printable(text: str) -> str:
    """Without control characters: what comes from a server or a model must not steer the terminal."""
    return _CONTROL.sub("", text.replace("\t", "    "))


def exit_code(error: BaseException) -> ExitCode:
    if isinstance(error, ServerRefused):
        return ExitCode.REFUSED
    if isinstance(error, InferHubError) and error.code == "server_unreachable":
        return ExitCode.UNREACHABLE
    return ExitCode.FAILED


def report(error: Exception, *, as_json: bool) -> ExitCode:
    """Tell `error` on stderr and return what to exit with. Raises it again if it is not ours."""
    code = exit_code(error)
    cause = error.error if isinstance(error, ServerRefused) else error
    if not isinstance(cause, InferHubError):
        raise error
    remedy = REMEDIES.get(cause.wire_code) or REMEDIES.get(cause.code)
    if as_json:
        body = {
            "message": cause.message,
            "type": cause.type,
            "param": cause.param,
            "code": cause.wire_code,
            "remedy": remedy,
            "exit_code": int(code),
        }
        print(json.dumps({"error": body}, ensure_ascii=False), file=sys.stderr)
        return code
    print(f"Error: {printable(cause.message)}", file=sys.stderr)
    if remedy:
        print(f"Remedy: {remedy}", file=sys.stderr)
    return code
