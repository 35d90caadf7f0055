"""Packets from rank 0 to the other ranks: what to compute next. Arrays are sent as they are, never pickled.

A packet is a kind, a length and as many bytes. The bytes of a step are sizes, then the arrays of model/forward_batch.py
one behind the other, those of the largest numbers first, so that each is aligned.
"""

import socket
import struct
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from enum import IntEnum
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.forward_batch import ForwardBatch, GateRows, HiddenRows, Routing

HEADER = struct.Struct("<IQ")  # kind, length
MAX_PAYLOAD_BYTES = 1 << 32  # more than any step has
# T, S, M, N, Kmax (0: no routing), masks (0: none), hidden rows (-1: none), rows of gates (-1: none), finite (0: none)
NUM_SIZES = 9


class PacketKind(IntEnum):
    """Kind of a packet's content."""

    CONFIG = 0  # to a rank: EngineConfig, as msgpack
    PROGRESS = 1  # from a rank: it has loaded something
    LOADED = 2  # from a rank: it has loaded everything
    FAILED = 3  # from a rank: an error in its checkpoint or settings; to a rank: why it may not join; as text
    POOL = 4  # to a rank: number of KV blocks, with the null block
    ZERO_BLOCKS = 5  # to a rank: ids of blocks to fill with zeros, int64
    STEP = 6  # to a rank: a step
    ZERO_SLOTS = 7  # to a rank: slots to fill with zeros, int64
    HELLO = 8  # from a rank on another host: engine/distributed/agreement.py
    DESCRIBED = 9  # from a rank on another host: engine/distributed/agreement.py
    JOIN = 10  # to a rank on another host: the port of the group's store
    BEAT = 11  # to a rank on another host: rank 0 is there
    POPULATE = 12  # to a rank: write the whole KV pool, so that it has its memory
    GRAPHS = 14  # to a rank: capture decode steps whose block tables have this width
    GREETING = 13  # from a rank to another one, not to rank 0 alone: engine/distributed/mesh.py
    TAKEN = 15  # to a rank on another host: its number has a connection, perhaps a dead one; it may ask again; as text


KINDS = frozenset(PacketKind)


def send_packet(connection: socket.socket, kind: PacketKind, payload: bytes = b"") -> None:
    """Send a packet. Raises OSError."""
    connection.sendall(HEADER.pack(kind, len(payload)) + payload)


def receive_packet(
    connection: socket.socket, max_bytes: int = MAX_PAYLOAD_BYTES
) -> tuple[PacketKind, bytearray] | None:
    """Wait for a packet; None if the other end is closed, or is no rank: its packet is larger than `max_bytes` or of no
    known kind. Raises OSError."""
    header = _receive_exactly(connection, HEADER.size)
    if header is None:
        return None
    kind, length = HEADER.unpack(header)
    if length > max_bytes or kind not in KINDS:
        return None
    payload = _receive_exactly(connection, length)
    return None if payload is None else (PacketKind(kind), payload)


def _receive_exactly(connection: socket.socket, count: int) -> bytearray | None:
    content = bytearray(count)
    view = memoryview(content)
    while view:
        received = connection.recv_into(view)
        if not received:
            return None
        view = view[received:]
    return content


def encode_step(batch: ForwardBatch) -> bytes:
    """Return the bytes of a step."""
    routing, hidden, gates = batch.routing, batch.hidden, batch.gates
    masks = None if routing is None or routing.mask_rows is None else routing.masks
    sizes = [
        len(batch.token_ids),
        *batch.block_tables.shape,
        len(batch.logit_rows),
        0 if routing is None else routing.expert_ids.shape[2],
        0 if masks is None else len(masks),
        -1 if hidden is None else len(hidden.rows),
        -1 if gates is None else len(gates.rows),
        batch.finite is not None,
    ]
    arrays = [batch.token_ids, batch.positions, batch.slot_mapping, batch.logit_rows]
    if masks is not None and routing is not None and routing.mask_rows is not None:
        arrays.append(routing.mask_rows)
    arrays += [] if hidden is None else [hidden.rows]
    arrays += [] if gates is None else [gates.rows]
    arrays += [batch.query_start, batch.context_len, batch.block_tables]
    arrays += [] if routing is None else [routing.experts_per_token]
    arrays += [] if masks is None else [masks]
    return np.array(sizes, dtype=np.int64).tobytes() + _bytes_of(arrays)


