"""Times of steps on hardware that is not at hand, from its peak figures and what a step reads, computes and exchanges.

A prediction, not a measurement: shares of the peaks are assumed. It is for models and machines of which no step can be
measured, such as a model that fits no host at hand.
"""

from dataclasses import dataclass

from engine.capacity.memory_plan import MemoryPlan
from engine.capacity.sizing import BLOCKS
from engine.planning.hardware import Hardware
from engine.planning.step_time_model import MeasuredStep

SHARE_OF_BANDWIDTH = 0.7
SHARE_OF_PEAK = 0.5
STEP_S = 0.001  # of the host's work for a step, beside the model
GATHER_S = 0.0003  # of a gather between hosts, beside its bytes; assumed, for no network was measured
GATHERS_PER_LAYER = 4
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (256, 2048)  # of decode steps
PREFILLS = (512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class _Step:
    num_rows: int
    num_logits: int  # rows whose logits are computed
    num_read: int  # positions whose keys and values are read
    num_pairs: int  # of a row and a position that it sees


class StepPredictor:
    """Predicts the steps of a memory plan, whose hosts are all alike."""

    def __init__(self, plan: MemoryPlan, hardware: Hardware, network_bytes_per_s: float) -> None:
        """`network_bytes_per_s`: that a host receives; of no effect with one host."""
        self._plan = plan
        self._hardware = hardware
        self._network_bytes_per_s = network_bytes_per_s

    def steps(self) -> list[MeasuredStep]:
        """Return decode steps and prompts of several sizes, as `smoe bench engine` measures them."""
        decode = [(batch, context, _Step(batch, batch, batch * context, batch * context)) for batch in BATCHES
                  for context in CONTEXTS]  # fmt: skip
        prompts = [(length, _Step(length, 1, length, length * (length + 1) // 2)) for length in PREFILLS]
        return [
            *(MeasuredStep("decode", batch, context, self._seconds(step)) for batch, context, step in decode),
            *(MeasuredStep("prefill", 1, length, self._seconds(step)) for length, step in prompts),
        ]

    def _seconds(self, step: _Step) -> float:
        num_hosts = self._plan.config.nnodes
        read_s = self.read_bytes(step) / (SHARE_OF_BANDWIDTH * self._hardware.memory_bytes_per_s)
        compute_s = self.num_operations(step) / (SHARE_OF_PEAK * self._hardware.operations_per_s)
        return STEP_S + max(read_s, compute_s) / num_hosts + self._exchange_s(step)

    def read_bytes(self, step: _Step) -> float:
        """Return the bytes that all hosts read: weights but the embedding, of the experts those that some row takes."""
        plan, model = self._plan, self._plan.model
        parts = plan.part_bytes[plan.weight_kind]
        table = parts["embedding"] if parts["head"] else 0  # which the head reads if it has no weights of its own
        dense = sum(parts.values()) - table - parts["experts"]
        idle = (1 - model.experts_per_token / model.num_experts) ** step.num_rows if model.num_experts else 0.0
        return dense + parts["experts"] * (1 - idle) + step.num_read * plan.kv_bytes_per_token

    def num_operations(self, step: _Step) -> float:
        """Return the operations of all hosts: two for each weight and row, four for each query number and position."""
        plan, model = self._plan, self._plan.model
        head = model.vocab_size * model.dim
        dense = plan.active_parameters - plan.parameters["embedding"] - plan.parameters["head"]
        query_numbers = model.num_layers * model.num_heads * model.head_dim
        return 2 * (dense * step.num_rows + head * step.num_logits) + 4 * query_numbers * step.num_pairs

    def exchanged_bytes(self, step: _Step) -> float:
        """Return the bytes that a host receives from the others.

        A row of Mixtral-8x7B in bfloat16: 32 layers of 4096 (attention) + 4096 + 2 * 14336 + 4096 numbers are 2.6 MB,
        of which each rank receives what other hosts computed.
        """
        plan, model, config = self._plan, self._plan.model, self._plan.config
        element_bytes = 4 if plan.dtype == "float32" or plan.weight_kind == BLOCKS else 2
        hidden_bytes = 4 if plan.weight_kind in ("int8", "int4") else element_bytes
        numbers = model.num_heads * model.head_dim + 2 * model.dim
        hidden = max(model.experts_per_token, 1) * model.hidden_dim
        row_bytes = model.num_layers * (numbers * element_bytes + hidden * hidden_bytes)
        all_bytes = row_bytes * step.num_rows + 4 * model.vocab_size * step.num_logits
        return all_bytes * config.ranks_per_host * (1 - 1 / config.nnodes)

    def _exchange_s(self, step: _Step) -> float:
        if self._plan.config.nnodes == 1:
            return 0.0
        num_gathers = GATHERS_PER_LAYER * self._plan.model.num_layers + 1
        return num_gathers * GATHER_S + self.exchanged_bytes(step) / self._network_bytes_per_s
