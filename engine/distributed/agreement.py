"""Agreement of ranks on several hosts before they load: version, sizes, settings, numerics and checkpoint."""

import msgspec

from engine.config import EngineConfig

# Settings of a host of its own; all others are those of rank 0.
OWN_SETTINGS = (
    "model",
    "threads",
    "first_gpu",
    "node_rank",
    "local_rank",
    "master_addr",
    "master_port",
    "agent_store_attempt",
)


class Hello(msgspec.Struct, frozen=True):
    """First words of a rank."""

    rank: int
    size: int  # --tensor-parallel-size
    num_hosts: int  # --nnodes
    version: str  # of smoe


class RankDescription(msgspec.Struct, frozen=True):
    """Properties that decide about the bits that a rank computes, besides the settings."""

    numerics: str  # of the backend, with its instruction set
    checkpoint: str  # model/checkpoint/identity.py: contents_digest()


def adopted(config: EngineConfig, own: EngineConfig) -> EngineConfig:
    """Return the config of rank 0 with the settings that belong to the host of `own`."""
    return msgspec.structs.replace(config, **{name: getattr(own, name) for name in OWN_SETTINGS})


def refusal(hello: Hello, config: EngineConfig, version: str) -> str:
    """Return why a rank cannot belong to rank 0's group, in one line for its log; empty if it can."""
    if hello.version != version:
        return f"smoe {hello.version} runs here and {version} on the host with --node-rank 0"
    if (hello.size, hello.num_hosts) != (config.tensor_parallel_size, config.nnodes):
        here = f"--tensor-parallel-size {hello.size} --nnodes {hello.num_hosts}"
        there = f"--tensor-parallel-size {config.tensor_parallel_size} --nnodes {config.nnodes}"
        return f"{here} here, and {there} on the host with --node-rank 0"
    if not 0 < hello.rank < config.tensor_parallel_size:
        return f"there is no rank {hello.rank}"
    return ""


def difference(rank: int, own: RankDescription, other: RankDescription) -> str:
    """Return why rank `rank`, the other, would compute other bits than rank 0, in one line; empty if it would not."""
    if other.numerics != own.numerics:
        return (
            f"rank {rank} computes with {other.numerics}, rank 0 with {own.numerics}: give the host with --node-rank 0 "
            "an --isa that all hosts have"
        )
    if other.checkpoint != own.checkpoint:
        return f"rank {rank} has another checkpoint than rank 0"
    return ""
