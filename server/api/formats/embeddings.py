"""Embeddings and scores as JSON, and the fields around them."""

import base64
import math
import operator
import struct
import time
from collections.abc import Sequence
from typing import Literal

import orjson

from server.generation.embedding import Embedder

NUMBER_BYTES = {"float": 24, "base64": 8}  # memory of one number of a reply, from above: as float32 and as JSON

EncodingFormat = Literal["float", "base64"]


def embedding_entry(index: int, vector: bytes, encoding_format: EncodingFormat) -> bytes:
    """Return the JSON of one embedding. `vector`: little-endian float32."""
    embedding = base64.b64encode(vector).decode() if encoding_format == "base64" else numbers_of(vector)
    return orjson.dumps({"object": "embedding", "index": index, "embedding": embedding})


def score_entry(index: int, score: float) -> bytes:
    """Return the JSON of one score."""
    return orjson.dumps({"object": "score", "index": index, "score": score})


def ranked(scores: Sequence[float], texts: Sequence[str] | None, top_n: int | None) -> list[dict[str, object]]:
    """Return the documents by descending score, equal ones by index; at most `top_n`. `texts`: to be repeated."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_n]
    repeated = {} if texts is None else {index: {"document": {"text": texts[index]}} for index in order}
    return [{"index": index, "relevance_score": scores[index], **repeated.get(index, {})} for index in order]


def reply_fields(prefix: str, embedder: Embedder) -> dict[str, object]:
    """Return the fields around the entries, after all texts are embedded. `prefix`: of the id."""
    return {
        "id": f"{prefix}-{embedder.record.request_id}",
        "created": int(time.time()),
        "model": embedder.request.model or embedder.state.model_names[0],
        "system_fingerprint": embedder.fingerprint,
        "usage": embedder.usage,
    }


def cosine(a: bytes, b: bytes) -> float:
    """Return the cosine of the angle between two vectors of length 1, little-endian float32."""
    return max(-1.0, min(1.0, math.fsum(map(operator.mul, numbers_of(a), numbers_of(b)))))


def numbers_of(vector: bytes) -> tuple[float, ...]:
    """Return the numbers of a vector of little-endian float32."""
    return struct.unpack(f"<{len(vector) // 4}f", vector)


def listed(entries: list[bytes], more: dict[str, object]) -> list[bytes]:
    """Return the JSON of a list in pieces. `more`: the members besides `object` and `data`, at least one."""
    pieces = [b'{"object":"list","data":[']
    for entry in entries:
        pieces += [entry, b","]
    if entries:
        pieces.pop()
    return [*pieces, b"]," + orjson.dumps(more)[1:]]