def _bytes_of(arrays: Sequence[Tensor]) -> bytes:
    """Return the arrays' bytes, one behind the other. From a GPU they are one copy, which waits for launched steps."""
    if arrays[0].device.type == "cpu":
        return b"".join(array.numpy().tobytes() for array in arrays)
    return _joined_bytes(arrays)


def _joined_bytes(arrays: Sequence[Tensor]) -> bytes:
    joined = torch.cat([array.contiguous().view(-1).view(torch.uint8) for array in arrays])
    return joined.cpu().numpy().tobytes()


def on_device(batch: ForwardBatch, device: torch.device) -> ForwardBatch:
    """Return a step of decode_step() with its arrays on a rank's device."""
    moved: ForwardBatch = batch if device.type == "cpu" else _moved(batch, device)
    return moved


def _moved(part: Any, device: torch.device) -> Any:
    """Copy tensors, also those in dataclasses."""
    if isinstance(part, Tensor):
        return part.to(device)
    if not is_dataclass(part) or isinstance(part, type):
        return part
    return replace(part, **{field.name: _moved(getattr(part, field.name), device) for field in fields(part)})


def decode_step(payload: bytearray, config: ModelConfig) -> ForwardBatch:
    """Return the step of a packet. Its arrays are views of `payload`."""
    reader = _ArrayReader(payload)
    num_rows, num_sequences, width, num_logits, max_k, num_masks, num_hidden, num_gates, has_finite = reader.read(
        torch.int64, NUM_SIZES
    ).tolist()
    token_ids, positions, slots = (reader.read(torch.int64, num_rows) for _ in range(3))
    logit_rows = reader.read(torch.int64, num_logits)
    mask_rows = reader.read(torch.int64, num_rows) if num_masks else None
    hidden_rows = reader.read(torch.int64, num_hidden) if num_hidden >= 0 else None
    gate_rows = reader.read(torch.int64, num_gates) if num_gates >= 0 else None
    query_start = reader.read(torch.int32, num_sequences + 1)
    context_len = reader.read(torch.int32, num_sequences)
    block_tables = reader.read(torch.int32, num_sequences, width)
    routing = None
    if max_k:
        k = reader.read(torch.int32, num_rows)
        layers, experts = config.num_layers, config.num_experts
        masks = reader.read(torch.bool, num_masks, layers, experts) if num_masks else None
        routing = Routing(k, masks, mask_rows, torch.empty(layers, num_rows, max_k, dtype=torch.int32))
    hidden = None if hidden_rows is None else HiddenRows(hidden_rows, torch.empty(len(hidden_rows), config.dim))
    gate_shape = config.num_layers, num_gates, config.num_experts
    gates = None if gate_rows is None else GateRows(gate_rows, torch.empty(gate_shape))
    return ForwardBatch(
        token_ids=token_ids,
        positions=positions,
        slot_mapping=slots,
        query_start=query_start,
        context_len=context_len,
        block_tables=block_tables,
        logit_rows=logit_rows,
        routing=routing,
        hidden=hidden,
        gates=gates,
        finite=torch.ones(num_rows, dtype=torch.bool) if has_finite else None,
    )


class _ArrayReader:
    """Reads arrays one behind the other."""

    def __init__(self, content: bytearray) -> None:
        self._content = content
        self._position = 0

    def read(self, dtype: torch.dtype, *shape: int) -> Tensor:
        count = prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        array = torch.frombuffer(self._content, dtype=dtype, count=count, offset=self._position)
        self._position += array.nbytes
        return array.view(shape)
