"""The embedding model without a server: one ONNX session and its tokenizer, a list of texts in, vectors out.

What LitServe and BentoML put behind their own batching. Runs in their environment, so it imports nothing of
InferHub; the arithmetic is that of InferHub's backend. `--ceiling` measures the engine alone.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WEIGHTS_VARIABLE = "BENCH_MINILM"
THREADS_VARIABLE = "BENCH_THREADS"
MAX_BATCH = 32


class MiniLm:
    """Loaded from the folder and with the threads that the environment names."""

    def __init__(self) -> None:
        import onnxruntime
        import tokenizers

        folder = Path(os.environ[WEIGHTS_VARIABLE])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ[THREADS_VARIABLE])
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._names = {value.name for value in self._session.get_inputs()}
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.enable_padding()

    def embed(self, texts: Sequence[str]) -> list[str]:
        """Vectors of length 1 in base64, as OpenAI's clients ask for them."""
        import numpy as np

        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([row.ids for row in encoded], np.int64)
        mask = np.array([row.attention_mask for row in encoded], np.int64)
        hidden = self._run(ids, mask)
        weights = mask[..., None].astype(np.float32)
        mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        vectors = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]

    def _run(self, ids: Any, mask: Any) -> Any:
        import numpy as np

        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return self._session.run(None, {name: feed[name] for name in self._names})[0]


def answer(vector: str) -> dict[str, object]:
    """The body that every contender answers with."""
    return {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": vector}]}


def ceiling(texts: Sequence[str], rounds: int) -> dict[str, float]:
    """Texts a second of the engine alone, one at a time and in batches; the better of the rounds."""
    model = MiniLm()
    model.embed(texts[:MAX_BATCH])
    best = {"single": 0.0, "batched": 0.0}
    for _ in range(rounds):
        for kind, size in (("single", 1), ("batched", MAX_BATCH)):
            begin = time.perf_counter()
            for start in range(0, len(texts), size):
                model.embed(texts[start : start + size])
            best[kind] = max(best[kind], len(texts) / (time.perf_counter() - begin))
    return best


def main() -> None:
    import sys

    parser = argparse.ArgumentParser()
    parser.add_argument("--ceiling", type=int, metavar="ROUNDS", required=True)
    rounds = parser.parse_args().ceiling
    print(json.dumps(ceiling(json.load(sys.stdin), rounds)))


if __name__ == "__main__":
    main()
