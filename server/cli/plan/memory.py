"""`smoe plan`: memory use of a checkpoint, computed from its headers before anything is loaded."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from msgspec.structs import replace

from engine.capacity import checkpoint_files
from engine.capacity.expert_speed import NUM_CLIENTS, REFERENCE_DISK, Rates, tokens_per_s
from engine.capacity.machine.disk_speed import DiskSample, disk_sample
from engine.capacity.machine.host_resources import available_bytes, format_bytes
from engine.capacity.memory_plan import WEIGHT_KINDS, MemoryPlan, plan_memory
from engine.capacity.packs import kind_of
from engine.capacity.rank_limits import num_memories
from engine.capacity.sizing import BLOCKS, room_in_words
from engine.capacity.smaller_plans import pack_command, smaller_plans, weight_flags
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from server.cli.colours import WITHOUT_COLOURS, Colours, colours_of
from server.cli.errors import report_error
from server.cli.settings.loading import load_settings
from server.model_files.location import ModelNotFoundError, locate_model, model_id
from server.settings.engine_config import engine_config
from server.settings.settings import Settings
from server.settings.sources import SettingsError, model_stores, parse_size_flag

NOTHING_FITS = 1  # exit code
REFERENCE_BANDWIDTH = 100e9  # bytes per second of memory, about that of a desktop computer
SHORT_CONTEXT = 4096  # tokens; for a model that does not fit with its own
SOME_HOST = "HOST0"  # stands for an address in the printed command


class PlanError(Exception):
    """A checkpoint that is missing or invalid. One line."""


@dataclass(frozen=True)
class PlanReport:
    """Memory plan for the requested settings, and the first plan that fits."""

    model: str | None  # as given on the command line
    plan: MemoryPlan
    fitting: MemoryPlan | None  # `plan`, else the first plan with smaller weights that fits
    candidates: tuple[MemoryPlan, ...]  # `plan`, then those with smaller weights
    fits_if_given_memory: bool  # False if settings contradict each other or the model
    short: MemoryPlan | None = None  # if nothing fits: the smallest plan, with a context of SHORT_CONTEXT
    disk: DiskSample | None = None  # of this machine, if missing experts are read from its disk

    @property
    def smallest(self) -> MemoryPlan:
        """The plan that needs the least memory; it need not fit."""
        return min(self.candidates, key=lambda candidate: candidate.needed_bytes)

    @property
    def verdict(self) -> str:
        """Result in one line: the plan fits, or why it does not and what would. Names nothing that does not fit."""
        if self.fitting is None:
            return f"does not fit: {self.plan.unfit_reason}{self._needs}"
        if self.fitting is not self.plan:
            return f"does not fit in {self.plan.weight_kind}, but in {self.fitting.weight_kind}"
        if self.plan.needed_bytes > self.plan.memory_bytes:
            return f"fits with a shorter context; the full context needs {_round_up(self.plan.needed_bytes)} of memory"
        return "fits"

    @property
    def _needs(self) -> str:
        """Memory for the plan, and for the smallest weights, with a short context too; empty if no memory helps."""
        if self.plan.needed_bytes <= self.plan.memory_bytes or not self.fits_if_given_memory:
            return ""
        config = self.plan.config
        memory = "GPU" if config.device == "cuda" else "host"
        where = f" on each {memory}" if num_memories(config, config.device) > 1 else ""
        text = f"; it needs {_round_up(self.plan.needed_bytes)} of memory{where}"
        kind = self.smallest.weight_kind
        if self.smallest != self.plan:
            text += f", or {_round_up(self.smallest.needed_bytes)} in {kind}"
        if self.short is None or self.short.needed_bytes >= self.smallest.needed_bytes:
            return text
        enough = f"for {SHORT_CONTEXT:,} {_round_up(self.short.needed_bytes)} in {kind} are enough"
        return f"{text}, for a context of {self.plan.model.context_len:,} tokens; {enough}"

    @property
    def pack_command(self) -> list[str]:
        """`smoe pack`, if nothing fits but a pack can be served from the disk; else empty."""
        if self.fitting is not None or not self.fits_if_given_memory:
            return []
        return pack_command(self.plan, self.model or model_id(None))

    @property
    def command(self) -> list[str]:
        """`smoe serve` with the flags that give exactly this plan; empty if nothing fits."""
        plan = self.fitting
        if plan is None or plan.limits is None:
            return []
        size = ["--kv-cache-memory-bytes", exact_size(plan.kv_cache_bytes)]
        if plan.config.num_kv_blocks is not None:  # --num-kv-blocks excludes --kv-cache-memory-bytes
            size = ["--num-kv-blocks", str(plan.limits.num_blocks)]
        named = [] if self.model is None else [self.model]
        length = ["--max-model-len", str(plan.limits.max_model_len)]
        weights = weight_flags(plan)
        theta = [] if plan.config.rope_theta is None else ["--rope-theta", f"{plan.config.rope_theta:.17g}"]
        experts = [] if plan.experts is None else ["--expert-memory", str(plan.experts.num_bytes)]
        others = [*adapter_flags(plan.config), *device_flags(plan.config), *rank_flags(plan.config)]
        return ["smoe", "serve", *named, *theta, *weights, *experts, *others, *length, *size]


def run(flags: Mapping[str, Any], memory: str | None, *, as_json: bool, write_manifest: bool) -> int:
    """Print the plan and return the exit code: 0, 1 if nothing fits, 2 for invalid settings or a bad checkpoint.

    `memory`: text of --memory. `write_manifest`: also write SHA256SUMS next to the checkpoint's files.
    """
    try:
        settings = planned_settings(flags)
        report = make_report(settings, None if memory is None else parse_size_flag("--memory", memory))
        if memory is None:  # planned for this machine
            report = _with_disk(report)
        if write_manifest:
            typer.echo(add_manifest(settings), err=True)
    except (SettingsError, PlanError) as error:
        return report_error(error)
    colours = colours_of(sys.stdout)
    typer.echo(to_json(report) if as_json else to_table(report, colours), color=colours.is_on)
    return 0 if report.fitting else NOTHING_FITS


def make_report(settings: Settings, memory_bytes: int | None) -> PlanReport:
    """Plan `settings` within `memory_bytes` on each host (None: what is available here). Raises PlanError."""
    memory_bytes = available_bytes() if memory_bytes is None else memory_bytes
    try:
        config = engine_config(settings, locate_model(settings.model, model_stores()))
        plan = plan_memory(config, memory_bytes)
        candidates = [plan, *smaller_plans(plan)]
        with_memory = plan_memory(config, max(memory_bytes, plan.needed_bytes))
    except (ModelNotFoundError, EngineConfigError) as error:
        raise PlanError(str(error)) from None
    fitting = next((candidate for candidate in candidates if candidate.limits), None)
    short = _with_short_context(candidates) if fitting is None else None
    return PlanReport(settings.model, plan, fitting, tuple(candidates), with_memory.limits is not None, short)


def _with_disk(report: PlanReport) -> PlanReport:
    """Measure the disk of a pack whose experts do not all fit. Raises PlanError if it cannot be read."""
    plan = report.plan
    if plan.experts is None or not plan.experts.num_missing:
        return report
    try:
        return dataclasses.replace(report, disk=disk_sample(Path(plan.config.model)))
    except EngineConfigError as error:
        raise PlanError(str(error)) from None


def _with_short_context(candidates: Sequence[MemoryPlan]) -> MemoryPlan | None:
    """Return the smallest plan with a context of SHORT_CONTEXT; None if settings say how large the KV cache is."""
    smallest = min(candidates, key=lambda candidate: candidate.needed_bytes)
    config = smallest.config
    sizes = (config.max_model_len, config.num_kv_blocks, config.kv_cache_memory_bytes)
    if smallest.model.context_len <= SHORT_CONTEXT or any(size is not None for size in sizes):
        return None
    return plan_memory(replace(config, max_model_len=SHORT_CONTEXT), smallest.memory_bytes)


def exact_size(num_bytes: int) -> str:
    """Return a size as flags take it, in the largest unit of which it is a whole number, such as "20482MiB"."""
    for exponent, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes % (1 << exponent) == 0:
            return f"{num_bytes >> exponent}{unit}"
    return str(num_bytes)


def adapter_flags(config: EngineConfig) -> list[str]:
    """Return the flags of the adapters."""
    return [part for name, path in config.lora.items() for part in ("--lora", f"{name}={path}")]


def device_flags(config: EngineConfig) -> list[str]:
    """Return the flag of the device; none if the machine decides."""
    return [] if config.device == "auto" else ["--device", config.device]


def rank_flags(config: EngineConfig) -> list[str]:
    """Return the flags of the ranks and of the first of their hosts; none for one rank."""
    if config.tensor_parallel_size == 1:
        return []
    ranks = ["--tensor-parallel-size", str(config.tensor_parallel_size)]
    if config.nnodes == 1:
        return ranks
    return [*ranks, "--nnodes", str(config.nnodes), "--node-rank", "0", "--master-addr", config.master_addr]


def planned_settings(flags: Mapping[str, Any]) -> Settings:
    """Return the settings of the first host, whose address no plan needs. Raises SettingsError."""
    if flags.get("model") == "":  # pathlib would take it for the working directory
        raise SettingsError("MODEL is empty: name a model, such as smoe-demo (see smoe models)")
    return load_settings({"master_addr": SOME_HOST, **flags} if "nnodes" in flags else flags)


def add_manifest(settings: Settings) -> str:
    """Write the SHA-256 sums of the checkpoint's files and return a line with their place. Raises PlanError."""
    try:
        path, num_files = checkpoint_files.write_manifest(locate_model(settings.model, model_stores()))
    except (ModelNotFoundError, EngineConfigError) as error:
        raise PlanError(str(error)) from None
    return f"{path}: SHA-256 sums of {num_files} files"


