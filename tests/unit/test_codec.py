"""Whatever goes through the codec comes back as it was, and the generated code fits the proto file."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inferhub.core import errors
from inferhub.core.call import Call, Delta, Finished, Started
from inferhub.core.errors import BackendRefused, InferHubError, Invalid, ServingError, UpstreamFailed
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.serving import DeviceStatus, WorkerStatus
from inferhub.core.tenancy import Principal, Role
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.chat import ChatDelta, FunctionDelta, TokenLogprob, ToolCallDelta, TopLogprob
from inferhub.modalities.embedding import EmbeddingDelta
from inferhub.transport import codec as wire
from inferhub.transport import codec_models as nouns
from inferhub.transport._pb import worker_pb2 as pb
from inferhub.transport.codec import Codec

ROOT = Path(__file__).parents[2]
ERRORS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, InferHubError)),
    key=lambda kind: kind.__name__,
)
CODEC = Codec(modalities())


def chat_call(body: bytes) -> Call:
    request = msgspec.json.decode(body, type=modalities()["chat"].request)
    principal = Principal("ih_abcdefghijkl", Role.ENTERPRISE)
    return Call("call_1", "chat", "tiny", request, body, principal, time.monotonic() + 30, stream=True)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_class_comes_back_as_itself(kind: type[InferHubError]) -> None:
    sent = kind("Bad 'ü' value", param="messages[0]", code="finer_code", retry_after_s=2.5)
    back = wire.decode_error(pb.Error.FromString(wire.encode_error(sent).SerializeToString()))
    assert type(back) is kind
    assert (back.message, back.param, back.wire_code, back.retry_after_s) == (
        "Bad 'ü' value",
        "messages[0]",
        "finer_code",
        2.5,
    )
    bare = wire.decode_error(wire.encode_error(kind()))
    assert (bare.message, bare.param, bare.wire_code, bare.retry_after_s) == (
        kind().message,
        None,
        kind.code,
        None,
    )


def test_error_codes_are_unique() -> None:
    assert len({kind.code for kind in ERRORS}) == len(ERRORS) > 20


def test_a_plug_ins_error_travels_as_its_nearest_known_ancestor() -> None:
    class Moderated(BackendRefused):
        """The vendor's filter said no."""

        code = "vendor_filter"

    back = wire.decode_error(wire.encode_error(Moderated()))
    assert type(back) is BackendRefused
    assert (back.message, back.wire_code) == ("The vendor's filter said no.", "vendor_filter")


def test_an_unknown_error_code_is_still_an_error() -> None:
    back = wire.decode_error(pb.Error(code="from_the_future", message="Hm.", wire_code="from_the_future"))
    assert type(back) is ServingError
    assert back.wire_code == "from_the_future"


def test_error_texts_are_bounded_and_always_utf8() -> None:
    back = wire.decode_error(wire.encode_error(UpstreamFailed("\udcff" + "x" * 1_000_000)))
    assert len(back.message) == wire.MAX_ERROR_TEXT
    assert back.message.startswith("?x")


def test_a_call_keeps_unknown_fields_exact_numbers_and_its_time() -> None:
    body = b'{"model":"public-name","messages":[{"role":"user","content":"\\u00fc \xf0\x9f\x98\x80"}],"temperature":0.7,"vendor_field":[1e400]}'
    call = chat_call(body)
    message = pb.InferRequest.FromString(CODEC.encode_call(call).SerializeToString())
    back = CODEC.decode_call(message, "00-trace")
    assert back == replace(call, traceparent="00-trace", deadline_s=back.deadline_s)
    assert back.body == body
    assert back.request.temperature == 0.7
    assert back.model == "tiny"
    assert back.deadline_s == pytest.approx(call.deadline_s, abs=5)


