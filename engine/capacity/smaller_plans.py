"""Plans with smaller weights than the requested one, for a model that does not fit. No torch."""

from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from engine.capacity.memory_plan import MemoryPlan, plan_memory
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


def smaller_weights(config: EngineConfig, free_bytes: int) -> str:
    """Return the end of an error message that names the largest weights that fit; "" if none fit.

    `free_bytes`: of each host.
    """
    try:
        fitting = fitting_plan(plan_memory(config, free_bytes))
    except EngineConfigError:
        return ""
    return f"; {' '.join(weight_flags(fitting))} fits" if fitting else ""


def _smaller_configs(plan: MemoryPlan) -> Iterator[EngineConfig]:
    config = plan.config
    if is_pack(Path(config.model)):  # its weights are as they are
        return
    if config.dtype == "auto" and plan.dtype != "bfloat16":
        config = replace(config, dtype="bfloat16")
        yield config
    if config.dtype == "float32":
        return
    if config.quantization == "none":
        yield replace(config, quantization="int8")
    if config.quantization in ("none", "int8") and config.device != "cuda" and config.backend != "triton":
        yield replace(config, quantization="int4")
