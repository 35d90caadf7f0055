"""`smoe plan`: what a checkpoint takes and what of it fits, told before anything is loaded."""

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from msgspec.structs import replace

from engine.capacity import checkpoint_files
from engine.capacity.host_resources import available_bytes, format_bytes
from engine.capacity.memory_plan import WEIGHT_KINDS, MemoryPlan, plan_memory
from engine.errors import EngineConfigError
from server.model_location import ModelNotFoundError, locate_model, model_id
from server.settings import Settings, engine_config, hub_cache_dir


class PlanError(Exception):
    """There is no checkpoint to plan for: one line, exit code 2."""


@dataclass(frozen=True)
class PlanReport:
    """A plan for what was asked, and what of it can be served."""

    model: str | None  # as the user called it
    plan: MemoryPlan
    fitting: MemoryPlan | None  # `plan`, or the first that fits of those in smaller weights, which was not asked for

    @property
    def verdict(self) -> str:
        """One line."""
        if self.fitting is None:
            short = self.plan.needed_bytes > self.plan.memory_bytes
            way_out = f"; {_rounded_up(self.plan.needed_bytes)} of memory would do" if short else ""
            return f"does not fit: {self.plan.refusal}{way_out}"
        if self.fitting is not self.plan:
            return f"does not fit in {self.plan.weight_kind}, but in {self.fitting.weight_kind}"
        if self.plan.needed_bytes > self.plan.memory_bytes:
            return f"fits with a shorter context; {_rounded_up(self.plan.needed_bytes)} of memory would hold all of it"
        return "fits"

    @property
    def command(self) -> list[str]:
        """`smoe serve` with the flags that give just this plan; empty where nothing fits."""
        plan = self.fitting
        if plan is None or plan.limits is None:
            return []
        size = ["--kv-cache-memory-bytes", str(plan.kv_cache_bytes)]
        if plan.config.num_kv_blocks is not None:  # excludes the other
            size = ["--num-kv-blocks", str(plan.limits.num_blocks)]
        named = [] if self.model is None else [self.model]
        length = ["--max-model-len", str(plan.limits.max_model_len)]
        weights = ["--dtype", plan.dtype]
        if plan.config.quantization != "none":
            weights += ["--quantization", plan.config.quantization]
        return ["smoe", "serve", *named, *weights, *length, *size]


def answer(settings: Settings, memory_bytes: int | None) -> PlanReport:
    """The plan for `settings` within `memory_bytes` (None: what is available here). Raises PlanError."""
    memory_bytes = available_bytes() if memory_bytes is None else memory_bytes
    try:
        config = engine_config(settings, locate_model(settings.model, hub_cache_dir()))
        plan = plan_memory(config, memory_bytes)
        fitting = next((one for one in (plan, *_smaller(plan)) if one.limits), None)
    except (ModelNotFoundError, EngineConfigError) as error:
        raise PlanError(str(error)) from None
    return PlanReport(settings.model, plan, fitting)


def write_manifest(settings: Settings) -> str:
    """Writes the sums of the checkpoint's files, for serve --verify; a line that says where. Raises PlanError."""
    try:
        path, num_files = checkpoint_files.write_manifest(locate_model(settings.model, hub_cache_dir()))
    except (ModelNotFoundError, EngineConfigError) as error:
        raise PlanError(str(error)) from None
    return f"{path}: SHA-256 sums of {num_files} files"


def _smaller(plan: MemoryPlan) -> Iterator[MemoryPlan]:
    """The same in bfloat16, int8 and int4, as far as the user left that open."""
    config = plan.config
    if config.dtype == "auto" and plan.dtype != "bfloat16":
        config = replace(config, dtype="bfloat16")
        yield plan_memory(config, plan.memory_bytes)
    if config.quantization == "none" and config.dtype != "float32":
        yield plan_memory(replace(config, quantization="int8"), plan.memory_bytes)
        yield plan_memory(replace(config, quantization="int4"), plan.memory_bytes)


