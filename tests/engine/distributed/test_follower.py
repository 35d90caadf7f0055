"""A rank carries out what it is told, and rank 0 tells whatever it does to its own KV pool."""

from dataclasses import replace
from inspect import getmembers, isfunction
from typing import Any

import torch

from engine.config import EngineConfig
from engine.distributed.follower import Follower
from engine.distributed.leader import LeadingKvPool
from engine.distributed.packets import PacketKind, encode_step
from model.dummy_weights import random_model
from model.kv_pool import KvPool
from model.ops.reference.ops import ReferenceOps
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.paged import CPU, Running, make_batch

CONFIG = replace(Heads(4, 2, 16).config, num_layers=2)
INDICES = torch.tensor([1, 2]).numpy().tobytes()


def test_a_follower_keeps_the_pool_of_a_single_process() -> None:
    model = random_model(CONFIG, torch.float32, CPU, ReferenceOps(), seed=0)
    follower: Any = Follower(EngineConfig(model="", block_size=4, dtype="float32"), model)
    follower.handle(PacketKind.POOL, bytearray((5).to_bytes(8, "little")))
    own = KvPool(CONFIG, 5, 4, "float32", CPU)
    batch = make_batch([(Running(list(range(14)), [1, 2, 3, 4]), 14)], 4)
    follower.handle(PacketKind.STEP, bytearray(encode_step(batch)))
    model.forward(batch, own)
    assert own.k[:, 1].all() and torch.equal(follower._pool.k, own.k) and torch.equal(follower._pool.v, own.v)
    follower.handle(PacketKind.ZERO_SLOTS, bytearray(INDICES + (17).to_bytes(8, "little")))
    own.zero_slots(torch.tensor([1, 2, 17]))
    assert torch.equal(follower._pool.k, own.k) and torch.equal(follower._pool.v, own.v)
    follower.handle(PacketKind.ZERO_BLOCKS, bytearray(INDICES))
    assert not follower._pool.k[:, 1:3].any() and follower._pool.k[:, 3].all() and not follower._pool.v[:, 1:3].any()
    follower.handle(PacketKind.POPULATE, bytearray())
    assert not follower._pool.k.any() and not follower._pool.v.any()


def test_rank_0_tells_all_that_changes_a_pool() -> None:
    """A method that is added to KvPool needs a packet of its own."""
    assert {name for name, _ in getmembers(KvPool, isfunction)} <= set(vars(LeadingKvPool))
