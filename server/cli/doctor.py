"""`smoe doctor`: one check for each thing that `smoe serve` needs, with a remedy if it fails."""

import json
import platform
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from engine.assertions import NO_ASSERTIONS, are_assertions_off
from engine.capacity.checkpoint_files import files_newer_than_list
from engine.capacity.machine.disk_speed import disk_sample
from engine.capacity.machine.host_resources import available_bytes, format_bytes, memory_limit_bytes
from engine.capacity.memory_plan import MemoryPlan, plan_memory
from engine.capacity.memory_share import NO_KV, fit, kv_demand
from engine.capacity.packs import kind_of
from engine.capacity.rank_limits import check_gpus
from engine.errors import EngineConfigError
from engine.step_log import check_step_log
from server.cli.colours import WITHOUT_COLOURS, Colours
from server.cli.plan.memory import PlanError, PlanReport, expert_speeds, make_report
from server.engine_client.launch import package_root
from server.fairness.budgets import budgets, server_demand, shortage, summary
from server.http.certificate import CertificateError, check_certificate
from server.http.listener import ListenError, listen_as
from server.lifecycle.batches import check_batch_dir
from server.lifecycle.errors import StartError
from server.lifecycle.text_checks import check_texts
from server.model_files.location import ModelNotFoundError, locate_model, model_id
from server.settings.engine_config import engine_config
from server.settings.settings import Settings
from server.settings.sources import model_stores

PROBE = (sys.executable, "-m", "engine.startup.probe")
PROBE_TIMEOUT_S = 120.0  # the first import of torch reads several hundred MB
MIN_OPEN_FILES = 4096  # each client takes one
MIN_FREE_BYTES = 1 << 30
MORE_THAN_ANY = 1 << 60  # bytes; memory that is not known limits no plan

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str | None = None  # what to do about it


def run_checks(settings: Settings) -> list[Check]:
    """Check what `smoe serve` would need with these settings."""
    probe = _probe()
    on_gpu = _is_on_gpu(settings, probe)
    engine = [probe] if isinstance(probe, Check) else [_torch(settings, probe, on_gpu=on_gpu), _native(settings, probe)]
    planned = settings.model_copy(update={"device": "cuda"}) if on_gpu else settings
    return [
        _python(),
        *engine,
        _memory(),
        _budgets(settings, None if on_gpu else _plan(settings)),
        *check_model(planned, _gpu_bytes(settings, probe) if on_gpu else available_bytes()),
        *_files(settings),
        _port(settings),
        _open_files(),
    ]


def as_json(checks: list[Check]) -> str:
    """Return one JSON object; `ok` is false if the server cannot start."""
    is_ok = all(check.verdict != "fail" for check in checks)
    return json.dumps({"ok": is_ok, "findings": [asdict(check) for check in checks]}, indent=2)


def as_table(checks: list[Check], colours: Colours = WITHOUT_COLOURS) -> str:
    """Return a line per check and one for each remedy."""
    lines = []
    paint = {"ok": colours.good, "warn": colours.warning, "fail": colours.bad}
    for check in checks:
        lines.append(f"{paint[check.verdict](f'{check.verdict:<5}')} {check.name:<12} {check.detail}")
        if check.remedy:
            lines.append(f"{'':<18} -> {check.remedy}")
    return "\n".join([*lines, _summary(checks)])


def _summary(checks: list[Check]) -> str:
    num_failed = sum(check.verdict == "fail" for check in checks)
    if num_failed:
        return f"smoe serve would not start: {num_failed} of {len(checks)} checks failed"
    has_warnings = any(check.verdict == "warn" for check in checks)
    return "smoe serve would start" + (", with the warnings above" if has_warnings else "")


