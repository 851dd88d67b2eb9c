"""Reads answers that come as one JSON object: a chat that is not streamed, vectors, verdicts, rankings.

Each reader returns the payloads, the usage, and the body where a client can read it as it came.
"""

from __future__ import annotations

from typing import NamedTuple

from inferhub.backends.openai_compatible.lane import SHAPES
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.base import Envelope
from inferhub.modalities.embedding import inputs
from inferhub.modalities.moderation import inputs as judged
from inferhub.wire.openai_embedding import read_embeddings
from inferhub.wire.openai_errors import read_stream_error
from inferhub.wire.openai_mend import with_choices, with_usage
from inferhub.wire.openai_moderation import read_moderations
from inferhub.wire.rerank import read_ranking


class Whole(NamedTuple):
    payloads: list[object]
    usage: Usage
    raw: bytes | None

    def chunks(self) -> list[Delta | Finished]:
        return [*(Delta(payload) for payload in self.payloads), Finished(self.usage, raw=self.raw)]


def read_whole(call: Call, body: bytes, *, is_raw: bool, secrets: tuple[str, ...]) -> Whole:
    """Raises `UpstreamFailed` for what is no answer to this call."""
    match call.modality:
        case "embedding":
            found = read_embeddings(body, len(inputs(call.request)))
            is_raw = is_raw and found.is_base64 and call.request.encoding_format == "base64"
            return Whole([*found.deltas], found.usage, body if is_raw else None)
        case "moderation":
            verdicts = read_moderations(body, len(judged(call.request)))
            usage = _counted(call, verdicts.usage)
            return Whole([*verdicts.deltas], usage, body if is_raw and verdicts.is_whole else None)
        case "rerank":
            ranking = read_ranking(body, call.request)
            # Of an object only its text was sent, so only that could come back.
            sent_whole = not call.request.return_documents or all(
                isinstance(item, str) for item in call.request.documents
            )
            is_raw = is_raw and ranking.is_whole and sent_whole
            return Whole([*ranking.deltas], _counted(call, ranking.usage), body if is_raw else None)
        case _:
            return _read_text(call, body, is_raw=is_raw, secrets=secrets)


def _read_text(call: Call, body: bytes, *, is_raw: bool, secrets: tuple[str, ...]) -> Whole:
    shape = SHAPES[call.modality]
    reader = shape.reader(shape.choices(call.request))
    chunk = shape.parse(body)
    if chunk.error:
        raise read_stream_error(chunk.error, secrets)
    payloads = reader.read(chunk)
    usage = reader.end()
    if not is_raw:
        return Whole(payloads, usage, None)
    if reader.is_mended:
        fold = modalities()[call.modality].fold
        body = with_choices(body, fold(call.request, Envelope("", 0, ""), payloads, usage))
    if reader.is_miscounted:
        body = with_usage(body, usage)
    return Whole(payloads, usage, body)


def _counted(call: Call, usage: Usage) -> Usage:
    """An estimate where the vendor counts something else than tokens, or nothing."""
    if usage.source != "unknown":
        return usage
    return modalities()[call.modality].estimate(call.request, len(call.body))
