"""The loaded LoRA adapters, and those of the rows of a step.

Letters: T rows of the step.
"""

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from engine.execution.device_transfer import to_device
from engine.scheduling.step_plan import Chunk
from model.lora.adapter import Adapter
from model.lora.rows import AdapterRows


class AdapterStore:
    """Adapters by name, and by digest, the name by which requests refer to them. Names of equal files share one."""

    def __init__(self, adapters: Mapping[str, Adapter] | None = None, dropped: Mapping[str, str] | None = None) -> None:
        adapters = adapters or {}
        self.dropped = dict(dropped or {})  # why others of the configuration are not loaded, by name
        self.digests = {name: adapter.digest for name, adapter in adapters.items()}  # by name
        self._adapters = {adapter.digest: adapter for adapter in adapters.values()}

    def __contains__(self, digest: str) -> bool:
        return digest in self._adapters

    @property
    def num_bytes(self) -> int:
        return sum(adapter.num_bytes for adapter in self._adapters.values())

    def add(self, name: str, adapter: Adapter) -> int:
        """Add an adapter under a name; one that had it before stays until remove(). Return the bytes that are freed:
        those of an adapter of equal files."""
        freed = self._adapters.get(adapter.digest)
        self.digests[name] = adapter.digest
        self._adapters[adapter.digest] = adapter
        return 0 if freed is None else freed.num_bytes

    def remove(self, digest: str) -> int:
        """Remove an adapter with all of its names; an unknown digest is ignored. Return the bytes that are freed."""
        freed = self._adapters.pop(digest, None)
        self.digests = {name: of_name for name, of_name in self.digests.items() if of_name != digest}
        return 0 if freed is None else freed.num_bytes

    def rows_of(self, chunks: SequenceOf[Chunk], device: torch.device) -> AdapterRows | None:
        """Return the adapters of the chunks' rows; None if no row has one."""
        if not self._adapters:
            return None
        digests = [chunk.sequence.request.adapter for chunk in chunks]
        distinct = [digest for digest in dict.fromkeys(digests) if digest]
        if not distinct:
            return None
        places = {digest: index for index, digest in enumerate(distinct)} | {"": -1}
        rows = np.repeat([places[digest] for digest in digests], [chunk.length for chunk in chunks])  # [T]
        return AdapterRows(tuple(self._adapters[digest] for digest in distinct), to_device(rows, device))
