"""`smoe doctor`: looks at everything that `smoe serve` needs, one finding each, and says what to do."""

import json
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.capacity.host_resources import available_bytes, format_bytes
from server.cli.plan import PlanError, answer
from server.engine_client.process import package_root
from server.http.listener import ListenError, listen
from server.model_location import ModelNotFoundError, locate_model, model_id
from server.settings import Settings, hub_cache_dir
from server.tokenizer.tokenizer import TokenizerError, load_tokenizer

PROBE = (sys.executable, "-m", "engine.startup.probe")
PROBE_TIMEOUT_S = 120.0  # torch's first import reads some hundred MB
MIN_OPEN_FILES = 4096  # each client is one
ROOMY_BYTES = 1 << 30

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `remedy` says what to do, where something is to be done."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str | None = None


def run_checks(settings: Settings) -> list[Check]:
    """What `smoe serve` would find with these settings."""
    return [_python(), *_engine(settings), _memory(), *_model(settings), _port(settings), _open_files()]


def as_json(findings: list[Check]) -> str:
    """`ok` is false where the server could not start."""
    is_ok = all(finding.verdict != "fail" for finding in findings)
    return json.dumps({"ok": is_ok, "findings": [asdict(finding) for finding in findings]}, indent=2)


def as_table(findings: list[Check]) -> str:
    """A line per finding, and one for each remedy."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<5} {finding.name:<12} {finding.detail}")
        if finding.remedy:
            lines.append(f"{'':<18} -> {finding.remedy}")
    return "\n".join([*lines, _verdict(findings)])


def _verdict(findings: list[Check]) -> str:
    num_failed = sum(finding.verdict == "fail" for finding in findings)
    if num_failed:
        return f"smoe serve would not start: {num_failed} of {len(findings)} checks failed"
    warned = any(finding.verdict == "warn" for finding in findings)
    return "smoe serve would start" + (", with what is said above" if warned else "")


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _engine(settings: Settings) -> Iterator[Check]:
    """What only the engine process can tell: torch, the GPUs, the native library."""
    try:
        ran = subprocess.run(
            PROBE, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False, cwd=package_root()
        )
    except subprocess.TimeoutExpired:
        yield Check("torch", "fail", f"did not load within {PROBE_TIMEOUT_S:.0f} s")
        return
    if ran.returncode:
        reason = (ran.stderr.strip().splitlines() or [f"ended with code {ran.returncode}"])[-1]
        yield Check("torch", "fail", f"does not load: {reason}", "install smoe again, into a fresh environment")
        return
    found = json.loads(ran.stdout)
    yield _torch(settings, found)
    yield _native(found)


def _torch(settings: Settings, found: dict[str, Any]) -> Check:
    gpus = ", ".join(found["gpus"]) or "no GPU"
    if settings.device == "cuda" and not found["gpus"]:
        return Check("torch", "fail", f"{found['torch_version']}; no GPU, and --device cuda asks for one")
    return Check("torch", "ok", f"{found['torch_version']}; {gpus}")


def _native(found: dict[str, Any]) -> Check:
    cores = f"{found['num_cores']} cores"
    if found["native_error"]:
        again = "install smoe again: it is built then"
        remedy = again if shutil.which("c++") else f"install a C++ compiler (Debian: apt-get install g++), then {again}"
        return Check("cpu", "warn", f"{cores}; the slow path: {found['native_error']}", remedy)
    return Check("cpu", "ok", f"{cores}; the native library runs {found['isas'][-1]} (of {', '.join(found['isas'])})")


def _memory() -> Check:
    free = available_bytes()
    detail = f"{format_bytes(free)} available to this process, by the machine and its cgroup"
    return Check("memory", "ok" if free >= ROOMY_BYTES else "warn", detail)


def _model(settings: Settings) -> Iterator[Check]:
    """The files: there, whole as far as their headers tell, small enough, and with a tokenizer."""
    name = model_id(settings.model)
    try:
        directory = locate_model(settings.model, hub_cache_dir())
        planned = answer(settings, None)
    except (ModelNotFoundError, PlanError) as error:
        yield Check("model", "fail", str(error))
        return
    size = format_bytes(planned.plan.weight_bytes)
    verdict: Verdict = "ok" if planned.fitting else "fail"
    detail = f"{name}: {planned.plan.total_parameters:,} parameters, {size} in {planned.plan.dtype}; {planned.verdict}"
    yield Check("model", verdict, detail, None if planned.fitting else "`smoe plan` shows what would fit")
    try:
        tokenizer = load_tokenizer(directory)
    except TokenizerError as error:
        yield Check("tokenizer", "fail", str(error))
        return
    template = (
        "its own chat template" if tokenizer.chat_template else "Mistral's chat format by its tokenizer's version"
    )
    yield Check("tokenizer", "ok", f"{len(tokenizer.vocabulary().tokens):,} tokens, {template}")


def _port(settings: Settings) -> Check:
    try:
        listen(settings.host, settings.port).close()
    except ListenError as error:
        return Check("port", "fail", str(error))
    return Check("port", "ok", f"{settings.host}:{settings.port} is free")


def _open_files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft:,} at once; each client takes one"
    if soft < MIN_OPEN_FILES:
        return Check("open files", "warn", detail, f"ulimit -n {MIN_OPEN_FILES}")
    return Check("open files", "ok", detail)
