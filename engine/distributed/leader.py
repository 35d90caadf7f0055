"""Rank 0: it tells the other ranks each step, and then computes its own part."""

from torch import Tensor

from engine.distributed.connections import RankConnections
from engine.distributed.packets import PacketKind
from engine.errors import FatalEngineError
from model.forward_batch import ForwardBatch
from model.group import GroupEndedError
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.mixtral import Mixtral


class LeadingMixtral(Mixtral):
    """The network of rank 0. Once a step is told it has to be computed: others wait for this rank in a gather."""

    def __init__(self, model: Mixtral, ranks: RankConnections) -> None:
        super().__init__(model.config, model.weights, model.ops, model.group)
        self._model = model
        self._ranks = ranks

    def forward(self, batch: ForwardBatch, kv_pool: KvPool) -> Tensor:
        """Compute one step with the other ranks. Raises FatalEngineError, whatever the fault."""
        self._ranks.start_step(batch)
        try:
            return self._model.forward(batch, kv_pool)
        except Exception as error:
            raise FatalEngineError(self._ranks.death or _reason(error)) from error


def _reason(error: Exception) -> str:
    """Return why a step failed: which rank a gather has lost, or what rank 0 could not compute."""
    if isinstance(error, GroupEndedError) and str(error):
        return str(error)
    return f"rank 0 failed in a step: {type(error).__name__}: {error}"


class LeadingKvPool(KvPool):
    """The KV pool of rank 0, with its own heads. Creating it creates those of the other ranks."""

    def __init__(
        self, model: Mixtral, ranks: RankConnections, num_blocks: int, block_size: int, dtype: KvDtype
    ) -> None:
        ranks.create_pools(num_blocks)
        config = model.group.cut.with_own_heads(model.config)
        layout = model.ops.kv_layout(dtype, block_size)
        super().__init__(config, num_blocks, block_size, dtype, model.weights.embedding.device, layout)
        self._ranks = ranks

    def populate(self) -> None:
        """Write the pools of all ranks."""
        self._ranks.populate_pools()
        super().populate()

    def zero_blocks(self, block_ids: Tensor) -> None:
        """Fill these blocks with zeros on every rank."""
        self._ranks.fill_with_zeros(PacketKind.ZERO_BLOCKS, block_ids.cpu().numpy().tobytes())
        super().zero_blocks(block_ids)

    def zero_slots(self, slots: Tensor) -> None:
        """Fill these slots with zeros on every rank."""
        self._ranks.fill_with_zeros(PacketKind.ZERO_SLOTS, slots.cpu().numpy().tobytes())
        super().zero_slots(slots)
