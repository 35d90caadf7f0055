"""Plans with smaller weights than the requested one, and the pack, for a model that does not fit. No torch."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from engine.capacity.memory_plan import MemoryPlan, plan_memory
from engine.capacity.sizing import MAX_CPU_BUDGET, bytes_beside_evictable, size_engine
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from model.checkpoint.pack.header import is_pack


def fitting_plan(plan: MemoryPlan) -> MemoryPlan | None:
    """Return `plan` if it fits, else the first of `smaller_plans` that fits; None if none does."""
    return next((candidate for candidate in (plan, *smaller_plans(plan)) if candidate.limits), None)


def smaller_plans(plan: MemoryPlan) -> Iterator[MemoryPlan]:
    """Yield the same plan in bfloat16, int8 and int4, as far as they are smaller and run on the plan's device.

    A dtype that the settings name is kept, and so is a quantization to fewer bits.
    """
    for config in _smaller_configs(plan):
        candidate = plan_memory(config, plan.memory_bytes)
        if candidate.weight_bytes < plan.weight_bytes:
            yield candidate


def weight_flags(plan: MemoryPlan) -> list[str]:
    """Return the flags that give a plan its type of weights, such as --dtype bfloat16 --quantization int8."""
    quantization = plan.config.quantization
    return ["--dtype", plan.dtype, *(["--quantization", quantization] if quantization != "none" else [])]


def pack_command(plan: MemoryPlan, model: str) -> list[str]:
    """Return the command that packs the smallest weights of `plan`, if a pack can be served in its memory, from the
    disk; else nothing. `model`: as the command line names it.
    """
    config = plan.config
    is_for_packs = config.device != "cuda" and config.backend in ("auto", "native") and config.nnodes == 1
    is_for_packs = is_for_packs and config.quantization != "fp8"  # which only GPUs have
    smallest = min((plan, *smaller_plans(plan)), key=lambda candidate: candidate.needed_bytes)
    if is_pack(Path(config.model)) or not is_for_packs or not _has_room_beside_pack(smallest):
        return []
    theta = [] if config.rope_theta is None else ["--rope-theta", f"{config.rope_theta:.17g}"]
    return ["smoe", "pack", model, *weight_flags(smallest), *theta, "-o", "DIR"]


def ways_out(config: EngineConfig, free_bytes: int) -> str:
    """Return the end of an error message about weights that are too large: the largest that fit, or else what helps.

    `free_bytes`: of each host.
    """
    try:
        plan = plan_memory(config, free_bytes)
        fitting = fitting_plan(plan)
    except EngineConfigError:
        return ""
    if fitting is not None:
        return f"; {' '.join(weight_flags(fitting))} fits"
    pack = pack_command(plan, config.model)
    from_disk = f", and a pack is served from the disk, slowly: {shlex.join(pack)}" if pack else ""
    return f"; `smoe plan` says how much is enough{from_disk}"


def _has_room_beside_pack(plan: MemoryPlan) -> bool:
    """Return whether the KV cache fits beside weights that the system may drop."""
    free_bytes = bytes_beside_evictable(plan.memory_bytes - plan.adapter_bytes, plan.host_weight_bytes)
    try:
        size_engine(plan.config, plan.model, free_bytes, MAX_CPU_BUDGET)
    except EngineConfigError:
        return False
    return True


def _smaller_configs(plan: MemoryPlan) -> Iterator[EngineConfig]:
    config = plan.config
    if is_pack(Path(config.model)):  # its weights are as they are
        return
    if config.dtype == "auto" and plan.dtype != "bfloat16":
        config = replace(config, dtype="bfloat16")
        yield config
    if config.dtype == "float32":
        return
    if config.quantization in ("none", "lossless"):
        yield replace(config, quantization="int8")
    if config.quantization in ("none", "lossless", "int8") and config.device != "cuda" and config.backend != "triton":
        yield replace(config, quantization="int4")