def _python() -> Check:
    if are_assertions_off():
        return Check("python", "fail", NO_ASSERTIONS)
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _probe() -> dict[str, Any] | Check:
    """Examine torch, the GPUs and the native library in a process like the engine's. Return its report, or a failed
    check."""
    try:
        ran = subprocess.run(
            PROBE, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False, cwd=package_root()
        )
    except subprocess.TimeoutExpired:
        return Check("torch", "fail", f"did not load within {PROBE_TIMEOUT_S:.0f} s")
    if ran.returncode:
        reason = (ran.stderr.strip().splitlines() or [f"ended with code {ran.returncode}"])[-1]
        return Check("torch", "fail", f"does not load: {reason}", "install smoe again, into a fresh environment")
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


def _is_on_gpu(settings: Settings, probe: dict[str, Any] | Check) -> bool:
    """Return whether the model goes on GPUs. With --device auto it does where there are any, but packs are for CPUs."""
    if settings.device != "auto":
        return settings.device == "cuda"
    if isinstance(probe, Check) or not probe["gpus"]:
        return False
    try:
        return kind_of(locate_model(settings.model, model_stores())) != "pack"
    except ModelNotFoundError:
        return True


def _gpu_bytes(settings: Settings, probe: dict[str, Any] | Check) -> int | None:
    """Return the free memory of each GPU that a rank gets, the least of them; None if it is not known."""
    if isinstance(probe, Check):
        return None
    config = engine_config(settings, Path())
    free = probe["gpu_free_bytes"][config.first_gpu : config.first_gpu + config.ranks_per_host]
    return None if len(free) < config.ranks_per_host or None in free else min(free)


def _torch(settings: Settings, report: dict[str, Any], *, on_gpu: bool) -> Check:
    gpus = ", ".join(report["gpus"]) or "no GPU"
    needs_gpu = _flag_for_gpus(settings)
    if needs_gpu and (settings.device == "cpu" or not report["gpus"]):
        return Check("torch", "fail", f"{report['torch_version']}; {gpus}, but {needs_gpu} needs one")
    if on_gpu:
        try:
            check_gpus(engine_config(settings, Path()), len(report["gpus"]))
        except EngineConfigError as error:
            return Check("torch", "fail", f"{gpus}: {error}")
        if refusal := _refusal_of_gpus(settings):
            return Check("torch", "fail", f"{gpus}: {refusal}")
    if on_gpu and settings.backend in ("auto", "triton"):
        for fault, remedy in (
            ("launcher_error", "Debian: apt-get install gcc libc6-dev python3-dev"),
            ("cache_error", "TRITON_CACHE_DIR names another directory"),
        ):
            if report[fault]:
                return Check("torch", "fail", f"{gpus}: the kernels cannot be built: {report[fault]}", remedy)
    return Check("torch", "ok", f"{report['torch_version']}; {gpus}")


def _flag_for_gpus(settings: Settings) -> str | None:
    """Return the first flag that only a GPU can follow."""
    only_on_gpus = {"device": "cuda", "backend": "triton", "quantization": "fp8"}
    return next((f"--{name} {value}" for name, value in only_on_gpus.items() if getattr(settings, name) == value), None)


def _refusal_of_gpus(settings: Settings) -> str | None:
    """Return why the engine would refuse the backend and the quantization on a GPU; None if it would not."""
    if settings.backend == "native":
        return "--backend native runs on the CPU: add --device cpu"
    flag, is_reference = f"--quantization {settings.quantization}", settings.backend == "reference"
    if settings.quantization == "lossless" or (settings.quantization == "int4" and not is_reference):
        return f"{flag} runs on the CPU: add --device cpu; int8 runs on a GPU"
    if settings.quantization == "fp8" and is_reference:
        return f"{flag} runs only on the triton backend: drop --backend reference"
    return None


