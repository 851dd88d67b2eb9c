"""The operations port against clients that do not wait for its answer."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from inferhub.telemetry.metrics import Metrics
from inferhub.telemetry.ops import OpsServer
from inferhub.testing.servers import fetch, wait_for


def test_a_probe_that_hangs_up_leaves_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def readiness() -> dict[str, object]:
        asked.set()
        may_answer.wait(30)
        return {"ready": True}

    server = OpsServer("127.0.0.1", 0, Metrics(), readiness)
    server.start()
    try:
        before = threading.active_count()
        with socket.create_connection(("127.0.0.1", server.port)) as probe:
            probe.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert asked.wait(30)
            # Closed with a reset: the answer has nowhere to go.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        may_answer.set()
        wait_for(lambda: threading.active_count() <= before, 30, "the answer to fail")
        assert fetch(f"http://127.0.0.1:{server.port}/readyz")[0] == 200
    finally:
        server.stop()
    assert capfd.readouterr().err == ""
