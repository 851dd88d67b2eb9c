"""Makes `data/openai.schemas.json` from OpenAI's published API document.

`python -m inferhub.testing.openai_document openapi.yml` is run by hand when a newer document is wanted. It
keeps the schemas that `testing.strict` names and what they refer to, without the prose.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

SCHEMAS_FILE = Path(__file__).parent / "data" / "openai.schemas.json"
ROOTS = (
    *("CreateChatCompletionRequest", "CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"),
    *("CreateCompletionRequest", "CreateCompletionResponse"),
    *("CreateEmbeddingRequest", "CreateEmbeddingResponse"),
    *("CreateModerationRequest", "CreateModerationResponse"),
    *("CreateResponse", "Response", "ResponseStreamEvent", "ResponseItemList"),
    *("TokenCountsBody", "TokenCountsResource"),
    *("ListModelsResponse", "Model", "ErrorResponse"),
    *("CreateTranscriptionRequest", "CreateTranslationRequest", "CreateSpeechRequest"),
    *("CreateTranscriptionResponseJson", "CreateTranscriptionResponseVerboseJson"),
    *("CreateTranscriptionResponseDiarizedJson", "CreateTranscriptionResponseStreamEvent"),
    *("CreateTranslationResponseJson", "CreateTranslationResponseVerboseJson"),
    "CreateSpeechResponseStreamEvent",
    *("CreateImageRequest", "CreateImageEditRequest", "CreateImageVariationRequest", "ImagesResponse"),
    *("ImageGenStreamEvent", "ImageEditStreamEvent"),
)
_PREFIX = "#/components/schemas/"
_PROSE = frozenset({"description", "title", "example", "examples", "externalDocs", "deprecated", "default"})


def extract(document: dict[str, Any]) -> dict[str, Any]:
    """{"source": …, "schemas": {name: schema}}; references stay as they are."""
    every = document["components"]["schemas"]
    kept: dict[str, Any] = {}
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop()
        if name not in kept:
            kept[name] = _without_prose(every[name], is_names=False)
            waiting += [reference.removeprefix(_PREFIX) for reference in _references(kept[name])]
    info = document["info"]
    source = f"{info['title']} {info['version']}, licence {info['license']['name']}, abridged"
    return {"source": source, "schemas": {name: kept[name] for name in sorted(kept)}}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _without_prose(value: Any, *, is_names: bool) -> Any:
    """`is_names`: the keys are names of fields, which may well be called `description`."""
    if isinstance(value, list):
        return [_without_prose(item, is_names=False) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {
        key: _without_prose(inner, is_names=not is_names and key == "properties")
        for key, inner in value.items()
        if is_names or not (key in _PROSE or key.startswith("x-"))
    }
    for bound in () if is_names else ("minimum", "maximum"):
        # Bounds beyond 64 bits are written as text there.
        if isinstance(kept.get(bound), str):
            kept[bound] = int(float(kept[bound]))
    if not is_names and kept.pop("nullable", False):
        # The document is OpenAPI 3.1, but says it in the words of 3.0, which JSON Schema does not know.
        return {"anyOf": [kept, {"type": "null"}]}
    return kept


def written(extracted: dict[str, Any]) -> str:
    """One schema a line, so that a newer document can be compared with this one."""
    lines = [
        f"{json.dumps(name)}:{json.dumps(schema, separators=(',', ':'), ensure_ascii=False)}"
        for name, schema in extracted["schemas"].items()
    ]
    body = ",\n".join(lines)
    return f'{{"source":{json.dumps(extracted["source"])},"schemas":{{\n{body}\n}}}}\n'


_OPERATIONS = {
    "/v1/chat/completions": ("CreateChatCompletionRequest", "CreateChatCompletionResponse"),
    "/v1/completions": ("CreateCompletionRequest", "CreateCompletionResponse"),
    "/v1/embeddings": ("CreateEmbeddingRequest", "CreateEmbeddingResponse"),
    "/v1/moderations": ("CreateModerationRequest", "CreateModerationResponse"),
    "/v1/responses": ("CreateResponse", "Response"),
}


def as_openapi() -> dict[str, Any]:
    """An OpenAPI document of the operations that InferHub asks of upstreams, for mock servers."""
    schemas = json.loads(SCHEMAS_FILE.read_text(encoding="utf-8"))["schemas"]
    paths = {
        path: {
            "post": {
                "operationId": path.strip("/").replace("/", "_"),
                "requestBody": {"required": True, **_json_of(request)},
                "responses": {"200": {"description": "The answer.", **_json_of(reply)}},
            }
        }
        for path, (request, reply) in _OPERATIONS.items()
    }
    info = {"title": "OpenAI API, abridged", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _json_of(schema: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"{_PREFIX}{schema}"}}}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m inferhub.testing.openai_document", description=__doc__)
    parser.add_argument("document", type=Path, help="OpenAI's API document as YAML")
    given = parser.parse_args()
    document = yaml.safe_load(given.document.read_text(encoding="utf-8"))
    SCHEMAS_FILE.write_text(written(extract(document)), encoding="utf-8")


if __name__ == "__main__":
    main()