def as_json(found: PlanReport) -> str:
    """One object, sizes in bytes. What the KV cache holds is 0 or null where the plan does not fit."""
    plan, limits = found.plan, found.plan.limits
    fields: dict[str, Any] = {
        "model": model_id(found.model),
        "architecture": plan.model.architecture,
        "total_parameters": plan.total_parameters,
        "active_parameters": plan.active_parameters,
        "parameters": plan.parameters,
        "dtype": plan.dtype,
        "weight_bytes": plan.weight_bytes,
        "quantization": plan.config.quantization,
        "weight_bytes_float32": plan.total_bytes("float32"),
        "weight_bytes_bf16": plan.total_bytes("bfloat16"),
        "weight_bytes_int8": plan.total_bytes("int8"),
        "weight_bytes_int4": plan.total_bytes("int4"),
        "kv_cache_dtype": plan.kv_dtype,
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "kv_block_bytes": plan.block_bytes,
        "block_size": plan.config.block_size,
        "window": plan.model.window,
        "context_len": plan.model.context_len,
        "memory_bytes": plan.memory_bytes,
        "needed_bytes": plan.needed_bytes,
        "fits": limits is not None,
        "num_kv_blocks": limits.num_blocks if limits else 0,
        "kv_cache_bytes": plan.kv_cache_bytes,
        "max_model_len": limits.max_model_len if limits else None,
        "room": [asdict(room) for room in plan.room()],
        "warnings": plan.warnings,
        "verdict": found.verdict,
        "command": found.command,
    }
    return json.dumps(fields, indent=2)


def as_table(found: PlanReport) -> str:
    """The same for people: at most some twenty lines."""
    lines = [*_heading(found), *_parameter_lines(found.plan), *_memory_lines(found.fitting or found.plan)]
    lines += [f"warning: {warning}" for warning in (found.fitting or found.plan).warnings]
    lines.append(f"verdict: {found.verdict}")
    return "\n".join([*lines, shlex.join(found.command)] if found.command else lines)


def _rounded_up(num_bytes: int) -> str:
    """Whole units, so that what is shown is enough: 2.1 GiB is "3 GiB"."""
    exponent, unit = (30, "GiB") if num_bytes >= 1 << 30 else (20, "MiB")
    return f"{-(-num_bytes >> exponent)} {unit}"


def _heading(found: PlanReport) -> Iterator[str]:
    model = found.plan.model
    experts = f", {model.num_experts} experts, {model.experts_per_token} per token" if model.num_experts else ""
    window = f", window {model.window:,}" if model.window else ""
    yield f"{model_id(found.model)}: {model.num_layers} layers{experts}, context {model.context_len:,}{window}"
    yield f"{'':<18}{'parameters':>18}{'share':>9}" + "".join(f"{kind:>12}" for kind in WEIGHT_KINDS)


def _parameter_lines(plan: MemoryPlan) -> Iterator[str]:
    for part, count in plan.parameters.items():
        sizes = [plan.part_bytes[kind][part] for kind in WEIGHT_KINDS]
        if count or any(sizes):
            yield _parameter_line(plan, part, count, sizes)
    yield _parameter_line(plan, "total", plan.total_parameters, map(plan.total_bytes, WEIGHT_KINDS))
    yield _parameter_line(plan, "active per token", plan.active_parameters, map(plan.active_bytes, WEIGHT_KINDS))


def _parameter_line(plan: MemoryPlan, label: str, count: int, sizes: Iterable[int]) -> str:
    columns = "".join(f"{format_bytes(num_bytes):>12}" for num_bytes in sizes)
    return f"{label:<18}{count:>18,}{count / plan.total_parameters:>9.1%}{columns}"


def _memory_lines(plan: MemoryPlan) -> Iterator[str]:
    token, block = format_bytes(plan.kv_bytes_per_token), format_bytes(plan.block_bytes)
    yield f"KV cache in {plan.kv_dtype}: {token} per token, {block} per block of {plan.config.block_size}"
    if plan.limits is None:
        return
    tokens = plan.limits.num_blocks * plan.config.block_size
    left = plan.memory_bytes - plan.weight_bytes - plan.kv_cache_bytes
    yield (
        f"memory {format_bytes(plan.memory_bytes)} = weights {format_bytes(plan.weight_bytes)} + "
        f"KV cache {format_bytes(plan.kv_cache_bytes)} ({tokens:,} tokens) + {format_bytes(left)} for everything else"
    )
    for room in plan.room():
        each = format_bytes(room.bytes_per_request)
        yield f"room for {room.num_requests:,} requests of {room.num_tokens:,} tokens, at most {each} each"