def to_json(report: PlanReport) -> str:
    """Return one JSON object, sizes in bytes. Sizes of the KV cache are 0 or null if the plan does not fit.

    Memory is that of each host, the KV cache that of all hosts together.
    """
    plan, limits = report.plan, report.plan.limits
    fields: dict[str, Any] = {
        "model": model_id(report.model),
        "architecture": plan.model.architecture,
        "total_parameters": plan.total_parameters,
        "active_parameters": plan.active_parameters,
        "parameters": plan.parameters,
        "dtype": plan.dtype,
        "weight_bytes": plan.weight_bytes,
        "tensor_parallel_size": plan.config.tensor_parallel_size,
        "nnodes": plan.config.nnodes,
        "rank_weight_bytes": plan.rank_weight_bytes,
        "host_weight_bytes": plan.host_weight_bytes,
        "quantization": plan.config.quantization,
        "kept_formats": plan.kept_formats,
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
        "room": [asdict(room) for room in plan.capacities()],
        "expert_memory": None if plan.experts is None else asdict(plan.experts) | _speed_fields(report),
        "adapter_bytes": plan.adapters,
        "max_adapters": plan.max_adapters if plan.adapters else None,
        "warnings": plan.warnings,
        "verdict": report.verdict,
        "command": report.command,
        "pack_command": report.pack_command,
    }
    return json.dumps(fields, indent=2)


