"""Packets arrive as they were sent, in pieces too, and a step is the same step on the other side."""

import socket
from dataclasses import fields, is_dataclass, replace
from threading import Thread

import pytest
import torch
from torch import Tensor

from engine.distributed import packets
from engine.distributed.packets import PacketKind, decode_step, encode_step, receive_packet, send_packet
from model.forward_batch import ForwardBatch, GateRows, HiddenRows, Routing
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.paged import Running, make_batch

CONFIG = replace(Heads(4, 2, 16).config, num_layers=3, num_experts=5, experts_per_token=2)


def _batch() -> ForwardBatch:
    runs = Running(list(range(20)), [3, 4, 5, 6, 7]), Running([9, 8, 7], [1], 2)
    return make_batch([(runs[0], 17), (runs[1], 1)], 4)


def _routing(num_rows: int, *, masked: bool) -> Routing:
    k = torch.arange(num_rows, dtype=torch.int32) % 3 + 1
    masks = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) > 0.5 if masked else None
    mask_rows = torch.arange(num_rows) % 2 if masked else None
    return Routing(k, masks, mask_rows, torch.empty(3, num_rows, 3, dtype=torch.int32))


CASES = {
    "plain": _batch(),
    "without logits": replace(_batch(), logit_rows=torch.empty(0, dtype=torch.int64)),
    "routing": replace(_batch(), routing=_routing(18, masked=False)),
    "masks": replace(_batch(), routing=_routing(18, masked=True)),
    "hidden": replace(_batch(), hidden=HiddenRows(torch.tensor([3, 17]), torch.empty(2, CONFIG.dim))),
    "no hidden row": replace(_batch(), hidden=HiddenRows(torch.empty(0, dtype=torch.int64), torch.empty(0, 32))),
    "finite": replace(_batch(), finite=torch.ones(18, dtype=torch.bool)),
    "gates": replace(_batch(), gates=GateRows(torch.tensor([3, 17]), torch.empty(3, 2, 5))),
}


@pytest.mark.parametrize("batch", CASES.values(), ids=CASES)
def test_a_step_is_the_same_on_the_other_side(batch: ForwardBatch) -> None:
    arrived = decode_step(bytearray(encode_step(batch)), CONFIG)
    _assert_same(arrived, batch)


def test_one_copy_from_a_gpu_has_the_bytes_of_many() -> None:
    """Also of arrays that are views, as tables of a decode step are."""
    wide = torch.arange(40, dtype=torch.int32).view(4, 10)
    arrays = [torch.arange(5), wide[:, :3], torch.tensor([True, False]), torch.empty(0, dtype=torch.int64)]
    assert packets._joined_bytes(arrays) == packets._bytes_of(arrays)


def test_a_moved_step_keeps_its_parts() -> None:
    batch = replace(
        _batch(), routing=_routing(18, masked=True), hidden=HiddenRows(torch.tensor([3]), torch.empty(1, 4))
    )
    moved = packets.on_device(batch, torch.device("meta"))
    shapes = [(one.shape, one.dtype) for one in _tensors(batch)]
    assert [(one.shape, one.dtype) for one in _tensors(moved)] == shapes
    assert {one.device.type for one in _tensors(moved)} == {"meta"}
    assert packets.on_device(batch, torch.device("cpu")) is batch


def _tensors(part: object) -> list[Tensor]:
    values = [getattr(part, field.name) for field in fields(part)]  # type: ignore[arg-type]
    nested = [one for value in values if is_dataclass(value) for one in _tensors(value)]
    return [value for value in values if isinstance(value, Tensor)] + nested


def _assert_same(ours: object, theirs: object) -> None:
    """Compare tensors bit by bit, but what the network writes by its shape."""
    assert type(ours) is type(theirs)
    for name in (field.name for field in fields(theirs)):  # type: ignore[arg-type]
        one, other = getattr(ours, name), getattr(theirs, name)
        if isinstance(other, Tensor):
            assert (one.dtype, one.shape) == (other.dtype, other.shape), name
            assert name in ("expert_ids", "states", "logits") or torch.equal(one, other), name
        elif other is not None:
            _assert_same(one, other)
        else:
            assert one is None, name


def test_packets_arrive_in_order_until_the_other_end_is_closed() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # the large one goes in pieces
    packets = [(PacketKind.POOL, b"12345678"), (PacketKind.STEP, bytes(range(256)) * 4000), (PacketKind.LOADED, b"")]

    def send() -> None:
        with ours:
            for kind, payload in packets:
                send_packet(ours, kind, payload)

    sending = Thread(target=send)
    sending.start()
    with theirs:
        assert [receive_packet(theirs) for _ in packets] == packets
        assert receive_packet(theirs) is None
    sending.join()


def test_a_packet_that_is_cut_off_is_the_end() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(b"\x06\0\0\0\x10\0\0\0\0\0\0\0half")
        assert receive_packet(theirs) is None
