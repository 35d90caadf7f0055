"""Speed of a model whose experts are read when a step needs them, from two rates of the machine. Arithmetic only."""

from dataclasses import dataclass

from engine.capacity.expert_memory import ExpertMemory
from engine.capacity.new_scheduler import CPU_STEP_S
from engine.capacity.sizing import MAX_CPU_BUDGET
from model.config import ModelConfig

REFERENCE_DISK = 2.5e9  # bytes per second, about that of an NVMe disk
NUM_CLIENTS = (1, 8, 16)  # for which a plan shows the speed


@dataclass(frozen=True)
class Rates:
    """Bytes per second that a step can read."""

    memory: float
    disk: float


def tokens_per_s(experts: ExpertMemory, model: ModelConfig, num_clients: int, rates: Rates) -> float:
    """Return the tokens per second that so many clients get together at most, while all of them decode.

    A step takes max(bytes that it reads from memory / memory, bytes of missing experts / disk): both go on at once.
    Experts are chosen as if at random, all equally often, which is the worst case. With one client a layer needs k of
    E experts; with n clients E (1 - (1 - k/E)^n) different ones.
    """
    share = model.experts_per_token / model.num_experts
    needed = experts.num_experts * (1 - (1 - share) ** num_clients)  # in all layers
    missing = needed * experts.num_missing / experts.num_experts
    read_s = (experts.dense_bytes + needed * experts.slot_bytes) / rates.memory
    return num_clients / max(read_s, missing * experts.slot_bytes / rates.disk)


def budget_beside_reads(budget: int, experts: ExpertMemory, disk: float) -> int:
    """Return the token budget of steps that read all experts which are not in memory, at `disk` bytes per second.

    A part of a prompt needs all experts. `budget` tokens are computed in CPU_STEP_S; if the reads take longer, a step
    takes as many tokens as are computed meanwhile, so that a prompt needs fewer steps. Example: 3 s of reads give 6
    times as many tokens as 0.5 s.
    """
    read_s = experts.num_missing * experts.slot_bytes / disk
    tokens = int(budget * read_s / CPU_STEP_S)
    return max(budget, min(MAX_CPU_BUDGET, tokens // 32 * 32))