def _speed_fields(report: PlanReport) -> dict[str, Any]:
    disk = report.disk
    rate = disk.rate if disk else REFERENCE_DISK
    is_read = report.plan.experts is not None and report.plan.experts.num_missing > 0
    return {
        "tokens_per_s": expert_speeds(report.plan, rate),
        "disk_bytes_per_s": rate if is_read else None,
        "disk_sample_bytes": disk.num_bytes if disk else 0,
    }


def to_table(report: PlanReport, colours: Colours = WITHOUT_COLOURS) -> str:
    """Return a table for the terminal, about twenty lines."""
    plan = report.fitting or report.plan
    lines = [*_heading(report), *_parameter_lines(report), *_memory_lines(plan, report.disk)]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    paint = (
        colours.bad if report.fitting is None else colours.good if report.fitting is report.plan else colours.warning
    )
    lines.append(f"verdict: {paint(report.verdict)}")
    if report.pack_command:
        lines.append("as a pack it is served from the disk, slowly (docs/packs.md):")
        lines.append(colours.bold(shlex.join(report.pack_command)))
    return "\n".join([*lines, colours.bold(shlex.join(report.command))] if report.command else lines)


def expert_speeds(plan: MemoryPlan, disk: float = REFERENCE_DISK) -> dict[str, float]:
    """Return tokens per second at most by number of clients, of a plan whose experts are read when they are needed.

    `disk`: bytes per second.
    """
    assert plan.experts is not None
    rates = Rates(REFERENCE_BANDWIDTH, disk)
    return {str(count): tokens_per_s(plan.experts, plan.model, count, rates) for count in NUM_CLIENTS}


def _round_up(num_bytes: int) -> str:
    """Round up to whole units, so that the shown size is sufficient: 2.1 GiB is "3 GiB"."""
    exponent, unit = (30, "GiB") if num_bytes >= 1 << 30 else (20, "MiB")
    return f"{-(-num_bytes >> exponent)} {unit}"


def _heading(report: PlanReport) -> Iterator[str]:
    model = report.plan.model
    experts = f", {model.num_experts} experts, {model.experts_per_token} per token" if model.num_experts else ""
    window = f", window {model.window:,}" if model.window else ""
    kind = f"{kind}, " if (kind := kind_of(Path(report.plan.config.model))) else ""
    yield f"{model_id(report.model)}: {kind}{model.num_layers} layers{experts}, context {model.context_len:,}{window}"
    yield f"{'':<18}{'parameters':>18}{'share':>9}" + "".join(f"{kind:>12}" for kind in _kinds(report.plan))


def _kinds(plan: MemoryPlan) -> list[str]:
    """Return the weight formats to show, each a column."""
    lossless, blocks = ([kind] * (kind in plan.part_bytes) for kind in ("lossless", BLOCKS))
    return [*WEIGHT_KINDS[:2], *lossless, *WEIGHT_KINDS[2:], *blocks]


