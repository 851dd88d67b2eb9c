"""One process of `inferhub gateway --processes N`.

Started by the supervisor as `python -m inferhub.cli._gateway_process DESCRIPTOR`; over the descriptor it
is told what to run. It prints nothing on stdout.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING

from inferhub import assembly
from inferhub.cli._descriptors import raise_limit
from inferhub.core.errors import InferHubError
from inferhub.gateway.turns import Board, Turns
from inferhub.process import run
from inferhub.settings.plain import from_plain
from inferhub.supervisor.messages import Announced, Loading, Place, Refused
from inferhub.supervisor.tether import Tether
from inferhub.telemetry.logging import configure_logging

if TYPE_CHECKING:
    from inferhub.assembly import Ready


def main() -> None:
    # Someone's Ctrl-C is the supervisor's to act on; assembly replaces this once it serves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tether = Tether(int(sys.argv[1]))
    place = tether.place()
    if place is None:
        return
    loaded = from_plain(place.settings, place.origins, place.environment)
    settings = loaded.settings
    configure_logging(settings.log_level, settings.log_format, process=place.slot)
    raise_limit(settings.max_inflight)
    tether.watch(settings.drain_grace_s)
    try:
        run(
            assembly.gateway(
                loaded,
                place.spec_text,
                announce=partial(_announce, tether),
                on_progress=lambda model: tether.tell(Loading(model)),
                inherited=_inherited(tether, place),
            )
        )
    except InferHubError as error:
        tether.tell(Refused(error.wire_code, error.message, error.param))
        sys.exit(1)


def _inherited(tether: Tether, place: Place) -> assembly.Inherited:
    listener = socket.socket(fileno=place.listener)
    listener.set_inheritable(False)
    os.set_inheritable(place.board, False)
    return assembly.Inherited(
        listener=listener,
        turns=Turns(Board(place.board, place.seats), place.seat),
        leads=place.leads,
        spec_revision=place.spec_revision,
        prepared=tether.prepared,
        expose=tether.expose,
        ops_url=place.ops_url,
    )


def _announce(tether: Tether, ready: Ready) -> None:
    tether.tell(Announced(ready.url, ready.ops_url, ready.models, ready.admin_key, ready.chat_model))


if __name__ == "__main__":
    main()
