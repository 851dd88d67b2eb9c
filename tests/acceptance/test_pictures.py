"""Pictures by address, through the whole hub: fetched by it, seen by the model, and nothing of the inside shown."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from inferhub.testing.servers import Hub, running_hub
from inferhub.testing.talk import CHAT, Talk

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SPEC = """\
models:
  - {name: seeing, backend: echo, options: {pictures: true}}
  - {name: blind, backend: echo}
"""


class Files(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/inside":
            self.send_response(302)
            self.send_header("location", "http://169.254.169.254/latest/meta-data/")
            self.end_headers()
            return
        body = {"/zip.png": b"PK\x03\x04" + bytes(100), "/d.pdf": b"%PDF-1.7\n"}.get(self.path, PNG)
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not into the test's output."""


@pytest.fixture(scope="module")
def files() -> Iterator[ThreadingHTTPServer]:
    Files.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module", params=["serve", "split"])
def seeing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, files: ThreadingHTTPServer
) -> Iterator[Hub]:
    settings = {"egress_allow": f"127.0.0.1:{files.server_port}"}
    with running_hub(request.param, tmp_path_factory.mktemp("seeing"), SPEC, settings) as hub:
        yield hub


def body(*urls: str, model: str = "seeing", **more: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"model": model, "messages": [{"role": "user", "content": parts}], **more}


def address(files: ThreadingHTTPServer, path: str) -> str:
    return f"http://127.0.0.1:{files.server_port}{path}"


async def test_a_model_sees_what_lies_at_an_address(seeing: Hub, files: ThreadingHTTPServer) -> None:
    answer = await Talk(seeing.url, seeing.admin_key).post(CHAT, body(address(files, "/a.png")))
    assert answer.status == 200, answer.body
    assert answer.json["choices"][0]["message"]["content"] == f" [image/png, {len(PNG)} bytes]"


async def test_a_count_sees_it_too(seeing: Hub, files: ThreadingHTTPServer) -> None:
    answer = await Talk(seeing.url, seeing.admin_key).post(
        f"{CHAT}/input_tokens", body(address(files, "/b.png"))
    )
    assert (answer.status, answer.json) == (200, {"input_tokens": 3})


async def test_a_file_at_an_address(seeing: Hub, files: ThreadingHTTPServer) -> None:
    part = {"type": "file", "file": {"file_data": address(files, "/d.pdf")}}
    sent = {"model": "seeing", "messages": [{"role": "user", "content": [part]}]}
    answer = await Talk(seeing.url, seeing.admin_key).post(CHAT, sent)
    assert answer.json["choices"][0]["message"]["content"] == " [application/pdf, 9 bytes]"


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.1/", "url_not_allowed"),
        ("http://[::ffff:127.0.0.1]/", "url_not_allowed"),
        ("http://169.254.169.254/latest/meta-data/", "url_not_allowed"),
        ("http://a\\@b.example/", "url_not_allowed"),
        ("file:///etc/passwd", "url_not_allowed"),
        ("/inside", "url_not_allowed"),
        ("/zip.png", "invalid_file"),
        ("data:image/png;base64,AAAA", "invalid_file"),
        ("data:image/png;base64,?", "invalid_base64"),
    ],
)
async def test_what_is_refused(
    seeing: Hub, files: ThreadingHTTPServer, url: str, code: str, is_stream: bool
) -> None:
    """A real status, before any stream begins."""
    url = address(files, url) if url.startswith("/") else url
    answer = await Talk(seeing.url, seeing.admin_key).post(CHAT, body(url, stream=is_stream))
    assert answer.status == 400, answer.body
    assert (answer.error["code"], answer.error["param"]) == (code, "messages[0].content[0].image_url.url")
    assert "169.254" not in answer.error["message"]


async def test_nothing_is_fetched_for_a_model_that_sees_nothing(
    seeing: Hub, files: ThreadingHTTPServer
) -> None:
    answer = await Talk(seeing.url, seeing.admin_key).post(
        CHAT, body(address(files, "/never.png"), model="blind")
    )
    assert (answer.status, answer.error["code"]) == (400, "unsupported_parameter")
    assert "/never.png" not in Files.asked


async def test_more_pictures_than_a_request_may_have(seeing: Hub, files: ThreadingHTTPServer) -> None:
    urls = [address(files, f"/many-{number}.png") for number in range(17)]
    answer = await Talk(seeing.url, seeing.admin_key).post(CHAT, body(*urls))
    assert (answer.status, answer.error["code"]) == (400, "too_many_files")
    assert answer.error["param"] == "messages[0].content[16].image_url.url"


async def test_pictures_beyond_what_the_estimate_sees_are_billed_once(
    seeing: Hub, files: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """The usage is the endpoint's, which saw the pictures."""
    answer = await Talk(seeing.url, seeing.admin_key).post(CHAT, body(*[address(files, "/c.png")] * 2))
    assert answer.json["usage"]["prompt_tokens"] == 6