@pytest.mark.parametrize(
    "change",
    [
        {"modality": "smell"},
        {"body": b"{"},
        {"body": b"{}"},
        {"body": b"\xff"},
        {"principal": {"role": "god"}},
    ],
    ids=str,
)
def test_a_call_that_cannot_be_read_is_invalid(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "modality": "chat",
        "body": b'{"model":"m","messages":[]}',
        "principal": {"role": "free"},
    }
    CODEC.decode_call(pb.InferRequest(**good), None)
    with pytest.raises(Invalid):
        CODEC.decode_call(pb.InferRequest(**(good | change)), None)


RICH = ChatDelta(
    index=1,
    content="a\n\u2028ü\x00",
    reasoning_content="hm",
    tool_calls=[ToolCallDelta(0, "call_1", "function", FunctionDelta("f", '{"a":'))],
    logprobs=[TokenLogprob("a", -1.5e-9, [97], [TopLogprob("b", -0.1)])],
    finish_reason="length",
)


@pytest.mark.parametrize(
    ("modality", "chunk"),
    [
        ("chat", Started("tiny", "worker-1", 3)),
        ("chat", Delta(RICH)),
        ("chat", Delta(ChatDelta())),
        ("embedding", Delta(EmbeddingDelta(7, bytes(range(256))))),
        ("chat", Finished(Usage(2**40, 4, 3, 2, "estimated"))),
        ("chat", Finished(Usage(1, 2, audio_ms=61_500, characters=4096, images=3, pixels=3 * 2**20))),
        ("chat", Finished(Usage())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_chunks_come_back_as_they_were(modality: str, chunk: Started | Delta | Finished) -> None:
    reply = pb.InferReply(chunks=[CODEC.encode_chunk(chunk), CODEC.encode_chunk(chunk)])
    back = list(CODEC.decode_chunks(modality, pb.InferReply.FromString(reply.SerializeToString())))
    assert back == [chunk, chunk]


@pytest.mark.parametrize("chunk", [pb.Chunk(), pb.Chunk(delta=b"{"), pb.Chunk(delta=b'{"index":"x"}')])
def test_a_chunk_that_cannot_be_read_is_the_workers_failure(chunk: pb.Chunk) -> None:
    with pytest.raises(UpstreamFailed):
        list(CODEC.decode_chunks("chat", pb.InferReply(chunks=[chunk])))


def test_a_workers_status_comes_back_whole() -> None:
    specs = [
        ModelSpec("bare", "echo"),
        ModelSpec("full", "echo", "a b/ü.gguf", "cuda:1", 2, 0, {"x": {"y": [1, 0.1, None, "ü"]}}, "demand"),
    ]
    models = (
        ModelStatus(specs[0], (), "cpu"),
        ModelStatus(
            specs[1],
            (
                Capability("chat", frozenset({"stream", "tools"}), 4096),
                Capability("embedding", dimensions=384),
            ),
            "cuda:1",
            running=2,
            queued=7,
            ready=False,
            loaded=False,
            memory_bytes=2**41,
        ),
    )
    devices = (DeviceStatus("cpu", "Some CPU", 2**40, 2**39),)
    for status in (WorkerStatus("w", ()), WorkerStatus("w-1", models, devices, draining=True)):
        message = pb.WorkerStatus.FromString(nouns.encode_worker(status).SerializeToString())
        assert nouns.decode_worker(message) == status


def test_the_generated_code_fits_the_proto_file(tmp_path: Path) -> None:
    source = ROOT / "proto/inferhub/worker/v1"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", f"inferhub/transport/_pb={source}"]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*command, "inferhub/transport/_pb/worker.proto"], check=True)
    committed = ROOT / "src/inferhub/transport/_pb"
    generated = sorted(path.name for path in (tmp_path / "inferhub/transport/_pb").iterdir())
    assert generated == ["worker_pb2.py", "worker_pb2.pyi", "worker_pb2_grpc.py"]
    for name in generated:
        fresh = (tmp_path / "inferhub/transport/_pb" / name).read_text()
        assert (committed / name).read_text() == fresh, f"{name} is stale: run `make proto`"
