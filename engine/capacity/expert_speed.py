"""Speed of a model whose experts are read when a step needs them, from two rates of the machine. Arithmetic only."""

from dataclasses import dataclass

from engine.capacity.expert_memory import ExpertMemory
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
    missing = needed * (1 - experts.num_slots / experts.num_experts)
    read_s = (experts.dense_bytes + needed * experts.slot_bytes) / rates.memory
    return num_clients / max(read_s, missing * experts.slot_bytes / rates.disk)
