"""Statistics of the experts: which experts computed which tokens, over all positions, recomputed ones included.

A step's rows are kept, and copied if later steps overwrite them. They are counted a few times a second, many steps at
once, on the model's device.
Letters: L layers, E experts, T rows of a step, K experts of a row.
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.execution.device_transfer import Array
from engine.execution.experts.tables import ExpertTables, RoutedRows
from engine.execution.fault_isolation import StepFault, catch_fault
from engine.types import ExpertReport, LayerExperts
from model.config import ModelConfig

COUNT_INTERVAL_S = 0.25  # between two counts, while steps run
MAX_UNCOUNTED_ROWS = 1 << 14
WINDOW_S = 60.0  # the longest window of a report
MAX_WINDOW_BYTES = 64 << 20  # above it the window gets shorter

Result = TypeVar("Result")

log = logging.getLogger("smoe.engine")


class ArrayCopy(NamedTuple):
    """Copy of an array as bytes. Behind the network it takes less time than numpy's own copy."""

    data: bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: Array) -> "ArrayCopy":
        return cls(array.tobytes(), array.dtype, array.shape)

    def array(self) -> Array:
        """Return the array, read only."""
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


Rows = Tensor | Array | ArrayCopy


class ExpertStats:
    """Counts since the start or the last reset(), and the rows of the last minute, which a report counts by itself.

    `now_s` is a monotonic time, `wall_s` a unix time.
    """

    def __init__(self, model: ModelConfig, device: torch.device) -> None:
        self._shape = model.num_layers, model.num_experts, model.vocab_size, device
        self._uncounted: list[tuple[Rows, Rows]] = []
        self._num_uncounted = 0
        self._due_s = 0.0
        self._reported: Tensor
        self._has_unreported: bool
        self._clear(0.0)

    def record(self, token_ids: Tensor | Array, expert_ids: Tensor | Array, *, is_overwritten: bool = True) -> None:
        """Keep a step's rows, [T] and [L, T, K], to be counted later. `is_overwritten`: a later step may write to them,
        so they are copied."""
        self._num_uncounted += len(token_ids)
        if is_overwritten:
            self._uncounted.append((_copy_of(token_ids), _copy_of(expert_ids)))
        else:
            self._uncounted.append((token_ids, expert_ids))

    @property
    def has_unreported(self) -> bool:
        """True if pop_new_counts() would return new counts."""
        return bool(self._uncounted) or self._has_unreported

    def is_due(self, now_s: float) -> bool:
        """True if a running engine should call pop_new_counts() now."""
        return self.has_unreported and (now_s >= self._due_s or self._num_uncounted >= MAX_UNCOUNTED_ROWS)

    def pop_new_counts(self, now_s: float) -> list[list[int]]:
        """Return the tokens per layer and expert since the last call, [L][E]."""
        self._count(now_s)
        tokens = self._tables.tokens()
        new: list[list[int]] = (tokens - self._reported).tolist()
        self._reported, self._has_unreported, self._due_s = tokens, False, now_s + COUNT_INTERVAL_S
        return new

    def reset(self, now_s: float, wall_s: float) -> None:
        """Count from zero again. Counts that pop_new_counts() has not returned yet are kept for it."""
        self._count(now_s)
        unreported = self._tables.tokens() - self._reported
        self._clear(wall_s)
        self._reported, self._has_unreported = -unreported, bool(unreported.any())

    def report(self, window_s: float | None, now_s: float, wall_s: float) -> ExpertReport:
        """Report the counts since the start or the last reset, or of the last `window_s` (at most WINDOW_S)."""
        self._count(now_s)
        if window_s is None:
            return ExpertReport(self._since_s, self._tables.layers())
        recent = [rows for rows in self._window if rows.at_s >= now_s - window_s]
        return ExpertReport(max(self._since_s, wall_s - window_s), self._count_window(recent))

    def _count_window(self, window: list[RoutedRows]) -> list[LayerExperts]:
        """Count over the tokens that occur in the window: far fewer than the vocabulary has."""
        num_layers, num_experts, _, device = self._shape
        token_ids = torch.cat([torch.zeros(1, dtype=torch.int32, device=device), *(rows.token_ids for rows in window)])
        vocabulary, indices = torch.unique(token_ids, return_inverse=True)
        tables = ExpertTables(num_layers, num_experts, len(vocabulary), device)
        row_indices = indices[1:].split([len(rows.token_ids) for rows in window])
        for rows, ids in zip(window, row_indices, strict=True):
            tables.add(replace(rows, token_ids=ids))
        return tables.layers(vocabulary.tolist())

    def _clear(self, wall_s: float) -> None:
        self._since_s = wall_s
        self._tables = ExpertTables(*self._shape)
        self._window: deque[RoutedRows] = deque()
        self._reported = self._tables.tokens()
        self._has_unreported = False

    def _count(self, now_s: float) -> None:
        """Count the recorded steps, those of equal K together."""
        by_k: defaultdict[int, list[tuple[Rows, Rows]]] = defaultdict(list)
        for token_ids, expert_ids in self._uncounted:
            by_k[expert_ids.shape[2]].append((token_ids, expert_ids))
        for steps in by_k.values():
            tokens, experts = zip(*steps, strict=True)
            rows = RoutedRows(now_s, _joined(tokens, 0).to(torch.int32), _joined(experts, 1).to(torch.int16))
            self._tables.add(rows)
            self._window.append(rows)
            self._has_unreported = True
        self._uncounted, self._num_uncounted = [], 0
        self._trim(now_s)

    def _trim(self, now_s: float) -> None:
        num_bytes = sum(rows.num_bytes for rows in self._window)
        while self._window and (self._window[0].at_s < now_s - WINDOW_S or num_bytes > MAX_WINDOW_BYTES):
            num_bytes -= self._window.popleft().num_bytes