def _parameter_lines(report: PlanReport) -> Iterator[str]:
    plan = report.plan
    for part, count in plan.parameters.items():
        sizes = [plan.part_bytes[kind][part] for kind in _kinds(plan)]
        if count or any(sizes):
            yield _parameter_line(plan, part, count, sizes)
    yield _parameter_line(plan, "total", plan.total_parameters, map(plan.total_bytes, _kinds(plan)))
    yield _parameter_line(plan, "active per token", plan.active_parameters, map(plan.active_bytes, _kinds(plan)))
    yield from _verdict_lines(report)
    if plan.kept_formats:
        yield f"matrices stay as they are stored: {plan.kept_formats.replace('+', ', ')}"


def _verdict_lines(report: PlanReport) -> Iterator[str]:
    """Yield which formats fit, of those that the settings allow, and how fast one client can be at most in each."""
    plan, kinds = report.plan, _kinds(report.plan)
    fits = {candidate.weight_kind: candidate.limits is not None for candidate in report.candidates}
    words = ("-" if kind not in fits else "yes" if fits[kind] else "no" for kind in kinds)
    yield f"{f'fits {format_bytes(plan.memory_bytes)}':<45}" + "".join(f"{word:>12}" for word in words)
    rates = (REFERENCE_BANDWIDTH / plan.active_bytes(kind) for kind in kinds)
    yield f"{'tokens/s at most, one client at 100 GB/s':<45}" + "".join(
        f"{rate:>12,.{1 if rate < 100 else 0}f}" for rate in rates
    )


def _parameter_line(plan: MemoryPlan, label: str, count: int, sizes: Iterable[int]) -> str:
    columns = "".join(f"{format_bytes(num_bytes):>12}" for num_bytes in sizes)
    return f"{label:<18}{count:>18,}{count / plan.total_parameters:>9.1%}{columns}"


def _memory_lines(plan: MemoryPlan, disk: DiskSample | None) -> Iterator[str]:
    token, block = format_bytes(plan.kv_bytes_per_token), format_bytes(plan.block_bytes)
    yield f"KV cache in {plan.kv_dtype}: {token} per token, {block} per block of {plan.config.block_size}"
    if plan.limits is None:
        return
    tokens = plan.limits.num_blocks * plan.config.block_size
    ranks, parts = plan.config.tensor_parallel_size, num_memories(plan.config, plan.config.device)
    kind = "GPUs" if plan.config.device == "cuda" else "hosts"
    cache_bytes = plan.kv_cache_bytes // parts
    left = plan.memory_bytes - plan.host_weight_bytes - plan.adapter_bytes - cache_bytes
    adapters = f"adapters {format_bytes(plan.adapter_bytes)} + " if plan.adapters else ""
    memory = "memory" if parts == 1 else f"memory of each of {parts} {kind}"
    yield (
        f"{memory} {format_bytes(plan.memory_bytes)} = weights {format_bytes(plan.host_weight_bytes)} + "
        f"{adapters}KV cache {format_bytes(cache_bytes)} ({tokens:,} tokens) + {format_bytes(left)} for everything else"
    )
    if ranks > 1:
        yield (
            f"{ranks} ranks: each holds at most {format_bytes(plan.rank_weight_bytes)} of the weights and "
            f"{format_bytes(plan.kv_cache_bytes // ranks)} of the KV cache"
        )
    yield from _expert_lines(plan, disk)
    yield from _adapter_lines(plan)
    for room in plan.capacities():
        each = format_bytes(room.bytes_per_request)
        yield f"room for {room_in_words(room.num_requests, room.num_tokens)} tokens, at most {each} each"


def _adapter_lines(plan: MemoryPlan) -> Iterator[str]:
    """Yield the memory of each adapter, and how many such adapters fit."""
    if plan.adapters:
        yield ", ".join(f"adapter {name} {format_bytes(size)}" for name, size in plan.adapters.items())
        size = format_bytes(max(plan.adapters.values()))
        yield f"room for {plan.max_adapters:,} adapters of {size} beside one request of the full context"


def _expert_lines(plan: MemoryPlan, sample: DiskSample | None) -> Iterator[str]:
    """Yield how many experts fit, and how fast steps can be that read the others.

    `sample`: of this machine's disk; None: the plan is for another machine, or all experts fit.
    """
    experts = plan.experts
    if experts is None:
        return
    size = format_bytes(experts.num_bytes)
    if not experts.num_missing:
        yield f"all {experts.num_experts} experts fit {size}"
        return
    yield f"{experts.num_slots} of {experts.num_experts} experts fit {size}; the others are read from the disk"
    rates = expert_speeds(plan, sample.rate if sample else REFERENCE_DISK)
    speeds = ", ".join(f"{rate:.1f} for {count}" for count, rate in rates.items())
    disk = f"of this disk, {sample}" if sample else f"{REFERENCE_DISK / 1e9:g} GB/s of disk, which was not measured"
    yield f"tokens/s at most at 100 GB/s of memory and {disk}, by clients: {speeds}"