def _native(settings: Settings, report: dict[str, Any]) -> Check:
    cores = f"{report['num_cores']} cores"
    if settings.isa != "auto" and settings.isa not in report["isas"]:
        available = ", ".join(report["isas"]) or "none"
        return Check("cpu", "fail", f"{cores}; --isa {settings.isa} is not available here, but {available}")
    if report["native_error"]:
        again = "install smoe again, which builds the native library"
        remedy = again if shutil.which("c++") else f"install a C++ compiler (Debian: apt-get install g++), then {again}"
        return Check("cpu", "warn", f"{cores}; the native library does not run: {report['native_error']}", remedy)
    isa = report["fastest_isa"] if settings.isa == "auto" else settings.isa
    return Check("cpu", "ok", f"{cores}; the native library runs {isa} (of {', '.join(report['isas'])})")


def _memory() -> Check:
    free = available_bytes()
    detail = f"{format_bytes(free)} available to this process, by the limits of the machine and its cgroup"
    return Check("memory", "ok" if free >= MIN_FREE_BYTES else "warn", detail)


def _plan(settings: Settings) -> MemoryPlan | None:
    """Return the plan of the model in the memory of this machine; None if it cannot be served."""
    try:
        plan = plan_memory(engine_config(settings, locate_model(settings.model, model_stores())), available_bytes())
    except (ModelNotFoundError, EngineConfigError):
        return None  # check_model() says why
    return plan if plan.limits else None


def _budgets(settings: Settings, plan: MemoryPlan | None) -> Check:
    """Compare the memory that requests may take, and that of a model on the CPU, with the limit."""
    limit_bytes, weight_bytes, kv = memory_limit_bytes(), 0, NO_KV
    if plan is not None and plan.limits is not None:
        kv = kv_demand(plan.config, plan.model, plan.limits)
        weight_bytes = plan.held_weight_bytes
    found = fit(limit_bytes, weight_bytes, server_demand(settings), kv)
    table = budgets(settings, found.memory_share)
    too_little = shortage(table, weight_bytes + found.kv_bytes, limit_bytes)
    return Check("requests", "warn" if too_little else "ok", summary(table, found.memory_share), too_little)


def check_model(settings: Settings, memory_bytes: int | None) -> Iterator[Check]:
    """Check that the files exist, are complete by their headers, fit `memory_bytes`, and turn text into tokens.

    `memory_bytes`: free on this host, or with --device cuda on each GPU; None if it is not known.
    """
    name = model_id(settings.model)
    try:
        directory = locate_model(settings.model, model_stores())
        report = make_report(settings, MORE_THAN_ANY if memory_bytes is None else memory_bytes)
    except (ModelNotFoundError, PlanError) as error:
        yield Check("model", "fail", str(error))
        return
    plan, size = report.plan, format_bytes(report.plan.weight_bytes)
    verdict: Verdict = "fail" if not plan.limits else "warn" if memory_bytes is None else "ok"
    kind = f"{kind}, " if (kind := kind_of(directory)) else ""
    weights = f"{plan.total_parameters:,} parameters, {size} in {plan.kept_formats or plan.weight_kind}"
    if plan.adapters:
        weights += f", and {format_bytes(plan.adapter_bytes)} of adapters"
    warnings = "".join(f"; {warning}" for warning in plan.warnings)
    detail = f"{name}: {kind}{weights}; {_fit_in_words(report, memory_bytes)}{warnings}"
    would_fit = report.fitting and report.fitting is not plan
    remedy = report.command if would_fit else report.pack_command
    yield Check("model", verdict, detail, shlex.join(remedy) or None)
    if plan.limits and plan.experts is not None:
        yield _expert_reads(directory, plan)
    if not settings.verify:  # which compares all files with the list
        yield from _checksums(directory)
    for part in check_texts(settings, directory, plan.model.vocab_size):
        yield Check(part.name, "ok" if part.is_ok else "fail", part.detail)


