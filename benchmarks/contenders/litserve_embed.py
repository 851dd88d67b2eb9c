"""MiniLM behind LitServe, batching on as its documentation advises: `max_batch_size`, a short
`batch_timeout`, and `fast_queue` for high throughput. One worker process, as InferHub has one engine.

Run in the environment of `locks/contenders.lock`; imports nothing of InferHub.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import litserve  # type: ignore[import-not-found]

from benchmarks.contenders.minilm import MAX_BATCH, MiniLm, answer

BATCH_TIMEOUT_S = 0.005


class Embed(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self._model = MiniLm()

    # LitServe reads the annotation: with one, it would expect a form or a query.
    def decode_request(self, request) -> str:  # type: ignore[no-untyped-def]
        return str(request["input"])

    def batch(self, inputs: Sequence[str]) -> list[str]:
        return list(inputs)

    def predict(self, inputs: list[str]) -> list[str]:
        return self._model.embed(inputs)

    def unbatch(self, output: list[str]) -> list[str]:
        return output

    def encode_response(self, output: str) -> dict[str, object]:
        return answer(output)


if __name__ == "__main__":
    api = Embed(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path="/v1/embeddings")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error")
