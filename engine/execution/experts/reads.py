"""Counts of the experts that steps needed and read, as differences of the store's sums."""

from engine.types import ExpertReads
from model.ops.native.expert_store import ExpertStore


class ExpertReadCounter:
    """Counts of a store since they were last asked for."""

    def __init__(self, store: ExpertStore | None) -> None:
        """`store` is None if all experts are in memory."""
        self._store = store
        self._reported = ExpertReads()
        self.pop()  # drop the counts of the warm-up

    def pop(self) -> ExpertReads | None:
        """Return the counts since the last call; None without a store."""
        if self._store is None:
            return None
        counts, waited_s, before = self._store.counts(), self._store.waited_s, self._reported
        self._reported = ExpertReads(counts.hits, counts.misses, counts.read_bytes, waited_s)
        return ExpertReads(
            counts.hits - before.num_hits,
            counts.misses - before.num_misses,
            counts.read_bytes - before.num_bytes,
            waited_s - before.waited_s,
        )
