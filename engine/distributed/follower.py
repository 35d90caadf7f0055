"""Every rank but the first: it computes what rank 0 tells it."""

import torch
from torch import Tensor

from engine.capacity.sizing import served_kv_dtype
from engine.config import EngineConfig
from engine.distributed.packets import PacketKind, decode_step, on_device
from model.kv_pool import KvPool
from model.mixtral import Mixtral
from model.mixtral_cuda_graphs import GraphedMixtral, recorder_for


class Follower:
    """A loaded rank that computes what rank 0 tells it."""

    def __init__(self, config: EngineConfig, model: Mixtral) -> None:
        self._config = config
        self._model = model
        self._device = model.weights.embedding.device
        self._network = model  # with captured steps, if there are any
        self._pool: KvPool | None = None

    def handle(self, kind: PacketKind, payload: bytearray) -> None:
        """Carry out one packet."""
        if kind is PacketKind.POOL:
            own = self._model.group.cut.with_own_heads(self._model.config)
            dtype = served_kv_dtype(self._config, self._model.config)
            num_blocks, block_size = int.from_bytes(payload, "little"), self._config.block_size
            layout = self._model.ops.kv_layout(dtype, block_size)
            self._pool, self._network = None, self._model  # frees the one before
            self._pool = KvPool(own, num_blocks, block_size, dtype, self._device, layout)
        assert self._pool is not None, "the pool comes before the first step"
        if kind is PacketKind.ZERO_BLOCKS:
            self._pool.zero_blocks(self._indices(payload))
        elif kind is PacketKind.ZERO_SLOTS:
            self._pool.zero_slots(self._indices(payload))
        elif kind is PacketKind.POPULATE:
            self._pool.populate()
        elif kind is PacketKind.GRAPHS:
            self._capture(self._pool, int.from_bytes(payload, "little"))
        elif kind is PacketKind.STEP:
            self._network.forward(on_device(decode_step(payload, self._model.config), self._device), self._pool)

    def _indices(self, payload: bytearray) -> Tensor:
        return torch.frombuffer(payload, dtype=torch.int64).to(self._device)

    def _capture(self, pool: KvPool, table_width: int) -> None:
        """Capture decode steps, together with all other ranks; use them if rank 0 uses its own."""
        recorder = recorder_for(self._device, is_eager=self._config.enforce_eager, in_group=True)
        graphed = GraphedMixtral(self._model, pool, recorder, self._config.max_num_seqs, table_width)
        graphed.capture_all()
        if not self._config.enforce_eager:
            self._network = graphed
