"""Writes a tiny random picture encoder (CLIP with a two-layer projector) as GGUF, for the engine's real picture path."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9
_ALIGNMENT = 32
_WIDTH, _HIDDEN, _SIDE, _PATCH, _LAYERS = 32, 64, 56, 14, 2


def write_mmproj(path: Path, embedding: int) -> None:
    """`embedding` is the width of the language model's tokens."""
    values: dict[str, object] = {
        "general.architecture": "clip",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": True,
        "clip.vision.image_size": _SIDE,
        "clip.vision.patch_size": _PATCH,
        "clip.vision.embedding_length": _WIDTH,
        "clip.vision.feed_forward_length": _HIDDEN,
        "clip.vision.projection_dim": embedding,
        "clip.vision.block_count": _LAYERS,
        "clip.vision.attention.head_count": 2,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.image_mean": [0.48, 0.46, 0.41],
        "clip.vision.image_std": [0.27, 0.26, 0.28],
    }
    path.write_bytes(_gguf(values, _tensors(embedding)))


def _tensors(embedding: int) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(0)
    shapes = {
        "v.class_embd": (_WIDTH,),
        "v.patch_embd.weight": (_WIDTH, 3, _PATCH, _PATCH),
        "v.position_embd.weight": ((_SIDE // _PATCH) ** 2 + 1, _WIDTH),
        "mm.0.weight": (embedding, _WIDTH),
        "mm.0.bias": (embedding,),
        "mm.2.weight": (embedding, embedding),
        "mm.2.bias": (embedding,),
    }
    norms = ["v.pre_ln"]
    for layer in range(_LAYERS):
        block = f"v.blk.{layer}"
        norms += [f"{block}.ln1", f"{block}.ln2"]
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            shapes |= {f"{block}.{name}.weight": (_WIDTH, _WIDTH), f"{block}.{name}.bias": (_WIDTH,)}
        shapes |= {f"{block}.ffn_up.weight": (_HIDDEN, _WIDTH), f"{block}.ffn_up.bias": (_HIDDEN,)}
        shapes |= {f"{block}.ffn_down.weight": (_WIDTH, _HIDDEN), f"{block}.ffn_down.bias": (_WIDTH,)}
    tensors = {name: drawn.standard_normal(shape) * 0.05 for name, shape in shapes.items()}
    for name in norms:
        tensors |= {f"{name}.weight": np.ones(_WIDTH), f"{name}.bias": np.zeros(_WIDTH)}
    return {name: tensor.astype("<f4") for name, tensor in tensors.items()}


def _gguf(values: dict[str, object], tensors: dict[str, np.ndarray]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for name, value in values.items():
        head += _text(name) + _value(value)
    data = b""
    for name, tensor in tensors.items():
        sides = tensor.shape[::-1]
        head += _text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, 0, len(data))
        data += _padded(tensor.tobytes())
    return _padded(head) + data


def _value(value: object) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int():
            return struct.pack("<II", _UINT32, value)
        case float():
            return struct.pack("<If", _FLOAT32, value)
        case str():
            return struct.pack("<I", _STRING) + _text(value)
        case list():
            return struct.pack(f"<IIQ{len(value)}f", _ARRAY, _FLOAT32, len(value), *value)
    raise TypeError(type(value))


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
