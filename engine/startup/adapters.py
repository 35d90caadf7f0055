"""Load LoRA adapters: those of the configuration, and others while the engine runs."""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from engine.capacity.adapters import why_no_adapters
from engine.config import EngineConfig
from engine.execution.adapters import AdapterStore
from engine.out_of_memory import is_out_of_memory
from engine.startup.device_memory import HostMemory
from model.checkpoint.errors import CheckpointError
from model.config import ModelConfig
from model.lora.adapter import Adapter
from model.lora.load import load_adapter
from model.ops.huge_pages import empty

NOT_LOADED = "out of memory while the adapter was loaded"
BESIDE_KV_CACHE = "are left beside the KV cache"
FAILED = "the engine failed while it loaded the adapter"

log = logging.getLogger("smoe.engine")


def load_adapters(
    config: EngineConfig, model: ModelConfig, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> AdapterStore:
    """Load all adapters of the configuration, and call `on_progress` after each one with the number of those that
    are done and of all. Raises CheckpointError for a bad one, unless bad ones are dropped."""
    adapters: dict[str, Adapter] = {}
    dropped: dict[str, str] = {}
    for number, (name, directory) in enumerate(config.lora.items(), 1):
        try:
            adapters[name] = load_adapter(Path(directory), model, HostMemory().free_bytes(), empty)
        except (CheckpointError, MemoryError, RuntimeError) as error:
            if not config.drop_bad_adapters or not (isinstance(error, CheckpointError) or is_out_of_memory(error)):
                raise
            dropped[name] = str(error) if isinstance(error, CheckpointError) else NOT_LOADED
        on_progress(number, len(config.lora))
    return AdapterStore(adapters, dropped)


class AdapterLoading:
    """Adapters that are being loaded, in a thread of its own, so that steps go on. The thread calls no kernels."""

    def __init__(self, config: EngineConfig, model: ModelConfig, device: str, num_bytes: int) -> None:
        """`device`: the type of the engine's device; `num_bytes`: of all adapters that are loaded at a time."""
        self._model = model
        self._num_bytes = num_bytes  # that are left; the thread's
        self._freed: deque[int] = deque()  # bytes of adapters that are gone, not yet added to these
        self._refusal = why_no_adapters(config, device)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="adapters")
        self._open: dict[int, Future[Adapter | str]] = {}  # by query

    def __len__(self) -> int:
        return len(self._open)

    def submit(self, query_id: int, directory: Path) -> None:
        """Begin to load the adapter in `directory`, after those before it."""
        self._open[query_id] = self._executor.submit(self._load, directory)

    def free(self, num_bytes: int) -> None:
        """Let adapters to come have these bytes of one that is gone."""
        self._freed.append(num_bytes)

    def pop_completed(self) -> list[tuple[int, Adapter | str]]:
        """Return the queries that are done, each with its adapter or the reason why there is none."""
        done = [query_id for query_id, future in self._open.items() if future.done()]
        return [(query_id, self._open.pop(query_id).result()) for query_id in done]

    def _load(self, directory: Path) -> Adapter | str:
        if self._refusal:
            return self._refusal
        while self._freed:
            self._num_bytes += self._freed.popleft()
        free_bytes = HostMemory().free_bytes()
        try:
            if self._num_bytes < free_bytes:
                adapter = load_adapter(directory, self._model, self._num_bytes, empty, BESIDE_KV_CACHE)
            else:
                adapter = load_adapter(directory, self._model, free_bytes, empty)
        except CheckpointError as error:
            return str(error)
        except Exception as error:
            if is_out_of_memory(error):
                return NOT_LOADED
            log.exception("an adapter cannot be loaded")  # the engine and its requests go on
            return FAILED
        self._num_bytes -= adapter.num_bytes
        return adapter
