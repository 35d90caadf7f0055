"""Every rank but the first: it computes what rank 0 tells it."""

import torch

from engine.capacity.sizing import served_kv_dtype
from engine.config import EngineConfig
from engine.distributed.packets import PacketKind, decode_step
from model.kv_pool import KvPool
from model.mixtral import Mixtral

CPU = torch.device("cpu")


class Follower:
    """A loaded rank that computes what rank 0 tells it."""

    def __init__(self, config: EngineConfig, model: Mixtral) -> None:
        self._config = config
        self._model = model
        self._pool: KvPool | None = None

    def handle(self, kind: PacketKind, payload: bytearray) -> None:
        """Carry out one packet."""
        if kind is PacketKind.POOL:
            own = self._model.group.cut.with_own_heads(self._model.config)
            dtype = served_kv_dtype(self._config, self._model.config)
            num_blocks, block_size = int.from_bytes(payload, "little"), self._config.block_size
            layout = self._model.ops.kv_layout(dtype, block_size)
            self._pool = KvPool(own, num_blocks, block_size, dtype, CPU, layout)
        assert self._pool is not None, "the pool comes before the first step"
        if kind is PacketKind.ZERO_BLOCKS:
            self._pool.zero_blocks(torch.frombuffer(payload, dtype=torch.int64))
        elif kind is PacketKind.ZERO_SLOTS:
            self._pool.zero_slots(torch.frombuffer(payload, dtype=torch.int64))
        elif kind is PacketKind.POPULATE:
            self._pool.populate()
        elif kind is PacketKind.STEP:
            self._model.forward(decode_step(payload, self._model.config), self._pool)