def _fit_in_words(report: PlanReport, memory_bytes: int | None) -> str:
    """Return whether the model fits, on a GPU with its free memory. `memory_bytes`: as for check_model()."""
    if report.plan.config.device != "cuda" or (memory_bytes is None and report.plan.limits is None):
        return report.verdict
    if memory_bytes is None:
        return "whether it fits is not judged: the free memory of the GPU is not known"
    return f"with {format_bytes(memory_bytes)} free on a GPU: {report.verdict}"


def _checksums(checkpoint: Path) -> Iterator[Check]:
    """Compare the times of the files with that of their list of checksums, if there is one."""
    try:
        found = files_newer_than_list(checkpoint)
    except EngineConfigError as error:
        yield Check("checksums", "fail", str(error))
        return
    if found is None:
        return
    path, newer = found
    if not newer:
        yield Check("checksums", "ok", f"no file was written after {path.name}, or it has its sum")
        return
    others = f" and {len(newer) - 1} more" if len(newer) > 1 else ""
    detail = f"{newer[0].name}{others}: written after {path.name}, which may list other contents"
    again = f"if the files are known to be good, list them again: {shlex.join(['smoe', 'plan', str(checkpoint)])}"
    yield Check("checksums", "warn", detail, f"compare them with smoe serve --verify; {again} --write-manifest")


def _expert_reads(pack: Path, plan: MemoryPlan) -> Check:
    """Measure the disk of a pack whose experts are read when they are needed."""
    assert plan.experts is not None
    try:
        sample = disk_sample(pack)
    except EngineConfigError as error:
        return Check("experts", "fail", str(error))
    fit = f"{plan.experts.num_slots} of {plan.experts.num_experts} fit memory"
    speeds = ", ".join(f"{speed:.1f} for {count}" for count, speed in expert_speeds(plan, sample.rate).items())
    detail = f"{fit}; the disk reads {sample}: tokens/s at most, by clients: {speeds}"
    return Check("experts", "ok", detail)


def _files(settings: Settings) -> Iterator[Check]:
    """Check the files that flags name, where they are given, besides the model's; keys were read with the settings."""
    if settings.api_keys:
        yield Check("keys", "ok", f"clients must send one of {len(settings.api_keys)}")
    if settings.ssl_certfile is not None and settings.ssl_keyfile is not None:
        yield _certificate(settings.ssl_certfile, settings.ssl_keyfile)
    if settings.batch_dir is not None:
        yield _writable("batches", f"--batch-dir {settings.batch_dir}", partial(check_batch_dir, settings.batch_dir))
    if step_log := engine_config(settings, Path()).step_log:
        yield _writable("step log", f"--step-log {step_log}", partial(check_step_log, step_log))


def _certificate(certfile: Path, keyfile: Path) -> Check:
    try:
        found = check_certificate(certfile, keyfile)
    except CertificateError as error:
        return Check("certificate", "fail", str(error))
    if found.fault:
        return Check("certificate", "warn", found.fault)
    until = f" and is valid until {found.ends}" if found.ends else ""
    return Check("certificate", "ok", f"--ssl-certfile {certfile} has its key{until}")


def _writable(name: str, flag: str, check: Callable[[], None]) -> Check:
    """Return the result of `check`, which raises an error that names the flag if the file cannot be written."""
    try:
        check()
    except (EngineConfigError, StartError) as error:
        return Check(name, "fail", str(error))
    return Check(name, "ok", f"{flag} can be written")


def _port(settings: Settings) -> Check:
    try:
        listen_as(settings).close()
    except ListenError as error:
        return Check("port", "fail", str(error))
    if settings.uds is not None:
        settings.uds.unlink(missing_ok=True)
        return Check("port", "ok", f"a Unix socket at {settings.uds} can be made")
    return Check("port", "ok", f"{settings.host}:{settings.port} is free")


def _open_files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"limit of {soft:,}; each client takes one"
    if soft < MIN_OPEN_FILES:
        return Check("open files", "warn", detail, f"ulimit -n {MIN_OPEN_FILES}")
    return Check("open files", "ok", detail)