def _copy_of(rows: Tensor | Array) -> Rows:
    return ArrayCopy.of(rows) if isinstance(rows, np.ndarray) else rows.clone()


def _joined(steps: SequenceOf[Rows], axis: int) -> Tensor:
    """Concatenate the rows of several steps: tensors on a GPU, arrays and copies of them on a CPU."""
    tensors = [rows for rows in steps if isinstance(rows, Tensor)]
    arrays = [rows.array() if isinstance(rows, ArrayCopy) else rows for rows in steps if not isinstance(rows, Tensor)]
    joined = [torch.from_numpy(np.concatenate(arrays, axis))] if arrays else []
    return torch.cat(tensors + joined, dim=axis)


class ExpertReporter:
    """Expert statistics of one engine, with its clocks. Requests do not depend on them: if counting fails, it ends and
    reports are empty from then on, as for a network without experts."""

    def __init__(self, stats: ExpertStats | None) -> None:
        """`stats` is None for a network without experts."""
        self._stats = stats

    def record(self, token_ids: Tensor | Array, expert_ids: Tensor | Array, *, is_overwritten: bool = True) -> None:
        """Keep a step's rows, like ExpertStats.record()."""
        if self._stats is None:
            return
        try:
            self._stats.record(token_ids, expert_ids, is_overwritten=is_overwritten)
        except Exception:
            log.exception("experts are no longer counted")
            self._stats = None

    @property
    def has_unreported(self) -> bool:
        """True if pop_new_counts() would return new counts."""
        return self._stats is not None and self._stats.has_unreported

    def pop_due_counts(self) -> list[list[int]] | None:
        """Return pop_new_counts() if that is due, a few times a second; else None."""
        is_due = self._stats is not None and self._stats.is_due(time.monotonic())
        return self.pop_new_counts() if is_due else None

    def pop_new_counts(self) -> list[list[int]] | None:
        """Return the tokens per layer and expert since the last call, [L][E]; None if nothing is counted.

        Raises FatalEngineError if the device is lost.
        """
        return self._counted(lambda stats: stats.pop_new_counts(time.monotonic()))

    def report(self, window_s: float | None = None) -> ExpertReport:
        """Report all positions computed here since the start or the last reset, or in the last `window_s` seconds.

        Raises FatalEngineError if the device is lost.
        """
        report = self._counted(lambda stats: stats.report(window_s, time.monotonic(), time.time()))
        return ExpertReport(time.time(), []) if report is None else report

    def reset(self) -> ExpertReport:
        """Count from zero again; return the report of an engine that has computed nothing.

        Raises FatalEngineError if the device is lost.
        """
        self._counted(lambda stats: stats.reset(time.monotonic(), time.time()))
        return self.report()

    def _counted(self, count: Callable[[ExpertStats], Result]) -> Result | None:
        """Return the result of `count`; None if nothing is counted, or no longer because it failed."""
        stats = self._stats
        if stats is None:
            return None
        result = catch_fault(lambda: count(stats))
        if isinstance(result, StepFault):
            log.error("experts are no longer counted: %s\n%s", result.summary, result.trace)
            self._stats = None
            return None
        return result
